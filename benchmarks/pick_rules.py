"""Ways of choosing a checkpoint and a strength, each given what a sweep would have seen of a sample (`truth_samples.py`)."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from truth_samples import QUICK_ROWS, Sample

from charengine.config import SweepSettings
from charengine.likeness import metrics
from charengine.likeness.metrics import CellScores, Scale
from charengine.records import CellMetrics
from charengine.stages.sweep.budget import base_seeds
from charengine.stages.sweep.estimate import BASE, Estimate, estimate
from charengine.stages.sweep.pick import choose
from charengine.stages.sweep.race import plan_round
from charengine.stages.sweep.summary import summarise, with_certainty
from charengine.stages.sweep.verdict import WORTH, judge_training

PAIR = (0, 1)  # seeds of the rules that look at the whole grid
CONCESSION = 0.05  # of the best score, the most that the one-standard-error rule gave away
TWICE = 2.0  # identity counts twice in F-beta


@dataclass(frozen=True)
class Chosen:
    """A cell, the pictures it took, and the verdict of the rule that gives one."""

    cell: int
    pictures: int
    verdict: str = ""


Rule = Callable[[Sample, SweepSettings], Chosen]


def ours(sample: Sample, settings: SweepSettings) -> Chosen:
    """The product's own code, race or grid, on the pictures it would have drawn."""
    drawn: dict[int, int] = {}
    scored: dict[int, CellScores] = {}
    scale = sample.scale(QUICK_ROWS, range(base_seeds(settings)))

    def known() -> Estimate:
        generator = torch.Generator().manual_seed(sample.data["seeds"][0])
        return estimate(sample.grid, scored, scale, settings, generator)

    while units := plan_round(sample.grid, drawn, settings, len(QUICK_ROWS), known):
        for unit in units:
            drawn[unit.cell] = drawn.get(unit.cell, 0) + len(unit.seeds)
            scored[unit.cell] = sample.scores(unit.cell, QUICK_ROWS, range(drawn[unit.cell]))
        scored = dict(sorted(scored.items()))
    found = known()
    own = {index: summarise(scores, scale, *sample.grid[index]) for index, scores in scored.items() if index != BASE}
    choice = choose(with_certainty(own, found), found, settings)
    verdict = judge_training(sample.grid, found, settings).kind
    return Chosen(choice.index, len(QUICK_ROWS) * sum(drawn.values()), verdict)


def last_at(strength: float) -> Rule:
    """The last checkpoint at a strength, with no sweep."""
    return lambda sample, settings: Chosen(_cell(sample, _last(sample), strength), 0)


def least_validation_loss(sample: Sample, settings: SweepSettings) -> Chosen:
    """The checkpoint with the lowest validation loss at strength 1."""
    steps = {step for step, _ in sample.grid}
    known = [one for one in sample.data["checkpoints"] if one["validation_loss"] is not None and one["step"] in steps]
    best = min(known, key=lambda one: one["validation_loss"], default={"step": _last(sample)})
    return Chosen(_cell(sample, best["step"], 1.0), 0)


def greatest_score(sample: Sample, settings: SweepSettings) -> Chosen:
    """The best score of the whole grid, each cell by its own eight pictures."""
    return _best(sample, lambda cell: cell.score)


def f_beta(sample: Sample, settings: SweepSettings) -> Chosen:
    """As the greatest score, identity counting twice."""

    def score(cell: CellMetrics) -> float:
        gain, kept = (min(max(value, 0.0), 1.0) for value in (cell.gain, cell.kept))
        return (1 + TWICE**2) * gain * kept / max(TWICE**2 * kept + gain, 1e-9)

    return _best(sample, score)


def one_standard_error(sample: Sample, settings: SweepSettings) -> Chosen:
    """What the product did until November 2026: the mildest cell within a standard error of the best score."""
    scale, cells = _grid(sample)
    passing = [
        i for i, (_, cell) in cells.items()
        if cell.kept >= settings.adherence_floor and cell.diversity_kept >= settings.diversity_floor
    ] or list(cells)  # fmt: skip
    resampled = _resampled({i: cells[i][0] for i in passing}, scale)
    best = max(passing, key=lambda i: cells[i][1].score)
    allowed = CONCESSION * cells[best][1].score

    def near(i: int) -> bool:
        error = float((resampled[i] - resampled[best]).std(correction=0))
        return cells[i][1].score >= cells[best][1].score - min(error, allowed)

    mild = max((i for i in passing if near(i)), key=lambda i: (-sample.grid[i][1], -sample.grid[i][0]))
    return Chosen(mild, _pictures(sample))


RULES: dict[str, Rule] = {
    "ours": ours,
    "ours, whole grid": lambda sample, settings: ours(
        sample, settings.model_copy(update={"design": "grid", "seeds": 2})
    ),
    "last checkpoint at 1.0": last_at(1.0),
    "last checkpoint at 0.8": last_at(0.8),
    "last checkpoint at 1.2": last_at(1.2),
    "lowest validation loss": least_validation_loss,
    "greatest score": greatest_score,
    "F-beta": f_beta,
    "one standard error": one_standard_error,
}


def true_verdict(sample: Sample, settings: SweepSettings) -> str:
    """Over, under or right by the judge, over all seeds."""
    seeds = range(sample.seeds)
    truth = [sample.truth(cell, seeds) for cell in range(len(sample.grid))]
    last = _last(sample)
    full = _cell(sample, last, 1.0)
    lower = [i for i, (step, strength) in enumerate(sample.grid) if step == last and 0 < strength < 1]
    if max(truth[i] for i in lower) - truth[full] >= WORTH or sample.adheres(full, seeds) < settings.adherence_floor:
        return "over"
    best = max(range(1, len(truth)), key=lambda i: truth[i])
    steps = sorted({step for step, _ in sample.grid if step})
    top = max(strength for _, strength in sample.grid)
    if len(steps) < 2 or sample.grid[best] != (last, top):
        return "right"
    return "under" if truth[best] - truth[_cell(sample, steps[-2], top)] >= WORTH else "right"


def _best(sample: Sample, score: Callable[[CellMetrics], float]) -> Chosen:
    _, cells = _grid(sample)
    return Chosen(max(cells, key=lambda i: score(cells[i][1])), _pictures(sample))


def _grid(sample: Sample) -> tuple[Scale, dict[int, tuple[CellScores, CellMetrics]]]:
    """The scale, and every cell with eight pictures."""
    scale = sample.scale(QUICK_ROWS, PAIR)
    found = {}
    for index in range(1, len(sample.grid)):
        scores = sample.scores(index, QUICK_ROWS, PAIR)
        found[index] = scores, summarise(scores, scale, *sample.grid[index])
    return scale, found


def _resampled(cells: dict[int, CellScores], scale: Scale, rounds: int = 400) -> dict[int, torch.Tensor]:
    """Scores of each cell over the same resampled pictures."""
    count = len(QUICK_ROWS) * len(PAIR)
    draws = torch.randint(0, count, (rounds, count), generator=torch.Generator().manual_seed(0))
    zero, margin = (values.flatten()[draws].mean(dim=1) for values in (scale.base.identity, scale.base.margin))
    span = metrics.identity_span(scale)
    return {
        index: metrics.scores(
            (cell.identity.flatten()[draws].mean(dim=1) - zero) / span,
            cell.margin.flatten()[draws].mean(dim=1) / margin.clamp_min(metrics.MIN_SPAN),
        )
        for index, cell in cells.items()
    }


def _pictures(sample: Sample) -> int:
    return len(sample.grid) * len(QUICK_ROWS) * len(PAIR)


def _last(sample: Sample) -> int:
    return max(step for step, _ in sample.grid)


def _cell(sample: Sample, step: int, strength: float) -> int:
    """The cell of a step nearest to a strength."""
    own = [i for i, place in enumerate(sample.grid) if place[0] == step and i != BASE]
    return min(own, key=lambda i: abs(sample.grid[i][1] - strength))
