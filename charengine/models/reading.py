"""Tensors of model files under their own names: as they are stored (`read_state`), or as their header alone describes them.

Both ways run the same code, so what a header check accepts is what loading finds.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch

from charengine import files
from charengine.errors import BadInput
from charengine.models.files import (
    Header,
    gguf_reader,
    holds_weights,
    read_header,
    read_header_of_folder,
    shown,
    weight_files,
)
from charengine.models.packing import GGUF_READ, IGNORED, SCALES, Notes, notes_of, rotation_of
from charengine.models.quantised import FP8, FP8_NAMES, Packed, State, packed_bytes

Wanted = Callable[[str], bool]
Reader = Callable[[Path, Wanted], State]
TORCH_TYPES = {
    "F64": torch.float64, "F32": torch.float32, "F16": torch.float16, "BF16": torch.bfloat16, "F8_E4M3": torch.float8_e4m3fn,
    "F8_E5M2": torch.float8_e5m2, "I64": torch.int64, "I32": torch.int32, "I16": torch.int16, "I8": torch.int8, "BOOL": torch.bool,
    "U8": torch.uint8,
}  # fmt: skip
WEIGHTS = ("F64", "F32", "F16", "BF16", *FP8)


def everything(_key: str) -> bool:
    """Every tensor is wanted."""
    return True


def read_state(path: Path, wanted: Wanted = everything) -> State:
    """The tensors of a file or folder that was identified, under their own names; fp8, int8 and GGUF weights stay packed, scales folded in."""
    if path.suffix.lower() == ".gguf":
        return _read_gguf(path, wanted)
    raw: dict[str, torch.Tensor] = {}
    notes: Notes = {}
    for file in weight_files(path):
        raw |= read_tensors(file, wanted)
        notes |= notes_of(read_header(file))
    return fold_scales(raw, notes)


def read_plain(path: Path, wanted: Wanted = everything) -> State:
    """`read_state` with everything unpacked, to bfloat16: what is trained on needs its weights as they are."""
    return {key: unpacked(value) for key, value in read_state(path, wanted).items()}


def header_state(path: Path, wanted: Wanted = everything) -> State:
    """What `read_state` gives, as tensors without memory: names and shapes from the header, in milliseconds."""
    header = read_header(path) if files.is_file(path) else _folder_header(path)
    if header.format == "gguf":
        return {key: _gguf_entry(header, key) for key in header.tensors if wanted(key) and not key.endswith(IGNORED)}
    kept = {key: tensor for key, tensor in header.tensors.items() if wanted(key)}
    for key, tensor in kept.items():
        if tensor.dtype not in TORCH_TYPES:
            raise no_weight(path, key, tensor.dtype)
    raw = {
        key: torch.empty(tensor.shape, dtype=TORCH_TYPES[tensor.dtype], device="meta") for key, tensor in kept.items()
    }
    return fold_scales(raw, notes_of(header))


def no_weight(path: Path, key: str, dtype: str) -> BadInput:
    """A weight is stored as something that no weight is."""
    allowed = f"allowed are {', '.join(WEIGHTS)}, or I8 with a note and a scale"
    return BadInput(f"{path}: {shown(key)} is stored as {shown(dtype)}; {allowed}: use another file of the same model")


def header_plain(path: Path, wanted: Wanted = everything) -> State:
    """What `read_plain` gives, as tensors without memory."""
    return {
        key: torch.empty(value.shape, dtype=torch.bfloat16 if isinstance(value, Packed) else value.dtype, device="meta")
        for key, value in header_state(path, wanted).items()
    }


def _folder_header(path: Path) -> Header:
    return read_header_of_folder(path) if holds_weights(path) else Header(path, "safetensors", {})


def read_tensors(path: Path, wanted: Wanted = everything) -> dict[str, torch.Tensor]:
    """Tensors of one safetensors file, exactly as stored (memory-mapped)."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if wanted(key)}  # noqa: SIM118


def unpacked(value: torch.Tensor | Packed) -> torch.Tensor:
    """A weight as it is; what was packed is rounded to bfloat16, which holds more than any packing does."""
    return value.unpack(torch.bfloat16) if isinstance(value, Packed) else value


def fold_scales(raw: dict[str, torch.Tensor], notes: Notes) -> State:
    """Tensors as stored, with the scales and notes that stand beside them taken into the weights they belong to."""
    scales = {key.removesuffix(end): raw[key] for key in raw for end in SCALES if key.endswith(end)}
    state: State = {}
    for key, tensor in raw.items():
        if key.endswith(IGNORED + SCALES):
            continue
        layer = key.removesuffix(".weight")
        scale = scales.get(layer)
        packed = tensor.dtype in FP8_NAMES or (tensor.dtype == torch.int8 and layer in notes)
        if packed and tensor.ndim == 2:
            state[key] = packed_bytes(tensor, scale, rotation_of(notes.get(layer)))
        else:
            state[key] = tensor if scale is None else tensor.float() * _by_rows(scale, tensor)
    return state


def _by_rows(scale: torch.Tensor, weight: torch.Tensor) -> torch.Tensor:
    """A scale as it multiplies a weight of any number of axes: one value, or one for each of the first axis."""
    return scale.float().reshape(-1, *[1] * max(0, weight.ndim - 1)) if weight.ndim else scale.float().reshape(())


# --- GGUF ------------------------------------------------------------------------------------------------------------


def _read_gguf(path: Path, wanted: Wanted) -> State:
    state: State = {}
    for tensor in gguf_reader(path).tensors:
        if not wanted(tensor.name) or tensor.name.endswith(IGNORED):
            continue
        shape, kind = tuple(int(n) for n in reversed(tensor.shape)), tensor.tensor_type.name
        data = torch.from_numpy(tensor.data.copy())
        if kind in ("F32", "F16"):
            state[tensor.name] = data.reshape(shape)
        elif kind == "BF16":
            state[tensor.name] = data.view(torch.uint8).view(torch.bfloat16).reshape(shape)
        else:
            state[tensor.name] = Packed(data, kind, shape)
    return state


def _gguf_entry(header: Header, key: str) -> torch.Tensor | Packed:
    tensor = header.tensors[key]
    if tensor.dtype not in GGUF_READ:
        return torch.empty(tensor.shape, device="meta")
    rows = tensor.shape[0] if tensor.shape else 1
    data = torch.empty(rows, tensor.nbytes // max(1, rows), dtype=torch.uint8, device="meta")
    return Packed(data, tensor.dtype, tensor.shape)


def joined(parts: list[torch.Tensor | Packed]) -> torch.Tensor | Packed:
    """Weights under one another; packed ones stay packed where all are packed the same way."""
    first = parts[0]
    if isinstance(first, Packed) and all(isinstance(p, Packed) and p.packing == first.packing for p in parts):
        packed: list[Any] = parts
        rows = sum(part.shape[0] for part in packed)
        return Packed(torch.cat([part.data for part in packed]), first.packing, (rows, *first.shape[1:]))
    return torch.cat([unpacked(part) for part in parts])
