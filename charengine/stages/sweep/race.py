"""Which pictures to draw next: a few cells first, then those that may still be the best.

A unit is every prompt of the sweep with one seed in one cell; seeds are taken in the same order everywhere, so that cells
are compared on the same prompts and noise. After each round the axes are smoothed over the whole grid, and the next pictures
go to the cell most likely to be the best and to its strongest rival (top-two sampling: Russo, Simple Bayesian Algorithms
for Best-Arm Identification, 2016). Cells without a chance get no more pictures. The race ends when no other cell is expected
to score higher, or with the budget.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch

from charengine.config import SweepSettings
from charengine.stages.sweep.budget import SEEDS_TO_PICK, base_seeds
from charengine.stages.sweep.estimate import BASE, Estimate, Grid

DECIDED = 0.002  # score: another cell is not expected to be better by more than this
AT_ONCE = 2  # units of a round after the opening: the leader and its rival
MIDDLE = 0.6  # the lower strength of the opening, if it is in the grid


@dataclass(frozen=True)
class Unit:
    """Pictures to draw: every prompt with these seeds (their indices) in one cell of the grid."""

    cell: int
    seeds: tuple[int, ...]


def plan_round(
    grid: Grid, drawn: Mapping[int, int], settings: SweepSettings, prompts: int, known: Callable[[], Estimate]
) -> list[Unit]:
    """What to draw next, strength 0 first; nothing when the sweep is complete.

    Args:
        grid: every cell, strength 0 first.
        drawn: seeds drawn in each cell so far.
        settings: design, budget, seeds.
        prompts: pictures of a unit of one seed.
        known: the estimate from what was drawn; asked for after the first round only.
    """
    base = Unit(BASE, tuple(range(base_seeds(settings))))
    if settings.design == "grid":
        units = whole_grid(grid, settings)
    else:
        units = opening(grid)[: units_left(settings, prompts, {BASE: len(base.seeds)})]
    missing = [unit for unit in (base, *units) if drawn.get(unit.cell, 0) < len(unit.seeds)]
    if missing or settings.design == "grid":
        return missing
    return next_round(known(), drawn, settings, units_left(settings, prompts, drawn))


def whole_grid(grid: Grid, settings: SweepSettings) -> list[Unit]:
    """Every cell with every seed."""
    return [Unit(cell, tuple(range(settings.seeds))) for cell in range(1, len(grid))]


def most_pictures(grid: Grid, settings: SweepSettings, prompts: int) -> int:
    """How many a sweep may draw: every cell with every seed, of a race no more than its budget."""
    every = (base_seeds(settings) + (len(grid) - 1) * settings.seeds) * prompts
    return every if settings.design == "grid" else min(every, settings.pictures)


def units_left(settings: SweepSettings, prompts: int, drawn: Mapping[int, int]) -> int:
    """Units of one seed that the budget still allows; `drawn` counts the seeds of each cell, strength 0 included."""
    return (settings.pictures - prompts * sum(drawn.values())) // prompts


def opening(grid: Grid) -> list[Unit]:
    """The first round, the most telling cells first: the last checkpoint from low to high, earlier ones at full strength."""
    cells = {place: index for index, place in enumerate(grid) if index != BASE}
    steps = sorted({step for step, _ in cells})
    strengths = sorted({strength for _, strength in cells})
    full, low = (min(strengths, key=lambda s: abs(s - wanted)) for wanted in (1.0, MIDDLE))
    first, middle, last, top = steps[0], steps[(len(steps) - 1) // 2], steps[-1], strengths[-1]
    wanted = [(last, full), (last, top), (middle, top), (last, low), (first, full), (first, top)]
    return [Unit(cells[place], (0,)) for place in dict.fromkeys(wanted)]


def next_round(found: Estimate, drawn: Mapping[int, int], settings: SweepSettings, left: int) -> list[Unit]:
    """The next pictures; none when the race is decided or the budget is spent.

    Args:
        found: what is known so far.
        drawn: seeds drawn in each cell, strength 0 included.
        settings: how many seeds a cell may have.
        left: units that the budget allows.
    """
    cells = range(1, len(found.score))
    least = min(SEEDS_TO_PICK, settings.seeds)
    # one seed can be half an adherence off: a floor is missed when as many seeds show it as a pick needs
    once = torch.tensor([drawn.get(cell, 0) < least for cell in range(len(found.score))])
    found = replace(found, passing=found.passing | once)
    chances = found.chances(cells)
    leader = int(chances.argmax())
    known = drawn.get(leader, 0) >= least
    if left <= 0 or (known and found.expected_loss(leader, cells) <= DECIDED):
        return []
    alive = [cell for cell in chances.argsort(descending=True, stable=True).tolist() if chances[cell] > 0]
    wanted = [cell for cell in alive if drawn.get(cell, 0) < settings.seeds]
    if left == 1 and not known:
        wanted = [leader]
    return [Unit(cell, (drawn.get(cell, 0),)) for cell in wanted[: min(left, AT_ONCE)]]
