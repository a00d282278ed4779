"""LyCORIS' modules for the layers of a U-Net: made, hooked on nothing."""

from __future__ import annotations

import gc
import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from types import SimpleNamespace
from typing import TYPE_CHECKING, Any

from torch import nn

from charengine.config import TrainSettings

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

TARGETS = ["Transformer2DModel", "ResnetBlock2D", "Downsample2D", "Upsample2D"]  # kohya's LoCon: 788 layers of SDXL
PRESETS = {
    f"charengine-{kind}": {
        "enable_conv": kind == "conv",
        "target_module": TARGETS,
        "target_name": [],
        "module_algo_map": {},
        "name_algo_map": {},
        "exclude_name": [],
        "use_fnmatch": False,
        "lora_prefix": "lycoris",
    }
    for kind in ("conv", "linear")
}


def by_name(unet: UNet2DConditionModel, network: Any) -> dict[str, Any]:
    """A network's modules by the diffusers names of their layers, in its order."""
    names = {id(module): name for name, module in unet.named_modules()}
    return {names[id(module.org_module[0])]: module for module in network.loras}


def create_network(unet: UNet2DConditionModel, settings: TrainSettings) -> Any:
    """LyCORIS' network, not applied."""
    os.environ.setdefault("LYCORIS_KERNEL_BACKEND", "torch")  # else LyCORIS compiles kernels of its own first
    from lycoris import create_lycoris
    from lycoris.config import PRESET

    conv = settings.conv_rank > 0 and settings.algorithm not in ("lora", "tlora")
    PRESET.update(PRESETS)  # create_lycoris takes layer choices only by preset name
    algorithm = {"dora": "locon", "lora": "locon"}.get(settings.algorithm, settings.algorithm)
    with _quiet_lycoris(), _without_kaiming(algorithm == "locon"):
        return create_lycoris(
            unet,
            multiplier=1.0,
            linear_dim=settings.rank,
            linear_alpha=settings.alpha,
            conv_dim=settings.conv_rank or settings.rank,
            conv_alpha=settings.conv_alpha,
            algo=algorithm,
            dora_wd=settings.algorithm == "dora",
            bypass_mode=settings.algorithm != "dora",
            preset="charengine-conv" if conv else "charengine-linear",
            warn_on_unmatched=False,
        )


@contextmanager
def _quiet_lycoris() -> Iterator[None]:
    """LyCORIS logs a dozen lines for each network it makes, and its T-LoRA collects garbage after every layer."""
    from lycoris.logging import logger
    from lycoris.modules import tlora

    level = logger.level
    logger.setLevel(logging.ERROR)
    tlora.gc = SimpleNamespace(collect=lambda: 0)
    try:
        yield
    finally:
        tlora.gc = gc
        logger.setLevel(level)


@contextmanager
def _without_kaiming(wanted: bool) -> Iterator[None]:
    """LyCORIS draws each matrix twice over, torch's way and its own, before `_initialise` does: a second for SDXL's 788 layers.

    Args:
        wanted: only where all that is drawn so is drawn again, which holds for LoRA's down matrices.
    """
    draw = nn.init.kaiming_uniform_
    if wanted:
        nn.init.kaiming_uniform_ = lambda tensor, *_, **__: tensor
    try:
        yield
    finally:
        nn.init.kaiming_uniform_ = draw
