"""Over, under or right, on cells whose numbers are known."""

from __future__ import annotations

from sweep_estimates import known
from test_pick import cell

from charengine.config import SweepSettings
from charengine.records import CellMetrics, Verdict
from charengine.stages.sweep.verdict import LITTLE, judge_training, unless_it_barely_moves

SETTINGS = SweepSettings()


def verdict(*cells: CellMetrics, noise: float = 0.0) -> Verdict:
    grid = [(0, 0.0), *((cell.checkpoint_step, cell.strength) for cell in cells)]
    return judge_training(grid, known(cells, SETTINGS, noise), SETTINGS)


def test_a_lower_strength_that_scores_more_than_full_strength_means_overfit() -> None:
    found = verdict(cell(300, 0.8, 0.85, 0.97), cell(300, 1.0, 0.80, 0.93), cell(300, 1.2, 0.78, 0.9))
    assert found.kind == "over"
    assert found.change is not None and 0.04 < found.change < 0.06
    assert "below that of strength 0.8" in found.line and "fewer steps" in found.line


def test_adherence_below_its_floor_at_full_strength_means_overfit_whatever_the_score() -> None:
    found = verdict(cell(300, 0.8, 0.60, 0.97), cell(300, 1.0, 0.95, 0.88))
    assert found.kind == "over" and "adherence is 88%" in found.line


def test_a_best_cell_in_the_last_corner_with_a_rising_score_means_undertrained() -> None:
    found = verdict(*(cell(step, s, gain * s, 0.98) for step, gain in ((40, 0.3), (60, 0.4)) for s in (1.0, 1.4)))
    assert found.kind == "under"
    assert "the most steps (60) at the highest strength (1.4) score best" in found.line
    assert "more than 40 steps" in found.line and "train.steps=120" in found.line


def test_a_best_cell_in_the_last_corner_that_no_longer_rises_is_right() -> None:
    found = verdict(*(cell(step, s, gain * s, 0.98) for step, gain in ((200, 0.6), (300, 0.605)) for s in (1.0, 1.4)))
    assert found.kind == "right"
    assert "the last steps, from 200 to 300, added 0.0" in found.line


def test_a_best_cell_inside_the_grid_is_right_and_named() -> None:
    found = verdict(cell(200, 1.0, 0.7, 0.97), cell(300, 1.0, 0.85, 0.97), cell(300, 1.4, 0.8, 0.92))
    assert found.kind == "right" and "training" in found.line and "strength 1 of step 300, lies within" in found.line


def test_the_highest_strength_that_was_tried_is_not_said_to_lie_within() -> None:
    rows = ((200, 1.0, 0.6), (200, 1.4, 0.85), (300, 1.0, 0.7), (300, 1.4, 0.7))
    found = verdict(*(cell(step, strength, gain, 0.97) for step, strength, gain in rows))
    assert found.kind == "right" and "strength 1.4 of step 200, has the highest strength that was tried" in found.line


def test_a_pick_that_barely_moves_the_base_model_is_undertrained_not_right() -> None:
    right = verdict(cell(200, 1.0, 0.7, 0.97), cell(300, 1.0, 0.85, 0.97), cell(300, 1.4, 0.8, 0.92))
    assert unless_it_barely_moves(right, cell(300, 1.0, LITTLE + 0.01, 0.97)) is right
    found = unless_it_barely_moves(right, cell(300, 1.0, LITTLE - 0.01, 0.97))
    assert found.kind == "under" and "0.24 of the way" in found.line and "Train on" in found.line
    over = verdict(cell(300, 0.8, 0.85, 0.97), cell(300, 1.0, 0.80, 0.93), cell(300, 1.2, 0.78, 0.9))
    assert unless_it_barely_moves(over, cell(300, 1.0, 0.0, 0.97)) is over


def test_a_single_checkpoint_is_never_called_undertrained() -> None:
    assert verdict(cell(60, 1.0, 0.3, 0.98), cell(60, 1.4, 0.5, 0.98)).kind == "right"


def test_a_lower_strength_that_may_as_well_not_be_better_is_no_overfit() -> None:
    cells = (cell(300, 0.8, 0.85, 0.97), cell(300, 1.0, 0.82, 0.95), cell(300, 1.2, 0.78, 0.93))
    assert verdict(*cells, noise=0.002).kind == "over"
    assert verdict(*cells, noise=0.05).kind == "right"


def test_adherence_that_may_as_well_be_above_its_floor_is_no_overfit() -> None:
    cells = (cell(300, 0.8, 0.60, 0.97), cell(300, 1.0, 0.95, 0.88))
    assert verdict(*cells, noise=0.005).kind == "over"
    assert verdict(*cells, noise=0.05).kind == "right"


def test_a_rise_that_is_less_likely_than_not_is_no_undertraining() -> None:
    cells = [cell(step, s, gain * s, 0.98) for step, gain in ((40, 0.55), (60, 0.61)) for s in (1.0, 1.4)]
    assert verdict(*cells, noise=0.001).kind == "under"
    assert verdict(*cells, noise=0.2).kind == "right"
