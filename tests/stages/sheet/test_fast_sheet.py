"""What drawing a sheet fast may cost: half of the steps, as the profiles of SDXL take."""

from __future__ import annotations

import random

import numpy as np
import pytest
import torch
from PIL import Image

from charengine.embedded import grammar, probe
from charengine.embedded.making.check import without_rules
from charengine.embedded.traits import from_indices, sample_indices
from charengine.figures.template import template
from charengine.models import load
from charengine.profiles.loading import load_profile
from charengine.stages.sheet.judge import judge_sheet
from charengine.stages.sheet.prompt import full_prompt

CHARACTERS, OF, SEED = 3, 48, 31  # the first of those that benchmarks/shortcuts.py draws
SHARE = 0.5  # of the steps, as 20 of 40
LEVELS = 4.0  # of 255, by which a fast sheet may be off, on average over its pixels
TRAITS = 0.03  # share of the traits that it may show less


@pytest.mark.slow
def test_a_fast_sheet_passes_the_gate_shows_the_same_traits_and_is_nearly_the_same_picture() -> None:
    profile = load_profile("embedded", ["models.device=cpu"])
    editor, judge, settings = load(profile).editor, probe.load_judge(device="cpu"), profile.sheet
    indices = sample_indices(OF, torch.Generator().manual_seed(SEED), "heldout")[:CHARACTERS]
    off, shown = [], {"slow": [], "fast": []}
    for i, traits in enumerate(from_indices(indices)):
        described = grammar.describe(traits, rng=random.Random(f"sheet {i}"), style="prompt", keep=1.0)
        prompt = full_prompt(described, traits.species, editor, pictured=False)

        def drawn(steps: int, prompt: str = prompt, i: int = i) -> Image.Image:
            return editor.draw(
                template(settings.width, settings.height), prompt, seed=SEED + i, steps=steps, guidance=settings.guidance,
                conditioning=settings.conditioning,
            )  # fmt: skip

        slow, fast = drawn(settings.steps), drawn(round(settings.steps * SHARE))
        off.append(np.abs(np.asarray(slow, dtype=float) - np.asarray(fast, dtype=float)).mean())
        for name, sheet in (("slow", slow), ("fast", fast)):
            assert judge_sheet(sheet).accepted, f"{name} sheet of character {i}"
            shown[name].append(_traits(judge, sheet, indices[i : i + 1]))
    assert np.mean(off) < LEVELS
    assert np.mean(shown["fast"]) > np.mean(shown["slow"]) - TRAITS


def _traits(judge: probe.Probe, sheet: Image.Image, row: torch.Tensor) -> float:
    reading = probe.score_sheets(judge, without_rules(probe.to_tensor([sheet])))
    truth, mask = row[:, None].expand(-1, 3, -1), probe.sheet_mask(row)
    return probe.trait_accuracy(reading.traits, truth, mask)
