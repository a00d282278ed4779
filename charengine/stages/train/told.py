"""What is said of a training: before it begins, of what will not do what it seems to, and after it, where it did nothing."""

from __future__ import annotations

import hashlib
import logging
from collections.abc import Mapping

import torch
from safetensors.torch import load
from torch import Tensor

from charengine.adapter.files import trained_nothing
from charengine.config import TrainSettings
from charengine.language.naming import known_word_warnings
from charengine.models import Diffusion
from charengine.stages.train.schedule import warmup_warnings
from charengine.stages.train.state import History
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


def starts_from_values(settings: TrainSettings) -> bool:
    """Whether an adapter that did nothing is no file of zeros: it holds a file's values, the base's norms, or a start beside its own."""
    return bool(settings.continue_from) or settings.algorithm in ("dora", "tlora")


def digest_of(tensors: Mapping[str, Tensor]) -> str:
    """Of every value in float16, which adapters are kept in: what moves less moves nothing."""
    found = hashlib.sha256()
    for name in sorted(tensors):
        found.update(name.encode())
        found.update((tensors[name].to(torch.float16) + 0).numpy().tobytes())  # no -0
    return found.hexdigest()


def idle_warnings(history: History, store: Store, settings: TrainSettings) -> tuple[str, ...]:
    """A warning where an adapter's file is as if nothing had been trained: float16 holds nothing below 6e-8."""
    made = history.checkpoints[-1]
    data = store.get(made.adapter)
    told = trained_nothing(data)
    if not told and history.start and digest_of(load(data)) == history.start:
        told = "every value of the adapter is as it was before the first step"
    if not told:
        return ()
    return (
        f"the training changed nothing: {told} at step {made.step}. Raise train.learning_rate (it is {settings.learning_rate:g}) or "
        f"train.steps (it is {settings.steps}), and leave train.alpha, train.max_grad_norm and train.min_snr_gamma as the profile has them",
    )
