"""Learning rate and noise-level weights as pure functions of the step and the timestep."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING

from charengine.config import TrainSettings

LARGEST = 3e38  # of float32, in which the ratio is

if TYPE_CHECKING:
    from torch import Tensor


def learning_rate(settings: TrainSettings, step: int) -> float:
    """The rate of optimizer step `step` (0-based): linear warm-up, then constant, cosine or linear to zero.

    A pure function, so any number of resumes gives the same rates.
    """
    if step < settings.warmup:
        return settings.learning_rate * (step + 1) / settings.warmup
    span = max(1, settings.steps - settings.warmup)
    done = min(1.0, (step - settings.warmup) / span)
    factor = {"constant": 1.0, "linear": 1.0 - done, "cosine": 0.5 * (1 + math.cos(math.pi * done))}[settings.schedule]
    return settings.learning_rate * factor


def warmup_warnings(settings: TrainSettings) -> tuple[str, ...]:
    """A warning where the training ends before the rate has risen."""
    if settings.warmup <= settings.steps:
        return ()
    return (
        f"train.warmup is {settings.warmup} of {settings.steps} steps: the learning rate rose to {settings.steps / settings.warmup:.0%} of "
        "train.learning_rate and no further; set train.warmup below train.steps",
    )


def min_snr_weights(alphas_cumprod: Tensor, gamma: float, *, velocity: bool = False) -> Tensor:
    """Loss weight of every timestep (Hang et al. 2303.09556); ones when γ = 0.

    min(SNR, γ) / SNR for an ε-model, min(SNR, γ) / (SNR + 1) for a v-model, whose loss is worth SNR + 1 of the picture's.
    """
    snr = alphas_cumprod / (1 - alphas_cumprod)
    if gamma <= 0:
        return snr.new_ones(snr.shape)
    return snr.clamp(max=min(gamma, LARGEST)) / (snr + 1 if velocity else snr)
