"""Overfit, underfit or right: what the sweep's smoothed scores say about the training, and what to do next.

Measured on adapters of 40 characters that nothing was tuned on it agrees with truth in 95 of 100 (docs/decisions/0080), of
trainings that are too short in fewer, so its lines say "looks".
"""

from __future__ import annotations

import torch

from charengine.config import SweepSettings
from charengine.records import CellMetrics, Verdict
from charengine.stages.sweep.estimate import BASE, Estimate, Grid

WORTH = 0.02  # of the score: less is no difference
SURE = 0.9  # over is rare: said on less evidence than this it was wrong more often than right
LIKELY = 0.6  # under: at .5, 5 of 108 readings of held-out trainings that were right; now 2, and as many of those that were not (decision 80)
LITTLE = 0.25  # of the way from the base model to the character; of 38 held-out adapters, 8 of them trained too short, the least goes .44


def judge_training(grid: Grid, found: Estimate, settings: SweepSettings) -> Verdict:
    """Which of three cases a training is.

    over: at strength 1 of the last checkpoint the score is at least WORTH below a lower strength's, or adherence is below its
    floor, and the pictures leave little doubt of it. under: the best cell is the last checkpoint at the highest strength, and its
    score is at least WORTH above that of the checkpoint before it, likely so. Else right.
    """
    steps = sorted({step for step, _ in grid if step})
    last = {strength: i for i, (step, strength) in enumerate(grid) if step == steps[-1] and i != BASE}
    full, top = min(last, key=lambda strength: abs(strength - 1.0)), max(last)
    lower = max((s for s in last if s < full), key=lambda s: float(found.score[last[s]]), default=full)
    before = next((i for i, place in enumerate(grid) if len(steps) > 1 and place == (steps[-2], top)), None)
    lost = float(found.score[last[lower]] - found.score[last[full]])
    kept = float(found.kept.mean[last[full]])
    where = f"strength {full:g} of the last checkpoint (step {steps[-1]})"
    loses = _share(found.scores[:, last[lower]] - found.scores[:, last[full]] >= WORTH) >= SURE
    forgets = _share(found.kepts[:, last[full]] < settings.adherence_floor) >= SURE
    if loses or forgets:
        why = [f"the score is {lost:.2f} below that of strength {lower:g}"] if loses else []
        why += [f"adherence is {kept:.0%} of the base model's"] if forgets else []
        return Verdict(
            kind="over",
            line=f"Looks overfit: at {where} {' and '.join(why)}. Use the recommended adapter, or train with fewer steps or "
            "half the learning rate.",
            change=lost,
        )
    best = 1 + int(found.score[1:].argmax())
    step, strength = grid[best]
    place = "has the highest strength that was tried" if strength >= top else "lies within what was tried"
    inside = f"the best cell, strength {strength:g} of step {step}, {place}"
    if before is not None and best == last[top]:
        won = float(found.score[best] - found.score[before])
        highest = found.scores[:, 1:].argmax(dim=1) + 1 == best
        if _share(highest & (found.scores[:, best] - found.scores[:, before] >= WORTH)) >= LIKELY:
            return Verdict(
                kind="under",
                line=f"Looks undertrained: of all that was tried, the most steps ({step}) at the highest strength ({top:g}) score "
                f"best, {won:.2f} more than {steps[-2]} steps. Train on: twice the steps (train.steps={2 * step}).",
                change=won,
            )
        inside = f"the last steps, from {steps[-2]} to {step}, added {max(won, 0.0):.2f}"
    return Verdict(
        kind="right",
        line=f"The training looks right: at {where} no lower strength surely scores {WORTH:g} more, adherence is {kept:.0%} of the base "
        f"model's, and {inside}. Use the recommended adapter.",
    )


def unless_it_barely_moves(verdict: Verdict, picked: CellMetrics) -> Verdict:
    """The verdict; undertrained where the pick brings little: among cells that do, none of most steps and strength is best for sure."""
    if verdict.kind != "right" or picked.known.gain > LITTLE:
        return verdict
    return Verdict(
        kind="under",
        line=f"Looks undertrained: the pick goes {picked.known.gain:.2f} of the way from the base model to the character. Train on, "
        "with more steps or a higher learning rate.",
    )


def _share(events: torch.Tensor) -> float:
    """In how many of the surfaces that the pictures allow, (rounds,) bool."""
    return float(events.double().mean())
