"""The U-Net's structure without its weights: names and shapes of layers, known before a model is loaded."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from charengine import files
from charengine.config import ModelSettings

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

PACKAGED = {"embedded": ("charengine.embedded", "weights/sdxl"), "sdxl": ("charengine.models", "configs/sdxl")}


def unet_skeleton(settings: ModelSettings) -> UNet2DConditionModel:
    """A U-Net without memory, of the folder that `models.sdxl` names, else of the family's own structure.

    Raises:
        BadInput: the folder's `unet/config.json` cannot be read, or describes none.
    """
    from charengine.models.classes import sdxl_unet

    own, (package, inner) = Path(settings.sdxl), PACKAGED[settings.family]
    there = settings.sdxl and files.is_file(own / "unet" / "config.json")
    unet: UNet2DConditionModel = sdxl_unet(own if there else Path(str(resources.files(package) / inner)))
    return unet.requires_grad_(False)
