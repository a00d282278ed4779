"""Where Qwen-Image-Edit's and Qwen2.5-VL's modules come from."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol

import torch

from charengine.models.layouts import adapter_layers
from charengine.models.loading import Loaded
from charengine.models.quantised import PackedLinear, add_adapter


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
        from diffusers import FlowMatchEulerDiscreteScheduler

        return FlowMatchEulerDiscreteScheduler.from_pretrained(
            self.folder, subfolder="scheduler", local_files_only=True
        )

    def _load(self, kind: Any, name: str, **kwargs: Any) -> Any:
        module = kind.from_pretrained(
            self.folder, subfolder=name, local_files_only=True, use_safetensors=True, **kwargs
        )
        return module.to(self.device)


def load_text_encoder(loaded: Loaded, parts: QwenVLParts) -> Any:
    """Qwen2.5-VL, frozen, with its 3-D positions put right; held in `loaded`, so that several users share it."""
    from charengine.models.processor import fix_position_ids

    def load() -> Any:
        encoder = parts.text_encoder().requires_grad_(False).eval()
        fix_position_ids(encoder)
        return encoder

    return loaded.get("text_encoder", load)


def load_lightning(transformer: Any, file: Path) -> None:
    """Put a Lightning LoRA (diffusers, PEFT, ComfyUI or kohya keys) on the transformer, once; packed weights stay packed."""
    if packed_layers(transformer):
        if all(layer.lora_down is None for layer in packed_layers(transformer)):
            add_adapter(transformer, adapter_layers(file, dict(transformer.named_modules())), str(file))
        return
    if "lightning" in getattr(transformer, "peft_config", {}):
        return
    from diffusers.loaders import QwenImageLoraLoaderMixin

    state = QwenImageLoraLoaderMixin.lora_state_dict(str(file), use_safetensors=True, local_files_only=True)
    QwenImageLoraLoaderMixin.load_lora_into_transformer(state, transformer=transformer, adapter_name="lightning")


def switch_lightning(transformer: Any, on: bool) -> None:
    """Compute with the Lightning LoRA, or without."""
    layers = packed_layers(transformer)
    for layer in layers:
        layer.lora_enabled = on
    if not layers:
        (transformer.enable_lora if on else transformer.disable_lora)()


def packed_layers(module: torch.nn.Module) -> list[PackedLinear]:
    """The layers of a model whose weights are packed."""
    return [layer for layer in module.modules() if isinstance(layer, PackedLinear)]


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
