"""A tiny SDXL-shaped U-Net and a fake text-to-image model around it: deterministic latents, no VAE, no text encoders."""

from __future__ import annotations

import hashlib
import io

import numpy as np
import torch
from PIL import Image, ImageDraw

from charengine.models import LatentPosterior, TextConditioning, Trace
from charengine.models.prediction import Prediction
from charengine.models.usage import Usage
from charengine.records import CaptionRecord, DatasetRecord, Ref, ViewRecord, ViewsRecord
from charengine.stages.train.step import predict

TOKENS, WIDTH, POOLED = 8, 24, 16


def tiny_unet(seed: int = 0, dtype: torch.dtype = torch.float32, blocks: tuple[int, ...] = (32, 64)):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(seed)
    unet = UNet2DConditionModel(
        sample_size=16,
        in_channels=4,
        out_channels=4,
        down_block_types=("DownBlock2D", "CrossAttnDownBlock2D"),
        up_block_types=("CrossAttnUpBlock2D", "UpBlock2D"),
        block_out_channels=blocks,
        layers_per_block=1,  # every kind of layer that SDXL has, in a third of the time of its three levels of two
        transformer_layers_per_block=(1, 1),
        attention_head_dim=(2, 4),
        cross_attention_dim=WIDTH,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=8,
        projection_class_embeddings_input_dim=POOLED + 6 * 8,
        norm_num_groups=8,
    )
    return unet.to(dtype).requires_grad_(False).eval()


class FakeDiffusion:
    """`Diffusion` with a real tiny U-Net; text and images become deterministic tensors."""

    base_names = {"ss_sd_model_name": "fake.safetensors", "ss_sd_model_hash": "0123abcd"}
    fingerprint = sampling_fingerprint = "fake"
    prediction, usage = Prediction(), Usage()
    native_area = 64 * 64

    def __init__(self, dtype: torch.dtype = torch.float32, device: str = "cpu") -> None:
        self.device, self.dtype = torch.device(device), dtype
        self.unloaded: list[str] = []
        self._unet = None

    def encode_prompts(self, prompts):
        rows = []
        for prompt in prompts:
            seed = int.from_bytes(hashlib.sha256(prompt.encode()).digest()[:4], "little")
            rows.append(torch.randn(TOKENS * WIDTH + POOLED, generator=torch.Generator().manual_seed(seed)))
        flat = torch.stack(rows).to(self.device)
        return TextConditioning(
            flat[:, : TOKENS * WIDTH].reshape(-1, TOKENS, WIDTH).to(self.dtype),
            flat[:, TOKENS * WIDTH :].to(self.dtype),
        )

    def count_tokens(self, text):
        return sum(-(-len(word) // 4) for word in text.split())

    def encode_images(self, images):
        arrays = [np.asarray(image.convert("RGB"), dtype=np.float32) / 127.5 - 1 for image in images]
        pixels = torch.from_numpy(np.stack(arrays)).permute(0, 3, 1, 2)
        small = torch.nn.functional.avg_pool2d(pixels, 8)
        mean = torch.cat([small, small.mean(1, keepdim=True)], 1).to(self.device)
        return LatentPosterior(mean, torch.full_like(mean, 0.05))

    def decode(self, latents):
        return [Image.new("RGB", (latents.shape[3] * 8, latents.shape[2] * 8)) for _ in latents]

    def unet(self, device=None):
        if self._unet is None:
            self._unet = tiny_unet(0, self.dtype).to(device or self.device)
        return self._unet

    def alphas_cumprod(self):
        betas = torch.linspace(0.00085**0.5, 0.012**0.5, 1000) ** 2
        return torch.cumprod(1 - betas, 0)

    def sample(self, prompts, negative, *, seeds, size, steps, guidance):
        return [Image.new("RGB", size, (seed % 256, 0, 0)) for seed in seeds]

    @torch.no_grad()
    def trace(self, prompts, beside, negative, *, seeds, size, steps, guidance, on_pass=None):
        times = torch.linspace(951, 1, steps, device=self.device)
        generators = [torch.Generator().manual_seed(seed) for seed in seeds]
        start = torch.stack([torch.randn(4, size[1] // 8, size[0] // 8, generator=one) for one in generators])
        noisy = torch.stack([start * (1 - 0.5 * number / steps) for number in range(steps)]).to(self.device, self.dtype)
        ids = torch.tensor([[*size[::-1], 0, 0, *size[::-1]]], device=self.device).expand(len(seeds), -1).float()

        def predicted(text):
            rows = (text.embeds.expand(len(seeds), -1, -1), text.pooled.expand(len(seeds), -1))
            return torch.stack(
                [
                    predict(self.unet(), one, t.expand(len(seeds)), *rows, ids)
                    for one, t in zip(noisy, times, strict=True)
                ]
            )

        return Trace(times, noisy, predicted(prompts), predicted(beside), predicted(negative))

    def unload(self, *parts):
        self.unloaded += parts or ("text_encoders", "vae", "unet")
        if not parts or "unet" in parts:
            self._unet = None


def make_dataset(store, sizes=((64, 128), (64, 128), (64, 128)), side_bound=False) -> DatasetRecord:
    """Three coloured figures on white with captions."""
    views, captions = [], []
    for view, (width, height), colour in zip(("front", "side", "back"), sizes, ("red", "green", "blue"), strict=True):
        image, alpha = Image.new("RGB", (width, height), "white"), Image.new("L", (width, height), 0)
        box = (width // 4, height // 8, width // 2, height - height // 8)
        ImageDraw.Draw(image).rectangle(box, fill=colour)
        ImageDraw.Draw(alpha).rectangle(box, fill=255)
        views.append(
            ViewRecord(
                view=view,
                image=_put(store, image, f"{view}.png"),
                alpha=_put(store, alpha, f"{view}-alpha.png"),
                width=width,
                height=height,
                source_box=(0, 0, width // 2, height // 2),
            )
        )
        captions.append(CaptionRecord(view=view, text=f"zorgal, woman, {view} view, standing"))
    blank = Ref(sha256="0" * 64, size=0, media_type="image/png", name="overlay.png")
    return DatasetRecord(
        trigger="zorgal",
        class_noun="woman",
        views=ViewsRecord(views=tuple(views), background=(255, 255, 255), overlay=blank),
        captions=tuple(captions),
        digest="d" * 64,
        side_bound=side_bound,
    )


def _put(store, image, name):
    buffer = io.BytesIO()
    image.save(buffer, "PNG")
    return store.put(buffer.getvalue(), name)
