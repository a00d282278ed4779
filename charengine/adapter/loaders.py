"""Where an adapter file loads, by what the loaders really read: its keys' layout against each loader's own list of names.

What each reads of an SDXL U-Net (docs/reference/adapter-loaders.md has the sources):

| loader | layers it knows by | algorithms |
| --- | --- | --- |
| ComfyUI | `lora_unet_` with original or diffusers names; `lycoris_` with diffusers names; `diffusion_model.` dotted; dotted diffusers names, bare or after `unet.`, but attention only as `….processor.to_q` | all of ours; DoRA by `dora_scale` |
| Forge | as ComfyUI, but nothing of a file of which it cannot place more than twelve keys | likewise |
| A1111 | `lora_unet_` with original names, or diffusers ones but for two layers; nothing of a file with parts it does not know | likewise, but a DoRA's norms by input alone |
| kohya's scripts | `lora_unet_` with original names, or diffusers ones, which they rename | LoRA and LoCon; others through LyCORIS |
| diffusers | `lora_unet_` (every key of the file), or dotted diffusers names after `unet.` | LoRA and LoCon; DoRA in PEFT's spelling alone |
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass

from charengine.adapter.header import Entry
from charengine.adapter.keys import BASES
from charengine.adapter.sorting import EMBEDDING, TEXT_ENCODER, algorithm_of, missing_of, split_key

ALL = "all"
NOT_ATTENTION = "not the attention layers"
OTHER_NORMS = "not as it was trained: it takes a DoRA's norms by output for norms by input"
BASE_NORMS = "nearly as it was trained: a DoRA's norms by output are held against the base's, not the sum's"
_ORIGINAL = r"(?:input_blocks|middle_block|output_blocks|time_embed|label_emb|out)"
_DIFFUSERS = r"(?:down_blocks|mid_block|up_blocks|conv_in|conv_out|conv_norm_out|time_embedding|add_embedding)"
_LAYOUTS = {
    "kohya": rf"lora_unet_{_ORIGINAL}_\w+",
    "kohya-diffusers": rf"lora_unet_{_DIFFUSERS}(?:_\w+)?",
    "lycoris": rf"lycoris_{_DIFFUSERS}(?:_\w+)?",
    "dotted-original": rf"diffusion_model\.{_ORIGINAL}\.[\w.]+",
    "unet.": rf"unet\.{_DIFFUSERS}(?:\.[\w.]+)?",
    "bare": rf"{_DIFFUSERS}(?:\.[\w.]+)?",
}
_READ_BY = {
    "ComfyUI": ("kohya", "kohya-diffusers", "lycoris", "dotted-original", "unet.", "bare"),
    "Forge": ("kohya", "kohya-diffusers", "lycoris", "dotted-original", "unet.", "bare"),
    "AUTOMATIC1111": ("kohya", "kohya-diffusers"),
    "kohya's scripts": ("kohya", "kohya-diffusers"),
}
_PROCESSOR = re.compile(r"\.processor\.to_\w+_lora\.")
FORGE_UNPLACED = 12  # keys that Forge may fail to place; with more it says "version mismatch" and applies nothing
_A1111_UNNAMED = re.compile(r"lora_unet_(?:up_blocks_0_upsamplers_0_conv|add_embedding_\w+|conv_norm_out)")
_UNREAD = {  # ways of adapting that each knows nothing of
    "ComfyUI": ("IA3", "T-LoRA before its export", "LoRA with biases", "VeRA", "two algorithms in one layer"),
    "Forge": ("OFT", "IA3", "T-LoRA before its export", "LoRA with biases", "VeRA", "two algorithms in one layer"),
    "AUTOMATIC1111": (
        *("T-LoRA before its export", "LoRA with biases", "VeRA", "replaced weights", "two algorithms in one layer"),
    ),
    "kohya's scripts": ("T-LoRA before its export", "LoRA with biases", "VeRA", "replaced weights"),
}


@dataclass(frozen=True)
class Layer:
    """One layer of the file as its keys spell it."""

    stem: str
    layout: str  # of _LAYOUTS, or ""
    algorithm: str  # "LoRA", "DoRA LoRA", "LoHa", "LoKr", or "" for what is not read here
    other: str  # then what it is: "trained norms", "OFT", …
    keys: tuple[str, ...]
    missing: tuple[str, ...]  # parts without which the others mean nothing

    @property
    def attention_unread(self) -> bool:
        """ComfyUI and Forge look for attention at `….attn1.processor.to_q` where names are dotted diffusers ones."""
        return self.layout in ("unet.", "bare") and ".to_" in self.stem and not any(map(_PROCESSOR.search, self.keys))


def layers_of(tensors: Mapping[str, Entry]) -> list[Layer]:
    """The U-Net's layers in a file, in the file's order; text encoders and embeddings are left out."""
    stems: dict[str, dict[str, str]] = {}
    for key in tensors:
        stem, part, kind = split_key(key)
        if kind and not stem.startswith((*TEXT_ENCODER, *EMBEDDING)):
            stems.setdefault(stem, {})[part if kind == "read" else f"?{kind}"] = key
    return [_layer(stem, parts) for stem, parts in stems.items()]


def loads_in(tensors: Mapping[str, Entry]) -> dict[str, str]:
    """Loader → `ALL`, or what of the file it does not load; loaders that load nothing of it are not there.

    Of a file with incomplete layers none is named: what each does with those is an accident.
    """
    layers = layers_of(tensors)
    if any(layer.missing for layer in layers):
        return {}
    found = {name: told for name in _READ_BY if (told := _told(layers, name, tensors))}
    if layers and _diffusers_reads(tensors, layers):
        found["diffusers (load_lora_weights)"] = ALL
    return found


def base_of(tensors: Mapping[str, Entry]) -> str:
    """The base a file was made for, by the width of the text embeddings it reads; "" where no layer or no known width tells."""
    for key, entry in tensors.items():
        stem, part, _ = split_key(key)
        if (
            part in ("lora_down.weight", "hada_w1_b")
            and stem.endswith(("attn2.to_k", "attn2_to_k"))
            and len(entry.shape) > 1
        ):
            return BASES.get(entry.shape[1], "")
    return ""


def _layer(stem: str, parts: Mapping[str, str]) -> Layer:
    layout = next((name for name, pattern in _LAYOUTS.items() if re.fullmatch(pattern, stem)), "")
    others = [part.removeprefix("?") for part in parts if part.startswith("?")]
    algorithm, other = "", ""
    missing: tuple[str, ...] = ()
    try:
        if others:
            other = {"norm": "trained norms", "difference": "whole differences"}.get(others[0], others[0])
        else:
            algorithm, missing = algorithm_of(parts), missing_of(parts)
    except ValueError:
        other = "two algorithms in one layer"
    return Layer(stem, layout, algorithm, other, tuple(parts.values()), missing)


def _told(layers: list[Layer], loader: str, tensors: Mapping[str, Entry]) -> str:
    known = [layer for layer in layers if layer.layout in _READ_BY[loader] and not _unnamed(layer, loader)]
    if loader == "AUTOMATIC1111" and any(_in_the_way(layer, loader) for layer in known):
        return ""  # one layer that no reader takes stops it for the whole file
    read = [layer for layer in known if not _in_the_way(layer, loader)]
    if loader == "Forge" and _unplaced(read, tensors) > FORGE_UNPLACED:
        return ""
    if not read:
        return ""
    without = [layer for layer in layers if layer not in read]
    if without:
        attention = all(layer.attention_unread for layer in without)
        told = NOT_ATTENTION if attention else f"{len(read)} of {len(layers)} layers"
    elif loader == "kohya's scripts":
        told = ALL
    else:
        told = _norms_told(read, loader, tensors)
    if loader == "kohya's scripts" and any(layer.algorithm != "LoRA" for layer in read):
        told = "with LyCORIS" if told == ALL else f"{told}, with LyCORIS"
    return told


def _norms_told(layers: list[Layer], loader: str, tensors: Mapping[str, Entry]) -> str:
    """`ALL`, or what becomes of a DoRA whose norms are by output, (out, 1…)."""
    scales = [tensors[key].shape for layer in layers for key in layer.keys if key.endswith("dora_scale")]
    if not any(shape and (len(shape) == 1 or shape[0] != 1) for shape in scales):
        return ALL
    return OTHER_NORMS if loader == "AUTOMATIC1111" else BASE_NORMS


def _unplaced(read: list[Layer], tensors: Mapping[str, Entry]) -> int:
    """Keys of the file that Forge would not place; those of the text encoders it knows."""
    placed = {key for layer in read for key in layer.keys}
    return sum(key not in placed and not key.startswith(TEXT_ENCODER) for key in tensors)


def _unnamed(layer: Layer, loader: str) -> bool:
    """Layers that a loader does not find under the name they have in the file."""
    if loader in ("ComfyUI", "Forge"):
        return layer.attention_unread
    return loader == "AUTOMATIC1111" and _A1111_UNNAMED.fullmatch(layer.stem) is not None


def _in_the_way(layer: Layer, loader: str) -> bool:
    """Spellings of parts, or ways of adapting, that the loader does not know, though it knows the layer."""
    words = (".lora_magnitude_vector", ".lora_A.", ".lora_B.", ".lora.up.", ".lora.down.")
    if layer.other in _UNREAD[loader]:
        return True
    if loader in ("AUTOMATIC1111", "kohya's scripts"):
        return any(word in key for key in layer.keys for word in words)
    return any(words[0] in key for key in layer.keys)


def _diffusers_reads(tensors: Mapping[str, Entry], layers: list[Layer]) -> bool:
    """diffusers takes a whole file or raises; of a `dora_scale` it says that it leaves it out, which is another adapter."""
    if any("dora_scale" in key for key in tensors) or not all(
        layer.algorithm in ("LoRA", "DoRA LoRA") for layer in layers
    ):
        return False
    if any(".lora_mid." in key for key in tensors):
        return False
    if all(key.startswith(("lora_unet_", "lora_te_", "lora_te1_", "lora_te2_")) for key in tensors):
        layouts = {layer.layout for layer in layers}
        return layouts in ({"kohya"}, {"kohya-diffusers"}) and not any(
            (".lora_" not in key and ".alpha" not in key) or "_add_embedding_" in key for key in tensors
        )
    return all("lora" in key for key in tensors) and all(layer.layout == "unet." for layer in layers)
