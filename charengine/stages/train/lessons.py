"""Lessons: what the base model does when it is told the description, for the adapter to do when it is told the trigger.

Three views on white teach what somebody looks like, in three pictures' poses and nowhere else. The base model knows how that
looks walking through a forest, if only it is told in words. So it draws a few pictures from the description, and every pass of
its U-Net on the way is a lesson: for the same noisy picture, the adapter should predict by the trigger what the base predicts by
the words (knowledge distillation, Hinton et al. 1503.02531, from one prompt to another). The words' effect may be taken further
than the base takes it, as Concept Sliders do (Gandikota et al. 2311.12092). Some lessons say trigger and words, and some the
negative prompt, where the adapter should change nothing.
"""

from __future__ import annotations

import json
import logging
import random
from collections.abc import Callable, Sequence
from dataclasses import dataclass, fields
from pathlib import Path

import torch
from torch import Tensor

from charengine.config import TrainSettings
from charengine.errors import StageFailed
from charengine.files import json_in
from charengine.language.phrases import fitting
from charengine.language.traits import VIEW_TAGS
from charengine.models import Diffusion
from charengine.models.protocols import Trace
from charengine.records import DatasetRecord
from charengine.stages.train.machines import Machine, this_machine
from charengine.store import Store

log = logging.getLogger(__name__)

# Poses and places that SDXL and the embedded family know; those that a sweep judges by are left to it.
POSES = ("standing", "pointing", "arms raised", "kneeling", "hands on hips", "jumping")
SCENES = ("meadow", "starry night", "lava cave", "stormy sea", "underwater", "plain white background")
STEPS, GUIDANCE = 20, 5.0
# Measured on held-out characters (lab notes, 2026-11-30):
WEIGHT = 5.0  # of a lesson's loss beside a view's: 1 teaches less
SAID, NEGATIVE = 0.25, 0.15  # shares of the lessons that say the words too, and that say the negative prompt
FILE = "lessons.safetensors"


@dataclass(frozen=True)
class Lessons:
    """n passes over p pictures.

    Args:
        noisy: (n, 4, h, w) the U-Net's input.
        timesteps: (n,).
        wanted: (2, n, 4, h, w) what should be predicted by the trigger, and by the negative prompt.
        weight: (n,) of the loss: an error counts by how much the words change at that timestep, which is less the more noise there is.
        picture: (n,) index of the picture.
        embeds, pooled: (3, p, tokens, d) and (3, p, q) of the trigger, of trigger and words, and of the negative prompt.
        time_ids: (1, 6) SDXL's size conditioning.
    """

    noisy: Tensor
    timesteps: Tensor
    wanted: Tensor
    weight: Tensor
    picture: Tensor
    embeds: Tensor
    pooled: Tensor
    time_ids: Tensor

    def to(self, device: torch.device) -> Lessons:
        """The same lessons on another device."""
        return Lessons(**{name: tensor.to(device) for name, tensor in self.tensors().items()})

    def tensors(self) -> dict[str, Tensor]:
        """All of it, by name."""
        return {field.name: getattr(self, field.name) for field in fields(self)}

    @property
    def area(self) -> int:
        """Latent pixels of a lesson."""
        return self.noisy.shape[-2] * self.noisy.shape[-1]

    def choose(self, count: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """(count,) indices of passes, and what each is told: 0 the trigger, 1 trigger and words, 2 the negative prompt."""
        device = self.noisy.device
        index = torch.randint(0, len(self.noisy), (count,), generator=generator, device=device)
        chance = torch.rand(count, generator=generator, device=device)
        told = torch.where(chance < NEGATIVE, 2, torch.where(chance < NEGATIVE + SAID, 1, 0))
        return index, told


def draw_lessons(
    dataset: DatasetRecord,
    traits: Sequence[str],
    settings: TrainSettings,
    diffusion: Diffusion,
    seed: int,
    on_pass: Callable[[int, int], None] | None = None,
) -> Lessons:
    """Lessons from `settings.distill` pictures; the text encoders and the VAE are unloaded afterwards.

    Args:
        dataset: whose trigger is to be learnt.
        traits: what the description says of the character, phrase by phrase; those that CLIP has no room for are left out.
        settings: how many, how large, with how much emphasis.
        diffusion: the base model, no adapter on it.
        seed: of poses, places and noise.
        on_pass: told after each pass how many of how many are done; what it raises ends the drawing.

    Raises:
        StageFailed: the base model answers with NaN.
    """
    usage, noun = diffusion.usage, dataset.class_noun
    ends = _ends(settings.distill, seed)
    named = f"{dataset.trigger} {noun}"
    described = usage.known(", ".join([noun, *fitting(traits, named, diffusion.count_tokens)]))
    kinds = (described, usage.known(noun), named, f"{dataset.trigger} {described}")
    text = diffusion.encode_prompts(
        [*(usage.prompt(f"{words}, {end}") for words in kinds for end in ends), usage.negative_prompt]
    )
    diffusion.unload("text_encoders")
    worded, bare, triggered, said = (text.rows(i * len(ends), (i + 1) * len(ends)) for i in range(len(kinds)))
    negative = text.rows(-1, None)
    size = (settings.distill_size, settings.distill_size)
    trace = diffusion.trace(
        worded,
        bare,
        negative,
        seeds=[seed * 1000 + number for number in range(len(ends))],
        size=size,
        steps=STEPS,
        guidance=GUIDANCE,
        on_pass=on_pass,
    )
    diffusion.unload("vae")
    _refuse_nan(trace, diffusion)
    told = trace.prompted + settings.distill_emphasis * (trace.prompted - trace.beside)
    effect = (told - trace.negative).float().square().mean((1, 2, 3, 4))
    weight = effect.mean() / effect.clamp(min=1e-12)
    (steps, count), device = trace.noisy.shape[:2], trace.noisy.device
    log.info("%d lessons from %d pictures by the base model, told %s", steps * count, count, described)
    return Lessons(
        noisy=trace.noisy.flatten(0, 1),
        timesteps=trace.timesteps.repeat_interleave(count),
        wanted=torch.stack([told, trace.negative]).flatten(1, 2),
        weight=weight.repeat_interleave(count),
        picture=torch.arange(count, device=device).repeat(steps),
        embeds=torch.stack([triggered.embeds, said.embeds, negative.embeds.expand_as(said.embeds)]),
        pooled=torch.stack([triggered.pooled, said.pooled, negative.pooled.expand_as(said.pooled)]),
        time_ids=torch.tensor([[*size, 0, 0, *size]], dtype=torch.float32, device=device),
    )


def _refuse_nan(trace: Trace, diffusion: Diffusion) -> None:
    if not (trace.prompted.isfinite().all() and trace.beside.isfinite().all() and trace.negative.isfinite().all()):
        raise StageFailed(
            "the base model's U-Net answered with no numbers (NaN) while it drew the lessons: its file (models.sdxl) is damaged, or too "
            f"much for {str(diffusion.dtype).removeprefix('torch.')}. Get it again, or take another checkpoint"
        )


def kept_lessons(folder: Path, key: str, device: torch.device, store: Store, draw: Callable[[], Lessons]) -> Lessons:
    """The lessons of a training that was begun in `folder`, else new ones, kept there: a GPU would not draw them equal again."""
    from safetensors import SafetensorError, safe_open
    from safetensors.torch import save

    path = folder / FILE
    try:
        with safe_open(path, "pt", device=str(device)) as file:
            if (file.metadata() or {}).get("key") == key:
                return Lessons(**{name: file.get_tensor(name) for name in file.keys()})  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, TypeError) as error:
        log.debug("no lessons in %s: %s", path, error)
    lessons = draw()
    held = {name: tensor.cpu().contiguous() for name, tensor in lessons.tensors().items()}
    store.write_state(folder, FILE, save(held, {"key": key, "machine": json.dumps(this_machine(device, 0))}))
    return lessons


def drawn_on(folder: Path, key: str) -> list[Machine]:
    """Where the lessons that lie in `folder` for this training were drawn; empty when there are none. No tensor is read."""
    from safetensors import SafetensorError, safe_open

    try:
        with safe_open(folder / FILE, "pt") as file:
            told = file.metadata() or {}
    except (SafetensorError, OSError):
        return []
    machine = json_in(told.get("machine", "")) if told.get("key") == key else None
    return [machine] if isinstance(machine, dict) else []


def _ends(count: int, seed: int) -> list[str]:
    """View, pose, framing and place of each picture; most are turned towards the viewer, every sixth is a portrait."""
    rng = random.Random(seed)
    found = []
    for number in range(count):
        view = rng.choices(("front", "side", "back"), (4, 1, 1))[0]
        said = VIEW_TAGS[view][0] if view != "front" or rng.random() < 0.5 else ""
        framing = "portrait" if number % 6 == 5 else "full body"
        place = SCENES[(number // len(POSES) + number) % len(SCENES)]
        found.append(", ".join(part for part in (said, POSES[number % len(POSES)], framing, place) if part))
    return found
