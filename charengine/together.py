"""Settings that are right by themselves and cannot work together: what is wrong, and what to change."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from charengine.config import CaptionSettings, SheetSettings, SweepSettings, TrainSettings

PRODIGY_LEAST = 0.1  # of a learning rate that Prodigy multiplies its own step size by
LOW_RANK = ("locon", "lora")  # what our own forward computes, with dropout and a float8 base
WITHOUT = {  # by setting: the least above 0 of which something is left, in float32, and what 0 says
    "max_grad_norm": (1e-6, "every gradient", "no clipping"),
    "min_snr_gamma": (1e-3, "every loss", "off"),
}
MOST_HIGH, MOST_WIDE = 6, 2  # of a sheet's box: so many times as high as it is wide, as wide as it is high
LEAST_STRENGTH = 1e-3  # of an adapter that is drawn with
FILLED = re.compile(r"\{(subject|class)\}")  # what stands for somebody in a prompt


def is_prodigy(optimizer: Any) -> bool:
    """Whether an optimizer finds its step size itself."""
    return str(optimizer).startswith("prodigy")


def refuse(problems: Iterable[str]) -> None:
    """Raises:
    ValueError: all of them, for a settings model to raise.
    """
    if told := "; ".join(problems):
        raise ValueError(told)


def training_problems(settings: TrainSettings) -> list[str]:
    """Of the section `train`."""
    problems = []
    if is_prodigy(settings.optimizer) and settings.learning_rate < PRODIGY_LEAST:
        problems.append(
            f"learning_rate={settings.learning_rate:g} with optimizer={settings.optimizer}: it finds the step size itself and multiplies it "
            f"by this, so below {PRODIGY_LEAST:g} nothing is learnt; leave learning_rate out, or set it to 1.0"
        )
    for name, (least, what, off) in WITHOUT.items():
        if 0 < (value := getattr(settings, name)) < least:
            problems.append(
                f"{name}={value:g} leaves nothing of {what}, so nothing would be learnt; give 0 ({off}), or {least:g} or more"
            )
    if settings.algorithm not in LOW_RANK:
        if settings.fp8_base:
            problems.append(
                f"fp8_base=true works with {' and '.join(LOW_RANK)}, not {settings.algorithm}; set it to false"
            )
        if settings.dropout:
            problems.append(
                f"dropout={settings.dropout:g} works with {' and '.join(LOW_RANK)}, not {settings.algorithm}; set it to 0"
            )
    return problems


def rank_problems(settings: TrainSettings, narrowest: int) -> list[str]:
    """Of a training on a U-Net whose narrowest layer has so many channels."""
    return [
        f"train.{name}={rank} is larger than the U-Net's narrowest layer ({narrowest}); set train.{name} to {narrowest} or less"
        for name, rank in (("rank", settings.rank), ("conv_rank", settings.conv_rank))
        if rank > narrowest
    ]


def sheet_problems(settings: SheetSettings) -> list[str]:
    """Of the section `sheet`: a sheet is three boxes side by side, and in each somebody stands."""
    width, height = settings.width // 3, settings.height
    if height <= MOST_HIGH * width and width <= MOST_WIDE * height:
        return []
    least, most = max(96, -(-3 * height // (16 * MOST_HIGH)) * 16), min(2048, 3 * MOST_WIDE * height // 16 * 16)
    return [
        f"width={settings.width} and height={height} make three boxes of {width}x{height} pixels, in which nobody can stand; give a width of "
        f"{least} to {most} with this height, e.g. {height}"
    ]


def steps_of_drafts(settings: SheetSettings) -> int:
    """Of each of a sheet's candidates: a draft is what is drawn faster than the sheet, so it never has more steps."""
    return min(settings.draft_steps or settings.steps, settings.steps)


def draft_warnings(settings: SheetSettings) -> tuple[str, ...]:
    """A warning where drafts were to have more: of a profile's number that its `steps` were set below, or of a mistake."""
    if not settings.gate or settings.draft_steps <= settings.steps:
        return ()
    return (
        f"sheet.draft_steps is {settings.draft_steps} and sheet.steps {settings.steps}: a draft has no more steps than the sheet, so it has "
        f"{settings.steps} too; set sheet.draft_steps below sheet.steps, or to 0",
    )


def sweep_problems(settings: SweepSettings) -> list[str]:
    """Of the section `sweep`."""
    problems = []
    if not any(strength > 0 for strength in settings.strengths):
        problems.append(f"strengths {list(settings.strengths)} has none above 0: try some, e.g. [0.5, 1.0]")
    for prompt in settings.prompts:
        if "{subject}" not in prompt:
            problems.append(f"sweep prompt {prompt!r} does not say where the character goes: write '{{subject}}' in it")
        elif left := re.search(r"[{}]", FILLED.sub("", prompt)):
            problems.append(
                f"sweep prompt {prompt!r} holds a {left[0]!r} that nothing fills: braces stand only around {{subject}}; leave them out"
            )
    for strength in settings.strengths:
        if 0 < strength < LEAST_STRENGTH:
            problems.append(
                f"strengths has {strength:g}, at which an adapter draws what the base model does, which is always tried too; give "
                f"{LEAST_STRENGTH:g} to 2, or leave it out"
            )
    if 0 < settings.guided_below <= settings.guided_above:
        problems.append(
            f"guided_above={settings.guided_above:g} and guided_below={settings.guided_below:g} leave no noise between them, so no picture "
            "would be guided: make guided_below the larger one, or set guidance to 1"
        )
    return problems


def caption_problems(settings: CaptionSettings) -> list[str]:
    """Of the section `caption`."""
    kept = {tag.strip().lower() for tag in settings.keep}
    both = [tag for tag in settings.drop if tag.strip().lower() in kept]
    return [f"{tag!r} stands in keep and in drop: leave it in one of them" for tag in both]
