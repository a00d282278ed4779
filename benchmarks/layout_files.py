"""Model files of full size and random weights in the layouts people have, written at the speed of the disk.

Real key names and shapes; layers of one shape hold the same bytes, which are made once. What the time given does not
suffice for stays a hole, and is said.
"""

from __future__ import annotations

import json
import os
import struct
import sys
import time
from collections.abc import Callable, Iterable
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from math import prod
from pathlib import Path

sys.path[:0] = [str(Path(__file__).resolve().parent.parent / folder) for folder in ("", "tests")]

import torch  # noqa: E402
from models import original_layouts as original  # noqa: E402
from models.hollow import llama_files, meta  # noqa: E402

from charengine.models import classes  # noqa: E402
from charengine.models.quantised import rotate  # noqa: E402

Shapes = dict[str, torch.Tensor]  # names to tensors without memory
SPREAD = 0.02  # standard deviation of a weight
CHUNK = 64 * 2**20
SMALL = 2**20  # bytes of a tensor that is written however late it is: scales, norms, notes
WRITERS = 8
ALIGNMENT = 32  # of a GGUF's tensors
SPELLED = {"BF16": torch.bfloat16, "F16": torch.float16, "F32": torch.float32, "F8_E4M3": torch.float8_e4m3fn, "I8": torch.int8}  # fmt: skip
# of a GGUF block: where its float16 factors stand in bytes, and how large they are for weights of about SPREAD
FACTORS = {"Q8_0": {0: SPREAD / 74}, "Q4_K": {0: SPREAD / 256, 2: SPREAD / 34}, "Q6_K": {208: SPREAD / 1330}}


@dataclass(frozen=True)
class Stored:
    """A tensor of a file: its type as the format spells it, its shape, its bytes."""

    dtype: str
    shape: tuple[int, ...]
    data: memoryview


Contents = dict[str, Stored]
Packing = Callable[[str, tuple[int, ...]], Iterable[tuple[str, Stored]]]


class Values:
    """Random values, made once for each type and shape.

    Args:
        device: where they are made.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._made: dict[tuple[object, ...], list[tuple[str, Stored]]] = {}

    def plain(self, dtype: str) -> Packing:
        """Everything as `dtype`."""
        return self._once(dtype, lambda name, shape: [("", self._stored(dtype, self._weight(name, shape)))])

    def scaled_fp8(self, *, old: bool) -> Packing:
        """ComfyUI's fp8 with one scale a layer; `old`: `scale_weight` beside it, else `weight_scale` and a note."""

        def pack(name: str, shape: tuple[int, ...]) -> list[tuple[str, Stored]]:
            weight = self._weight(name, shape)
            if not matrix_in_a_block(name, shape):
                return [("", self._stored("BF16", weight))]
            scale = weight.abs().max() / 448
            found = [("", self._stored("F8_E4M3", weight / scale))]
            found.append((".scale_weight" if old else ".weight_scale", self._stored("F32", scale)))
            return found if old else [*found, (".comfy_quant", note({"format": "float8_e4m3fn"}))]

        return self._once(("fp8", old), pack)

    def convrot(self, size: int) -> Packing:
        """ComfyUI's int8 with one scale a row, inputs rotated in groups of `size`."""

        def pack(name: str, shape: tuple[int, ...]) -> list[tuple[str, Stored]]:
            weight = self._weight(name, shape)
            if not matrix_in_a_block(name, shape) or shape[1] % size:
                return [("", self._stored("BF16", weight))]
            turned = rotate(weight, size)
            scale = turned.abs().amax(1, keepdim=True) / 127
            packed = self._stored("I8", (turned / scale).round())
            facts = {"format": "int8_tensorwise", "convrot": True, "convrot_groupsize": size}
            return [("", packed), (".weight_scale", self._stored("F32", scale)), (".comfy_quant", note(facts))]

        return self._once(("convrot", size), pack)

    def gguf(self, kind: str, better: str = "") -> Packing:
        """Matrices as `kind`, every other block's values and second feed-forward layers as `better` (as in "_M" mixes)."""

        def pack(name: str, shape: tuple[int, ...]) -> list[tuple[str, Stored]]:
            chosen = better if better and _worth_more(name) else kind
            if len(shape) != 2 or shape[1] % block_of(chosen)[0]:
                return [("", self._stored("F32", self._weight(name, shape)))]
            return [("", Stored(chosen, shape, self._blocks(chosen, shape)))]

        return self._once(("gguf", kind, better), pack, lambda name: better and _worth_more(name))

    def _once(
        self,
        key: object,
        pack: Callable[[str, tuple[int, ...]], list[tuple[str, Stored]]],
        sort: Callable[[str], object] = lambda _name: None,
    ) -> Packing:
        def packing(name: str, shape: tuple[int, ...]) -> Iterable[tuple[str, Stored]]:
            found = (key, _role(name, shape), matrix_in_a_block(name, shape), sort(name), shape)
            if found not in self._made:
                self._made[found] = pack(name, shape)
            layer = name.removesuffix(".weight")
            return [(layer + end if end else name, stored) for end, stored in self._made[found]]

        return packing

    def forget(self) -> None:
        """Let all bytes go: those of a text encoder's tables are a gigabyte each."""
        self._made.clear()

    def _weight(self, name: str, shape: tuple[int, ...]) -> torch.Tensor:
        role = _role(name, shape)
        if role == "positions":
            return torch.arange(prod(shape)).reshape(shape)
        if role != "weight":
            return torch.full(shape, 1.0 if role == "scale" else 0.0, device=self.device)
        return torch.empty(shape, device=self.device).normal_(0, SPREAD)

    def _stored(self, dtype: str, tensor: torch.Tensor) -> Stored:
        if not tensor.is_floating_point():
            return Stored("I64", tuple(tensor.shape), _bytes(tensor))
        return Stored(dtype, tuple(tensor.shape), _bytes(tensor.to(SPELLED[dtype])))

    def _blocks(self, kind: str, shape: tuple[int, ...]) -> memoryview:
        block, size = block_of(kind)
        count = prod(shape) // block
        data = torch.randint(0, 256, (count, size), dtype=torch.uint8, device=self.device)
        for place, factor in FACTORS[kind].items():
            data[:, place : place + 2] = torch.tensor([factor], dtype=torch.float16).view(torch.uint8).to(self.device)
        return _bytes(data)


def _bytes(tensor: torch.Tensor) -> memoryview:
    return memoryview(tensor.cpu().contiguous().reshape(-1).view(torch.uint8).numpy()).cast("B")


def _role(name: str, shape: tuple[int, ...]) -> str:
    if name.endswith("position_ids"):
        return "positions"
    if name.endswith("gamma") or (len(shape) == 1 and name.endswith("weight")):
        return "scale"
    return "bias" if len(shape) < 2 else "weight"


def _worth_more(name: str) -> bool:
    numbers = [int(part) for part in name.split(".") if part.isdigit()]
    return bool(numbers) and numbers[0] % 2 == 0 and name.endswith(("to_v.weight", "net.2.weight", "attn_v.weight", "ffn_down.weight"))  # fmt: skip


def matrix_in_a_block(name: str, shape: tuple[int, ...]) -> bool:
    """Whether converters pack a weight: a matrix inside the repeated blocks."""
    return len(shape) == 2 and any(word in name for word in ("blocks.", "layers.", "blk."))


def block_of(kind: str) -> tuple[int, int]:
    """Weights and bytes of a GGUF block."""
    import gguf

    weights, size = gguf.GGML_QUANT_SIZES[gguf.GGMLQuantizationType[kind]]
    return int(weights), int(size)


def note(facts: dict[str, object]) -> Stored:
    """ComfyUI's note on how a layer is packed."""
    text = json.dumps(facts).encode()
    return Stored("U8", (len(text),), memoryview(text))


def packed(shapes: Shapes, packing: Packing) -> Contents:
    """The contents of a file: names and shapes packed one way."""
    return {key: stored for name, tensor in shapes.items() for key, stored in packing(name, tuple(tensor.shape))}


# --- names and shapes ------------------------------------------------------------------------------------------------


def edit_transformer(config: Path) -> Shapes:
    """Qwen-Image-Edit's transformer: 1,933 tensors at full size."""
    depth = classes.read_config(config, "qwen-image-edit", "transformer")["num_layers"]
    return meta(classes.transformer(config, depth))


def text_encoder(config: Path) -> Shapes:
    """Qwen2.5-VL under Qwen's names."""
    return original.qwen_text_encoder(meta(classes.vision_language(config)))


def llama(config: Path) -> tuple[Shapes, Shapes]:
    """Qwen2.5-VL as llama.cpp stores it: the language model, and the vision tower."""
    return llama_files(text_encoder(config))


def edit_vae(config: Path) -> Shapes:
    """Qwen-Image's VAE under Wan's names."""
    module = classes.qwen_vae(config)
    return original.wan_vae(meta(module), int(module.config["num_res_blocks"]))


def sdxl(config: Path) -> Shapes:
    """An SDXL checkpoint under its original names: 2,515 tensors at full size."""
    unet = classes.sdxl_unet(config)
    encoders = []
    for name in ("text_encoder", "text_encoder_2"):
        state = meta(classes.sdxl_text_encoder(config, name))
        encoders.append({key if key.startswith("text_") else f"text_model.{key}": value for key, value in state.items()})  # fmt: skip
    levels = len(unet.config["block_out_channels"])
    parts = original.sgm_unet(meta(unet), int(unet.config["layers_per_block"]), levels)
    return parts | original.sgm_vae(meta(classes.sdxl_vae(config)), 4) | original.sgm_text_encoders(*encoders)


def comfyui_merge(shapes: Shapes) -> Shapes:
    """An SDXL checkpoint as ComfyUI saves a merge: buffers of older releases, CLIP-L's projection; CLIP-G's is gone."""
    first, second = "conditioner.embedders.0.transformer.", "conditioner.embedders.1.model."
    width = shapes[f"{first}text_model.final_layer_norm.weight"].shape[0]
    extra = {f"{first}text_model.embeddings.position_ids": (1, 77), f"{first}text_projection.weight": (width, width)}
    extra |= {f"{second}transformer.text_model.embeddings.position_ids": (1, 77)}
    kept = {name: tensor for name, tensor in shapes.items() if name != f"{second}text_projection"}
    return kept | {name: torch.empty(shape, device="meta") for name, shape in extra.items()}


# --- files -----------------------------------------------------------------------------------------------------------


def write_safetensors(path: Path, contents: Contents, seconds: float) -> float:
    """A safetensors file.

    Args:
        path: where.
        contents: of it.
        seconds: what is not written by then stays a hole.

    Returns:
        The share of its bytes that holds values.
    """
    header: dict[str, object] = {}
    places: list[tuple[int, memoryview]] = []
    start = 0
    for name, stored in contents.items():
        end = start + len(stored.data)
        header[name] = {"dtype": stored.dtype, "shape": list(stored.shape), "data_offsets": [start, end]}
        places.append((start, stored.data))
        start = end
    text = json.dumps(header).encode()
    head = struct.pack("<Q", len(text)) + text
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes(head)
    return _fill(path, len(head), start, places, seconds)


def write_gguf(path: Path, contents: Contents, architecture: str, seconds: float) -> float:
    """A GGUF file; otherwise as `write_safetensors`."""
    import gguf

    path.parent.mkdir(parents=True, exist_ok=True)
    writer = gguf.GGUFWriter(path, architecture)
    places: list[tuple[int, memoryview]] = []
    start = 0
    for name, stored in contents.items():
        quantised = stored.dtype not in SPELLED
        shape = stored.shape
        if quantised:
            block, size = block_of(stored.dtype)
            shape = (*shape[:-1], shape[-1] // block * size)
        dtype = torch.zeros(0, dtype=torch.uint8 if quantised else SPELLED[stored.dtype]).numpy().dtype
        kind = gguf.GGMLQuantizationType[stored.dtype] if quantised else None
        writer.add_tensor_info(name, shape, dtype, len(stored.data), raw_dtype=kind)
        places.append((start, stored.data))
        start += -(-len(stored.data) // ALIGNMENT) * ALIGNMENT
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    head = -(-path.stat().st_size // ALIGNMENT) * ALIGNMENT
    return _fill(path, head, start, places, seconds)


def _fill(path: Path, head: int, size: int, places: list[tuple[int, memoryview]], seconds: float) -> float:
    """Write the tensors behind a file's header, several at a time; what is small always."""
    until = time.perf_counter() + seconds
    pieces = [
        (head + start + at, data[at : at + CHUNK], len(data) <= SMALL)
        for start, data in places
        for at in range(0, len(data), CHUNK)
    ]
    with path.open("r+b") as file:
        file.truncate(head + size)

        def write(piece: tuple[int, memoryview, bool]) -> int:
            start, data, small = piece
            return os.pwrite(file.fileno(), data, start) if small or time.perf_counter() < until else 0

        with ThreadPoolExecutor(WRITERS) as pool:
            written = sum(pool.map(write, pieces))
    return written / max(1, sum(len(data) for _, data, _ in pieces))
