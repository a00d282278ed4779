"""Pictures as tensors, and back."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from PIL import Image


def images_to_tensor(images: Sequence[Image.Image]) -> torch.Tensor:
    """(n, 3, h, w) float32 in [-1, 1]."""
    pixels = np.stack([np.asarray(image.convert("RGB"), dtype=np.float32) for image in images])
    return torch.from_numpy(pixels).permute(0, 3, 1, 2) / 127.5 - 1


def tensor_to_images(pixels: torch.Tensor) -> list[Image.Image]:
    """PIL images from (n, 3, h, w) in [-1, 1]; NaN is black, which the caller has to say."""
    known = pixels.float().nan_to_num(nan=-1.0)
    scaled = ((known / 2 + 0.5).clamp(0, 1) * 255).round().to(torch.uint8)
    return [Image.fromarray(row) for row in scaled.permute(0, 2, 3, 1).cpu().numpy()]
