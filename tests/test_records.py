"""Records of earlier runs are still read."""

from __future__ import annotations

import pytest
from pydantic import ValidationError

from charengine.records import CellMetrics, SweepRecord, picture_name

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


def test_a_pictures_name_says_step_strength_prompt_and_seed() -> None:
    assert picture_name(300, 1.0, 2, 43) == "300/1/2/43"
    assert picture_name(0, 0.0, 0, 7) == "0/0/0/7"


def test_an_earlier_sweep_has_no_verdict() -> None:
    assert SweepRecord.model_fields["verdict"].default is None
