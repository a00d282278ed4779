"""The U-Net's structure without its weights: names and shapes of layers, known before a model is loaded."""

from __future__ import annotations

import json
from importlib import resources
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charengine import files
from charengine.config import ModelSettings
from charengine.errors import BadInput

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

PACKAGED = {"embedded": ("charengine.embedded", "weights/sdxl"), "sdxl": ("charengine.models", "configs/sdxl")}


def unet_skeleton(settings: ModelSettings) -> UNet2DConditionModel:
    """A U-Net on the meta device, of the folder that `models.sdxl` names, else of the family's own structure.

    Raises:
        BadInput: the folder's `unet/config.json` cannot be read.
    """
    import torch
    from diffusers import UNet2DConditionModel

    with torch.device("meta"):
        unet: UNet2DConditionModel = UNet2DConditionModel.from_config(_config(settings))
    return unet.requires_grad_(False)


def _config(settings: ModelSettings) -> dict[str, Any]:
    own = Path(settings.sdxl) / "unet" / "config.json"
    package, folder = PACKAGED[settings.family]
    packaged = resources.files(package) / folder / "unet" / "config.json"
    try:
        text = (
            own.read_text(encoding="utf-8")
            if settings.sdxl and files.is_file(own)
            else packaged.read_text(encoding="utf-8")
        )
        config = json.loads(text)
    except (OSError, ValueError) as error:
        raise BadInput(f"{own} cannot be read ({error}); models.sdxl is damaged, get it again") from error
    if not isinstance(config, dict):
        raise BadInput(f"{own} is not the config of a U-Net; models.sdxl is damaged, get it again")
    return config
