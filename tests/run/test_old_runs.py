"""Runs that 0.1.0 wrote open here: their record held what today's does not.

`made_by_0_1_0.json.gz` holds, byte for byte, the run.json that commit 0f64d2c wrote at the end of a run of four steps on the embedded family
(`charengine run … --sheet FILE --set train.steps=4 --set train.rank=1 --set sweep.strengths=[0.5, 1.0] …`). Its pictures and
adapters would be half a megabyte; where they are looked at, small ones stand in for them.
"""

from __future__ import annotations

import gzip
import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
from run_samples import doll, png

from charengine.config import Character
from charengine.profiles.loading import load_profile
from charengine.records import CellMetrics, RunRecord
from charengine.run.claim import others_run
from charengine.run.earlier_runs import character_name, description, sweep_inputs
from charengine.run.folder import read_run
from charengine.services.gallery.trying import pictures_of, settings_of
from charengine.stages.report.compare import compare_text
from charengine.stages.report.page import render
from charengine.store import Store

SAMPLE = Path(__file__).parent / "made_by_0_1_0.json.gz"
WRITTEN = "f02bb627c493ced0"  # its SHA-256 begins so: a formatter or an editor that touches it is noticed
STAND_INS = {
    "image/png": png(doll()),
    "image/webp": png(doll((64, 64))),
    "text/csv": b"step,loss,smoothed,learning_rate\n1,0.1,0.1,0.001\n2,0.09,0.1,0.001\n",
    "application/x-safetensors": b"adapter",
}


@pytest.fixture(scope="module")
def written() -> dict[str, Any]:
    """The old record as JSON."""
    return dict(json.loads(gzip.decompress(SAMPLE.read_bytes())))


@pytest.fixture(scope="module")
def old(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The old run's folder."""
    folder = tmp_path_factory.mktemp("old")
    (folder / "run.json").write_bytes(gzip.decompress(SAMPLE.read_bytes()))
    return folder


def with_stand_ins(value: Any, store: Store) -> Any:
    """The same record with small pictures and files that are in the store."""
    if isinstance(value, dict) and "sha256" in value:
        return json.loads(
            store.put(STAND_INS[value["media_type"]], value["name"], value["media_type"]).model_dump_json()
        )
    if isinstance(value, dict):
        return {key: with_stand_ins(item, store) for key, item in value.items()}
    return [with_stand_ins(item, store) for item in value] if isinstance(value, list) else value


def test_the_record_is_as_it_was_written(written: dict[str, Any]) -> None:
    assert hashlib.sha256(gzip.decompress(SAMPLE.read_bytes())).hexdigest().startswith(WRITTEN)
    assert written["views"] == written["dataset"]["views"]  # held twice
    assert "scale" in written["views"]["views"][0]["facts"] and "scale" not in written["views"]["views"][0]
    assert "gain" in written["sweep"]["cells"][0]["detail"] and "gain" not in written["sweep"]["cells"][0]
    assert not {"words", "verdict"} & set(written["sweep"])


def test_every_number_and_name_of_an_old_run_is_read_where_it_stands_today(old: Path, written: dict[str, Any]) -> None:
    run = read_run(old)
    assert read_run(old / "run.json") == run
    assert (run.name, run.trigger, run.class_noun, run.recommended_prompt) == (
        "Grisha",
        "griqul",
        "orc woman",
        "griqul orc woman",
    )
    assert [view.scale for view in run.views.views] == [view["facts"]["scale"] for view in written["views"]["views"]]
    for cell, had in zip(run.sweep.cells, written["sweep"]["cells"], strict=True):
        there = {**had, **had["detail"]}
        del there["detail"]
        assert {name: getattr(cell, name) for name in there} == there
        assert set(there) <= set(CellMetrics.model_fields) and cell.smoothed is None
    assert json.loads(run.training.model_dump_json()) == written["training"]
    assert [fact.key for fact in run.stages] == [fact["key"] for fact in written["stages"]]
    assert run.config == written["config"] and run.sweep.verdict is None and run.sweep.words is None
    assert RunRecord.model_validate_json(run.model_dump_json()) == run


def test_an_old_run_is_compared_reported_and_swept_again(tmp_path: Path, old: Path, written: dict[str, Any]) -> None:
    store, folder = Store(tmp_path / "store"), tmp_path / "grisha"
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps(with_stand_ins(written, store)))
    run = read_run(folder)
    table = compare_text([read_run(old), run])
    assert "picked strength" in table and "Grisha" in table
    page = render(run, store)
    assert "Grisha" in page and "the picked adapter barely moves the base model" in page
    training, dataset = sweep_inputs(folder, store, load_profile("embedded"))
    assert (training, dataset) == (run.training, run.dataset)
    assert (character_name(folder), description(folder)) == ("Grisha", "an orc woman with red hair and a blue coat")


def test_an_old_runs_settings_are_taken_for_more_pictures_of_it(old: Path, written: dict[str, Any]) -> None:
    run = read_run(old)
    base, overrides = settings_of(run)
    had, found = written["config"]["profile"]["sweep"], load_profile(base, overrides).sweep.model_dump(mode="json")
    assert had["strengths"] == [0.5, 1.0] and {name: found[name] for name in had if name in found} == {
        name: value for name, value in had.items() if name in found
    }
    shown = pictures_of(run, [])
    assert (shown.steps, shown.strengths, shown.seeds) == ([4], [0.0, 0.5, 1.0], [42])


def test_an_old_runs_folder_is_its_characters_and_no_other_prompts(old: Path) -> None:
    prompt = "an orc woman with red hair and a blue coat"
    assert others_run(old, Character(name="Grisha", prompt=prompt)) == ""
    assert "holds the run of 'grisha'" in others_run(old, Character(name="Grisha", prompt="a robot"))
