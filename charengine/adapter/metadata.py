"""What an adapter file says about itself, so that A1111/Forge, ComfyUI and people recognise it.

Keys: kohya's `ss_*` (A1111 shows a file for SDXL only when `ss_base_model_version` starts with `sdxl_`), Stability's
`modelspec.*` 1.0.1, and `charengine.recipe`, from which the file can be made again.
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import Any

from charengine.config import TrainSettings
from charengine.version import __version__

BASE_MODEL = "sdxl_base_v1-0"
ARCHITECTURE = "stable-diffusion-xl-v1-base/lora"


MOST_STEPS = 100_000_000


@dataclass(frozen=True)
class Told:
    """What a file says of its making, as far as it can be believed; what it does not say is empty or 0."""

    trigger: str = ""
    class_noun: str = ""
    steps: int = 0
    dataset_digest: str = ""
    family: str = ""
    recipe: dict[str, Any] = field(default_factory=dict)
    damaged: tuple[str, ...] = ()  # metadata keys whose values cannot be read


def told_by(metadata: Mapping[str, str]) -> Told:
    """Metadata of any program's file, none of it believed: what has not the shape it should have is named as damaged."""
    damaged: list[str] = []
    recipe = _recipe(metadata, damaged)
    character = _section(recipe, "character")
    steps = (_steps(metadata, key, damaged) for key in ("ss_steps", "ss_max_train_steps"))
    digest = _text(recipe, "dataset_digest")
    return Told(
        trigger=metadata.get("modelspec.trigger_phrase", "") or _text(character, "trigger"),
        class_noun=_text(recipe, "class_noun") or _text(character, "class_noun"),
        steps=next((step for step in steps if step), 0),
        dataset_digest=digest if re.fullmatch(r"[0-9a-f]{1,64}", digest) else "",
        family=_text(_section(_section(recipe, "profile"), "models"), "family"),
        recipe=recipe,
        damaged=tuple(damaged),
    )


def recipe_of_dataset(recipe: Mapping[str, Any], trigger: str, class_noun: str, digest: str) -> dict[str, Any]:
    """A stage's recipe with what its data set says: who is in it, and its digest."""
    character = {**_section(recipe, "character"), "trigger": trigger, "class_noun": class_noun}
    return {**recipe, "character": character, "dataset_digest": digest}


def recipe_after(before: Mapping[str, Any], after: Mapping[str, Any]) -> dict[str, Any]:
    """The recipe of a file that a later stage made of another file.

    Of how the first was made it says what that said: who it is, of which data, on which machines, with which settings. The later
    stage's own settings, models and seed stand beside it, and its version of the engine.
    """
    joined = {**after, **before}
    for name in ("profile", "models", "seeds"):
        if both := {**_section(before, name), **_section(after, name)}:
            joined[name] = both
    if character := {**_section(after, "character"), **_section(before, "character")}:
        joined["character"] = character
    if "engine_version" in after:
        joined["engine_version"] = after["engine_version"]
    return joined


def adapter_metadata(
    settings: TrainSettings,
    *,
    name: str,
    trigger: str,
    captions: Mapping[str, str],
    resolution: tuple[int, int],
    step: int,
    seed: int,
    recipe: Mapping[str, Any] | None = None,
    base: Mapping[str, str] = MappingProxyType({}),
    velocity: bool = False,
    zero_terminal_snr: bool = False,
    class_images: int = 0,
) -> dict[str, str]:
    """File metadata; every value a string, nothing that changes between two runs of one recipe.

    Args:
        settings: the training settings used.
        name: what the UIs call the adapter.
        trigger: the word that means the character.
        captions: view name → caption trained on.
        resolution: width, height of the training images in pixels.
        step: optimizer steps done.
        seed: the seed trained with.
        recipe: what training read: its settings, models and seed, who it is, the digest of the data set, ….
        base: sd-scripts' names of the checkpoint trained on, without which an adapter for Illustrious looks like one for plain SDXL.
        velocity: the base model predicts v, not the noise.
        zero_terminal_snr: its noise schedule ends in pure noise.
        class_images: regularisation images trained on beside the views.
    """
    conv = settings.conv_rank > 0 and settings.algorithm not in ("lora", "tlora")
    network: dict[str, str] = {"algo": settings.algorithm, "bypass_mode": "True"}
    if conv:
        network |= {"conv_dim": str(settings.conv_rank), "conv_alpha": str(settings.conv_alpha)}
    size = f"{resolution[0]}x{resolution[1]}"
    values: dict[str, Any] = {
        "ss_v2": "False",
        "ss_base_model_version": BASE_MODEL,
        **base,
        "ss_output_name": name,
        "ss_network_module": "lycoris.kohya",
        "ss_network_dim": settings.rank,
        "ss_network_alpha": settings.alpha,
        "ss_network_args": json.dumps(network),
        "ss_network_dropout": settings.dropout,
        "ss_learning_rate": settings.learning_rate,
        "ss_unet_lr": settings.learning_rate,
        "ss_optimizer": settings.optimizer,
        "ss_lr_scheduler": settings.schedule,
        "ss_lr_warmup_steps": settings.warmup,
        "ss_max_train_steps": settings.steps,
        "ss_steps": step,
        "ss_seed": seed,
        "ss_min_snr_gamma": settings.min_snr_gamma,
        "ss_noise_offset": settings.noise_offset,
        "ss_v_parameterization": velocity,
        "ss_zero_terminal_snr": zero_terminal_snr,
        "ss_mixed_precision": settings.precision,
        "ss_max_grad_norm": settings.max_grad_norm,
        "ss_gradient_accumulation_steps": settings.accumulate,
        "ss_caption_dropout_rate": settings.caption_dropout,
        "ss_num_train_images": len(captions),
        "ss_num_reg_images": class_images,
        "ss_resolution": f"({resolution[0]}, {resolution[1]})",
        "ss_tag_frequency": json.dumps(_tag_frequency(trigger, captions)),
        "ss_training_comment": f"trigger: {trigger}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURE,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        "modelspec.resolution": size,
        "modelspec.prediction_type": "v" if velocity else "epsilon",
        "modelspec.trigger_phrase": trigger,
        "modelspec.usage_hint": f"write {trigger!r} in the prompt",
        "charengine.version": __version__,
        "charengine.recipe": json.dumps(recipe or {}, sort_keys=True),
    }
    return {key: str(value) for key, value in values.items()}


def _tag_frequency(trigger: str, captions: Mapping[str, str]) -> dict[str, dict[str, int]]:
    counts: dict[str, int] = {}
    for caption in captions.values():
        for tag in (part.strip() for part in caption.split(",")):
            if tag:
                counts[tag] = counts.get(tag, 0) + 1
    return {f"1_{trigger}": counts}


def _recipe(metadata: Mapping[str, str], damaged: list[str]) -> dict[str, Any]:
    try:
        recipe = json.loads(metadata.get("charengine.recipe", "{}"))
    except (ValueError, RecursionError):
        recipe = None
    if isinstance(recipe, dict):
        return recipe
    damaged.append("charengine.recipe")
    return {}


def _section(values: Mapping[str, Any], key: str) -> dict[str, Any]:
    value = values.get(key)
    return value if isinstance(value, dict) else {}


def _text(values: Mapping[str, Any], key: str) -> str:
    value = values.get(key)
    return value if isinstance(value, str) else ""


def _steps(metadata: Mapping[str, str], key: str, damaged: list[str]) -> int:
    text = metadata.get(key, "0").strip()
    if re.fullmatch(r"[0-9]{1,9}", text, re.ASCII) and int(text) <= MOST_STEPS:
        return int(text)
    if text not in ("", "None"):  # what sd-scripts writes where it does not know
        damaged.append(key)
    return 0
