"""The classes of the full-size family, built from configurations without weights."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib import resources
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from charengine import files
from charengine.errors import BadInput, EngineError
from charengine.models.files import read_json, shown
from charengine.models.quantised import State

QWEN, WHERE = "qwen-image-edit", ("scheduler", "scheduler_config.json")
MOST_LAYERS = 1000
DEPTH = re.compile(r"transformer_blocks\.(\d+)\.")


def packaged_config(name: str) -> Path:
    """Configurations of the published models, as a diffusers folder without weights: "qwen-image-edit" or "sdxl"."""
    return Path(str(resources.files("charengine.models") / "configs" / name))


def config_file(folder: Path, family: str, part: str, name: str = "config.json") -> Path:
    """Where a part is described: in `folder` if it has one, else as the published model's."""
    own = folder / part / name
    return own if files.is_file(own) else packaged_config(family) / part / name


def read_config(folder: Path, family: str, part: str) -> dict[str, Any]:
    """A part's `config.json`, from `config_file`."""
    return read_json(config_file(folder, family, part))


@contextmanager
def described(file: Path) -> Iterator[Path]:
    """Where something is built from a file: raises BadInput with its name for whatever libraries make of wrong values."""
    try:
        yield file
    except EngineError:
        raise
    except Exception as error:  # arithmetic, look-ups and assertions of three libraries
        said = f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0][:200]}"
        raise BadInput(f"{file} describes nothing that works ({shown(said)}): download it again") from error


def on_meta(build: Callable[[], nn.Module]) -> nn.Module:
    """A module without weights; only buffers that no file holds are real."""
    from accelerate import init_empty_weights

    with init_empty_weights(include_buffers=False):
        return build()


def _as_described(folder: Path, family: str, part: str, build: Callable[[Any], nn.Module], **changes: Any) -> Any:
    """`on_meta`, from a part's configuration."""
    with described(config_file(folder, family, part)) as file:
        config = read_json(file) | changes
        _refuse_towers(config)
        return on_meta(lambda: build(config))


def _refuse_towers(config: dict[str, Any]) -> None:
    """Without weights, ten million layers are built one by one."""
    for section in (config, *(value for value in config.values() if isinstance(value, dict))):
        for key, value in section.items():
            if "layers" in key and isinstance(value, int | float) and value > MOST_LAYERS:
                raise ValueError(f"{key} is {value}; allowed are {MOST_LAYERS}")


def depth_of(state: State) -> int:
    """Blocks a transformer's file has; pruned releases have fewer than the published one."""
    return 1 + max((int(found.group(1)) for key in state if (found := DEPTH.search(key))), default=-1)


def transformer(folder: Path, depth: int, *, zero_cond_t: bool = False) -> Any:
    """QwenImageTransformer2DModel of `depth` blocks."""
    from diffusers import QwenImageTransformer2DModel

    changes = {"num_layers": depth} | ({"zero_cond_t": True} if zero_cond_t else {})
    return _as_described(folder, QWEN, "transformer", QwenImageTransformer2DModel.from_config, **changes)


def vision_language(folder: Path) -> Any:
    """Qwen2_5_VLForConditionalGeneration."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    model, settings = Qwen2_5_VLForConditionalGeneration, Qwen2_5_VLConfig
    return _as_described(folder, QWEN, "text_encoder", lambda config: model(settings.from_dict(config)))


def qwen_vae(folder: Path) -> Any:
    """AutoencoderKLQwenImage."""
    from diffusers import AutoencoderKLQwenImage

    return _as_described(folder, QWEN, "vae", AutoencoderKLQwenImage.from_config)


def sdxl_unet(folder: Path) -> Any:
    """UNet2DConditionModel."""
    from diffusers import UNet2DConditionModel

    return _as_described(folder, "sdxl", "unet", UNet2DConditionModel.from_config)


def sdxl_vae(folder: Path) -> Any:
    """AutoencoderKL."""
    from diffusers import AutoencoderKL

    vae = _as_described(folder, "sdxl", "vae", AutoencoderKL.from_config)
    scale, shift = vae.config["scaling_factor"], vae.config.get("shift_factor") or 0
    with described(config_file(folder, "sdxl", "vae")):
        numbers = all(isinstance(number, int | float) and np.isfinite(number) for number in (scale, shift))
        if not numbers or scale <= 0:
            raise ValueError(f"scaling_factor is {scale}, shift_factor {shift}; allowed are numbers, the first above 0")
    return vae


def sdxl_text_encoder(folder: Path, name: str) -> Any:
    """CLIPTextModel ("text_encoder") or CLIPTextModelWithProjection ("text_encoder_2")."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    kind: Any = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}[name]
    return _as_described(folder, "sdxl", name, lambda config: kind(CLIPTextConfig(**config)))


def sdxl_schedule(folder: Path) -> Any:
    """EulerDiscreteScheduler; raises BadInput where its values are no schedule of SDXL."""
    from diffusers import EulerDiscreteScheduler as Euler

    with described(config_file(folder, "sdxl", *WHERE)) as file:
        config = read_json(file)
        scheduler = Euler.from_config(config)
        scheduler.set_timesteps(4)
        alphas = Euler.from_config(config, rescale_betas_zero_snr=False).alphas_cumprod
        if len(alphas) != 1000 or not (alphas[0] < 1 and (alphas.diff() < 0).all() and alphas[-1] > 0):
            raise ValueError("signal falls from 1 to 0 over num_train_timesteps = 1000")
        return scheduler


def flow_schedule(folder: Path) -> Any:
    """FlowMatchEulerDiscreteScheduler; raises BadInput where its values are no schedule."""
    from diffusers import FlowMatchEulerDiscreteScheduler as Flow

    with described(config_file(folder, QWEN, *WHERE)) as file:
        scheduler = Flow.from_config(read_json(file))
        begin(scheduler, 4, 4096)
        return scheduler


def begin(scheduler: Any, steps: int, tokens: int, device: torch.device | None = None) -> None:
    """Set a flow-matching scheduler to draw in `steps` steps a picture of so many tokens."""
    config = scheduler.config
    low, high = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
    slope = (config.get("max_shift", 1.15) - config.get("base_shift", 0.5)) / (high - low)
    shift = config.get("base_shift", 0.5) + slope * (tokens - low)
    scheduler.set_timesteps(sigmas=np.linspace(1.0, 1 / steps, steps), device=device, mu=shift)
    scheduler.set_begin_index(0)


def without_text_model(module: nn.Module, state: State) -> State:
    """A text encoder's state under the names its class has now (transformers 5.6 dropped `text_model.`)."""
    if not hasattr(module, "text_model") and any(key.startswith("text_model.") for key in state):
        return {key.removeprefix("text_model."): value for key, value in state.items()}
    return state


def scorer(folder: Path, kind: str) -> Any:
    """CLIPModel or the DINOv2 class that a folder's configuration names."""
    from transformers import CLIPConfig, CLIPModel

    with described(folder / "config.json") as file:
        config = read_json(file)
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
