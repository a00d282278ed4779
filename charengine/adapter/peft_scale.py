"""The scale that PEFT's settings in an adapter file's metadata give its layers, as diffusers reads them.

Files in diffusers' keys hold no alphas: a layer is up · down. But what `save_lora_weights` writes may hold the `LoraConfig` it was trained
with (`lora_adapter_metadata`, diffusers 0.34 and later), and diffusers then multiplies by lora_alpha / r, or lora_alpha / √r
(`peft.tuners.lora`, `diffusers.loaders.lora_base._load_sft_state_dict_metadata`).
"""

from __future__ import annotations

import json
import re
from collections.abc import Mapping
from math import isfinite, sqrt
from typing import Any

from torch import Tensor

from charengine.adapter.parts import FLOATS, times
from charengine.adapter.peft_config import SETTINGS
from charengine.adapter.sorting import LORA, split_key
from charengine.errors import BadInput

MODELS = ("unet", "text_encoder", "text_encoder_2")


def without_peft_settings(
    tensors: Mapping[str, Tensor], metadata: Mapping[str, str]
) -> tuple[dict[str, Tensor], dict[str, str]]:
    """The same adapter without PEFT's settings: what they multiply a layer by is in its up matrix.

    A file with alphas is left as it is: they say it, and diffusers reads no file that has both.

    Raises:
        BadInput: the settings cannot be read.
    """
    if SETTINGS not in metadata or any(key.endswith(".alpha") for key in tensors):
        return dict(tensors), dict(metadata)
    told = _settings(metadata[SETTINGS])
    layers: dict[str, dict[str, str]] = {}
    for key in tensors:
        stem, part, _ = split_key(key)
        layers.setdefault(stem, {})[part] = key
    folded = dict(tensors)
    for stem, parts in layers.items():
        if "." not in stem or not parts.keys() >= {*LORA}:  # kohya's keys, or no LoRA
            continue
        down, up = (tensors[parts[name]] for name in LORA)
        if down.dim() and up.dtype in FLOATS:  # else it is refused where values are looked at
            factor = _scale(stem, len(down), told)
            folded[parts[LORA[1]]] = up if factor == 1 else times(up, factor)
    return folded, {name: text for name, text in metadata.items() if name != SETTINGS}


def _settings(text: str) -> dict[str, Any]:
    try:
        told = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(
            f"the adapter's metadata {SETTINGS} are no JSON ({error}): save it again, or remove them"
        ) from error
    if not isinstance(told, dict):
        raise BadInput(f"the adapter's metadata {SETTINGS} are no settings by name: save it again, or remove them")
    return told


def _scale(layer: str, rank: int, told: Mapping[str, Any]) -> float:
    """What a layer's product is multiplied by."""
    model, _, name = layer.partition(".")
    before, name = (f"{model}.", name) if model in MODELS else ("", layer)
    alpha = _of_layer(name, told.get(f"{before}alpha_pattern"), told.get(f"{before}lora_alpha", rank))
    if not isinstance(alpha, int | float) or not isfinite(alpha) or alpha <= 0:
        raise BadInput(
            f"the adapter's metadata {SETTINGS} give {layer} the alpha {alpha!r}; a number above 0 is needed: save it again, or remove them"
        )
    return float(alpha) / (sqrt(rank) if told.get(f"{before}use_rslora") is True else max(rank, 1))


def _of_layer(name: str, patterns: object, usual: object) -> object:
    """The value of the first pattern that is the layer's name or ends it; PEFT takes patterns for regular expressions, but writes names."""
    for pattern, value in patterns.items() if isinstance(patterns, dict) else ():
        plain = str(pattern).removeprefix("^").replace("\\.", ".")
        if not re.fullmatch(r"[\w.]+", plain):
            raise BadInput(
                f"the adapter's PEFT settings give the alpha_pattern {str(pattern)[:100]!r}; allowed are layers' names, no other regular "
                "expressions: write the names, or save the adapter with alphas"
            )
        if f".{name}".endswith(f".{plain}"):
            return value
    return usual
