"""Where Qwen-Image-Edit's and Qwen2.5-VL's modules come from."""

from __future__ import annotations

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Protocol

import torch

from charengine.errors import StageFailed
from charengine.models.classes import flow_schedule
from charengine.models.layouts import adapter_layers
from charengine.models.loading import Loaded
from charengine.models.low_rank import add_adapter


class QwenVLParts(Protocol):
    """Where the Qwen2.5-VL model comes from; each call loads anew, placed and in its final dtype."""

    def text_encoder(self) -> Any:
        """Qwen2_5_VLForConditionalGeneration."""
        ...

    def processor(self) -> Any:
        """Its processor, with a tokenizer and an image processor."""
        ...


class QwenEditParts(QwenVLParts, Protocol):
    """Where Qwen-Image-Edit's modules come from; each call loads anew, placed and in its final dtype."""

    def tokenizer(self) -> Any:
        """Qwen2Tokenizer."""
        ...

    def transformer(self) -> Any:
        """QwenImageTransformer2DModel."""
        ...

    def vae(self) -> Any:
        """AutoencoderKLQwenImage."""
        ...

    def scheduler(self) -> Any:
        """FlowMatchEulerDiscreteScheduler."""
        ...


class QwenEditFolder:
    """Qwen-Image-Edit's modules from a diffusers folder of safetensors."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype

    def text_encoder(self) -> Any:
        """The Qwen2.5-VL model."""
        from transformers import Qwen2_5_VLForConditionalGeneration

        return self._load(Qwen2_5_VLForConditionalGeneration, "text_encoder", dtype=self.dtype)

    def processor(self) -> Any:
        """A processor that needs no torchvision."""
        from charengine.models.processor import ImageTextProcessor

        return ImageTextProcessor.from_pretrained(self.folder, subfolder="processor", local_files_only=True)

    def tokenizer(self) -> Any:
        """The tokenizer inside the processor."""
        return self.processor().tokenizer

    def transformer(self) -> Any:
        """The diffusion transformer."""
        from diffusers import QwenImageTransformer2DModel

        return self._load(QwenImageTransformer2DModel, "transformer", torch_dtype=self.dtype)

    def vae(self) -> Any:
        """The VAE."""
        from diffusers import AutoencoderKLQwenImage

        return self._load(AutoencoderKLQwenImage, "vae", torch_dtype=self.dtype)

    def scheduler(self) -> Any:
        """The flow-matching scheduler."""
        return flow_schedule(self.folder)

    def _load(self, kind: Any, name: str, **kwargs: Any) -> Any:
        module = kind.from_pretrained(
            self.folder, subfolder=name, local_files_only=True, use_safetensors=True, **kwargs
        )
        return module.to(self.device)


def load_text_encoder(loaded: Loaded, parts: QwenVLParts) -> Any:
    """Qwen2.5-VL, frozen, with its 3-D positions put right; held in `loaded`, so that several users share it."""
    from charengine.models.processor import fix_position_ids
    from charengine.models.vision_windows import put_windows_side_by_side

    def load() -> Any:
        encoder = parts.text_encoder().requires_grad_(False).eval()
        fix_position_ids(encoder)
        if encoder.device.type != "cpu":  # there it is no faster
            put_windows_side_by_side(encoder)
        return encoder

    return loaded.get("text_encoder", load)


def load_loras(transformer: Any, own: Sequence[tuple[Path, float]], lightning: Path | None) -> None:
    """Put LoRAs (diffusers, PEFT, ComfyUI or kohya keys) on the transformer, once; packed weights stay packed.

    Args:
        transformer: loaded; it may come back from host memory with its LoRAs on.
        own: files and strengths, always on.
        lightning: turned on and off by `switch_adapter`.
    """
    if getattr(transformer, "has_loras", False):
        return
    names = dict(transformer.named_modules())
    for file, strength in own:
        add_adapter(transformer, adapter_layers(file, names, strength))
    if lightning is not None:
        add_adapter(transformer, adapter_layers(lightning, names), switched=True)
    transformer.has_loras = True


def lightning_scheduler() -> Any:
    """The scheduler Lightning was distilled with (ModelTC/Qwen-Image-Lightning): constant shift of 3."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    return FlowMatchEulerDiscreteScheduler(
        base_image_seq_len=256,
        max_image_seq_len=8192,
        base_shift=math.log(3),
        max_shift=math.log(3),
        shift=1.0,
        shift_terminal=None,
        time_shift_type="exponential",
        use_dynamic_shifting=True,
    )


def refuse_nan(cells: torch.Tensor, pixels: torch.Tensor) -> None:
    """What the VAE made of the transformer's latents is a picture, or it is said whose numbers are none.

    Raises:
        StageFailed: some of the pixels are NaN.
    """
    if pixels.isnan().any():
        model = "edit model" if cells.isnan().any() else "VAE of the edit model"
        raise StageFailed(
            f"the {model} answered with no numbers (NaN), which is no picture: its file or a LoRA's is damaged, or too much for "
            f"{str(pixels.dtype).removeprefix('torch.')}. Get it again, leave models.edit_loras out, or take another file of it"
        )
