"""What makes an adapter file useless or doubtful, told without torch: `charengine inspect` is to answer at once."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path
from typing import Any

import numpy as np

from charengine.adapter.header import Header, read_tensors
from charengine.adapter.sdxl_layers import layers_by_stem
from charengine.adapter.sizes import MOST_CHANGE, SIDES, Norms, largest_change, norms_of
from charengine.adapter.sorting import EMBEDDING, MOST_VALUE, TEXT_ENCODER, missing_of, shown, split_key

Shapes = dict[str, tuple[int, ...]]

ALGORITHMS = {"lora", "hada", "lokr"}
WHOLE_LOKR = {"lokr_w1", "lokr_w2"}
PLAIN = {"F64": "<f8", "F32": "<f4", "F16": "<f2"}
AGAIN = "the file is damaged, get it again"
FINITE = f"{AGAIN} or take an earlier checkpoint"
SAID = {  # kind of problem → what holds it, what it is, what to do
    "apart": ("layer", "matrices that do not go together", AGAIN),
    "norms": ("layer", "a dora_scale that does not fit its matrices", AGAIN),
    "shape": ("layer", "matrices of another shape than SDXL's", "the file is for another model, or damaged"),
    "unknown": ("layer", "a name that no layer of SDXL's U-Net has", "the file is for another model, or damaged"),
    "spelt": ("layer", "its parts in two spellings, of which programs add both or leave one out", AGAIN),
    "twice": ("tensor", "a part that is there twice", AGAIN),
    "huge": ("tensor", f"values beyond {MOST_VALUE:,}", AGAIN),
    "change": ("layer", f"changes of weights by more than {MOST_CHANGE}", FINITE),
    "broken": ("tensor", "values that are not finite (NaN or Inf)", FINITE),
    "whole": ("tensor", "no floats", AGAIN),
    "silent": ("tensor", "an alpha of 0", "ComfyUI reads it as no effect, kohya's scripts as the rank; write the one you mean"),
}  # fmt: skip


def value_problems(path: Path, header: Header, of_sdxl: bool = False) -> list[str]:
    """A sentence for each kind of problem that a sweep would refuse the file for; reads every tensor once, one at a time.

    Args:
        path: the file.
        header: its own.
        of_sdxl: its layers have to be SDXL's: of a run's own file they are its base model's, whatever that is.

    Raises:
        BadInput: the file cannot be read.
    """
    found: dict[str, list[str]] = {kind: [] for kind in SAID}
    layers: dict[str, Shapes] = {}
    for key, entry in header.tensors.items():
        stem, part, way = split_key(key)
        if way == "read":
            found["twice"] += [key] if part in layers.setdefault(stem, {}) else []
            layers[stem][part] = (prod(entry.shape),) if "lora_magnitude_vector" in key else entry.shape
    _look_at_layers(layers, found, layers_by_stem() if of_sdxl else {})
    _look_at_values(path, header, layers, found)
    return [
        f"{len(keys)} {what}{'s hold' if len(keys) > 1 else ' holds'} {told}, e.g. {shown(keys)}: {remedy}"
        for kind, (what, told, remedy) in SAID.items()
        if (keys := found[kind])
    ]


def _look_at_layers(
    layers: Mapping[str, Shapes], found: dict[str, list[str]], known: Mapping[str, tuple[str, tuple[int, ...]]]
) -> None:
    """What shapes and names say; `known` is empty for a file of which nobody knows which layers it may have."""
    names: set[str] = set()
    for stem, shapes in layers.items():
        name, shape = known.get(stem, ("", ()))
        if not _go_together(shapes):
            found["apart"].append(stem)
        elif kind := _misfit(shapes, shape):
            found[kind].append(stem)
        if name in names:
            found["spelt"].append(stem)
        elif known and not name and not stem.startswith((*TEXT_ENCODER, *EMBEDDING)):
            found["unknown"].append(stem)
        names |= {name} - {""}


def _look_at_values(path: Path, header: Header, layers: Mapping[str, Shapes], found: dict[str, list[str]]) -> None:
    norms: dict[str, dict[str, Norms]] = {stem: {} for stem in layers}
    scales: dict[str, float] = {}
    for key, data in read_tensors(path, header):
        entry, (stem, part, way) = header.tensors[key], split_key(key)
        if part == "alpha" and layers[stem].keys() >= WHOLE_LOKR:
            continue  # no program reads it
        values = floats(data, entry.dtype)
        if values is None and part == "alpha":  # some write whole ones
            values = np.array([float(int.from_bytes(data, "little", signed=True))])
        if values is None:
            found["whole"] += [key] if way == "read" else []
        elif not np.isfinite(values).all():
            found["broken"].append(key)
        elif part == "alpha" and values.size:
            found["silent"] += [] if values.any() else [key]
            scales[stem] = float(values[0]) / max(1, _rank(layers[stem]))
        elif way == "read":
            norms[stem][part] = norms_of(values.reshape(entry.shape))
            found["huge"] += [key] if norms[stem][part].most > MOST_VALUE else []
    for stem, parts in norms.items():
        whole = stem not in found["apart"] and not missing_of(parts)
        found["change"] += [stem] if whole and largest_change(parts, scales.get(stem, 1.0)) > MOST_CHANGE else []


def _go_together(shapes: Shapes) -> bool:
    """Whether the parts of a layer can be multiplied, as far as they say so without the layer; incomplete ones are told elsewhere."""
    whole_lokr = shapes.keys() >= WHOLE_LOKR
    if (prod(shapes.get("alpha", ())) != 1 and not whole_lokr) or len({part[:4] for part in shapes} & ALGORITHMS) > 1:
        return False
    sides: dict[str, tuple[int, int]] = {}
    for side, rows, columns, middle in SIDES:
        first, second = shapes.get(rows), shapes.get(columns)
        if side in shapes and (first or second):
            return False
        if first is None or second is None:
            continue
        if min(len(first), len(second)) < 2 or not first[1] or not second[0]:
            return False
        if middle not in shapes and first[1] != second[0]:
            return False
        sides[side] = first[0], prod(second[1:])
    return "hada_t1" in shapes or len({sides[side] for side in sides if side.startswith("hada")}) < 2


def _misfit(shapes: Shapes, shape: tuple[int, ...]) -> str:
    """The kind of problem of parts that go together: not with the layer (of this shape, where it is known), or a `dora_scale` of neither."""
    whole = (shape[0], prod(shape[1:])) if shape else None
    found = [
        (one[0], prod(one[1:])) if (one := shapes.get(side)) else (shapes[rows][0], prod(shapes[columns][1:]))
        for side, rows, columns, _ in SIDES
        if side in shapes or {rows, columns} <= shapes.keys()
    ]
    if found and not any(middle in shapes for *_, middle in SIDES):  # Tucker's factors stand otherwise
        kron = any(part.startswith("lokr") for part in shapes)
        own = (prod(one for one, _ in found), prod(one for _, one in found)) if kron else found[0]
        if whole and own != whole:
            return "shape"
        whole = own
    scale = shapes.get("dora_scale")
    if scale is None or not whole:
        return ""
    by_input = len(scale) > 1 and scale[0] == 1 and (shape[1] == prod(scale) if shape else not whole[1] % prod(scale))
    fits = prod(scale) == max(scale, default=0) and (scale[0] == whole[0] or by_input)
    return "" if fits else "norms"


def _rank(shapes: Shapes) -> int:
    return next((shapes[columns][0] for _, _, columns, _ in SIDES if columns in shapes), 1)


def floats(data: bytes, kind: str) -> np.ndarray[Any, Any] | None:
    """The values of a tensor as numbers that numpy has; None where they are no floats."""
    if kind in PLAIN:
        return np.frombuffer(data, PLAIN[kind]).astype(np.float64 if kind == "F64" else np.float32)
    if kind == "BF16":
        return (np.frombuffer(data, "<u2").astype(np.uint32) << 16).view(np.float32)
    bits = np.frombuffer(data, "<u1").astype(np.uint16)
    if kind == "F8_E5M2":  # half of a float16
        return (bits << 8).view(np.float16).astype(np.float32)
    if kind == "F8_E4M3":  # a float16 whose exponent is 8 too low; NaN where all bits are set
        values = ((bits & 0x80) << 8 | (bits & 0x7F) << 7).view(np.float16).astype(np.float32) * 256
        return np.where(bits & 0x7F == 0x7F, np.float32("nan"), values)
    return None
