"""What the pictures drawn so far say of every cell of the grid, drawn or not, and how sure they are."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch

from charengine.config import SweepSettings
from charengine.likeness import metrics
from charengine.likeness.metrics import CellScores, Scale
from charengine.records import Smoothed
from charengine.stages.sweep.shapes import GAIN, KEPT
from charengine.stages.sweep.surface import Observations, Surface, places, smooth

COPY_LIMIT = 0.9  # correlation of scene images with a training view: above it the picture is the training view
ROUNDS = 1000  # surfaces drawn from what is known
SHOWN = 1.645  # standard errors by which a cell must miss a floor (95 %): noise alone disqualifies nothing
LEVEL = 0.15  # how far, as a share, a few pictures of strength 0 may be from what it draws on average
PROMPT = 0.1  # how far, as a share, one prompt's adherence kept is from that of all prompts (lab notes, 2026-11-30)
BASE = 0  # index of strength 0 in every grid

Grid = Sequence[tuple[int, float]]  # (step, strength) of every cell, strength 0 first


@dataclass(frozen=True)
class Estimate:
    """Four axes over the grid, and what follows from them.

    Attributes:
        gain, kept: how much of the character is there (`metrics.progress`), and adherence.
        variety, copying: None where nobody measured them.
        score: (cells,) of the smoothed axes.
        gains, scores: (rounds, cells) as likely as `gain` and as `score`.
        kepts: (rounds, cells) as likely as the mean of adherence.
        kept_most, variety_most, copying_least: (cells,) what these may be at best, in all but one of twenty cases; None where
            not measured.
        passing: (cells,) bool; False where even these miss a floor.
    """

    gain: Surface
    kept: Surface
    variety: Surface | None
    copying: Surface | None
    score: torch.Tensor
    gains: torch.Tensor
    scores: torch.Tensor
    kepts: torch.Tensor
    kept_most: torch.Tensor
    variety_most: torch.Tensor | None
    copying_least: torch.Tensor | None
    passing: torch.Tensor

    def chances(self, among: Sequence[int]) -> torch.Tensor:
        """(cells,) how often each of these cells is the best one that passes; 0 for the others."""
        best = self._allowed(among).argmax(dim=1)
        return torch.bincount(best, minlength=len(self.score)) / len(self.scores)

    def expected_loss(self, cell: int, among: Sequence[int]) -> float:
        """By how much the best of these cells scores above `cell`, on average over what is possible."""
        best = self._allowed(among).amax(dim=1)
        return float((best - self.scores[:, cell]).clamp_min(0).mean())

    def bounds(self, cell: int) -> tuple[float, float]:
        """90 % bounds of a cell's score."""
        low, high = self.scores[:, cell].quantile(torch.tensor([0.05, 0.95], dtype=torch.float64)).tolist()
        return low, high

    def _allowed(self, among: Sequence[int]) -> torch.Tensor:
        closed = torch.ones(len(self.score), dtype=torch.bool)
        closed[list(among)] = False
        return self.scores.masked_fill(~self.passing, -1.0).masked_fill(closed, -2.0)


def estimate(
    grid: Grid, scored: Mapping[int, CellScores], scale: Scale, settings: SweepSettings, generator: torch.Generator
) -> Estimate:
    """Smooth the pictures of some cells over the whole grid.

    Args:
        grid: every cell, strength 0 first.
        scored: what was drawn, by index into the grid; strength 0 is among them.
        scale: where the axes begin and end.
        settings: the floors.
        generator: for the rounds.
    """
    where = places(grid)
    base = scale.base
    margin = max(metrics.mean(base.margin), metrics.MIN_SPAN)
    spread = max(metrics.mean(base.diversity, missing=1.0), 1e-6)
    adapted = {index: scores for index, scores in scored.items() if index != BASE}
    # strength 0 draws somebody else with every seed: its pictures set the scale, but pair with nothing
    gain = smooth(_observations(adapted, lambda cell: metrics.progress(cell, scale)), where, 0.0, shape=GAIN)
    # what a few pictures of strength 0 say of its level is noise too: the other cells tell where it was
    doubt = math.hypot(_doubt(base.margin) / margin, PROMPT / math.sqrt(len(base.margin)))
    kept = smooth(_observations(adapted, lambda cell: cell.margin / margin), where, 1.0, doubt, KEPT).relative()
    variety = _measured(_observations(adapted, lambda cell: cell.diversity[:, None] / spread), where, 1.0, LEVEL)
    variety = variety and variety.relative()
    copying = _measured(
        _observations(adapted, lambda cell: cell.copying), where, metrics.mean(base.copying, missing=0.0)
    )
    rounds = [_draws(axis, len(grid), generator) for axis in (gain, kept, variety, copying)]
    # against a floor, strength 0's level counts as unsure as its own pictures leave it
    kept_most = _most(kept, doubt)
    variety_most = _most(variety, LEVEL) if variety else None
    copying_least = 2 * copying.mean - _most(copying, 0.0) if copying else None
    passing = kept_most >= settings.adherence_floor
    if variety_most is not None:
        passing &= variety_most >= settings.diversity_floor
    if copying_least is not None:
        passing &= copying_least <= COPY_LIMIT
    return Estimate(
        gain=gain,
        kept=kept,
        variety=variety,
        copying=copying,
        score=metrics.scores(gain.mean, kept.mean),
        gains=rounds[0],
        scores=metrics.scores(rounds[0], rounds[1]),
        kepts=rounds[1],
        kept_most=kept_most,
        variety_most=variety_most,
        copying_least=copying_least,
        passing=passing,
    )


def smoothed(found: Estimate, cell: int) -> Smoothed:
    """One cell's part of it."""
    return Smoothed(
        gain=float(found.gain.mean[cell]),
        kept=float(found.kept.mean[cell]),
        diversity_kept=float(found.variety.mean[cell]) if found.variety else None,
        copying=float(found.copying.mean[cell]) if found.copying else None,
        score=float(found.score[cell]),
        kept_most=float(found.kept_most[cell]),
        diversity_most=None if found.variety_most is None else float(found.variety_most[cell]),
        copying_least=None if found.copying_least is None else float(found.copying_least[cell]),
    )


def _observations(scored: Mapping[int, CellScores], read: Callable[[CellScores], torch.Tensor]) -> Observations:
    """A number for every seed of these cells, over its prompts; `read` gives (prompts, seeds), NaN where not measured."""
    values, cells, seeds = [], [], []
    for index, scores in scored.items():
        found = read(scores).nanmean(dim=0)
        there = ~found.isnan()
        values.append(found[there])
        cells.append(torch.full((int(there.sum()),), index))
        seeds.append(torch.arange(len(found))[there])
    return Observations(torch.cat(values), torch.cat(cells), torch.cat(seeds))


def _doubt(margin: torch.Tensor) -> float:
    """Standard error of strength 0's mean margin, from how its seeds differ within a prompt; (prompts, seeds)."""
    if margin.shape[1] < 2:
        return LEVEL * abs(float(margin.mean()))
    return float((margin.var(dim=1).mean() / margin.numel()).sqrt())


def _most(axis: Surface, doubt: float) -> torch.Tensor:
    """(cells,) what an axis may be at best, in all but one of twenty cases."""
    most: torch.Tensor = axis.mean + SHOWN * (axis.covariance.diagonal() + doubt**2).clamp_min(0).sqrt()
    return most


def _measured(seen: Observations, where: torch.Tensor, origin: float, unsure: float = 0.0) -> Surface | None:
    return smooth(seen, where, origin, unsure) if len(seen.values) else None


def _draws(axis: Surface | None, cells: int, generator: torch.Generator) -> torch.Tensor:
    standard = torch.randn(ROUNDS, cells, generator=generator, dtype=torch.float64)
    return standard if axis is None else axis.draws(standard)
