"""What the pictures of a few prompts allow one to say of adherence."""

from __future__ import annotations

import torch

from charengine.config import SweepSettings
from charengine.likeness.metrics import CellScores, Scale
from charengine.stages.sweep.estimate import BASE, Estimate, estimate

GRID = ((0, 0.0), (300, 1.0))


def known(kept: float, prompts: int) -> Estimate:
    """One cell, four seeds; every prompt and seed keeps the same share of strength 0's adherence."""
    base = scores(1.0, prompts)
    seen = {BASE: base, 1: scores(kept, prompts)}
    return estimate(GRID, seen, Scale(base, ceiling=1.0), SweepSettings(), torch.Generator().manual_seed(0))


def scores(margin: float, prompts: int) -> CellScores:
    even = torch.ones(prompts, 4)
    nan = torch.full((prompts, 4), float("nan"))
    return CellScores(
        identity=0.5 * even, adherence=margin * even, margin=margin * even, diversity=nan[:, 0], copying=nan, leak=nan,
        class_identity=nan,
    )  # fmt: skip


def test_four_prompts_disqualify_no_cell_that_barely_misses_the_floor_with_them() -> None:
    assert bool(known(0.86, prompts=4).passing[1])
    assert not bool(known(0.86, prompts=400).passing[1])


def test_four_prompts_disqualify_a_cell_that_has_forgotten_its_prompts() -> None:
    assert not bool(known(0.6, prompts=4).passing[1])
