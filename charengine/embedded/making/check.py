"""Scores the embedded family on held-out characters, by a probe that never saw anything the family drew.

python -m charengine.embedded.making.check [--n 200] [--parts truth,sheets,captions,images] [--device cuda] [--json FILE]
"""

from __future__ import annotations

import argparse
import json
import random
import sys
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from charengine.config import Profile
from charengine.embedded import grammar, probe, tags
from charengine.embedded.traits import (
    BACKGROUNDS,
    POSES,
    TRAIT_NAMES,
    VIEWS,
    from_indices,
    sample_indices,
    visible_mask,
)
from charengine.embedded.world import render, render_sheet, view_yaw
from charengine.errors import BadInput
from charengine.figures.template import boxes, template
from charengine.models import Models, load
from charengine.profiles.loading import load_profile

if TYPE_CHECKING:
    from PIL.Image import Image
from charengine.embedded.probe import load_judge, to_images, to_tensor

SHEET = 384
SEED = 20_000  # of the held-out characters; training used other seeds and the other split


@dataclass(frozen=True)
class Goal:
    """A score's name, what it means and what it should reach."""

    name: str
    meaning: str
    least: float


GOALS = (
    Goal("truth_traits", "trait accuracy, true renders", 0.97),
    Goal("truth_views", "right view, true renders", 0.97),
    Goal("sheet_traits", "trait accuracy, sheets", 0.85),
    Goal("sheet_views", "right view in the right box", 0.95),
    Goal("sheet_side_items", "side-bound item on the right side", 0.85),
    Goal("sheet_agreement", "hair and outfit colours agree across views", 0.90),
    Goal("caption_f1", "captions' trait F1, renders", 0.95),
    Goal("image_traits", "trait accuracy, single images from prompts", 0.85),
    Goal("image_views", "right view, single images from prompts", 0.0),
)


def check(
    models: Models, profile: Profile, judge: probe.Probe, n: int, parts: Sequence[str], device: torch.device
) -> dict[str, float | dict[str, float]]:
    """Scores of the named parts.

    Args:
        models: the family under test.
        profile: its sampling settings.
        judge: the probe.
        n: held-out characters.
        parts: of `PARTS`.
        device: where the true renders are drawn.

    Returns:
        Score by `Goal.name`, seconds by part, and accuracies by trait.
    """
    unknown = [part for part in parts if part not in PARTS]
    if unknown or n < 1:
        raise BadInput(f"got n={n} and parts {list(parts)}; n must be at least 1 and parts of: {', '.join(PARTS)}")
    indices = sample_indices(n, torch.Generator().manual_seed(SEED), "heldout")
    scores: dict[str, float | dict[str, float]] = {"characters": float(n)}
    for part in parts:
        started = time.monotonic()
        scores |= PARTS[part](models, profile, judge, indices, device)
        scores[f"{part}_seconds"] = time.monotonic() - started
    return scores


def check_truth(
    models: Models, profile: Profile, judge: probe.Probe, indices: torch.Tensor, device: torch.device
) -> dict[str, float | dict[str, float]]:
    """The probe on true renders: what the other scores can be trusted to."""
    sheets = torch.cat([render_sheet(part.to(device), SHEET).cpu() for part in indices.split(32)])
    reading = probe.score_sheets(judge, sheets)
    truth, mask = indices[:, None].expand(-1, 3, -1), probe.sheet_mask(indices)
    return {
        "truth_traits": probe.trait_accuracy(reading.traits, truth, mask),
        "truth_views": probe.view_accuracy(reading.views),
        "truth_by_trait": probe.trait_accuracies(reading.traits, truth, mask),
    }


def check_sheets(
    models: Models, profile: Profile, judge: probe.Probe, indices: torch.Tensor, device: torch.device
) -> dict[str, float | dict[str, float]]:
    """Sheets from prompts, as the sheet stage draws them: one each, no choosing."""
    rng, blank, settings = random.Random(SEED), template(SHEET, SHEET), profile.sheet
    drawn = [
        models.editor.draw(
            blank, grammar.describe(traits, rng=rng, style="sheet"), negative_prompt=settings.negative_prompt,
            seed=SEED + i, steps=settings.steps, guidance=settings.guidance, conditioning=settings.conditioning,
        )
        for i, traits in enumerate(from_indices(indices))
    ]  # fmt: skip
    reading = probe.score_sheets(judge, without_rules(to_tensor(drawn)))
    truth, mask = indices[:, None].expand(-1, 3, -1), probe.sheet_mask(indices)
    return {
        "sheet_traits": probe.trait_accuracy(reading.traits, truth, mask),
        "sheet_views": probe.view_accuracy(reading.views),
        "sheet_side_items": probe.side_item_accuracy(reading.traits, truth, mask),
        "sheet_agreement": probe.cross_view_agreement(reading.traits, mask),
        "sheet_by_trait": probe.trait_accuracies(reading.traits, truth, mask),
    }


def check_captions(
    models: Models, profile: Profile, judge: probe.Probe, indices: torch.Tensor, device: torch.device
) -> dict[str, float | dict[str, float]]:
    """Captions of rendered views: F1 over the stated traits and the view."""
    views = torch.arange(len(indices)) % len(VIEWS)
    pictures = _views(indices, views, device)
    hits = said = true = 0
    for image, traits, view in zip(to_images(pictures), from_indices(indices), views.tolist(), strict=True):
        wanted = _traits_and_view(tags.canonical_dict(traits, view=VIEWS[view]))
        found = _traits_and_view(tags.parse_tags(models.captioner.describe(image, traits.species).raw))
        hits, said, true = hits + len(wanted & found), said + len(found), true + len(wanted)
    return {"caption_f1": 2 * hits / max(1, said + true)}


def check_images(
    models: Models, profile: Profile, judge: probe.Probe, indices: torch.Tensor, device: torch.device
) -> dict[str, float | dict[str, float]]:
    """Single pictures from full prompts: half of them views on white, half poses in scenes."""
    rng = random.Random(SEED + 1)
    views = torch.tensor([rng.randrange(len(VIEWS)) for _ in indices])
    half = (len(indices) + 1) // 2
    readings = []
    for part, size, scenes in ((slice(0, half), (128, 384), False), (slice(half, None), (256, 256), True)):
        prompts = [
            grammar.describe(
                traits, view=VIEWS[view], rng=rng,
                pose=rng.choice(POSES) if scenes else "standing",
                background=rng.choice(BACKGROUNDS) if scenes else BACKGROUNDS[0],
            )
            for traits, view in zip(from_indices(indices[part]), views[part].tolist(), strict=True)
        ]  # fmt: skip
        if prompts:
            pictures = _paint(models, profile, prompts, size)
            readings.append(probe.score_images(judge, to_tensor(pictures)))
    traits, seen = torch.cat([r.traits for r in readings]), torch.cat([r.views for r in readings])
    mask = visible_mask(indices, views)
    return {
        "image_traits": probe.trait_accuracy(traits, indices, mask),
        "image_views": probe.view_accuracy(seen, views),
        "image_by_trait": probe.trait_accuracies(traits, indices, mask),
    }


Part = Callable[[Models, Profile, probe.Probe, torch.Tensor, torch.device], "dict[str, float | dict[str, float]]"]
PARTS: dict[str, Part] = {
    "truth": check_truth,
    "sheets": check_sheets,
    "captions": check_captions,
    "images": check_images,
}


def without_rules(sheets: torch.Tensor) -> torch.Tensor:
    """Sheets (n, 3, s, s) with the template's rules, and a pixel around them, painted white."""
    size = sheets.shape[-1]
    inside = torch.zeros(size, size, dtype=torch.bool)
    for x0, y0, x1, y1 in boxes(size, size):
        inside[y0 + 1 : y1 - 1, x0 + 1 : x1 - 1] = True
    return torch.where(inside, sheets, 1.0)


def table(scores: dict[str, float | dict[str, float]]) -> str:
    """The scores beside their goals, one a line."""
    lines = [f"{'score':48} {'value':>6}  {'goal':>6}"]
    for goal in GOALS:
        value = scores.get(goal.name)
        if isinstance(value, float):
            least = f"{goal.least:.2f}" if goal.least else "-"
            lines.append(f"{goal.meaning:48} {value:6.3f}  {least:>6}{'' if value >= goal.least else '  below'}")
    return "\n".join(lines)


def main(argv: Sequence[str] | None = None) -> int:
    """Command line; prints the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--n", type=int, default=200)
    parser.add_argument("--parts", default=",".join(PARTS))
    parser.add_argument("--device", default="auto", choices=("auto", "cpu", "cuda"))
    parser.add_argument("--json", type=Path)
    args = parser.parse_args(argv)
    profile = load_profile("embedded", [f"models.device={args.device}"])
    use_cuda = args.device == "cuda" or (args.device == "auto" and torch.cuda.is_available())
    device = torch.device("cuda" if use_cuda else "cpu")
    scores = check(load(profile), profile, load_judge(device=device), args.n, args.parts.split(","), device)
    print(table(scores))
    if args.json:
        args.json.write_text(json.dumps(scores, indent=2) + "\n", encoding="utf-8")
    return 0


def _traits_and_view(found: dict[str, str]) -> set[tuple[str, str]]:
    return {(name, value) for name, value in found.items() if name in TRAIT_NAMES or name == "view"}


def _views(indices: torch.Tensor, views: torch.Tensor, device: torch.device) -> torch.Tensor:
    zero = torch.zeros(len(indices), dtype=torch.long, device=device)
    return render(
        indices.to(device), yaw=view_yaw(views.to(device)), pose=zero, background=zero, size=(SHEET // 3, SHEET)
    ).image.cpu()


def _paint(models: Models, profile: Profile, prompts: list[str], size: tuple[int, int]) -> list[Image]:
    made: list[Image] = []
    batch = 25 if models.diffusion.device.type == "cuda" else 4
    for i in range(0, len(prompts), batch):
        part = prompts[i : i + batch]
        made += models.diffusion.sample(
            models.diffusion.encode_prompts(part), models.diffusion.encode_prompts([""] * len(part)),
            seeds=[SEED + i + k for k in range(len(part))], size=size,
            steps=profile.sweep.steps, guidance=profile.sweep.guidance,
        )  # fmt: skip
    return made


if __name__ == "__main__":
    sys.exit(main())
