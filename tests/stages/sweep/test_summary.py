"""A cell's numbers, worked out by hand."""

from __future__ import annotations

import pytest
import torch

from charengine.likeness.metrics import CellScores, Scale
from charengine.records import CellMetrics
from charengine.stages.sweep.summary import overbaked, summarise, with_bounds


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
SCALE = Scale(base=BASE, ceiling=0.8)


def test_a_cell_is_measured_on_the_scale_from_the_base_model_to_the_sheet() -> None:
    cell = summarise(CELL, SCALE, 200, 0.6)
    assert (cell.checkpoint_step, cell.strength, cell.images) == (200, 0.6, 6)
    told = {name: getattr(cell, name) for name in ("identity", "adherence", "diversity", "copying", "score")}
    assert told == pytest.approx(
        {"identity": 0.7, "adherence": 0.27, "diversity": 0.15, "copying": 0.35, "score": 2 * 0.75 * 0.9 / 1.65}
    )
    assert cell.detail == pytest.approx(
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
        detail={"gain": gain, "kept": kept},
    )


def test_bounds_are_the_middle_nine_tenths_and_wins_are_counted() -> None:
    rounds = torch.arange(101) / 100
    other = torch.full((101,), 0.245)
    better, worse = with_bounds([cell(100, 0.5, 0.7, 0.9), cell(100, 1.0)], torch.stack([rounds, other]))
    assert better.detail["score_low"] == pytest.approx(0.05)
    assert better.detail["score_high"] == pytest.approx(0.95)
    assert worse.detail["score_low"] == worse.detail["score_high"] == pytest.approx(0.245)
    assert better.detail["wins"] == pytest.approx(76 / 101) and worse.detail["wins"] == pytest.approx(25 / 101)
    assert (better.detail["on_front"], worse.detail["on_front"]) == (1.0, 0.0)
    assert better.detail["gain"] == 0.7


def test_overbaked_is_the_last_checkpoint_at_the_strength_nearest_to_one() -> None:
    cells = [cell(100, 1.0), cell(200, 0.4), cell(200, 0.9), cell(200, 1.3)]
    assert overbaked(cells, 200) == cells[2]
