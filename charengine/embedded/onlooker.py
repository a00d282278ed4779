"""Whether a picture shows nobody, one character, several, or a face alone: a small net of its own, trained on composed renders."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from charengine.embedded.packaged import ONLOOKER
from charengine.errors import MissingDependency

if TYPE_CHECKING:
    from PIL.Image import Image

KINDS = ("nobody", "full body", "upper body", "face", "several")
SIDE = 96  # pixels of what it looks at


class OnlookerNet(nn.Module):
    """Logits for `KINDS` of pictures (n, 3, SIDE, SIDE) in [0, 1]."""

    def __init__(self, widths: tuple[int, ...] = (24, 48, 80, 96)) -> None:
        super().__init__()
        layers: list[nn.Module] = []
        inside = 5
        for outside in widths:
            layers += [nn.Conv2d(inside, outside, 3, 2, 1, bias=False), nn.BatchNorm2d(outside), nn.SiLU()]
            inside = outside
        layers += [nn.Conv2d(inside, inside, 3, 1, 1, bias=False), nn.BatchNorm2d(inside), nn.SiLU()]
        self.blocks = nn.Sequential(*layers)
        self.head = nn.Sequential(nn.Linear(2 * inside, 64), nn.SiLU(), nn.Linear(64, len(KINDS)))

    def forward(self, images: torch.Tensor) -> torch.Tensor:
        """(n, kinds)."""
        line = torch.linspace(-1, 1, images.shape[-1], device=images.device)
        place = torch.stack([line[None].expand(len(line), -1), line[:, None].expand(-1, len(line))])
        x = self.blocks(torch.cat([images * 2 - 1, place.expand(len(images), -1, -1, -1)], 1))
        logits: torch.Tensor = self.head(torch.cat([x.mean((2, 3)), x.amax((2, 3))], 1))
        return logits


def load_onlooker(path: Path = ONLOOKER, device: str | torch.device = "cpu") -> OnlookerNet:
    """The shipped net.

    Raises:
        MissingDependency: its weights are not there.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingDependency(f"no onlooker weights at {path}: reinstall the package")
    net = OnlookerNet()
    net.load_state_dict(
        {name: value.float() if value.is_floating_point() else value for name, value in load_file(path).items()}
    )
    return net.to(device).eval().requires_grad_(False)


@torch.no_grad()
def kind_of(net: OnlookerNet, image: Image) -> dict[str, float]:
    """How likely a picture is of each of `KINDS`."""
    logits = net(as_seen(image)[None].to(next(net.parameters()).device))
    return dict(zip(KINDS, F.softmax(logits, -1)[0].tolist(), strict=True))


def as_seen(image: Image) -> torch.Tensor:
    """The whole picture in a square (3, SIDE, SIDE) in [0, 1], the rest in the colour of its edge."""
    pixels = torch.from_numpy(np.array(image.convert("RGB"))).permute(2, 0, 1).float() / 255
    scale = SIDE / max(image.size)
    size = max(8, round(image.height * scale)), max(8, round(image.width * scale))
    small = F.interpolate(pixels[None], size, mode="bilinear", antialias=True, align_corners=False)[0]
    edge = torch.cat([small[:, 0], small[:, -1], small[:, :, 0], small[:, :, -1]], 1)
    square = edge.median(1).values[:, None, None].repeat(1, SIDE, SIDE)
    top, left = (SIDE - size[0]) // 2, (SIDE - size[1]) // 2
    square[:, top : top + size[0], left : left + size[1]] = small[:, :SIDE, :SIDE]
    return square
