"""The recommended checkpoint and strength: the best smoothed score above the floors, milder only where that costs nothing.

Choosing was measured against truth (docs/lab-notes.md): cells scored alone by a few pictures are mostly noise, and a rule
that prefers the milder cell within one standard error pays for it with identity. So the score is made from likeness
(identity and described traits) and adherence smoothed over strength and step, and a milder cell is taken only when the
pictures show that no likeness is lost.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch

from charengine.config import SweepSettings
from charengine.records import CellMetrics
from charengine.stages.sweep.estimate import COPY_LIMIT, Estimate
from charengine.stages.sweep.verdict import LITTLE

NIL = 0.01  # of the way from base model to sheet: less likeness than this is none
SURE = 0.95  # how often a loss must stay below NIL to be called none


@dataclass(frozen=True)
class Choice:
    """Index of the picked cell in the grid, why, what to be careful about, and what the best cell may score above it."""

    index: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    expected_loss: float = 0.0


def choose(cells: Mapping[int, CellMetrics], found: Estimate, settings: SweepSettings) -> Choice:
    """Pick one of the cells that were drawn.

    Args:
        cells: those drawn at a strength above 0, by index into the estimate's grid, with their smoothed numbers.
        found: what is known of the whole grid.
        settings: the floors.

    Returns:
        The pick. When no cell passes the floors it is the least bad one and carries a warning.
    """
    passing = [i for i, cell in cells.items() if not complaints(cell, settings)]
    if not passing:
        return _least_bad(cells, settings)
    best = max(passing, key=lambda i: (cells[i].known.score, *_mildness(cells[i])))
    index = max((i for i in passing if i == best or _costs_nothing(found, i, best)), key=lambda i: _mildness(cells[i]))
    loss = found.expected_loss(index, passing)
    reasons = [describe(cells[index]), _how_sure(cells, found, index, passing, loss)]
    if index != best:
        reasons.append(
            f"{name(cells[best])} scores {cells[best].known.score:.2f} but shows no more of the character: in {SURE:.0%} of "
            f"what the pictures allow, by less than {NIL:g}"
        )
    if (top := cells[index].strength) == max(cell.strength for cell in cells.values()):
        reasons.append(
            f"no strength above {top:g} was drawn (see sweep.strengths): one might show more of the character"
        )
    reasons += [
        f"{describe(cells[i])}: {'; '.join(complaints(cells[i], settings))}" for i in _tempting(cells, index, passing)
    ]
    return Choice(index, tuple(reasons), (*_near_the_floor(cells[index], settings), *_doubts(cells[index])), loss)


def complaints(cell: CellMetrics, settings: SweepSettings) -> list[str]:
    """What disqualifies a cell, in words; empty when nothing does. A floor is missed when the pictures show it."""
    found = []
    kept, variety, copying = _at_best(cell)
    if kept < settings.adherence_floor:
        found.append(f"adherence below the floor of {settings.adherence_floor:.0%}")
    if variety is not None and variety < settings.diversity_floor:
        found.append(f"diversity {cell.known.diversity_kept:.0%}, below the floor of {settings.diversity_floor:.0%}")
    if copying is not None and copying > COPY_LIMIT:
        found.append(f"scenes copy a training view (correlation {cell.known.copying:.2f})")
    return found


def _at_best(cell: CellMetrics) -> tuple[float, float | None, float | None]:
    """Adherence and variety kept and copying, as good as the pictures allow."""
    seen = cell.smoothed
    if seen is None:
        return cell.kept, cell.diversity_kept, cell.copying
    return seen.kept_most, seen.diversity_most, seen.copying_least


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats on one axis without losing on the other."""
    return [i for i, (x, y) in enumerate(points) if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)]


def name(cell: CellMetrics) -> str:
    """ "strength 0.6 of step 225"."""
    return f"strength {cell.strength:g} of step {cell.checkpoint_step}"


def describe(cell: CellMetrics) -> str:
    """A cell with its two numbers, in words."""
    return (
        f"{name(cell)}: likeness {cell.known.gain:.2f} of the way from the base model to the sheet's own views, "
        f"adherence {cell.known.kept:.0%} of the base model's"
    )


def _mildness(cell: CellMetrics) -> tuple[float, int]:
    """Lower strength first, then the earlier checkpoint."""
    return -cell.strength, -cell.checkpoint_step


def _costs_nothing(found: Estimate, cell: int, best: int) -> bool:
    """Whether the pictures show that a cell loses neither likeness nor score against the best one."""
    lost = torch.maximum(found.gains[:, best] - found.gains[:, cell], found.scores[:, best] - found.scores[:, cell])
    return float((lost <= NIL).double().mean()) >= SURE


def _how_sure(
    cells: Mapping[int, CellMetrics], found: Estimate, index: int, passing: Sequence[int], loss: float
) -> str:
    pictures = sum(cell.images for cell in cells.values())
    chance = float(found.chances(passing)[index])
    low, high = found.bounds(index)
    return (
        f"its score is {cells[index].known.score:.2f} (90 % bounds {low:.2f} to {high:.2f}), from {pictures} pictures of {len(cells)} cells smoothed over "
        f"strength and step; the chance that none of these cells is better is {chance:.0%}, and the best is expected to "
        f"score {loss:.3f} more"
    )


def _least_bad(cells: Mapping[int, CellMetrics], settings: SweepSettings) -> Choice:
    def shortfall(cell: CellMetrics) -> float:
        kept, variety, copying = _at_best(cell)
        adherence = max(0.0, settings.adherence_floor - kept)
        spread = 0.0 if variety is None else max(0.0, settings.diversity_floor - variety)
        return adherence + spread + (0.0 if copying is None else max(0.0, copying - COPY_LIMIT))

    index = max(cells, key=lambda i: (cells[i].known.score - shortfall(cells[i]), *_mildness(cells[i])))
    why = "; ".join(complaints(cells[index], settings))
    warning = f"no checkpoint and strength passes the floors; {name(cells[index])} is the best compromise ({why})"
    return Choice(index, (describe(cells[index]), warning), (warning, *_doubts(cells[index])))


def _tempting(cells: Mapping[int, CellMetrics], picked: int, passing: Sequence[int]) -> list[int]:
    """The disqualified cell with the most likeness, if it has more than the pick."""
    out = [i for i in cells if i not in passing and cells[i].known.gain > cells[picked].known.gain]
    return [max(out, key=lambda i: cells[i].known.gain)] if out else []


def _near_the_floor(cell: CellMetrics, settings: SweepSettings) -> tuple[str, ...]:
    if cell.known.kept >= settings.adherence_floor:
        return ()
    return (
        f"the pick's adherence, {cell.known.kept:.0%}, is below the floor of {settings.adherence_floor:.0%}, but so few "
        "pictures do not show it for sure: a larger sweep.pictures does",
    )


def _doubts(cell: CellMetrics) -> tuple[str, ...]:
    if cell.known.gain > LITTLE:
        return ()
    return (
        f"the picked adapter barely moves the base model towards the character (likeness {cell.known.gain:.2f} of the "
        "way): train longer or with a higher learning rate",
    )
