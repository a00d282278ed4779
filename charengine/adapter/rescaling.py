"""An adapter file with another strength as its 1.0, layer by layer."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor

from charengine.adapter.files import load_adapter, save_adapter
from charengine.adapter.header import STRENGTH
from charengine.adapter.parts import rank_of, times
from charengine.adapter.sorting import algorithm_of, split_key
from charengine.errors import BadInput


def rescale(data: bytes, strength: float) -> bytes:
    """The same adapter with `strength` as its new 1.0, exact for every layer that is LoRA, LoCon, LoHa or LoKr, and for trained norms.

    Each layer is scaled where loaders look: by its alpha, in float32; by a new alpha where it has none; by its up matrix where
    the program that reads such keys knows no alpha; by its first factor for LoKr, whose alpha loaders may ignore.

    Raises:
        BadInput: a strength of 0 (loaders read an alpha of 0 as 1 × rank), a file with DoRA layers, whose effect is not proportional
            to any of their tensors, or with layers adapted in a way that is not known here.
    """
    if not 0 < strength < float("inf"):
        raise BadInput(f"cannot rescale an adapter to strength {strength}; it must be above 0")
    tensors, metadata = load_adapter(data)
    if strength != 1.0:
        tensors = _scaled(tensors, strength)
    return save_adapter(tensors, metadata | {STRENGTH: str(strength)})


def _scaled(tensors: Mapping[str, Tensor], strength: float) -> dict[str, Tensor]:
    layers: dict[str, dict[str, str]] = {}
    scaled = dict(tensors)
    for key, value in tensors.items():
        stem, part, kind = split_key(key)
        if kind == "read":
            layers.setdefault(stem, {})[part] = key
        elif kind in ("norm", "difference"):
            scaled[key] = times(value, strength)
        elif kind:
            raise BadInput(
                f"an adapter with {kind} cannot be rescaled to strength {strength}: set the strength in your UI"
            )
    for stem, parts in layers.items():
        try:
            key, value = _scaled_layer(stem, parts, tensors, strength)
        except (KeyError, IndexError, ValueError) as error:  # a text encoder's layer, which nothing has looked at
            raise BadInput(
                f"the adapter's {stem} is incomplete: it cannot be rescaled to strength {strength}"
            ) from error
        scaled[key] = value
    return scaled


def _scaled_layer(
    stem: str, parts: Mapping[str, str], tensors: Mapping[str, Tensor], strength: float
) -> tuple[str, Tensor]:
    """The one tensor that changes, and its key."""
    if "dora_scale" in parts:
        raise BadInput(
            f"a DoRA adapter cannot be rescaled to strength {strength}: its weights are normalised after they are added; "
            "load it as trained and set the strength in your UI"
        )
    if algorithm_of(parts) == "LoKr":
        key = parts["lokr_w1"] if "lokr_w1" in parts else parts["lokr_w1_a"]
        return key, tensors[key].float() * strength
    if "alpha" in parts:
        return parts["alpha"], tensors[parts["alpha"]].float() * strength
    rank = rank_of({part: tensors[key] for part, key in parts.items()})
    if "." not in stem:  # kohya's and LyCORIS' keys; diffusers' have no alpha
        return f"{stem}.alpha", torch.tensor(rank * strength)
    key = parts["lora_up.weight"] if "lora_up.weight" in parts else parts["hada_w1_a"]
    return key, times(tensors[key], strength)
