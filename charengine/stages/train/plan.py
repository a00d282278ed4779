"""The memory plan: which precision, checkpointing and micro-batch train within the budget.

Candidates are tried on the device, cheapest in time first, under a hard cap on the allocator; the first that runs is taken.
"""

from __future__ import annotations

import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict, dataclass
from functools import partial
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from charengine.config import TrainSettings
from charengine.errors import ConfigError
from charengine.stages.train.data import TrainingData
from charengine.stages.train.fused import transformer_blocks

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

log = logging.getLogger(__name__)

RESERVE_GIB = 0.5  # of the budget, for the CUDA context and libraries, which no allocator counts
FIXED_COST = 0.5  # time of a step without samples, in samples of one megapixel (kernels too small to fill a GPU)
RECOMPUTE_COST = 0.4  # time that computing everything again adds; 111 against 80 ms measured on an H100
FRACTIONS = (0.0, 0.15, 0.5, 1.0)  # of the transformer blocks, tried for "selective"
PRECISIONS = {"fp32": torch.float32, "bf16": torch.bfloat16, "fp16": torch.float16}


@dataclass(frozen=True)
class Plan:
    """How one training fits its machine.

    Args:
        precision: of the working copy, activations and gradients; masters are float32.
        checkpointing: none, selective (some transformer blocks are computed again) or full (all, and the resnets).
        recomputed: share of the transformer blocks computed again.
        micro_batch: most samples in one forward; a larger step is accumulated.
        fp8_base: frozen weights kept in float8.
        graph: steps captured as CUDA graphs.
        compile: transformer blocks compiled.
        budget_gib: what it had to fit in.
        peak_gib: measured, with the reserve; 0 where nothing was measured.
    """

    precision: str = "fp32"
    checkpointing: str = "none"
    recomputed: float = 0.0
    micro_batch: int = 1
    fp8_base: bool = False
    graph: bool = False
    compile: bool = False
    budget_gib: float = 0.0
    peak_gib: float = 0.0

    @property
    def compute_dtype(self) -> torch.dtype:
        """The torch dtype of `precision`."""
        return PRECISIONS[self.precision]

    def facts(self) -> dict[str, Any]:
        """As plain values."""
        return asdict(self)

    def least_activations(self, sample_gib: float) -> float:
        """GiB a step's activations take at the very least, given those of one sample without checkpointing."""
        given_back = 0.95 if self.checkpointing == "full" else min(0.9, 1.6 * self.recomputed)  # wide blocks first
        return self.micro_batch * sample_gib * (1 - given_back)

    def cost(self, megapixels: float) -> float:
        """Estimated time of a sample, in arbitrary units."""
        share = (self.recomputed + (self.checkpointing == "full")) / 2
        return (FIXED_COST / self.micro_batch + megapixels) * (1 + RECOMPUTE_COST * share)


def candidates(settings: TrainSettings, data: TrainingData, largest_group: int, device: torch.device) -> list[Plan]:
    """Plans the settings allow, fastest estimate first; without a GPU only one.

    Raises:
        ConfigError: a setting that the device cannot do.
    """
    _check(settings, device)
    cuda = device.type == "cuda"
    base = Plan(
        precision=precision_of(settings, device),
        fp8_base=settings.fp8_base,
        graph=cuda and settings.cuda_graph == "auto" and torch.version.hip is None,  # never tried on ROCm
        compile=settings.compile,
        budget_gib=settings.budget_gib,
    )
    modes = {
        "auto": [*(("selective" if f else "none", f) for f in FRACTIONS), ("full", 1.0)] if cuda else [("none", 0.0)],
        "none": [("none", 0.0)],
        "selective": [("selective", f) for f in FRACTIONS[1:]] if cuda else [("selective", 1.0)],
        "full": [("full", 1.0)],
    }[settings.checkpointing]
    sizes = sorted({largest_group, -(-largest_group // 2), 1}, reverse=True) if cuda else [largest_group]
    areas = [bucket.width * bucket.height for bucket in data.buckets]
    area = max([*areas, *([64 * data.lessons.area] if data.lessons else [])]) / 2**20
    plans = [
        Plan(**{**base.facts(), "checkpointing": mode, "recomputed": share, "micro_batch": size})
        for size in sizes
        for mode, share in modes
    ]
    return sorted(plans, key=lambda plan: plan.cost(area))


def precision_of(settings: TrainSettings, device: torch.device) -> str:
    """The setting, or for auto: bfloat16 on GPUs that have it, float32 elsewhere (float16 would need no less memory)."""
    if settings.precision != "auto":
        return settings.precision
    if device.type == "cuda":
        return "bf16" if torch.cuda.is_bf16_supported(including_emulation=False) else "fp16"
    return "fp32"


def _check(settings: TrainSettings, device: torch.device) -> None:
    if settings.fp8_base and device.type == "mps":
        raise ConfigError("train.fp8_base=true needs CUDA or a CPU: Apple's GPUs have no float8; set it to false")


@contextmanager
def memory_cap(budget_gib: float, device: torch.device) -> Iterator[None]:
    """Let the allocator take no more than the budget, so that nothing spills into system memory unseen."""
    if device.type != "cuda":
        yield
        return
    total = torch.cuda.get_device_properties(device).total_memory / 2**30
    before = torch.cuda.get_per_process_memory_fraction(device_index(device))
    set_cap(min(1.0, max(0.0, (budget_gib - RESERVE_GIB) / total)), device)
    try:
        yield
    finally:
        set_cap(before, device)


def let_segments_grow() -> bool:
    """From here on the allocator's segments grow where they are: the smallest plan held 4.4 instead of 5.7 GiB (lab notes).

    Returns:
        Whether it was done: not where the user set the allocator's variable, nor on Windows, which has no such segments.
    """
    chosen = any(name in os.environ for name in ("PYTORCH_ALLOC_CONF", "PYTORCH_CUDA_ALLOC_CONF"))
    change = getattr(torch._C, "_accelerator_setAllocatorSettings", None)
    if chosen or change is None or sys.platform == "win32":
        return False
    try:
        change("expandable_segments:True")
    except RuntimeError as error:  # an allocator that cannot: the plan only needs more memory
        log.warning("the allocator keeps its segments as they are (%s)", error)
        return False
    return True


def set_cap(fraction: float, device: torch.device) -> None:
    """Share of the device's memory the allocator may take."""
    torch.cuda.set_per_process_memory_fraction(fraction, device_index(device))


def device_index(device: torch.device) -> int:
    """The CUDA device's number; a device without one is the current one."""
    return torch.cuda.current_device() if device.index is None else device.index


def set_checkpointing(unet: UNet2DConditionModel, plan: Plan) -> None:
    """Choose what the backward computes again; wide feature maps first, where a block gives back the most memory."""
    from torch.utils.checkpoint import checkpoint

    again = partial(checkpoint, use_reentrant=False, preserve_rng_state=False)
    if plan.checkpointing == "full":
        unet.enable_gradient_checkpointing(again)
    else:
        unet.disable_gradient_checkpointing()
    for module in unet.modules():
        if type(module).__name__ == "Transformer2DModel":
            module.gradient_checkpointing = False  # its blocks are chosen one by one below
    blocks = sorted((block for _, block in transformer_blocks(unet)), key=lambda block: block.norm1.weight.numel())
    count = round(plan.recomputed * len(blocks))
    for i, block in enumerate(blocks):
        _wrap(block, again if i < count else None)


def _wrap(block: nn.Module, again: Any) -> None:
    """Put a block's forward under `again`, or take it out."""
    inner = getattr(block.forward, "inner_forward", block.forward)
    if again is None:
        if inner is not block.forward:
            block.forward = inner
        return

    def forward(*args: Any, **kwargs: Any) -> Any:
        return again(inner, *args, **kwargs) if torch.is_grad_enabled() else inner(*args, **kwargs)

    forward.inner_forward = inner  # type: ignore[attr-defined]
    block.forward = forward


@torch.no_grad()
def store_in_float8(layers: list[nn.Module]) -> None:
    """Keep frozen weights as float8 (e4m3) with one scale for each output; `base_weight` scales them back."""
    for layer in layers:
        weight = layer.get_parameter("weight")
        if weight.dtype == torch.float8_e4m3fn:
            continue
        largest = weight.float().flatten(1).abs().amax(1).clamp(min=1e-12)
        scale = (largest / torch.finfo(torch.float8_e4m3fn).max).view(-1, *[1] * (weight.dim() - 1))
        layer.weight = nn.Parameter((weight.float() / scale).to(torch.float8_e4m3fn), requires_grad=False)
        layer.register_buffer("weight_scale", scale.to(weight.dtype), persistent=False)
