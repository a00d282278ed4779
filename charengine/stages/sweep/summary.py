"""Cells in numbers: means over images, the place on the scale, confidence bounds, and what cannot be measured."""

from __future__ import annotations

from collections.abc import Sequence

import torch

from charengine.likeness import metrics
from charengine.likeness.metrics import CellScores, Scale
from charengine.records import CellMetrics
from charengine.stages.sweep.pick import pareto_front


def summarise(scores: CellScores, scale: Scale, step: int, strength: float) -> CellMetrics:
    """One cell's numbers: means over its images, and its place on the scale."""
    relative = metrics.relative(scores, scale)
    leak, base_leak = metrics.mean(scores.leak), metrics.mean(scale.base.leak)
    detail = {
        "gain": relative.gain,
        "kept": relative.kept,
        "margin": metrics.mean(scores.margin),
        "diversity_kept": relative.diversity,
        "background_leak": leak - base_leak,
        "class_leak": metrics.mean(scores.class_identity) - metrics.mean(scale.base.class_identity),
    }
    return CellMetrics(
        checkpoint_step=step,
        strength=strength,
        identity=metrics.mean(scores.identity),
        adherence=metrics.mean(scores.adherence),
        diversity=metrics.mean(scores.diversity, missing=0.0),
        copying=metrics.mean(scores.copying, missing=0.0),
        score=relative.score,
        images=scores.adherence.numel(),
        detail={name: value for name, value in detail.items() if value == value},
    )


def with_bounds(cells: list[CellMetrics], resampled: torch.Tensor) -> list[CellMetrics]:
    """Cells with 90 % bootstrap bounds of their score, how often they score best, and whether they lie on the Pareto front."""
    low, high = resampled.quantile(torch.tensor([0.05, 0.95]), dim=1)
    wins = torch.bincount(resampled.argmax(dim=0), minlength=len(cells)) / resampled.shape[1]
    front = set(pareto_front([(cell.detail["gain"], cell.detail["kept"]) for cell in cells]))
    return [
        cell.model_copy(
            update={
                "detail": {
                    **cell.detail,
                    "score_low": float(low[i]),
                    "score_high": float(high[i]),
                    "wins": float(wins[i]),
                    "on_front": float(i in front),
                }
            }
        )
        for i, cell in enumerate(cells)
    ]


def overbaked(cells: Sequence[CellMetrics], last_step: int) -> CellMetrics:
    """The last checkpoint at strength 1, or at the strength nearest to it that was drawn."""
    own = [cell for cell in cells if cell.checkpoint_step == last_step]
    return min(own, key=lambda cell: abs(cell.strength - 1.0))


def scale_warnings(scale: Scale) -> tuple[str, ...]:
    """What this embedder cannot measure on these pictures."""
    found = []
    if metrics.blind(scale):
        found.append(
            "the embedder finds the sheet's views no more alike than the base model's pictures are to them "
            f"({scale.ceiling:.3f} against {metrics.mean(scale.base.identity):.3f}): identity says little here"
        )
    if metrics.mean(scale.base.margin) < metrics.MIN_SPAN:
        found.append(
            "the base model's pictures match their own prompts hardly better than other prompts "
            f"(margin {metrics.mean(scale.base.margin):.3f}): adherence says little here"
        )
    if scale.base.diversity.isnan().all():
        found.append("variety between seeds was not measured: it takes a scene prompt and sweep.seeds of 2 or more")
    return tuple(found)
