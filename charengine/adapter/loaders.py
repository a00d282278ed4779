"""Where an adapter file loads, by what the loaders really read: its keys' layout against each loader's own list of names.

What each reads of an SDXL U-Net (docs/reference/adapter-loaders.md has the sources):

| loader | layers it knows by | algorithms |
| --- | --- | --- |
| ComfyUI | `lora_unet_` with original or diffusers names; `lycoris_` with diffusers names; `diffusion_model.` dotted; dotted diffusers names, bare or after `unet.`, but attention only as `….processor.to_q` | all of ours; DoRA by `dora_scale` |
| Forge | as ComfyUI, without `lycoris_` | likewise |
| A1111 | `lora_unet_` with original or diffusers names | likewise |
| kohya's scripts | `lora_unet_` with original names | LoRA and LoCon; others through LyCORIS |
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
    "Forge": ("kohya", "kohya-diffusers", "dotted-original", "unet.", "bare"),
    "AUTOMATIC1111": ("kohya", "kohya-diffusers"),
    "kohya's scripts": ("kohya",),
}
_PROCESSOR = re.compile(r"\.processor\.to_\w+_lora\.")


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
    found = {name: told for name, layouts in _READ_BY.items() if (told := _told(layers, name, layouts))}
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


def _told(layers: list[Layer], loader: str, layouts: tuple[str, ...]) -> str:
    known = [layer for layer in layers if layer.layout in layouts and not _in_the_way(layer, loader)]
    if loader in ("ComfyUI", "Forge"):
        read = [layer for layer in known if not layer.attention_unread]
        if len(read) < len(known) == len(layers):
            return NOT_ATTENTION if read else ""
        known = read
    if not known:
        return ""
    told = ALL if len(known) == len(layers) else f"{len(known)} of {len(layers)} layers"
    if loader == "kohya's scripts" and any(layer.algorithm != "LoRA" for layer in known):
        told = "with LyCORIS" if told == ALL else f"{told}, with LyCORIS"
    return told


def _in_the_way(layer: Layer, loader: str) -> bool:
    """Spellings of parts that the loader does not know, though it knows the layer."""
    words = (".lora_magnitude_vector", ".lora_A.", ".lora_B.", ".lora.up.", ".lora.down.")
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
            ".lora_" not in key and ".alpha" not in key for key in tensors
        )
    return all("lora" in key for key in tensors) and all(layer.layout == "unet." for layer in layers)
