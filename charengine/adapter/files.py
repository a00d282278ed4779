"""Adapter files: bytes ↔ tensors, any SDXL convention → LyCORIS parts by layer, rescaling."""

from __future__ import annotations

import json
import logging
import re
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from charengine.adapter.keys import known_stems
from charengine.errors import BadInput, UnsafeFile

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

log = logging.getLogger(__name__)

STRENGTH = "charengine.strength"  # metadata: the strength as trained that is this file's 1.0

_PARTS = re.compile(
    r"\.(alpha|dora_scale|lora_(?:down|up|mid)\.weight|hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?"
    r"|lora_[AB](?:\.\w+)?\.weight|lora\.(?:down|up)\.weight|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?)$"
)
_OLD_PROCESSOR = re.compile(r"\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight$")
_TEXT_ENCODER = ("lora_te", "text_encoder", "te1_", "te2_", "lycoris_text", "conditioner.")
_NOT_SDXL = {768: "Stable Diffusion 1.x", 1024: "Stable Diffusion 2.x", 2048: "SDXL"}


def save_adapter(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file in memory; the same tensors and metadata give the same bytes."""
    from safetensors.torch import save

    return _sorted_metadata(save({key: tensors[key] for key in sorted(tensors)}, dict(metadata)))


def load_adapter(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file in memory.

    Raises:
        UnsafeFile: it is not a safetensors file.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    try:
        return load(data), _header(data).get("__metadata__", {})
    except (SafetensorError, ValueError) as error:
        raise UnsafeFile(
            f"not a safetensors file ({error}); .ckpt and .pt files can run code and are never opened: convert them first"
        ) from error


def read_adapter(path: Path) -> bytes:
    """The bytes of an adapter file, checked to be safetensors.

    Raises:
        BadInput: no such file.
        UnsafeFile: it is not a safetensors file.
    """
    read_metadata(path)
    return path.read_bytes()


def read_metadata(path: Path) -> dict[str, str]:
    """The metadata of an adapter file, without reading its tensors.

    Raises:
        BadInput: no such file.
        UnsafeFile: it is not a safetensors file.
    """
    if not path.is_file():
        raise BadInput(f"adapter file {str(path)!r} does not exist; give the path of a .safetensors file")
    with open(path, "rb") as file:
        start = file.read(8)
        size = int.from_bytes(start, "little")
        text = file.read(size) if size <= path.stat().st_size else b""
    try:
        metadata: dict[str, str] = json.loads(text).get("__metadata__", {})
    except ValueError as error:
        raise UnsafeFile(
            f"{path} is not a safetensors file; .ckpt and .pt files can run code and are never opened: convert them first"
        ) from error
    return metadata


def rescale(data: bytes, strength: float) -> bytes:
    """The same adapter with `strength` as its new 1.0, exact for LoRA, LoCon, LoHa and LoKr.

    Raises:
        BadInput: a strength of 0 (loaders read an alpha of 0 as 1 × rank), or a DoRA file, whose effect is not proportional to
            any of its tensors.
    """
    if strength <= 0:
        raise BadInput(f"cannot rescale an adapter to strength {strength}; it must be above 0")
    tensors, metadata = load_adapter(data)
    if strength != 1.0 and any(key.endswith(("dora_scale", "lora_magnitude_vector")) for key in tensors):
        raise BadInput(
            f"a DoRA adapter cannot be rescaled to strength {strength}: its weights are normalised after they are added; "
            "load it as trained and set the strength in your UI"
        )
    ends = [".alpha"]
    if any(".lokr_" in key for key in tensors):  # loaders ignore a full LoKr's alpha
        ends = [".lokr_w1", ".lokr_w1_a"]
    elif not any(key.endswith(".alpha") for key in tensors):  # diffusers files have no alpha
        ends = ["lora_B.weight", "lora.up.weight", "lora_up.weight"]
    scaled = {key: value * strength if key.endswith(tuple(ends)) else value for key, value in tensors.items()}
    return save_adapter(scaled, metadata | {STRENGTH: str(strength)})


def by_module(tensors: Mapping[str, Tensor], unet: UNet2DConditionModel) -> dict[str, dict[str, Tensor]]:
    """An adapter's tensors by diffusers module name and LyCORIS part, in network order, whatever convention they are in.

    Tucker factors are multiplied out (exact). Text-encoder keys are left out with a warning.

    Raises:
        BadInput: it is not an adapter for this U-Net; says why.
    """
    stems = known_stems(unet)
    found: dict[str, dict[str, Tensor]] = {}
    unknown, skipped = [], 0
    for key, value in tensors.items():
        stem, part = _split(key)
        if stem.startswith(_TEXT_ENCODER):
            skipped += 1
        elif stem in stems and part:
            found.setdefault(stems[stem], {})[part] = value
        else:
            unknown.append(key)
    _check_base(found, unet)
    if unknown or not found:
        raise BadInput(_why_unknown(unknown, len(tensors)))
    if skipped:
        log.warning("%d text-encoder tensors of the adapter are ignored: only the U-Net is adapted", skipped)
    order = {name: i for i, name in enumerate(stems.values())}
    modules = {name: _plain(name, found[name]) for name in sorted(found, key=order.__getitem__)}
    for name, parts in modules.items():
        _check_shapes(name, parts, unet.get_submodule(name))
    return modules


def _split(key: str) -> tuple[str, str]:
    """(stem, LyCORIS part) of a key; an empty part when it is no adapter key."""
    key = _OLD_PROCESSOR.sub(lambda m: f".to_{'out.0' if m[1] == 'out' else m[1]}.lora.{m[2]}.weight", key)
    match = _PARTS.search(key)
    if not match:
        return key, ""
    part = match[1]
    if part.startswith("lora_A") or part == "lora.down.weight":
        part = "lora_down.weight"
    elif part.startswith("lora_B") or part == "lora.up.weight":
        part = "lora_up.weight"
    elif part.startswith("lora_magnitude_vector"):
        part = "dora_scale"
    return key[: match.start()], part


def _check_base(found: Mapping[str, Mapping[str, Tensor]], unet: UNet2DConditionModel) -> None:
    """Refuse adapters of another Stable Diffusion by the width of the text embedding they read."""
    wanted = unet.config.cross_attention_dim
    for name, parts in found.items():
        down = parts.get("lora_down.weight")
        if down is not None and name.endswith("attn2.to_k") and down.shape[1] != wanted:
            base = _NOT_SDXL.get(down.shape[1], "another model")
            raise BadInput(
                f"the adapter was made for {base} (it reads text embeddings of width {down.shape[1]}, this model's have "
                f"{wanted}); use an adapter for {_NOT_SDXL.get(wanted, 'this model')}"
            )


def _why_unknown(unknown: list[str], count: int) -> str:
    if not unknown:
        return "the file holds no U-Net adapter; a LoRA, LoCon, LoHa, LoKr or DoRA for SDXL is needed"
    return (
        f"{len(unknown)} of the file's {count} tensors belong to no layer of this SDXL U-Net, e.g. {unknown[0]!r}; "
        "a LoRA, LoCon, LoHa, LoKr or DoRA for SDXL is needed"
    )


def _plain(name: str, parts: dict[str, Tensor]) -> dict[str, Tensor]:
    """Parts as LyCORIS' modules take them: with an alpha, without Tucker's middle factor."""
    parts = dict(parts)
    mid = parts.pop("lora_mid.weight", None)
    low_rank = "lora_down.weight" in parts
    if (low_rank and "lora_up.weight" not in parts) or ("lora_up.weight" in parts and not low_rank):
        raise BadInput(f"the adapter has only one of the two matrices of {name}; the file is incomplete")
    if mid is not None:
        down = parts["lora_down.weight"].flatten(1)
        parts["lora_down.weight"] = torch.einsum("ij...,jr->ir...", mid.float(), down.float())
    if low_rank:
        parts.setdefault("alpha", torch.tensor(float(parts["lora_down.weight"].shape[0])))
    if "dora_scale" in parts and parts["dora_scale"].dim() == 1:
        parts["dora_scale"] = parts["dora_scale"].unsqueeze(1)
    return parts


def _check_shapes(name: str, parts: Mapping[str, Tensor], layer: Any) -> None:
    if "lora_down.weight" not in parts:
        return
    down, up = parts["lora_down.weight"], parts["lora_up.weight"]
    inputs = layer.weight[0].numel()
    if down[0].numel() != inputs or up.shape[0] != layer.weight.shape[0] or down.shape[0] != up.shape[1]:
        raise BadInput(
            f"the adapter's {name} maps {tuple(down.shape)} and {tuple(up.shape)}, the model's layer is "
            f"{tuple(layer.weight.shape)}; the adapter was made for another model"
        )


def _header(data: bytes) -> dict[str, Any]:
    size = int.from_bytes(data[:8], "little")
    header: dict[str, Any] = json.loads(data[8 : 8 + size])
    return header


def _sorted_metadata(data: bytes) -> bytes:
    """The file with its header's keys in order: safetensors writes metadata in hash order, which changes from run to run."""
    size = int.from_bytes(data[:8], "little")
    header = _header(data)
    metadata = header.pop("__metadata__", {})
    ordered = {"__metadata__": dict(sorted(metadata.items())), **header} if metadata else header
    text = json.dumps(ordered, separators=(",", ":"), ensure_ascii=False).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + data[8 + size :]
