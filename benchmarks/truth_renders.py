"""How well true pictures of a character fit the sweep's prompts: adherence that is left when nothing is wrong.

CLIP's margin between a picture's own prompt and the others depends on who is in the picture, not only on what was asked for:
renders of the forty untouched characters in these very poses and scenes have .87 to 1.15 of the base model's margin, and the
adapters' margins follow them (correlation .78). Against the base model alone, which draws somebody else with every seed, some
faultless adapters would have lost a sixth of their adherence. So a judge asks how much of the renders' margin there is.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

import torch
from PIL import Image as pil

from charengine.embedded import world
from charengine.embedded.shape import PICTURE_SIZE
from charengine.embedded.traits import BACKGROUNDS, POSES
from charengine.likeness.prompts import SweepPrompt
from charengine.likeness.scoring import match_all
from charengine.models import Embedder

A_PROMPT = 8  # renders; below ten, or two would share their seed


def rendered_margins(
    wanted: torch.Tensor, index: int, prompts: Sequence[SweepPrompt], class_noun: str, embedder: Embedder
) -> list[list[float]]:
    """Margins (prompts, A_PROMPT) of true pictures of a character.

    Args:
        wanted: (1, traits) indices of its traits.
        index: in its split; seeds the pictures.
        prompts: of the embedded family's poses and sceneries.
        class_noun: stands for the trigger.
        embedder: the product's own.
    """
    images = [_rendered(wanted, prompt, 1000 * index + 10 * row + one)
              for row, prompt in enumerate(prompts) for one in range(A_PROMPT)]  # fmt: skip
    asked = [prompt for prompt in prompts for _ in range(A_PROMPT)]
    _, margins = match_all(images, asked, prompts, class_noun, embedder)
    found: list[list[float]] = torch.round(margins.double().reshape(-1, A_PROMPT), decimals=5).tolist()
    return found


def _rendered(wanted: torch.Tensor, prompt: SweepPrompt, seed: int) -> pil.Image:
    """A picture as asked for, turned as far as its prompt leaves open."""
    rng = random.Random(seed)
    yaw = world.VIEW_YAW[prompt.view] + rng.gauss(0, 0.05) if prompt.view else rng.uniform(-0.6, 0.9)
    drawn = world.render(
        wanted, yaw=torch.tensor([yaw]), pose=torch.tensor([_named(POSES, prompt.template)]),
        background=torch.tensor([_named(BACKGROUNDS, prompt.template)]), size=PICTURE_SIZE,
        framing=torch.tensor([rng.uniform(0.8, 1.0)]), generator=torch.Generator().manual_seed(seed),
    )  # fmt: skip
    return pil.fromarray((drawn.image[0] * 255).clamp(0, 255).to(torch.uint8).permute(1, 2, 0).numpy())


def _named(words: Sequence[str], text: str) -> int:
    """Which of the words a prompt says; the first where it says none."""
    return next((place for place, word in enumerate(words) if word in text), 0)
