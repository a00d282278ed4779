"""Cells in numbers: means over images, the place on the scale, confidence bounds, and what cannot be measured."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from charengine.likeness import metrics
from charengine.likeness.metrics import CellScores, Scale
from charengine.records import CellMetrics
from charengine.stages.sweep.estimate import Estimate, smoothed
from charengine.stages.sweep.pick import pareto_front


def summarise(scores: CellScores, scale: Scale, step: int, strength: float) -> CellMetrics:
    """One cell's numbers: means over its images, and its place on the scale."""
    relative = metrics.relative(scores, scale)
    leak, base_leak = metrics.mean(scores.leak), metrics.mean(scale.base.leak)
    class_leak = metrics.mean(scores.class_identity) - metrics.mean(scale.base.class_identity)
    return CellMetrics(
        checkpoint_step=step,
        strength=strength,
        identity=metrics.mean(scores.identity),
        adherence=metrics.mean(scores.adherence),
        diversity=metrics.mean(scores.diversity, missing=0.0),
        copying=metrics.mean(scores.copying, missing=0.0),
        score=relative.score,
        images=scores.adherence.numel(),
        gain=relative.gain,
        kept=relative.kept,
        diversity_kept=relative.diversity,
        margin=_measured(metrics.mean(scores.margin)),
        background_leak=_measured(leak - base_leak),
        class_leak=_measured(class_leak),
        shown=None if scores.shown is None else _measured(metrics.mean(scores.shown)),
    )


def with_certainty(cells: Mapping[int, CellMetrics], found: Estimate) -> dict[int, CellMetrics]:
    """Drawn cells with their smoothed numbers and bounds, how often each is the best, and whether it is on the Pareto front."""
    front = {list(cells)[i] for i in pareto_front([(cell.gain, cell.kept) for cell in cells.values()])}
    chances = found.chances(list(cells))
    sure = {}
    for i, cell in cells.items():
        low, high = found.bounds(i)
        more: dict[str, Any] = {"smoothed": smoothed(found, i), "score_low": low, "score_high": high}
        more |= {"wins": float(chances[i]), "on_front": i in front}
        sure[i] = CellMetrics(**{**dict(cell), **more})  # built anew: a copy would not be checked
    return sure


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
    if scale.sheet_shown is not None and scale.base.shown is not None and metrics.reading_span(scale) is None:
        found.append(
            f"of the described traits the reader sees {scale.sheet_shown:.0%} in the sheet's own views and "
            f"{metrics.mean(scale.base.shown):.0%} in the base model's pictures: they say little here, identity counts alone"
        )
    if metrics.mean(scale.base.margin) < metrics.MIN_SPAN:
        found.append(
            "the base model's pictures match their own prompts hardly better than other prompts "
            f"(margin {metrics.mean(scale.base.margin):.3f}): adherence says little here"
        )
    if scale.base.diversity.isnan().all():
        found.append("variety between seeds was not measured: it takes a scene prompt and sweep.seeds of 2 or more")
    return tuple(found)


def _measured(value: float) -> float | None:
    """None for NaN: nobody measured it."""
    return value if value == value else None
