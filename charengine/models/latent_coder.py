"""SDXL's VAE as it is used here: pictures to scaled latents in float32, latents to pictures in the U-Net's precision."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import torch

from charengine.errors import BadInput
from charengine.models.fused_layers import fused
from charengine.models.loading import chunks
from charengine.models.pixels import images_to_tensor, tensor_to_images
from charengine.models.protocols import LatentPosterior

if TYPE_CHECKING:
    from PIL.Image import Image

log = logging.getLogger(__name__)

PIXELS_PER_PASS = 1024 * 1024  # a float32 decode of this many takes about 4 GiB


def ready_vae(vae: Any, dtype: torch.dtype) -> Any:
    """A VAE, frozen; what decodes is rounded to bfloat16 where the U-Net is of that.

    Half the memory and time, for a difference of 54 dB, where a picture that went through the VAE is off by 28. In float16 SDXL's
    own overflows.
    """
    vae.requires_grad_(False).eval()
    if dtype == torch.bfloat16:
        for part in (vae.decoder, vae.post_quant_conv):
            part.to(torch.bfloat16)
    return vae


class LatentCoder:
    """A `ready_vae` between pictures and scaled latents.

    Args:
        vae: AutoencoderKL.
    """

    def __init__(self, vae: Any) -> None:
        self.vae = vae
        self._shift, self._scale = vae.config.get("shift_factor") or 0.0, vae.config["scaling_factor"]

    @property
    def factor(self) -> int:
        """Pixels a latent cell covers along one side."""
        return int(2 ** (len(self.vae.config["block_out_channels"]) - 1))

    def encode(self, images: Sequence[Image], device: torch.device) -> LatentPosterior:
        """Scaled posterior (n, 4, h/8, w/8) of same-sized images, float32 on `device`.

        Raises:
            BadInput: the images differ in size, or a side is no multiple of the VAE's factor.
        """
        width, height = self._common_size(images)
        means, stds = [], []
        for part in chunks(len(images), _rows_per_pass(width, height)):
            pixels = images_to_tensor(images[part]).to(self.vae.device, self.vae.dtype)
            with fused(self.vae):
                posterior = self.vae.encode(pixels).latent_dist
            means.append((posterior.mean.float() - self._shift) * self._scale)
            stds.append(posterior.std.float() * self._scale)
        return LatentPosterior(torch.cat(means).to(device), torch.cat(stds).to(device))

    def decode(self, latents: torch.Tensor) -> list[Image]:
        """Images from scaled latents (n, 4, h/8, w/8); where a model answered with NaN they are black, and the log says so."""
        images: list[Image] = []
        first = self.vae.decoder.conv_in.weight
        width, height = latents.shape[3] * self.factor, latents.shape[2] * self.factor
        for part in chunks(len(latents), _rows_per_pass(width, height)):
            rows = latents[part].float() / self._scale + self._shift
            with fused(self.vae):
                pixels = self.vae.decode(rows.to(first.device, first.dtype)).sample
            _tell_of_black(latents[part], pixels)
            images += tensor_to_images(pixels)
        return images

    def _common_size(self, images: Sequence[Image]) -> tuple[int, int]:
        sizes = sorted({image.size for image in images})
        if len(sizes) != 1:
            raise BadInput(f"images of sizes {sizes} cannot be encoded together: give one or more of one size")
        if sizes[0][0] % self.factor or sizes[0][1] % self.factor:
            raise BadInput(f"image of {sizes[0][0]}x{sizes[0][1]}: both sides must be multiples of {self.factor}")
        return sizes[0]


def _rows_per_pass(width: int, height: int) -> int:
    return max(1, PIXELS_PER_PASS // (width * height))


def _tell_of_black(latents: torch.Tensor, pixels: torch.Tensor) -> None:
    """Say which model answered with NaN, if one did."""
    black = pixels.isnan().flatten(1).any(1)
    if not black.any():
        return
    model = "U-Net" if latents[black].isnan().any() else "VAE"
    log.warning(
        "%d of %d pictures are black: the %s answered with no numbers (NaN). Without an adapter it is damaged: get its file again; "
        "with one, the adapter is too strong or damaged: take a lower strength",
        int(black.sum()),
        len(black),
        model,
    )
