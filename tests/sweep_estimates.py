"""What is known of hand-made cells, with noise that the test sets: for tests of the pick, the race and the verdict."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from charengine.config import SweepSettings
from charengine.likeness.metrics import scores
from charengine.records import CellMetrics
from charengine.stages.sweep.estimate import COPY_LIMIT, ROUNDS, Estimate
from charengine.stages.sweep.surface import Surface


def known(cells: Sequence[CellMetrics], settings: SweepSettings, noise: float = 0.0) -> Estimate:
    """An estimate whose means are the cells' numbers, strength 0 before them; each varies by `noise` independently."""
    generator = torch.Generator().manual_seed(0)
    gain, kept, variety, copying = (
        _surface(value, [getattr(cell, name) for cell in cells], noise)
        for name, value in (("gain", 0.0), ("kept", 1.0), ("diversity_kept", 1.0), ("copying", 0.1))
    )
    rounds = [
        axis.draws(torch.randn(ROUNDS, len(cells) + 1, generator=generator, dtype=torch.float64))
        for axis in (gain, kept, variety, copying)
    ]
    return Estimate(
        gain=gain,
        kept=kept,
        variety=variety,
        copying=copying,
        score=scores(gain.mean, kept.mean),
        gains=rounds[0],
        scores=scores(rounds[0], rounds[1]),
        kepts=rounds[1],
        kept_most=kept.mean,
        variety_most=variety.mean,
        copying_least=copying.mean,
        passing=(kept.mean >= settings.adherence_floor)
        & (variety.mean >= settings.diversity_floor)
        & (copying.mean <= COPY_LIMIT),
    )


def _surface(origin: float, values: list[float], noise: float) -> Surface:
    variance = torch.tensor([0.0, *[noise**2] * len(values)], dtype=torch.float64)
    return Surface(torch.tensor([origin, *values], dtype=torch.float64), torch.diag(variance))
