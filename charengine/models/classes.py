"""The classes of the full-size family, built from configurations without weights."""

from __future__ import annotations

import re
from collections.abc import Callable
from functools import partial
from importlib import resources
from pathlib import Path
from typing import Any

from torch import nn

from charengine import files
from charengine.models.files import read_json
from charengine.models.quantised import State

DEPTH = re.compile(r"transformer_blocks\.(\d+)\.")


def packaged_config(name: str) -> Path:
    """Configurations of the published models, as a diffusers folder without weights: "qwen-image-edit" or "sdxl"."""
    return Path(str(resources.files("charengine.models") / "configs" / name))


def read_config(folder: Path, family: str, part: str) -> dict[str, Any]:
    """A part's `config.json`, from `folder` if it has one, else the published model's."""
    own = folder / part / "config.json"
    file = own if files.is_file(own) else packaged_config(family) / part / "config.json"
    return read_json(file)


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A module without weights; only buffers that no file holds are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return build()


def depth_of(state: State) -> int:
    """Blocks a transformer's file has; pruned releases have fewer than the published one."""
    return 1 + max((int(found.group(1)) for key in state if (found := DEPTH.search(key))), default=-1)


def transformer(folder: Path, depth: int, *, zero_cond_t: bool = False) -> Any:
    """QwenImageTransformer2DModel of `depth` blocks."""
    from diffusers import QwenImageTransformer2DModel

    config = read_config(folder, "qwen-image-edit", "transformer") | {"num_layers": depth}
    if zero_cond_t:
        config["zero_cond_t"] = True
    return on_meta(lambda: QwenImageTransformer2DModel.from_config(config))


def vision_language(folder: Path) -> Any:
    """Qwen2_5_VLForConditionalGeneration."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    config = Qwen2_5_VLConfig.from_dict(read_config(folder, "qwen-image-edit", "text_encoder"))
    return on_meta(lambda: Qwen2_5_VLForConditionalGeneration(config))


def qwen_vae(folder: Path) -> Any:
    """AutoencoderKLQwenImage."""
    from diffusers import AutoencoderKLQwenImage

    return on_meta(lambda: AutoencoderKLQwenImage.from_config(read_config(folder, "qwen-image-edit", "vae")))


def sdxl_unet(folder: Path) -> Any:
    """UNet2DConditionModel."""
    from diffusers import UNet2DConditionModel

    return on_meta(lambda: UNet2DConditionModel.from_config(read_config(folder, "sdxl", "unet")))


def sdxl_vae(folder: Path) -> Any:
    """AutoencoderKL."""
    from diffusers import AutoencoderKL

    return on_meta(lambda: AutoencoderKL.from_config(read_config(folder, "sdxl", "vae")))


def sdxl_text_encoder(folder: Path, name: str) -> Any:
    """CLIPTextModel ("text_encoder") or CLIPTextModelWithProjection ("text_encoder_2")."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind: Any = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}[name]
    return on_meta(partial(kind, CLIPTextConfig(**read_config(folder, "sdxl", name))))


def without_text_model(module: nn.Module, state: State) -> State:
    """A text encoder's state under the names its class has now (transformers 5.6 dropped `text_model.`)."""
    if not hasattr(module, "text_model") and any(key.startswith("text_model.") for key in state):
        return {key.removeprefix("text_model."): value for key, value in state.items()}
    return state


def scorer(folder: Path, kind: str) -> Any:
    """CLIPModel or the DINOv2 class that a folder's configuration names."""
    from transformers import CLIPConfig, CLIPModel

    config = read_json(folder / "config.json")
    if kind == "clip":
        return on_meta(lambda: CLIPModel(CLIPConfig.from_dict(config)))
    model, settings = dino_class(str(config.get("model_type")))
    return on_meta(lambda: model(settings.from_dict(config)))


def dino_class(model_type: str) -> tuple[Any, Any]:
    """Model and configuration class of a DINOv2 folder: with register tokens ("dinov2_with_registers") or without."""
    from transformers import Dinov2Config, Dinov2Model, Dinov2WithRegistersConfig, Dinov2WithRegistersModel

    if model_type == "dinov2_with_registers":
        return Dinov2WithRegistersModel, Dinov2WithRegistersConfig
    return Dinov2Model, Dinov2Config
