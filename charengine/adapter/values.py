"""Values of an adapter file that make it useless or doubtful, told without torch: `charengine inspect` is to answer at once."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from charengine.adapter.header import Header, read_tensors
from charengine.adapter.sorting import shown, split_key

# a float is NaN or infinite where all bits of its exponent are set (E4M3 has no infinity, and NaN where all bits are)
EXPONENTS = {
    "F64": ("<u8", 0x7FF0_0000_0000_0000),
    "F32": ("<u4", 0x7F80_0000),
    "F16": ("<u2", 0x7C00),
    "BF16": ("<u2", 0x7F80),
    "F8_E5M2": ("<u1", 0x7C),
    "F8_E4M3": ("<u1", 0x7F),
}


def value_problems(path: Path, header: Header) -> list[str]:
    """A sentence for each kind of value that should not be in an adapter; reads every tensor once, one at a time.

    Raises:
        BadInput: the file cannot be read.
    """
    broken, silent, whole = [], [], []
    layers: dict[str, set[str]] = {}
    for key in header.tensors:
        stem, part, _ = split_key(key)
        layers.setdefault(stem, set()).add(part)
    for key, data in read_tensors(path, header):
        kind, (stem, part, way) = header.tensors[key].dtype, split_key(key)
        if part == "alpha" and {"lokr_w1", "lokr_w2"} <= layers[stem]:
            continue  # no program reads it
        if kind in EXPONENTS and not _all_finite(data, kind):
            broken.append(key)
        elif part == "alpha" and _is_zero(data, kind):
            silent.append(key)
        elif way == "read" and part != "alpha" and kind not in EXPONENTS:
            whole.append(key)
    problems = []
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


def _count(keys: list[str]) -> str:
    return f"{len(keys)} tensors hold" if len(keys) > 1 else "1 tensor holds"


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
