"""A cell's numbers, worked out by hand."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from pydantic import ValidationError
from sweep_estimates import known

from charengine.config import SweepSettings
from charengine.likeness.metrics import CellScores, Scale
from charengine.records import CellMetrics
from charengine.stages.sweep.summary import overbaked, summarise, with_certainty


def scores(*, identity, adherence, margin, diversity, copying, leak, class_identity) -> CellScores:
    """Two prompts of three seeds, all alike."""
    grid = torch.ones(2, 3)
    return CellScores(
        identity=identity * grid,
        adherence=adherence * grid,
        margin=margin * grid,
        diversity=diversity * torch.ones(2),
        copying=copying * grid,
        leak=leak * grid,
        class_identity=class_identity * grid,
    )


BASE = scores(identity=0.4, adherence=0.3, margin=0.1, diversity=0.2, copying=0.1, leak=0.05, class_identity=0.3)
CELL = scores(identity=0.7, adherence=0.27, margin=0.09, diversity=0.15, copying=0.35, leak=0.25, class_identity=0.45)
DETAILS = ("gain", "kept", "margin", "diversity_kept", "background_leak", "class_leak")
SETTINGS = SweepSettings(adherence_floor=0.5, diversity_floor=0.5)
SCALE = Scale(base=BASE, ceiling=0.8)


def test_a_cell_is_measured_on_the_scale_from_the_base_model_to_the_sheet() -> None:
    cell = summarise(CELL, SCALE, 200, 0.6)
    assert (cell.checkpoint_step, cell.strength, cell.images) == (200, 0.6, 6)
    told = {name: getattr(cell, name) for name in ("identity", "adherence", "diversity", "copying", "score")}
    assert told == pytest.approx(
        {"identity": 0.7, "adherence": 0.27, "diversity": 0.15, "copying": 0.35, "score": 2 * 0.75 * 0.9 / 1.65}
    )
    assert {name: getattr(cell, name) for name in DETAILS} == pytest.approx(
        {
            "gain": 0.75,  # of the way from 0.4 to 0.8
            "kept": 0.9,
            "margin": 0.09,
            "diversity_kept": 0.75,
            "background_leak": 0.2,  # more than the base model
            "class_leak": 0.15,
        }
    )


def cell(step: int, strength: float, gain: float = 0.5, kept: float = 0.8) -> CellMetrics:
    return CellMetrics(
        checkpoint_step=step,
        strength=strength,
        identity=0.5,
        adherence=0.3,
        diversity=0.2,
        copying=0.1,
        score=0.5,
        images=6,
        gain=gain,
        kept=kept,
        diversity_kept=1.0,
    )


def test_bounds_are_the_middle_nine_tenths_and_wins_are_counted() -> None:
    cells = [cell(100, 0.5, 0.7, 0.9), cell(100, 1.0, 0.6, 0.9)]
    found = known(cells, SETTINGS)
    rounds = torch.arange(101, dtype=torch.float64) / 100
    scores = torch.stack([torch.zeros(101).double(), rounds, torch.full((101,), 0.245).double()], dim=1)
    found = replace(found, scores=scores)
    sure = with_certainty(dict(enumerate(cells, start=1)), found)
    better, worse = sure[1], sure[2]
    assert better.score_low == pytest.approx(0.05)
    assert better.score_high == pytest.approx(0.95)
    assert worse.score_low == worse.score_high == pytest.approx(0.245)
    assert better.wins == pytest.approx(76 / 101) and worse.wins == pytest.approx(25 / 101)
    assert (better.on_front, worse.on_front) == (True, False)
    assert better.gain == 0.7
    assert better.smoothed is not None and better.smoothed.gain == pytest.approx(0.7)


def test_bounds_that_are_no_numbers_are_refused() -> None:
    cells = [cell(100, 0.5, 0.7, 0.9), cell(100, 1.0, 0.6, 0.9)]
    found = known(cells, SETTINGS)
    found = replace(found, scores=torch.full((101, 3), float("nan"), dtype=torch.float64))
    with pytest.raises(ValidationError, match=r"score_low\n.*finite number"):
        with_certainty(dict(enumerate(cells, start=1)), found)


def test_overbaked_is_the_last_checkpoint_at_the_strength_nearest_to_one() -> None:
    cells = [cell(100, 1.0), cell(200, 0.4), cell(200, 0.9), cell(200, 1.3)]
    assert overbaked(cells, 200) == cells[2]
