"""The U-Net's structure without its weights: names and shapes of layers, known before a model is loaded."""

from __future__ import annotations

from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING

from charengine import files
from charengine.config import ModelSettings, Profile
from charengine.together import rank_problems

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

PACKAGED = {"embedded": ("charengine.embedded", "weights/sdxl"), "sdxl": ("charengine.models", "configs/sdxl")}


def unet_skeleton(settings: ModelSettings) -> UNet2DConditionModel:
    """A U-Net without memory, of the folder that `models.sdxl` names, else of the family's own structure.

    Raises:
        BadInput: the folder's `unet/config.json` cannot be read, or describes none.
    """
    from charengine.models.classes import sdxl_unet

    unet: UNet2DConditionModel = sdxl_unet(_folder(settings))
    return unet.requires_grad_(False)


def ranks_that_do_not_fit(profile: Profile) -> list[str]:
    """What is wrong with the ranks of a training on that U-Net, told without torch; nothing where its configuration says no widths."""
    widths = files.kept_object(_folder(profile.models) / "unet" / "config.json").get("block_out_channels")
    if not isinstance(widths, list) or not widths or not all(type(width) is int for width in widths):
        return []
    return rank_problems(profile.train, min(widths))


def _folder(settings: ModelSettings) -> Path:
    own, (package, inner) = Path(settings.sdxl), PACKAGED[settings.family]
    there = settings.sdxl and files.is_file(own / "unet" / "config.json")
    return own if there else Path(str(resources.files(package) / inner))
