"""The tables that a record shows in a notebook: each number stands under its own name."""

from __future__ import annotations

from pathlib import Path

import pytest
from run_samples import sample_extra, sample_run

from charengine.records import ExpansionRecord, RunRecord
from charengine.stages.report.notebook import page_of
from charengine.store import Store

NAMES = ("identity", "adherence", "diversity", "copying", "score")


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    return sample_run(Store(tmp_path / "store"))


def test_a_cells_scores_stand_under_their_names(run: RunRecord) -> None:
    scores = dict(zip(NAMES, (0.11, 0.22, 0.33, 0.44, 0.55), strict=True))
    cell = run.sweep.cells[-1].model_copy(update=scores)
    (row,) = page_of(run.sweep.model_copy(update={"cells": (cell,)})).rows
    assert (row["step"], row["strength"]) == (cell.checkpoint_step, f"{cell.strength:g}")
    assert {name: float(str(row[name])) for name in NAMES} == scores


def test_a_checkpoints_losses_stand_under_their_names(run: RunRecord) -> None:
    one = run.training.checkpoints[-1].model_copy(update={"loss": 0.125, "validation_loss": 0.25})
    (row,) = page_of(run.training.model_copy(update={"checkpoints": (one,)})).rows
    assert (row["step"], float(str(row["loss"])), float(str(row["validation loss"]))) == (one.step, 0.125, 0.25)


def test_a_further_views_identity_stands_beside_what_was_asked(run: RunRecord) -> None:
    view = sample_extra(run.sheet.image, identity=0.25, threshold=0.75)
    page = page_of(ExpansionRecord(views=(view,)))
    assert page.rows == ({"view": "pose-1", "fate": "refused", "identity": "0.250", "at least": "0.750"},)
    assert page.facts["kept"] == "0 of 1"
