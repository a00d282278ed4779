"""Adapter files: bytes ↔ tensors, and any SDXL convention → parts by layer."""

from __future__ import annotations

import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from torch import Tensor, nn

from charengine.adapter.header import Header, header_of, read_header, read_whole, with_metadata
from charengine.adapter.keys import BASES, known_stems
from charengine.adapter.parts import (
    NO_CHANGE,
    Parts,
    checked_parts,
    floats,
    is_turned_round,
    largest_change,
    refuse_huge,
)
from charengine.adapter.peft_config import SETTINGS, settings_beside
from charengine.adapter.peft_scale import without_peft_settings
from charengine.adapter.sdxl_layers import layers_by_stem
from charengine.adapter.sorting import (
    EMBEDDING,
    NEEDED,
    TEXT_ENCODER,
    SortedKeys,
    shown,
    sort_keys,
    split_key,
    turned_round_told,
)
from charengine.errors import BadInput, UnsafeFile

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

log = logging.getLogger(__name__)

NO_LAYER = (*TEXT_ENCODER, *EMBEDDING)  # begin keys that are none of the U-Net's
FLOAT_TYPES = ("F64", "F32", "F16", "BF16", "F8_E4M3", "F8_E5M2")  # those that an adapter's matrices may have
LOADED = {
    *FLOAT_TYPES,
    "BOOL",
    "C64",
    *(f"{sign}{bits}" for sign in "IU" for bits in (8, 16, 32, 64)),
}  # by safetensors into torch


def save_adapter(tensors: Mapping[str, Tensor], metadata: Mapping[str, str]) -> bytes:
    """A safetensors file in memory; the same tensors and metadata give the same bytes."""
    from safetensors.torch import save

    return with_metadata(save({key: tensors[key] for key in sorted(tensors)}, dict(metadata)), {})


def load_adapter(data: bytes) -> tuple[dict[str, Tensor], dict[str, str]]:
    """Tensors and metadata of a safetensors file in memory, what PEFT's settings multiply them by in them (`without_peft_settings`).

    Raises:
        UnsafeFile: it is not a safetensors file.
        BadInput: it is cut short, holds an element type that is not read, or PEFT's settings that cannot be.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load

    header = header_of(data)
    _refuse_unread(header)
    try:
        tensors = load(data)
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        kinds = ", ".join(sorted({entry.dtype for entry in header.tensors.values()}))
        raise UnsafeFile(f"not a safetensors file that can be read ({error}); its element types are {kinds}") from error
    return without_peft_settings(tensors, header.metadata)


def _refuse_unread(header: Header) -> None:
    """Element types of blocks that share a scale (F4, F6, F8_E8M0) and unknown ones: the library fails in a word of its own."""
    for key, entry in header.tensors.items():
        if entry.dtype not in LOADED:
            raise BadInput(
                f"the adapter's {shown([key])} holds values of the type {entry.dtype[:40]!a}, which is not read; allowed are "
                f"{', '.join(FLOAT_TYPES)}: save it anew in one of these, or get a file in F16"
            )


def read_adapter(path: Path) -> bytes:
    """The bytes of an adapter file, checked to be safetensors, with PEFT's settings that lie beside it.

    Raises:
        BadInput: no such file, or by its keys no adapter.
        UnsafeFile: it is not a safetensors file.
    """

    def check(header: Header) -> None:
        if told := no_adapter_told(header):
            raise BadInput(f"{path}: {told}")

    data, told = read_whole(path, check), settings_beside(path)
    return with_metadata(data, {SETTINGS: told}) if told else data


def no_adapter_told(header: Header) -> str:
    """That no key of a file is an adapter's part, as in a checkpoint, an encoder or an embedding; "" where one is."""
    if not header.tensors or any(split_key(key)[2] for key in header.tensors):
        return ""  # a file without a tensor is told as that
    keys = [*header.tensors]
    return f"none of the file's {len(keys)} tensors is part of an adapter, e.g. {shown(keys)} (a checkpoint, or another model?); {NEEDED}"


def by_module(tensors: Mapping[str, Tensor], unet: UNet2DConditionModel) -> dict[str, Parts]:
    """An adapter's parts by diffusers module name, in network order, whatever convention they are in; see `checked_parts`.

    What is no layer's is left out with a warning.

    Raises:
        BadInput: it is not an adapter for this U-Net, or damaged; says why.
    """
    modules, found = modules_of(tensors, unet)
    for sentence in found.left_out():
        log.warning(sentence)
    return modules


def modules_of(tensors: Mapping[str, Tensor], unet: UNet2DConditionModel) -> tuple[dict[str, Parts], SortedKeys]:
    """As `by_module`, with the keys as they were sorted; nothing is logged."""
    stems = known_stems(unet)
    layers = {name: unet.get_submodule(name) for name in dict.fromkeys(stems.values())}  # each has a dozen spellings
    norms = frozenset(name for name, layer in layers.items() if not isinstance(layer, nn.Linear | nn.Conv2d))
    found = sort_keys(tensors, stems, norms)
    _refuse_unsupported(found)
    _check_base(found, tensors, unet.config.cross_attention_dim)
    _refuse_unknown(found, len(tensors))
    order = {name: i for i, name in enumerate(stems.values())}
    modules = {}
    for name in sorted(found.layers, key=order.__getitem__):
        parts = {part: _as_lycoris(key, tensors[key]) for part, key in found.layers[name].items()}
        modules[name] = checked_parts(name, parts, tuple(layers[name].weight.shape))
        if is_turned_round(modules[name]):
            found.turned_round.append(found.layers[name]["alpha"])
    return modules, found


def check_layers(data: bytes, unet: UNet2DConditionModel) -> dict[str, Parts]:
    """What can be known of an adapter with its model's structure alone, before the model is loaded; its parts, as `by_module` has them.

    Raises:
        BadInput: it is not an adapter for this U-Net, or damaged, or changes nothing.
    """
    modules, _ = modules_of(load_adapter(data)[0], unet)
    for name, parts in modules.items():
        refuse_huge(name, parts)
    if told := nothing_told(modules):
        raise BadInput(f"{told}: it is damaged or was never trained; take another file")
    return modules


def nothing_told(modules: Mapping[str, Parts]) -> str:
    """That an adapter of these layers changes nothing; "" of one that does."""
    if any(largest_change(parts) >= NO_CHANGE or "dora_scale" in parts for parts in modules.values()):
        return ""
    return f"all {len(modules)} layers of the adapter change nothing (a factor of each, or its alpha, is zero)"


def trained_nothing(data: bytes) -> str:
    """As `nothing_told`, of a file that was just made; its model is not asked for."""
    layers = _layers_as_spelt(load_adapter(data)[0])
    return nothing_told({stem: checked_parts(stem, parts) for stem, parts in layers.items()})


def check_values(tensors: Mapping[str, Tensor]) -> None:
    """What can be known of an adapter without its model; raises `BadInput` with the first of `value_problems`."""
    for problem in value_problems(tensors):
        raise BadInput(problem)


def file_problems(path: Path, of_sdxl: bool = False) -> list[str]:
    """As `value_problems`, of a file; that it cannot be read is one.

    Args:
        path: the file.
        of_sdxl: its layers have to be SDXL's: of a run's own file they are its base model's, whatever that is.
    """
    from safetensors import SafetensorError
    from safetensors.torch import load_file

    try:
        header = read_header(path)
        if told := no_adapter_told(header):
            return [told]
        _refuse_unread(header)
        tensors, _ = without_peft_settings(load_file(path), header.metadata)
        return list(value_problems(tensors, layers_by_stem() if of_sdxl else {}))
    except BadInput as error:
        return [str(error)]
    except (SafetensorError, ValueError, KeyError, TypeError, RuntimeError) as error:
        return [f"it cannot be read ({error})"]


def file_doubts(path: Path, of_sdxl: bool = False) -> list[str]:
    """What a sweep says of a file that other programs may load: ways of adapting that it refuses, zeros, alphas that turn layers round.

    Arguments are those of `file_problems`, which says whether the file can be read.
    """
    from safetensors.torch import load_file

    tensors = load_file(path)
    layers, known = _layers_as_spelt(tensors), layers_by_stem() if of_sdxl else {}
    norms = (
        {_norm_of(key, value) for key, value in tensors.items()} - {stem for stem in layers if layers[stem]} - {*known}
    )
    found = sort_keys(tensors, {stem: stem for stem in (*layers, *norms, *known)}, frozenset(norms))
    turned = [f"{stem}.alpha" for stem, parts in layers.items() if is_turned_round(parts)]
    whole = {stem: checked_parts(stem, parts) for stem, parts in layers.items() if set(parts) - {"alpha"}}
    why = found.refused() or (nothing_told(whole) if whole else "")
    refused = f"a sweep refuses it: {why}" if why else ""
    return [*filter(None, [refused]), *([turned_round_told(turned)] if turned else [])]


def _layers_as_spelt(tensors: Mapping[str, Tensor]) -> dict[str, dict[str, Tensor]]:
    """The U-Net's layers by their stems, of parts that are read."""
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        stem, part, kind = split_key(key)
        if kind and not stem.startswith(NO_LAYER):
            layers.setdefault(stem, {}).update({part: value} if kind == "read" else {})
    return layers


def _norm_of(key: str, value: Tensor) -> str:
    """The stem of a difference that may be a norm's; a layer's has two axes at least."""
    stem, _, kind = split_key(key)
    return stem if kind == "difference" and value.dim() < 2 else ""


def value_problems(
    tensors: Mapping[str, Tensor], known: Mapping[str, tuple[str, tuple[int, ...]]] | None = None
) -> Iterator[str]:
    """A sentence for each layer that is not whole, once, of parts that go together, and of floats that are finite and not huge.

    Args:
        tensors: of the file.
        known: every spelling of a layer that there may be → its name and shape; None where the model is not known.
    """
    if not tensors:
        yield f"the file holds nothing; {NEEDED}"
    layers: dict[str, dict[str, Tensor]] = {}
    for key, value in tensors.items():
        stem, part, kind = split_key(key)
        if kind == "read" and part in layers.setdefault(stem, {}):
            yield f"the adapter holds {shown([key])} twice, in two spellings; the file is damaged"
        elif kind == "read":
            layers[stem][part] = _as_lycoris(key, value)
        elif kind in ("norm", "difference"):  # not drawn with, but handed on in the recommended file
            try:
                floats(stem, part, value)
            except BadInput as error:
                yield str(error)
    foreign = [stem for stem in layers if known and stem not in known and not stem.startswith(NO_LAYER)]
    if foreign:
        yield f"{len(foreign)} of its layers are none of SDXL's U-Net, e.g. {shown(foreign)}: the file is for another model, or damaged"
    stems: dict[str, str] = {}
    for stem, parts in layers.items():
        name, shape = (known or {}).get(stem, ("", None))
        if name and stems.setdefault(name, stem) != stem:
            yield f"the adapter's {stem} and {stems[name]} are one layer in two spellings: programs add both or one; the file is damaged"
        if name or set(parts) != {"alpha"}:  # one alone changes nothing; whose it is, the model says
            try:
                refuse_huge(stem, checked_parts(stem, parts, shape))
            except BadInput as error:
                yield str(error)


def _as_lycoris(key: str, value: Tensor) -> Tensor:
    """PEFT's norms of a convolution are (1, out, 1, 1), which elsewhere means norms by input."""
    return value.flatten() if "lora_magnitude_vector" in key else value


def _refuse_unsupported(found: SortedKeys) -> None:
    if found.doubled:
        raise BadInput(
            f"the adapter holds one layer twice, in two spellings, e.g. {shown(found.doubled)}; the file is damaged"
        )
    if told := found.refused():
        raise BadInput(told)


def _check_base(found: SortedKeys, tensors: Mapping[str, Tensor], wanted: int) -> None:
    """Refuse adapters of another Stable Diffusion by the width of the text embedding they read."""
    for name, parts in found.layers.items():
        key = parts.get("lora_down.weight")
        if key is None or not name.endswith("attn2.to_k") or tensors[key].dim() < 2:
            continue
        width = tensors[key].shape[1]
        if width != wanted:
            raise BadInput(
                f"the adapter was made for {BASES.get(width, 'another model')} (it reads text embeddings of width "
                f"{width}, this model's have {wanted}); use an adapter for {BASES.get(wanted, 'this model')}"
            )


def _refuse_unknown(found: SortedKeys, count: int) -> None:
    unknown = found.unknown_layers or (found.others if not found.layers else [])
    if unknown:
        raise BadInput(
            f"{len(unknown)} of the file's {count} tensors belong to no layer of this SDXL U-Net, e.g. {shown(unknown)}; {NEEDED}"
        )
    if not found.layers:
        raise BadInput(f"the file holds no U-Net adapter; {NEEDED}")
