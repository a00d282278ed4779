"""Records of earlier runs are still read."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from functools import reduce
from pathlib import Path
from typing import Any

import pytest
from pydantic import ValidationError
from run_samples import sample_extra, sample_run

from charengine.records import (
    CellMetrics,
    CheckpointRecord,
    ExpansionRecord,
    LossPoint,
    Ref,
    RunRecord,
    SweepRecord,
    picture_name,
)
from charengine.store import Store

EARLIER = {
    "checkpoint_step": 225, "strength": 0.6, "identity": 0.61, "adherence": 0.29, "diversity": 0.11, "copying": 0.2,
    "score": 0.8, "images": 8, "mlflow_run_id": None,
    "detail": {
        "gain": 0.7, "kept": 0.95, "margin": 0.14, "diversity_kept": 0.8, "background_leak": 0.01, "score_low": 0.6,
        "score_high": 0.9, "wins": 0.25, "on_front": 1.0,
    },
}  # fmt: skip


def test_numbers_that_an_earlier_record_kept_in_a_dictionary_are_fields_now() -> None:
    cell = CellMetrics.model_validate(EARLIER)
    assert (cell.gain, cell.kept, cell.diversity_kept, cell.margin) == (0.7, 0.95, 0.8, 0.14)
    assert (cell.score_low, cell.score_high, cell.wins, cell.on_front) == (0.6, 0.9, 0.25, True)
    assert cell.class_leak is None and cell.smoothed is None and cell.known is cell
    assert CellMetrics.model_validate_json(cell.model_dump_json()) == cell


def test_an_unknown_number_is_still_refused() -> None:
    with pytest.raises(ValidationError, match="sharpness"):
        CellMetrics.model_validate({**EARLIER, "detail": {**EARLIER["detail"], "sharpness": 1.0}})


def numbers_in(value: Any, place: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    """Where the measured numbers of a dumped record stand; the settings have limits of their own."""
    if isinstance(value, float):
        yield place
    inside = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, item in inside:
        yield from numbers_in(item, (*place, key)) if key != "config" else ()


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_no_record_of_a_run_holds_a_measured_number_that_is_none(tmp_path: Path, number: float) -> None:
    data = sample_run(Store(tmp_path)).model_dump(mode="json")
    data["sheet"]["gate"] = {"facts": {"height_spread": 0.1}}
    RunRecord.model_validate(data)
    places = list(numbers_in(data))
    assert {place[-1] for place in places} >= {
        "loss",
        "front",
        "low",
        "identity",
        "score",
        "strength",
        "seconds",
        "height_spread",
    }
    for place in places:
        wrong = copy.deepcopy(data)
        reduce(lambda inner, key: inner[key], place[:-1], wrong)[place[-1]] = number
        with pytest.raises(ValidationError, match="finite number"):
            RunRecord.model_validate(wrong)
        if "gate" not in place:
            with pytest.raises(ValidationError, match="finite number"):
                RunRecord.model_validate_json(json.dumps(wrong))


def test_what_nobody_measured_is_none() -> None:
    found = CheckpointRecord(step=1, adapter=Ref(sha256="0" * 64, size=1, media_type="", name=""))
    assert (found.loss, found.validation_loss) == (None, None)
    assert CheckpointRecord.model_validate_json(found.model_dump_json()) == found
    for loss in ("NaN", "Infinity", float("nan")):
        with pytest.raises(ValidationError, match="loss"):
            CheckpointRecord.model_validate({**found.model_dump(), "loss": loss})
    with pytest.raises(ValidationError, match="loss"):
        LossPoint(step=1, loss=float("nan"))


def test_a_pictures_name_says_step_strength_prompt_and_seed() -> None:
    assert picture_name(300, 1.0, 2, 43) == "300/1/2/43"
    assert picture_name(0, 0.0, 0, 7) == "0/0/0/7"


def test_an_earlier_sweep_has_no_verdict() -> None:
    assert SweepRecord.model_fields["verdict"].default is None


def test_more_views_are_kept_unless_refused_and_trained_on_unless_held_out(tmp_path: Path) -> None:
    run = sample_run(Store(tmp_path))
    fates = ("refused", "trained", "held out")
    views = tuple(sample_extra(run.views.views[0].image, view=fate.replace(" ", "-"), fate=fate) for fate in fates)
    kept = ExpansionRecord(views=views).kept
    dataset = run.dataset.model_copy(update={"extras": kept})
    told = [[extra.view for extra in one] for one in (kept, dataset.trained_extras, dataset.held_out)]
    assert told == [["trained", "held-out"], ["trained"], ["held-out"]]
