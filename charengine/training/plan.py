"""The memory plan: which precision, checkpointing and micro-batch train within the budget."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from charengine.config import TrainSettings
from charengine.training.data import TrainingData

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel


@dataclass(frozen=True)
class Plan:
    """How one training fits its machine.

    Args:
        precision: of the working copy, activations and gradients; masters are float32.
        checkpointing: none, selective or full.
        micro_batch: most samples in one forward; 0 = all of a group.
        fp8_base: frozen weights kept in float8.
        graph: steps captured as CUDA graphs.
        peak_gib: measured at the probe; 0 where nothing was measured.
    """

    precision: str = "fp32"
    checkpointing: str = "none"
    micro_batch: int = 0
    fp8_base: bool = False
    graph: bool = False
    peak_gib: float = 0.0

    @property
    def compute_dtype(self) -> torch.dtype:
        """The torch dtype of `precision`."""
        return {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}[self.precision]

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)


def choose_plan(
    unet: UNet2DConditionModel, settings: TrainSettings, data: TrainingData, alphas_cumprod: Tensor
) -> Plan:
    """The plan for this machine and budget."""
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16", torch.float16: "fp16"}[unet.dtype]
    if settings.precision != "auto":
        precision = settings.precision
    checkpointing = "none" if settings.checkpointing == "auto" else settings.checkpointing
    return Plan(precision=precision, checkpointing=checkpointing)


def prepare_unet(unet: UNet2DConditionModel, plan: Plan) -> None:
    """Bring the U-Net into the plan's shape."""
    if unet.dtype != plan.compute_dtype:
        unet.to(plan.compute_dtype)
