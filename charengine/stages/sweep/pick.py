"""The recommended checkpoint and strength: floors, then the mildest cell within one standard error of the best score.

The one-standard-error rule (Breiman et al. 1984; Hastie et al., Elements of Statistical Learning, 7.10) replaces a knee
of the Pareto front: a knee is found on axes scaled to the data, which makes noise look like a bend when every cell keeps
nearly all of its adherence. What mildness may cost is capped (CONCESSION), because few images make wide errors. The
best score always lies on the Pareto front of (gain, kept), because it rises in both.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

from charengine.config import SweepSettings
from charengine.records import CellMetrics

CONCESSION = 0.05  # of the best score: noise, however large, never buys mildness with more than this
COPY_LIMIT = 0.9  # correlation of scene images with a training view: above it the picture is the training view


@dataclass(frozen=True)
class Choice:
    """Index of the picked cell, why, and what to be careful about."""

    index: int
    reasons: tuple[str, ...]
    warnings: tuple[str, ...] = ()


def choose(cells: Sequence[CellMetrics], resampled: torch.Tensor, settings: SweepSettings) -> Choice:
    """Pick one of the cells.

    Args:
        cells: every checkpoint at every strength above 0, with `gain`, `kept` and `diversity_kept` in their details.
        resampled: (cells, rounds) paired bootstrap scores, for the standard error of a difference.
        settings: the floors.

    Returns:
        The pick. When no cell passes the floors it is the least bad one and carries a warning.
    """
    passing = [i for i, cell in enumerate(cells) if not complaints(cell, settings)]
    if not passing:
        return _least_bad(cells, settings)
    best = max(passing, key=lambda i: (cells[i].score, *_mildness(cells[i])))
    plateau = [i for i in passing if cells[i].score >= cells[best].score - _tolerance(cells, resampled, i, best)]
    index = max(plateau, key=lambda i: _mildness(cells[i]))
    reasons = [describe(cells[index])]
    if index != best:
        reasons.append(f"{name(cells[best])} scores {cells[best].score:.2f}, no more than one standard error above")
    reasons += _plateau_in_words([cells[i] for i in plateau], cells[index])
    reasons += [
        f"{describe(cells[i])}: {'; '.join(complaints(cells[i], settings))}" for i in _tempting(cells, index, passing)
    ]
    return Choice(index, tuple(reasons), _doubts(cells[index]))


def complaints(cell: CellMetrics, settings: SweepSettings) -> list[str]:
    """What disqualifies a cell, in words; empty when nothing does."""
    found = []
    if cell.detail["kept"] < settings.adherence_floor:
        found.append(f"adherence below the floor of {settings.adherence_floor:.0%}")
    if cell.detail["diversity_kept"] < settings.diversity_floor:
        found.append(
            f"diversity {cell.detail['diversity_kept']:.0%}, below the floor of {settings.diversity_floor:.0%}"
        )
    if cell.copying > COPY_LIMIT:
        found.append(f"scenes copy a training view (correlation {cell.copying:.2f})")
    return found


def pareto_front(points: Sequence[tuple[float, float]]) -> list[int]:
    """Indices of the points that no other point beats on one axis without losing on the other."""
    return [i for i, (x, y) in enumerate(points) if not any(a >= x and b >= y and (a > x or b > y) for a, b in points)]


def name(cell: CellMetrics) -> str:
    """ "strength 0.6 of step 225"."""
    return f"strength {cell.strength:g} of step {cell.checkpoint_step}"


def describe(cell: CellMetrics) -> str:
    """A cell with its two numbers, in words."""
    gain, kept = cell.detail["gain"], cell.detail["kept"]
    return (
        f"{name(cell)}: identity {gain:.2f} of the way from the base model to the sheet's own views, "
        f"adherence {kept:.0%} of the base model's"
    )


def _mildness(cell: CellMetrics) -> tuple[float, int]:
    """Lower strength first, then the earlier checkpoint."""
    return -cell.strength, -cell.checkpoint_step


def _tolerance(cells: Sequence[CellMetrics], resampled: torch.Tensor, one: int, best: int) -> float:
    """Bootstrap standard error of the difference to the best score, at most CONCESSION of that score."""
    error = float((resampled[one] - resampled[best]).std(correction=0))
    return min(error, CONCESSION * cells[best].score)


def _least_bad(cells: Sequence[CellMetrics], settings: SweepSettings) -> Choice:
    def shortfall(cell: CellMetrics) -> float:
        adherence = max(0.0, settings.adherence_floor - cell.detail["kept"])
        spread = max(0.0, settings.diversity_floor - cell.detail["diversity_kept"])
        return adherence + spread + max(0.0, cell.copying - COPY_LIMIT)

    index = max(range(len(cells)), key=lambda i: (cells[i].score - shortfall(cells[i]), *_mildness(cells[i])))
    why = "; ".join(complaints(cells[index], settings))
    warning = f"no checkpoint and strength passes the floors; {name(cells[index])} is the best compromise ({why})"
    return Choice(index, (describe(cells[index]), warning), (warning, *_doubts(cells[index])))


def _tempting(cells: Sequence[CellMetrics], picked: int, passing: list[int]) -> list[int]:
    """The disqualified cell with the most identity, if it has more than the pick."""
    out = [i for i in range(len(cells)) if i not in passing and cells[i].detail["gain"] > cells[picked].detail["gain"]]
    return [max(out, key=lambda i: cells[i].detail["gain"])] if out else []


def _plateau_in_words(plateau: list[CellMetrics], picked: CellMetrics) -> list[str]:
    strengths = sorted(cell.strength for cell in plateau if cell.checkpoint_step == picked.checkpoint_step)
    if len(strengths) < 2:
        return []
    return [f"strengths {strengths[0]:g} to {strengths[-1]:g} of this checkpoint serve equally well within the noise"]


def _doubts(cell: CellMetrics) -> tuple[str, ...]:
    if cell.detail["gain"] > 0.1:
        return ()
    return (
        f"the picked adapter barely moves the base model towards the character (identity {cell.detail['gain']:.2f} of the "
        "way): train longer or with a higher learning rate",
    )
