"""A full-size SDXL with random weights behind the `Diffusion` protocol, for measuring speed and memory without downloads."""

from __future__ import annotations

import gc
import hashlib
from pathlib import Path
from typing import Any, ClassVar

import torch
from PIL import Image

from charengine.models import LatentPosterior, TextConditioning
from charengine.models.prediction import Prediction
from charengine.models.usage import Usage
from charengine.records import CaptionRecord, DatasetRecord, Ref, ViewRecord, ViewsRecord
from charengine.store import Store

SDXL = {  # unet/config.json of stable-diffusion-xl-base-1.0
    "sample_size": 128,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (320, 640, 1280),
    "layers_per_block": 2,
    "transformer_layers_per_block": (1, 2, 10),
    "attention_head_dim": (5, 10, 20),
    "cross_attention_dim": 2048,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 256,
    "projection_class_embeddings_input_dim": 2816,
}
TINY = SDXL | {  # every kind of layer that SDXL has; one of each where one is enough
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "layers_per_block": 1,
    "sample_size": 16,
    "block_out_channels": (32, 64),
    "transformer_layers_per_block": (1, 1),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 64,
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 32 + 6 * 8,
    "norm_num_groups": 8,
}


class RandomSDXL:
    """`Diffusion` whose text and images become random tensors of the right shapes; the U-Net is real.

    Args:
        config: of the U-Net.
        device: where it lives.
        dtype: of its weights.
        weights: a safetensors file to load the U-Net from; empty: drawn on the device.
    """

    fingerprint = sampling_fingerprint = "random"
    base_names: ClassVar[dict[str, str]] = {}
    prediction, usage = Prediction(), Usage()

    def __init__(self, config: dict[str, Any], device: str, dtype: torch.dtype, weights: str = "") -> None:
        self.config, self.device, self.dtype, self.weights = config, torch.device(device), dtype, weights
        self.pooled = config["projection_class_embeddings_input_dim"] - 6 * config["addition_time_embed_dim"]
        self.native_area = (config["sample_size"] * 8) ** 2
        self._unet: Any = None

    def encode_prompts(self, prompts: Any) -> TextConditioning:
        """Random, by text."""
        rows = [self._random(prompt, (77 * self.config["cross_attention_dim"] + self.pooled,)) for prompt in prompts]
        flat = torch.stack(rows).to(self.device, self.dtype)
        embeds = flat[:, : -self.pooled].reshape(len(rows), 77, -1)
        return TextConditioning(embeds, flat[:, -self.pooled :].contiguous())

    def count_tokens(self, text: str) -> int:
        """Four letters of a word each, about as CLIP has words that it does not know."""
        return sum(-(-len(word) // 4) for word in text.split())

    def encode_images(self, images: Any) -> LatentPosterior:
        """Random latents of the images' size."""
        shape = (4, images[0].height // 8, images[0].width // 8)
        mean = torch.stack([self._random(str(i), shape) for i in range(len(images))]).to(self.device)
        return LatentPosterior(mean, torch.full_like(mean, 0.05))

    def unet(self, device: torch.device | None = None) -> Any:
        """Built on the device, or loaded from the file."""
        place = device or self.device
        if self._unet is None:
            self._unet = self._load(place) if self.weights else build_unet(self.config, place, self.dtype)
        return self._unet

    def _load(self, device: torch.device) -> Any:
        from diffusers import UNet2DConditionModel
        from safetensors.torch import load_file

        with torch.device("meta"):
            unet = UNet2DConditionModel.from_config(self.config)
        unet.load_state_dict(load_file(self.weights, device=str(device)), assign=True)
        return unet.requires_grad_(False).eval()

    def sample(
        self, prompts: TextConditioning, negative: Any, *, seeds: Any, size: Any, steps: int, guidance: float
    ) -> Any:
        """The U-Net passes of guided sampling, and blank pictures."""
        noisy = torch.randn(2, 4, size[1] // 8, size[0] // 8, device=self.device, dtype=self.dtype)
        ids = torch.tensor([[size[1], size[0], 0, 0, size[1], size[0]]] * 2, device=self.device)
        conditions = {"text_embeds": torch.cat([prompts.pooled, negative.pooled]), "time_ids": ids}
        text = torch.cat([prompts.embeds, negative.embeds])
        with torch.no_grad():
            for step in range(steps):
                timestep = torch.full((2,), 999 - 900 * step // steps, device=self.device)
                self.unet()(noisy, timestep, text, added_cond_kwargs=conditions)
        return [Image.new("RGB", size) for _ in seeds]

    def alphas_cumprod(self) -> torch.Tensor:
        """SDXL's scaled-linear schedule."""
        return torch.cumprod(1 - torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2, 0)

    def unload(self, *parts: str) -> None:
        """Drop the U-Net."""
        if not parts or "unet" in parts:
            self._unet = None
            gc.collect()

    def _random(self, text: str, shape: tuple[int, ...]) -> torch.Tensor:
        seed = int.from_bytes(hashlib.sha256(text.encode()).digest()[:4], "little")
        return torch.randn(shape, generator=torch.Generator().manual_seed(seed))


def build_unet(config: dict[str, Any], device: torch.device, dtype: torch.dtype) -> Any:
    """A U-Net with random weights, made on the device; layers of one shape start out alike."""
    from diffusers import UNet2DConditionModel

    from benchmarks.random_models import random_state

    torch.manual_seed(0)
    with torch.device("meta"):
        unet = UNet2DConditionModel.from_config(config)
    drawn = torch.device("cuda") if torch.cuda.is_available() else device  # a CPU takes long over its random numbers
    state = random_state(unet, dtype, drawn, None)
    unet.load_state_dict({name: value.to(device, copy=True) for name, value in state.items()}, assign=True)
    return unet.to(device).requires_grad_(False).eval()


def three_views(store: Store, width: int, height: int) -> DatasetRecord:
    """A dataset of three blank views."""
    folder = Path(store.root)
    blank = folder / "blank.png"
    Image.new("RGB", (width, height), "white").save(blank)
    image = store.put_file(blank)
    Image.new("L", (width, height), 255).save(blank)
    alpha = store.put_file(blank)
    views = [
        ViewRecord(view=view, image=image, alpha=alpha, width=width, height=height, source_box=(0, 0, width, height))
        for view in ("front", "side", "back")
    ]
    overlay = Ref(sha256="0" * 64, size=0, media_type="image/png", name="overlay.png")
    return DatasetRecord(
        trigger="zorgal",
        class_noun="woman",
        views=ViewsRecord(views=tuple(views), background=(255, 255, 255), overlay=overlay),
        captions=tuple(CaptionRecord(view=view.view, text=f"zorgal, woman, {view.view} view") for view in views),
        digest="0" * 64,
    )
