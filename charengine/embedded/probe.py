"""The judge of the embedded family: a small convolutional net trained on rendered ground truth alone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import nn
from torch.nn import functional as F

from charengine.embedded import probe
from charengine.embedded.eight_bits import opened
from charengine.embedded.packaged import PROBE
from charengine.embedded.traits import BACKGROUNDS, COLUMN, POSES, TRAITS, VIEWS, sample_indices, visible_mask
from charengine.embedded.world import render, view_yaw
from charengine.errors import MissingDependency

if TYPE_CHECKING:
    from PIL.Image import Image

AGREEING = ("hair_colour", "top_colour", "bottom_colour")
SCENE_SIZES = ((128, 384), (192, 320), (256, 256))
SIDE_ITEMS = ("right_item", "left_item")
HALF_WAY, CLEAR = 0.78, 0.45  # radians from a view: a figure in a scene is turned so far, a view is its name so far
_HEADS = (*(len(values) for values in TRAITS.values()), len(VIEWS))


@dataclass(frozen=True)
class Reading:
    """What the probe reads off n pictures: traits LongTensor (n, n_traits), views LongTensor (n,) in `VIEWS`."""

    traits: torch.Tensor
    views: torch.Tensor


@dataclass(frozen=True)
class ProbeData:
    """Rendered ground truth: pictures uint8 (n, 3, h, w), traits (n, n_traits), views (n,), the nearest ones.

    `clear`, bool (n,), is False where a figure is turned so far that neither of two views is right.
    """

    images: torch.Tensor
    traits: torch.Tensor
    views: torch.Tensor
    clear: torch.Tensor


class _Block(nn.Module):
    """Two convolutions with a skip; halves the picture when asked."""

    def __init__(self, inside: int, outside: int, stride: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, stride, 1, bias=False)
        self.first_norm = nn.BatchNorm2d(outside)
        self.second = nn.Conv2d(outside, outside, 3, 1, 1, groups=outside // 16, bias=False)
        self.second_norm = nn.BatchNorm2d(outside)

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        x = F.silu(self.first_norm(self.first(x)))
        return F.silu(x + self.second_norm(self.second(x)))


class Probe(nn.Module):
    """Logits for every trait and the view, each head looking where it likes (attention pooling over a feature map).

    Args:
        widths: channels of the stem and of the three blocks.
        heads: how many numbers each head gives.
    """

    def __init__(self, widths: tuple[int, ...] = (40, 80, 128, 192), heads: tuple[int, ...] = _HEADS) -> None:
        super().__init__()
        width = widths[-1]
        self.stem = nn.Conv2d(5, widths[0], 5, 2, 2)
        self.blocks = nn.Sequential(
            _Block(widths[0], widths[1], 2), _Block(widths[1], widths[2], 2), _Block(widths[2], width, 2),
            _Block(width, width, 1),
        )  # fmt: skip
        self.where = nn.Conv2d(width + 2, len(heads) * 2, 1)
        self.norm = nn.LayerNorm(2 * (width + 2))
        self.heads = nn.ModuleList(nn.Linear(2 * (width + 2), size) for size in heads)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """Logits per head for pictures (n, 3, h, w) in [0, 1] of any size from about 128×256."""
        x = self.stem(torch.cat([images * 2 - 1, position(images)], 1))
        x = self.blocks(F.silu(x))
        x = torch.cat([x, position(x)], 1)
        looks = self.where(x).flatten(2).softmax(-1)
        seen = torch.einsum("nkp,ncp->nkc", looks, x.flatten(2)).reshape(len(images), len(self.heads), -1)
        seen = self.norm(seen)
        return [head(seen[:, i]) for i, head in enumerate(self.heads)]


def load_probe(weights: dict[str, torch.Tensor], device: str | torch.device = "cpu") -> Probe:
    """A probe ready to judge."""
    probe = Probe((len(weights["stem.weight"]), *(len(weights[f"blocks.{i}.first.weight"]) for i in range(3))))
    probe.load_state_dict({name: value.float() for name, value in weights.items()})
    return probe.to(device).eval().requires_grad_(False)


def probe_data(
    n: int,
    generator: torch.Generator,
    device: str | torch.device,
    *,
    scenes: bool,
    size: tuple[int, int] = (128, 384),
    split: str = "train",
) -> ProbeData:
    """Render ground truth: sheet views, or scenes with any pose, background and zoom, turned as far as half-way to the next view."""
    indices = sample_indices(n, generator, split, device)
    views = torch.randint(0, len(VIEWS), (n,), generator=generator).to(device)
    zero = torch.zeros(n, dtype=torch.long, device=device)
    turn = torch.zeros(n, device=device)
    pose, background, zoom = zero, zero, 1 - 0.08 * torch.rand(n, generator=generator).to(device)
    if scenes:
        pose = torch.randint(0, len(POSES), (n,), generator=generator).to(device)
        background = torch.randint(0, len(BACKGROUNDS), (n,), generator=generator).to(device)
        zoom = 1.02 - 0.30 * torch.rand(n, generator=generator).to(device)
        turn = HALF_WAY * (2 * torch.rand(n, generator=generator).to(device) - 1)
    yaw = view_yaw(views) + turn
    made = []
    for i in range(0, n, 512):
        part = slice(i, i + 512)
        image = render(
            indices[part], yaw=yaw[part], pose=pose[part], background=background[part], size=size,
            framing=zoom[part], generator=generator,
        ).image  # fmt: skip
        made.append((image * 255).round().byte())
    return ProbeData(torch.cat(made), indices, views, turn.abs() < CLEAR)


def augment(images: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Small shifts, blur, lost detail, tints and noise, so that generated pictures are judged by what they show."""
    n, device = len(images), images.device

    def chance(*shape: int) -> torch.Tensor:
        if device.type == "cuda":  # on the device, so that a step with it can be captured
            return torch.rand(*shape, device=device)
        return torch.rand(*shape, generator=generator)

    across, down = (2 * reach * (chance(n) - 0.5) for reach in (0.06, 0.03))
    zoom = 1 + 0.06 * (chance(n) - 0.5)
    zero = torch.zeros_like(zoom)
    move = torch.stack([torch.stack([zoom, zero, across], 1), torch.stack([zero, zoom, down], 1)], 1)
    grid = F.affine_grid(move, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="border", align_corners=False)
    half = F.interpolate(F.avg_pool2d(images, 2), scale_factor=2, mode="bilinear", align_corners=False)
    soft = F.avg_pool2d(images, 3, 1, 1)
    pick = chance(n, 1, 1, 1)
    images = torch.where(pick < 0.25, half, torch.where(pick < 0.5, soft, images))
    contrast, tint = 1 + 0.16 * (chance(n, 1, 1, 1) - 0.5), 0.06 * (chance(n, 3, 1, 1) - 0.5)
    noise = (
        torch.randn(images.shape, device=device)
        if device.type == "cuda"
        else torch.randn(images.shape, generator=generator)
    )
    return (images * contrast + tint + 0.03 * chance(n, 1, 1, 1) * noise).clamp(0, 1)


@torch.no_grad()
def score_images(probe: Probe, images: torch.Tensor, batch: int = 64) -> Reading:
    """Read traits and view off pictures (n, 3, h, w) in [0, 1] that share one size."""
    device = next(probe.parameters()).device
    traits, views = [], []
    for part in images.split(batch):
        logits = [head.argmax(-1).cpu() for head in probe(part.to(device).float())]
        traits.append(torch.stack(logits[:-1], 1))
        views.append(logits[-1])
    return Reading(torch.cat(traits), torch.cat(views))


def score_sheets(probe: Probe, sheets: torch.Tensor, batch: int = 64) -> Reading:
    """Read each third of sheets (n, 3, s, s): traits (n, 3, n_traits), views (n, 3), boxes from left to right."""
    n, _, height, width = sheets.shape
    third = width // 3
    boxes = torch.stack([sheets[..., i * third : (i + 1) * third] for i in range(3)], 1).reshape(
        n * 3, 3, height, third
    )
    reading = score_images(probe, boxes, batch)
    return Reading(reading.traits.reshape(n, 3, -1), reading.views.reshape(n, 3))


def trait_accuracy(predicted: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> float:
    """Share of visible traits read correctly; all three (…, n_traits)."""
    return float((predicted == truth)[mask].float().mean())


def trait_accuracies(predicted: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> dict[str, float]:
    """`trait_accuracy` of each trait by name."""
    return {name: trait_accuracy(predicted[..., i], truth[..., i], mask[..., i]) for name, i in COLUMN.items()}


def view_accuracy(predicted: torch.Tensor, truth: torch.Tensor | None = None) -> float:
    """Share of right views; without truth, box k of a sheet (n, 3) must show `VIEWS[k]`."""
    expected = torch.arange(len(VIEWS), device=predicted.device).expand_as(predicted) if truth is None else truth
    return float((predicted == expected).float().mean())


def side_item_accuracy(predicted: torch.Tensor, truth: torch.Tensor, mask: torch.Tensor) -> float:
    """Of the visible items bound to a side, the share found on that very side."""
    columns = [COLUMN[name] for name in SIDE_ITEMS]
    present = mask[..., columns] & (truth[..., columns] != 0)
    return float((predicted[..., columns] == truth[..., columns])[present].float().mean())


def sheet_mask(truth: torch.Tensor) -> torch.Tensor:
    """`visible_mask` of each box of correct sheets: (n, n_traits) to BoolTensor (n, 3, n_traits)."""
    views = torch.arange(len(VIEWS), device=truth.device).expand(len(truth), -1)
    return torch.stack([visible_mask(truth, views[:, k]) for k in range(len(VIEWS))], 1)


def cross_view_agreement(predicted: torch.Tensor, mask: torch.Tensor) -> float:
    """Share of sheets' hair and outfit colours read the same in every view that shows them; both (n, 3, n_traits)."""
    agreed = []
    for name in AGREEING:
        values, shown = predicted[..., COLUMN[name]], mask[..., COLUMN[name]]
        low, high = values.where(shown, 99).amin(1), values.where(shown, -1).amax(1)
        agreed.append(low == high)
    return float(torch.stack(agreed).float().mean())


def position(maps: torch.Tensor) -> torch.Tensor:
    """Channels that tell where a pixel is, in picture heights from the centre: (n, 2, h, w)."""
    n, _, h, w = maps.shape
    y = torch.linspace(-1, 1, h, device=maps.device, dtype=maps.dtype)[:, None].expand(h, w)
    x = torch.linspace(-w / h, w / h, w, device=maps.device, dtype=maps.dtype)[None].expand(h, w)
    return torch.stack([x, y]).expand(n, 2, h, w)


def reading_loss(
    logits: list[torch.Tensor], traits: torch.Tensor, views: torch.Tensor, clear: torch.Tensor, mask: torch.Tensor
) -> torch.Tensor:
    """Mean cross entropy over the traits that the view shows (`traits.visible_mask`), plus the view's where it is clear."""
    named = F.cross_entropy(logits[-1], views, reduction="none")
    total = (named * clear).sum() / clear.sum().clamp(min=1)
    for i, head in enumerate(logits[:-1]):
        each = F.cross_entropy(head, traits[:, i], reduction="none", label_smoothing=0.02)
        total = total + (each * mask[:, i]).sum() / mask[:, i].sum().clamp(min=1)
    return total / len(logits)


def load_judge(path: Path = PROBE, device: str | torch.device = "cpu") -> probe.Probe:
    """The shipped probe.

    Raises:
        MissingDependency: its weights are not there.
    """
    from safetensors.torch import load_file

    if not path.is_file():
        raise MissingDependency(f"no probe weights at {path}: reinstall the package or train the part 'probe'")
    return probe.load_probe(opened(load_file(path)), device)


def to_tensor(images: Sequence[Image]) -> torch.Tensor:
    """Same-sized pictures as (n, 3, h, w) in [0, 1]."""
    return torch.stack([torch.from_numpy(np.array(i.convert("RGB"))).permute(2, 0, 1) for i in images]).float() / 255


def to_images(pictures: torch.Tensor) -> list[Image]:
    """(n, 3, h, w) in [0, 1] as pictures."""
    from PIL import Image as images

    arrays = (pictures.clamp(0, 1) * 255).round().byte().permute(0, 2, 3, 1).cpu().numpy()
    return [images.fromarray(array) for array in arrays]
