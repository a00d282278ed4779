"""What an adapter file says about itself, so that A1111/Forge, ComfyUI and people recognise it.

Keys: kohya's `ss_*` (A1111 shows a file for SDXL only when `ss_base_model_version` starts with `sdxl_`), Stability's
`modelspec.*` 1.0.1, and `charengine.recipe`, from which the file can be made again.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from charengine import __version__
from charengine.config import TrainSettings

BASE_MODEL = "sdxl_base_v1-0"
ARCHITECTURE = "stable-diffusion-xl-v1-base/lora"


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
        recipe: the whole resolved config, dataset digest, ….
    """
    conv = settings.conv_rank > 0 and settings.algorithm not in ("lora", "tlora")
    network: dict[str, str] = {"algo": settings.algorithm, "bypass_mode": "True"}
    if conv:
        network |= {"conv_dim": str(settings.conv_rank), "conv_alpha": str(settings.conv_alpha)}
    size = f"{resolution[0]}x{resolution[1]}"
    values: dict[str, Any] = {
        "ss_v2": "False",
        "ss_base_model_version": BASE_MODEL,
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
        "ss_mixed_precision": settings.precision,
        "ss_max_grad_norm": settings.max_grad_norm,
        "ss_gradient_accumulation_steps": settings.accumulate,
        "ss_caption_dropout_rate": settings.caption_dropout,
        "ss_num_train_images": len(captions),
        "ss_num_reg_images": 0,
        "ss_resolution": f"({resolution[0]}, {resolution[1]})",
        "ss_tag_frequency": json.dumps(_tag_frequency(trigger, captions)),
        "ss_training_comment": f"trigger: {trigger}",
        "modelspec.sai_model_spec": "1.0.1",
        "modelspec.architecture": ARCHITECTURE,
        "modelspec.implementation": "https://github.com/Stability-AI/generative-models",
        "modelspec.title": name,
        "modelspec.resolution": size,
        "modelspec.prediction_type": "epsilon",
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
