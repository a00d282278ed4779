"""How weights are packed in a file, told from its header and its layers' notes; what cannot be unpacked is refused here.

ComfyUI notes a layer's packing as JSON in a small tensor (`LAYER.comfy_quant`) or for all layers in the file's metadata
(`_quantization_metadata`); scales stand beside the weight (`scale_weight`, later `weight_scale`).
"""

from __future__ import annotations

import json
from math import prod
from pathlib import Path
from typing import Any

from charengine.errors import BadInput
from charengine.models.files import Header, read_header, shown, weight_files
from charengine.wording import shape_told

SCALES = (".scale_weight", ".weight_scale")
NOTE = ".comfy_quant"
MARKER_2511 = (
    "__index_timestep_zero__"  # ComfyUI's flag for Qwen-Image-Edit-2511, diffusers' zero_cond_t; it may be empty
)
IGNORED = (".scale_input", ".input_scale", NOTE, "scaled_fp8", MARKER_2511)
FORMATS = {"float8_e4m3fn": "F8_E4M3", "float8_e5m2": "F8_E5M2", "int8_tensorwise": "I8"}
GGUF_PLAIN = ("F32", "F16", "BF16")
GGUF_READ = ("Q8_0", "Q6_K", "Q5_K", "Q5_1", "Q5_0", "Q4_K", "Q4_1", "Q4_0", "Q3_K", "Q2_K", "IQ4_NL", "IQ4_XS")
PACKED_ENDINGS = (".qweight", ".wscales", ".weight_scale_2", ".smooth_factor", ".absmax", ".quant_map")
QUANTISED_OTHERWISE = ("bitsandbytes", "nunchaku", "svdq", "nvfp4", "mxfp8", "convrot", "int4", "int8")

Notes = dict[str, dict[str, Any]]


def notes_of(header: Header) -> Notes:
    """What a file, or a folder of shards, says about the packing of its layers, by layer name; only the notes are read.

    Raises:
        BadInput: a note is no JSON object, or of no whole numbers.
    """
    notes: Notes = {}
    try:
        whole = json.loads(header.metadata.get("_quantization_metadata", "{}"))
        notes |= {str(name): dict(note) for name, note in whole.get("layers", {}).items()}
        if any(key.endswith(NOTE) for key in header.tensors):
            for file in weight_files(header.path):
                notes |= _notes_in(file)
        for layer, note in notes.items():
            if type(note.get("convrot_groupsize", 256)) is not int:  # what is no object has no such method
                raise ValueError(f"{shown(layer)}: {note!r:.80}; convrot_groupsize is a whole number")
    except (ValueError, AttributeError, TypeError, RecursionError) as error:
        raise BadInput(
            f"{header.path}: a note on how a layer is packed is damaged ({error}): download it again"
        ) from error
    return notes


def _notes_in(file: Path) -> Notes:
    """Read where they lie: mapping a file of 40 GB into memory for them fails on machines with less."""
    notes: Notes = {}
    with file.open("rb") as stream:
        for key, tensor in read_header(file).tensors.items():
            if key.endswith(NOTE):
                stream.seek(tensor.start)
                notes[key.removesuffix(NOTE)] = json.loads(stream.read(tensor.nbytes))
    return notes


def refuse_unread_packing(header: Header) -> None:
    """Refuse a file whose weights cannot be unpacked.

    Raises:
        BadInput: names the packing, and a layer where only some are so.
    """
    if header.format == "gguf":
        _refuse_unread_gguf(header)
        return
    if any(key.endswith(PACKED_ENDINGS) for key in header.tensors) or any("bitsandbytes" in k for k in header.tensors):
        _refuse(header, _name_of_packing(header))
    notes = notes_of(header)
    for layer, note in notes.items():
        if str(note.get("format")) not in FORMATS:
            _refuse(header, repr(note.get("format")), layer)
        _check_stored(header, layer, FORMATS[note["format"]])
    for key, tensor in header.tensors.items():
        layer = key.removesuffix(".weight")
        if tensor.dtype == "I8" and len(tensor.shape) == 2:
            if layer not in notes:
                _refuse(header, _name_of_packing(header))
            _check_rotation(header, layer, notes[layer], tensor.shape[1])
        _check_scale(header, layer, tensor.shape)


def rotation_of(note: dict[str, Any] | None) -> int:
    """Size of the groups a layer's inputs were rotated in before rounding; 0 = not rotated."""
    return int(note.get("convrot_groupsize", 256)) if note and note.get("convrot") else 0


def _refuse(header: Header, packing: str, layer: str = "") -> None:
    where = f" ({layer})" if layer else ""
    raise BadInput(
        f"{header.path} is quantised as {packing}, which is not read{where}; use an fp8 (plain or scaled), int8 (tensorwise), "
        "GGUF or bf16 file of the same model"
    )


def _name_of_packing(header: Header) -> str:
    named = [f"{key}={value}" for key, value in header.metadata.items() if "quant" in key]
    text = " ".join([header.path.name, *named, *(key for key in header.tensors if "bitsandbytes" in key)]).lower()
    return next((word for word in QUANTISED_OTHERWISE if word in text), "a packed integer format")


def _check_rotation(header: Header, layer: str, note: dict[str, Any], columns: int) -> None:
    size = rotation_of(note)
    if size and (not is_power_of_four(size) or columns % size):
        _refuse(header, f"int8 rotated in groups of {size} over {columns} inputs", layer)


def _check_stored(header: Header, layer: str, dtype: str) -> None:
    """As its note says, and integers with the scale that makes weights of them."""
    weight = header.tensors.get(f"{layer}.weight")
    bare = dtype == "I8" and not any(layer + ending in header.tensors for ending in SCALES)
    if weight is not None and (weight.dtype != dtype or bare):
        raise BadInput(
            f"{header.path}: {shown(layer)} is {weight.dtype}{' without a scale' if bare else ''}; its note says {dtype}: download it again"
        )


def _check_scale(header: Header, layer: str, shape: tuple[int, ...]) -> None:
    for ending in SCALES:
        scale = header.tensors.get(layer + ending)
        if scale is not None and prod(scale.shape) not in (1, *shape[:1]):
            raise BadInput(
                f"{header.path}: {layer} of shape {shape_told(shape)} has {prod(scale.shape)} scales: block-wise scales (mxfp8, 2-D fp8) are not "
                "read; use a file with one scale a layer or one a row, a GGUF or the bf16 file of the same model"
            )


def _refuse_unread_gguf(header: Header) -> None:
    for key, tensor in header.tensors.items():
        if tensor.dtype not in GGUF_PLAIN + GGUF_READ and key.rsplit(".", 1)[-1] != MARKER_2511:
            raise BadInput(
                f"{header.path}: {key} is packed as {tensor.dtype}; read are {', '.join(GGUF_PLAIN + GGUF_READ)}: "
                "use another quantisation of the same model, e.g. Q4_K_M or Q8_0"
            )


def is_power_of_four(number: int) -> bool:
    """Whether a Hadamard matrix of this size is made of 4×4 ones."""
    return number >= 4 and number & (number - 1) == 0 and number.bit_length() % 2 == 1
