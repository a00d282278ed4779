"""Values of an adapter file that make it useless or doubtful, told without torch: `charengine inspect` is to answer at once."""

from __future__ import annotations

from collections.abc import Mapping
from math import prod
from pathlib import Path

import numpy as np

from charengine.adapter.header import Header, read_tensors
from charengine.adapter.sorting import MOST_VALUE, shown, split_key

# a float is NaN or infinite where all bits of its exponent are set (E4M3 has no infinity, and NaN where all bits are)
EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),
}
MOST_BITS = {  # of MOST_VALUE; float8 with four bits of exponent ends at 448
    "F64": int(np.float64(MOST_VALUE).view(np.uint64)),
    "F32": int(np.float32(MOST_VALUE).view(np.uint32)),
    "F16": int(np.float16(MOST_VALUE).view(np.uint16)),
    "BF16": int(np.float32(MOST_VALUE).view(np.uint32)) >> 16,
    "F8_E5M2": int(np.float16(MOST_VALUE).view(np.uint16)) >> 8,
}
SIDES = (  # a side of a product, its rows' and its columns' factor, Tucker's middle between them
    ("", "lora_up.weight", "lora_down.weight", "lora_mid.weight"),
    *(
        (f"{kind}_w{n}", f"{kind}_w{n}_a", f"{kind}_w{n}_b", f"{kind}_t{n}")
        for kind in ("hada", "lokr")
        for n in (1, 2)
    ),
)


def value_problems(path: Path, header: Header) -> list[str]:
    """A sentence for each kind of value that should not be in an adapter; reads every tensor once, one at a time.

    Raises:
        BadInput: the file cannot be read.
    """
    broken, silent, whole, huge, twice = [], [], [], [], []
    layers: dict[str, dict[str, tuple[int, ...]]] = {}
    for key, entry in header.tensors.items():
        stem, part, way = split_key(key)
        if way == "read":
            twice += [key] if part in layers.setdefault(stem, {}) else []
            layers[stem][part] = entry.shape
    for key, data in read_tensors(path, header):
        kind, (stem, part, way) = header.tensors[key].dtype, split_key(key)
        if part == "alpha" and {"lokr_w1", "lokr_w2"} <= layers[stem].keys():
            continue  # no program reads it
        if kind in EXPONENTS and not _all_finite(data, kind):
            broken.append(key)
        elif way == "read" and part != "alpha" and _is_huge(data, kind):
            huge.append(key)
        elif part == "alpha" and _is_zero(data, kind):
            silent.append(key)
        elif way == "read" and part != "alpha" and kind not in EXPONENTS:
            whole.append(key)
    problems = []
    apart = [stem for stem, shapes in layers.items() if not _go_together(shapes)]
    for keys, what in (
        (apart, "matrices that do not go together"),
        (twice, "a part that is there twice"),
        (huge, f"values beyond {MOST_VALUE:,}"),
    ):
        if keys:
            problems.append(
                f"{_count(keys, 'layer' if keys is apart else 'tensor')} {what}, e.g. {shown(keys)}: the file is damaged, get it again"
            )
    if broken:
        problems.append(
            f"{_count(broken)} values that are not finite (NaN or Inf), e.g. {shown(broken)}: the file is damaged, "
            "get it again or take an earlier checkpoint"
        )
    if whole:
        problems.append(f"{_count(whole)} no floats, e.g. {shown(whole)}: the file is damaged, get it again")
    if silent:
        problems.append(
            f"{_count(silent)} an alpha of 0, e.g. {shown(silent)}: ComfyUI reads it as no effect, kohya's scripts as the rank; "
            "write the one you mean"
        )
    return problems


def _go_together(shapes: Mapping[str, tuple[int, ...]]) -> bool:
    """Whether the parts of a layer can be multiplied, as far as they say so without the layer; incomplete ones are told elsewhere."""
    if prod(shapes.get("alpha", ())) != 1 and not {"lokr_w1", "lokr_w2"} <= shapes.keys():
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


def _count(keys: list[str], what: str = "tensor") -> str:
    return f"{len(keys)} {what}s hold" if len(keys) > 1 else f"1 {what} holds"


def _is_huge(data: bytes, kind: str) -> bool:
    """Whether a finite value is beyond `MOST_VALUE`: of floats without their sign, the larger has the larger bits."""
    if kind not in MOST_BITS:
        return False
    bits = np.frombuffer(data, EXPONENTS[kind][0])
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return bool(((bits & ~sign) > MOST_BITS[kind]).any())


def _all_finite(data: bytes, kind: str) -> bool:
    word, mask = EXPONENTS[kind]
    bits = np.frombuffer(data, word)
    return not bool(((bits & bits.dtype.type(mask)) == mask).any())


def _is_zero(data: bytes, kind: str) -> bool:
    """Whether all values are 0, or -0."""
    if kind not in EXPONENTS:
        return not any(data)
    bits = np.frombuffer(data, EXPONENTS[kind][0])
    sign = bits.dtype.type(1 << (8 * bits.dtype.itemsize - 1))
    return bool(bits.size) and not bool((bits & ~sign).any())
