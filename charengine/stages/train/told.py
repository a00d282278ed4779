"""What is said of a training: before it begins, of what will not do what it seems to, and after it, where it did nothing."""

from __future__ import annotations

import logging

from charengine.adapter.files import trained_nothing
from charengine.config import TrainSettings
from charengine.language.naming import known_word_warnings
from charengine.models import Diffusion
from charengine.records import CheckpointRecord
from charengine.stages.train.schedule import warmup_warnings
from charengine.store import Store

log = logging.getLogger(__name__)


def early_warnings(trigger: str, settings: TrainSettings, diffusion: Diffusion) -> tuple[str, ...]:
    """Known without a step, and logged at once."""
    told = (
        *known_word_warnings(trigger, diffusion.count_tokens),
        *warmup_warnings(settings),
        *diffusion.usage.untaught_of_its_own(),
    )
    for warning in told:
        log.warning(warning)
    return told


def idle_warnings(made: CheckpointRecord, store: Store, settings: TrainSettings) -> tuple[str, ...]:
    """A warning where an adapter's file is as if nothing had been trained: float16 holds nothing below 6e-8."""
    if not (told := trained_nothing(store.get(made.adapter))):
        return ()
    return (
        f"the training changed nothing: {told} at step {made.step}. Raise train.learning_rate (it is {settings.learning_rate:g}) or "
        f"train.steps (it is {settings.steps}), and leave train.alpha, train.max_grad_norm and train.min_snr_gamma as the profile has them",
    )
