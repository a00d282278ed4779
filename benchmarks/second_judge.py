"""The benchmark's second judge of traits, views and faces, which the product neither imports nor has learnt from.

It shares nothing with the package's probe but the world: other layers (dilated windows, a fine and a coarse map that are
joined), another seed, pictures of its own (turned further, other sizes, other damage). The probe's readings go into the
product: words to say, weights, and the pick. This one's go into tables alone.

    python benchmarks/second_judge.py --minutes 6 --device cuda --out benchmarks/second_judge.safetensors
    python benchmarks/second_judge.py --check          # both judges on true renders of the sweep's poses and scenes

A face is seen where the figure does not turn its back and its head is not ruined: a share of the pictures it learns from
have theirs blurred, shuffled or painted over.
"""

from __future__ import annotations

import argparse
import itertools
import json
import random
from pathlib import Path
from typing import Any

import torch
from torch import nn
from torch.nn import functional as F

from charengine.embedded import probe
from charengine.embedded.eight_bits import opened, packed
from charengine.embedded.making.clock import Clock, Log, decayed
from charengine.embedded.making.data import Refill, compile_renderer
from charengine.embedded.making.graphed import GraphedOptimiser, GraphedStep
from charengine.embedded.traits import BACKGROUNDS, POSES, TRAITS, VIEWS, sample_indices, visible_mask
from charengine.embedded.world import render, view_yaw

WEIGHTS = Path(__file__).parent / "second_judge.safetensors"
WIDTHS, MAP, LOOKS = (32, 64, 96, 144), 96, 4
SIZES = ((256, 256), (256, 256), (128, 384), (192, 256), (256, 192))
HEADS = (*(len(values) for values in TRAITS.values()), len(VIEWS), 2)  # the last: whether a face is seen
SEED = 77_000
RUINED = 0.25  # of the pictures have no face to be seen, because it is damaged
HEAD = 0.26  # of a figure's height, about


class _Block(nn.Module):
    """Two convolutions beside a pooled skip; halves the picture."""

    def __init__(self, inside: int, outside: int) -> None:
        super().__init__()
        self.first = nn.Conv2d(inside, outside, 3, 2, 1, bias=False)
        self.second = nn.Conv2d(outside, outside, 3, 1, 2, dilation=2, groups=4, bias=False)
        self.skip = nn.Conv2d(inside, outside, 1, bias=False)
        self.norms = nn.ModuleList(nn.BatchNorm2d(outside) for _ in range(3))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        inner = F.elu(self.norms[0](self.first(x)))
        return F.elu(self.norms[1](self.second(inner)) + self.norms[2](self.skip(F.avg_pool2d(x, 2, ceil_mode=True))))


class SecondJudge(nn.Module):
    """Logits of every trait, the view and the face of pictures (n, 3, h, w) in [0, 1].

    Every head has four places to look at in two maps, a fine and a coarse one that are joined.
    """

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, WIDTHS[0], 7, 2, 3)
        self.blocks = nn.ModuleList(_Block(*pair) for pair in itertools.pairwise(WIDTHS))
        fine, coarse = WIDTHS[-2:]
        self.joined = nn.Conv2d(fine + coarse + 2, MAP, 3, 1, 1, bias=False)
        self.joined_norm = nn.BatchNorm2d(MAP)
        self.where = nn.Conv2d(MAP + 2, len(HEADS) * LOOKS, 1)
        self.norm = nn.LayerNorm(LOOKS * MAP)
        self.heads = nn.ModuleList(nn.Linear(LOOKS * MAP, size) for size in HEADS)

    def forward(self, images: torch.Tensor) -> list[torch.Tensor]:
        """One (n, values) a head."""
        x, maps = F.elu(self.stem(images * 2 - 1)), []
        for block in self.blocks:
            x = block(x)
            maps.append(x)
        fine, coarse = maps[-2:]
        place = probe.position(fine).flip(1)  # down first, as it was trained
        coarse = F.interpolate(coarse, fine.shape[-2:], mode="nearest")
        x = F.elu(self.joined_norm(self.joined(torch.cat([fine, coarse, place], 1))))
        looks = self.where(torch.cat([x, place], 1)).flatten(2).softmax(-1)
        seen = torch.einsum("nkp,ncp->nkc", looks, x.flatten(2)).reshape(len(x), len(HEADS), -1)
        seen = self.norm(seen)
        return [head(seen[:, i]) for i, head in enumerate(self.heads)]


@torch.no_grad()
def read_pictures(judge: SecondJudge, images: torch.Tensor, batch: int = 64) -> list[torch.Tensor]:
    """Of pictures (n, 3, h, w) in [0, 1]: traits (n, n_traits), views (n,), faces (n,) bool, on the CPU."""
    device = judge.stem.weight.device
    parts = [[head.argmax(-1).cpu() for head in judge(part.to(device).float())] for part in images.split(batch)]
    columns = [torch.cat(column) for column in zip(*parts, strict=True)]
    return [torch.stack(columns[:-2], 1), columns[-2], columns[-1].bool()]


def save(judge: SecondJudge, path: Path) -> None:
    """Write it in a quarter of the room."""
    from safetensors.torch import save_file

    save_file(packed({name: value.detach().cpu() for name, value in judge.state_dict().items()}), path)


def load(path: Path = WEIGHTS, device: str | torch.device = "cpu") -> SecondJudge:
    """The trained one, ready to read."""
    from safetensors.torch import load_file

    judge = SecondJudge()
    judge.load_state_dict(opened(load_file(path)))
    return judge.to(device).eval().requires_grad_(False)


def pictures(
    n: int, size: tuple[int, int], generator: torch.Generator, device: torch.device, split: str = "train"
) -> dict[str, torch.Tensor]:
    """Renders, half of them turned up to 35 degrees from a view, as uint8, with what they show."""
    indices = sample_indices(n, generator, split, device)
    views = torch.multinomial(torch.tensor([0.5, 0.25, 0.25]), n, True, generator=generator).to(device)
    scene = torch.rand(n, generator=generator).to(device) > (0.7 if size == (128, 384) else 0.15)
    yaw = view_yaw(views) + scene * 1.2 * (torch.rand(n, generator=generator).to(device) - 0.5)
    pose = torch.randint(0, len(POSES), (n,), generator=generator).to(device) * scene
    background = torch.randint(0, len(BACKGROUNDS), (n,), generator=generator).to(device) * scene
    framing = 1.02 - 0.3 * torch.rand(n, generator=generator).to(device)
    drawn = render(indices, yaw=yaw, pose=pose, background=background, size=size, framing=framing, generator=generator)
    # between two views neither is right
    clear = ((yaw - view_yaw(views)).abs() < 0.5).long()
    faces = (views != VIEWS.index("back")).long()
    images, ruined = ruin_heads(drawn.image, drawn.alpha, faces.bool(), generator)
    faces = torch.where(ruined, 0, faces)
    return {
        "images": (images * 255).round().byte(), "traits": indices, "views": views, "clear": clear, "faces": faces,
        "ruined": ruined.long(),
    }  # fmt: skip


def ruin_heads(
    images: torch.Tensor, alpha: torch.Tensor, faces: torch.Tensor, generator: torch.Generator
) -> tuple[torch.Tensor, torch.Tensor]:
    """Blur, shuffle or paint over the heads of some of the pictures that show a face; and which these are."""
    n, _, height, width = images.shape
    device = images.device
    ruined = faces & (torch.rand(n, generator=generator).to(device) < RUINED)
    rows = torch.arange(height, device=device).float()
    there = (alpha[:, 0] > 0.5).any(2)
    top = torch.where(there, rows, height).amin(1)
    bottom = torch.where(there, rows, -1).amax(1)
    line = rows[None] - top[:, None]
    inside = (line >= -4) & (line <= HEAD * (bottom - top)[:, None])
    where = (inside[:, None, :, None] & (alpha > 0.02) & ruined[:, None, None, None]).float()
    small = F.interpolate(images, scale_factor=1 / 14, mode="area")
    blurred = F.interpolate(small, (height, width), mode="bilinear", align_corners=False)
    across = torch.randint(-10, 11, (height // 8, width // 8), generator=generator).to(device)
    shift = across.repeat_interleave(8, 0).repeat_interleave(8, 1)
    x = (torch.arange(width, device=device)[None] + shift).clamp(0, width - 1)
    y = (torch.arange(height, device=device)[:, None] + shift.flip(1)).clamp(0, height - 1)
    shuffled = images[:, :, y, x]
    colour = torch.rand(n, 3, 1, 1, generator=generator).to(device).expand_as(images)
    kind = torch.randint(0, 3, (n, 1, 1, 1), generator=generator).to(device)
    damage = torch.where(kind == 0, blurred, torch.where(kind == 1, shuffled, colour))
    return images * (1 - where) + damage * where, ruined


def wear(images: torch.Tensor) -> torch.Tensor:
    """Pictures moved, made coarser, tinted and noisy, each in its own way."""
    n, _, height, width = images.shape
    device = images.device
    zoom = 1 + 0.16 * (torch.rand(n, device=device) - 0.5)
    move = 0.1 * (torch.rand(n, 2, device=device) - 0.5)
    zero = torch.zeros_like(zoom)
    affine = torch.stack([torch.stack([zoom, zero, move[:, 0]], 1), torch.stack([zero, zoom, move[:, 1]], 1)], 1)
    grid = F.affine_grid(affine, list(images.shape), align_corners=False)
    images = F.grid_sample(images, grid, padding_mode="reflection", align_corners=False)
    coarse, medium = (
        F.interpolate(
            F.interpolate(images, scale_factor=share, mode="area"), (height, width), mode="bicubic", align_corners=False
        )
        for share in (0.4, 0.6)
    )
    pick = torch.rand(n, 1, 1, 1, device=device)
    images = torch.where(pick < 0.2, coarse, torch.where(pick < 0.5, medium, images))
    gain = 1 + 0.24 * (torch.rand(n, 1, 1, 1, device=device) - 0.5)
    tint = 0.08 * (torch.rand(n, 3, 1, 1, device=device) - 0.5)
    grain = 0.05 * torch.rand(n, 1, 1, 1, device=device) * torch.randn_like(images)
    return ((images - 0.5) * gain + 0.5 + tint + grain).clamp(0, 1)


def train(minutes: float, device: torch.device, out: Path, steps: int = 0) -> SecondJudge:
    """Train for `minutes` (or `steps`) on fresh renders; what it measures goes to the log beside `out`."""
    torch.manual_seed(SEED)
    tiny = steps > 0
    judge = SecondJudge().to(device).train()
    clock, log = Clock(minutes, max_steps=steps), Log(out.parent, "second_judge")
    generator, rng = torch.Generator().manual_seed(SEED), random.Random(SEED)
    chunk, room = (4, 8) if tiny else (1024, 30000)
    pools = [pictures(chunk, size, generator, device) for size in dict.fromkeys(SIZES)]
    sizes = list(dict.fromkeys(SIZES))

    def grow() -> None:
        i = sizes.index(rng.choice(SIZES))
        fresh = pictures(chunk, sizes[i], generator, device)
        pools[i] = {name: torch.cat([pools[i][name], fresh[name]])[-room:] for name in fresh}

    fill = Clock(0 if tiny else 0.12 * minutes)
    while not tiny and fill.progress < 1:
        grow()
    refill = Refill(grow, 0.0 if tiny else 0.25)
    optimiser = GraphedOptimiser(decayed(judge, rate=2e-3, decay=0.03), clock, clip=2.0)

    def step(
        images: torch.Tensor, traits: torch.Tensor, views: torch.Tensor, clear: torch.Tensor, faces: torch.Tensor,
        ruined: torch.Tensor,
    ) -> tuple[torch.Tensor, ...]:  # fmt: skip
        with torch.autocast(device.type, torch.bfloat16, enabled=device.type == "cuda", cache_enabled=False):
            logits = [one.float() for one in judge(wear(images.float() / 255))]
        whole = (1 - ruined).float()
        loss = F.cross_entropy(logits[-1], faces) + _mean(F.cross_entropy(logits[-2], views, reduction="none"), clear)
        mask = visible_mask(traits, views) * whole[:, None]
        for i, head in enumerate(logits[:-2]):
            each = F.cross_entropy(head, traits[:, i], reduction="none", label_smoothing=0.05)
            loss = loss + _mean(each, mask[:, i])
        loss = loss / len(logits)
        loss.backward()
        return (loss.detach(),)

    train_step = GraphedStep(step, device)
    log.write(event="start", parameters=sum(p.numel() for p in judge.parameters()), pictures=len(pools[0]["images"]))
    while clock.progress < 1:
        size = rng.choice(SIZES)
        pool = pools[sizes.index(size)]
        pick = torch.randint(0, len(pool["images"]), (2 if tiny else 160,), generator=generator).to(device)
        batch = {name: values[pick] for name, values in pool.items()}
        (loss,) = train_step(size, *(batch[n] for n in ("images", "traits", "views", "clear", "faces", "ruined")))
        optimiser.step()
        refill.tick()
        if clock.step % 500 == 0:
            log.write(step=clock.step, loss=loss, progress=clock.progress)
    judge.eval()
    save(judge, out)
    log.write(event="done", steps=clock.step, **check(load(out, device), device, 4 if tiny else 200))
    return judge


def _mean(each: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    return (each * weight).sum() / weight.sum().clamp_min(1)


def check(judge: SecondJudge, device: torch.device, n: int) -> dict[str, Any]:
    """Both judges on true renders of held-out characters in the nine prompts' poses and scenes, `n` each."""
    places = [("standing", BACKGROUNDS[0], view) for view in VIEWS] + [
        ("running", "desert in daylight", "front"), ("waving", "rainy city at night", "front"), ("sitting", "forest", "front"),
        ("fighting stance", "snowy mountains", "front"), ("walking", "beach at sunset", "front"),
        ("dancing", "castle hall", "front"),
    ]  # fmt: skip
    generator = torch.Generator().manual_seed(SEED + 5)
    indices = sample_indices(n, generator, "heldout", device)
    first = probe.load_judge(device=device)
    found: dict[str, list[torch.Tensor]] = {"traits": [], "probe": [], "mask": []}
    seen: dict[str, list[float]] = {"face": [], "no face from behind": [], "no face where ruined": [], "view": []}
    for pose, scene, view in places:
        views = torch.full((n,), VIEWS.index(view), device=device)
        yaw = view_yaw(views)
        if scene != BACKGROUNDS[0]:
            yaw = yaw + 1.2 * torch.rand(n, generator=generator).to(device) - 0.4
        drawn = render(
            indices, yaw=yaw, pose=torch.full((n,), POSES.index(pose), device=device),
            background=torch.full((n,), BACKGROUNDS.index(scene), device=device), size=(256, 256),
            framing=(0.8 + 0.2 * torch.rand(n, generator=generator)).to(device), generator=generator,
        )  # fmt: skip
        traits, read, faces = read_pictures(judge, drawn.image)
        found["traits"].append(traits)
        found["probe"].append(probe.score_images(first, drawn.image).traits)
        found["mask"].append(visible_mask(indices, views).cpu())
        seen["view"].append(float((read == views.cpu()).float().mean()))
        seen["face" if view != "back" else "no face from behind"].append(
            float((faces == (view != "back")).float().mean())
        )
        if view != "back":
            whole = torch.ones(n, dtype=torch.bool, device=device)
            spoilt, ruined = ruin_heads(drawn.image, drawn.alpha, whole, generator)
            seen["no face where ruined"].append(
                float((~read_pictures(judge, spoilt[ruined])[2]).float().mean()) if ruined.any() else 1.0
            )
    traits, other, mask = (torch.cat(found[name]) for name in ("traits", "probe", "mask"))
    wanted = indices.cpu().repeat(len(places), 1)
    return {
        "traits": probe.trait_accuracy(traits, wanted, mask),
        "sides": probe.side_item_accuracy(traits, wanted, mask),
        **{name: sum(values) / len(values) for name, values in seen.items()},
        "by_trait": {name: round(share, 3) for name, share in probe.trait_accuracies(traits, wanted, mask).items()},
        "probe": probe.trait_accuracy(other, wanted, mask),
        "probe_sides": probe.side_item_accuracy(other, wanted, mask),
    }


def main() -> None:
    """Train, or check."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=6.0)
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, default=WEIGHTS)
    parser.add_argument("--steps", type=int, default=0, help="a few, to see that it runs")
    parser.add_argument("--check", action="store_true")
    told = parser.parse_args()
    device = torch.device(told.device)
    if told.check:
        print(json.dumps(check(load(told.out, device), device, 100), indent=1))
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
        compile_renderer(device)
    told.out.parent.mkdir(parents=True, exist_ok=True)
    train(told.minutes, device, told.out, told.steps)


if __name__ == "__main__":
    main()
