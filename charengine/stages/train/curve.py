"""The losses of a training as people read them: smoothed, in one CSV; views and lessons apart."""

from __future__ import annotations

import csv
import io
from collections.abc import Sequence

from charengine.stages.train.data import TrainingData
from charengine.stages.train.sampler import teaches, view_steps
from charengine.stages.train.state import History

SMOOTHING = 0.98


def smoothed(before: Sequence[float], loss: float, data: TrainingData) -> float:
    """The views' loss smoothed after one more step, given its values after the steps before; lessons leave it as it was."""
    step = len(before)
    if not before or teaches(data, step):
        return before[-1] if before else loss
    views = view_steps(data, step)
    weight = min(SMOOTHING, views / (views + 1))
    return weight * before[-1] + (1 - weight) * loss


def losses_of_step(history: History, index: int, data: TrainingData) -> dict[str, float]:
    """What step `index` (0-based) is told of, by name."""
    if teaches(data, index):
        return {"lesson_loss": history.losses[index]}
    return {"loss": history.losses[index], "smoothed_loss": history.smoothed[index]}


def last_of_views(history: History, data: TrainingData) -> float:
    """The loss of the last step that learnt from views."""
    return history.losses[::2][-1] if data.lessons else history.losses[-1]


def as_csv(history: History, data: TrainingData) -> bytes:
    """A row a step; of the losses, those of what the step learnt from."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    lessons = ["lesson_loss"] if data.lessons else []
    writer.writerow(["step", "loss", "smoothed", "learning_rate", *lessons])
    for index, rate in enumerate(history.rates):
        losses = losses_of_step(history, index, data)
        named = [losses.get(name, "") for name in ("loss", "smoothed_loss")]
        writer.writerow([index + 1, *named, rate, *(losses.get(name, "") for name in lessons)])
    return text.getvalue().encode()
