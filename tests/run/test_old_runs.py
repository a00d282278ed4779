"""Runs that 0.1.0 wrote open here: their record held what today's does not."""

from __future__ import annotations

import json
from pathlib import Path

from run_samples import sample_run

from charengine.profiles.loading import load_profile
from charengine.run.earlier_runs import sweep_inputs
from charengine.run.folder import read_run
from charengine.stages.report.compare import compare_text
from charengine.stages.report.page import render
from charengine.store import Store


def as_written_by_0_1_0(store: Store, folder: Path) -> Path:
    """A run's folder with the record as 0.1.0 wrote it: the views a second time."""
    run = json.loads(sample_run(store).model_dump_json())
    folder.mkdir()
    (folder / "run.json").write_text(json.dumps({**run, "views": run["dataset"]["views"]}), encoding="utf-8")
    return folder


def test_an_old_run_opens_compares_reports_and_sweeps(tmp_path: Path) -> None:
    store = Store(tmp_path / "store")
    folder = as_written_by_0_1_0(store, tmp_path / "grisha")
    run = read_run(folder)
    assert run == sample_run(store)
    assert "picked strength" in compare_text([run, run])
    assert run.name in render(run, store)
    training, dataset = sweep_inputs(folder, store, load_profile("embedded"))
    assert (training, dataset) == (run.training, run.dataset)
