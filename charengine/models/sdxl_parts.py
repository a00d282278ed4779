"""Where SDXL's modules come from: a diffusers folder of safetensors here, single files in `full.py`."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

import torch

from charengine.models.classes import sdxl_schedule

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel


class SDXLParts(Protocol):
    """Where SDXL's modules come from; each call loads anew, on the right device and in the right dtype."""

    def text_encoders(self) -> tuple[Any, Any]:
        """CLIPTextModel and CLIPTextModelWithProjection."""
        ...

    def tokenizers(self) -> tuple[Any, Any]:
        """One CLIP tokenizer for each encoder."""
        ...

    def vae(self) -> AutoencoderKL:
        """Float32, or an fp16-safe VAE in half precision."""
        ...

    def unet(self) -> UNet2DConditionModel:
        """The U-Net in the dtype it is trained and sampled in."""
        ...

    def scheduler(self) -> Any:
        """The scheduler whose configuration describes the noise schedule (1000 training steps)."""
        ...


class SDXLFolder:
    """SDXL's modules from a diffusers folder of safetensors."""

    def __init__(self, folder: Path, device: torch.device, dtype: torch.dtype) -> None:
        self.folder, self.device, self.dtype = folder, device, dtype

    def text_encoders(self) -> tuple[Any, Any]:
        """Both CLIP encoders."""
        from transformers import CLIPTextModel, CLIPTextModelWithProjection

        kwargs: dict[str, Any] = {"dtype": self.dtype, "local_files_only": True, "use_safetensors": True}
        first = CLIPTextModel.from_pretrained(self.folder, subfolder="text_encoder", **kwargs)
        second = CLIPTextModelWithProjection.from_pretrained(self.folder, subfolder="text_encoder_2", **kwargs)
        return first.to(self.device), second.to(self.device)

    def tokenizers(self) -> tuple[Any, Any]:
        """Both CLIP tokenizers."""
        from transformers import CLIPTokenizer

        first, second = (
            CLIPTokenizer.from_pretrained(self.folder, subfolder=name, local_files_only=True)
            for name in ("tokenizer", "tokenizer_2")
        )
        return first, second

    def vae(self) -> AutoencoderKL:
        """The VAE, always in float32: SDXL's own overflows in half precision."""
        from diffusers import AutoencoderKL

        return self._load(AutoencoderKL, "vae", torch.float32)

    def unet(self) -> UNet2DConditionModel:
        """The U-Net."""
        from diffusers import UNet2DConditionModel

        return self._load(UNet2DConditionModel, "unet", self.dtype)

    def scheduler(self) -> Any:
        """The noise schedule, as an Euler scheduler."""
        return sdxl_schedule(self.folder)

    def _load(self, kind: Any, name: str, dtype: torch.dtype) -> Any:
        module = kind.from_pretrained(
            self.folder, subfolder=name, torch_dtype=dtype, local_files_only=True, use_safetensors=True
        )
        return module.to(self.device)
