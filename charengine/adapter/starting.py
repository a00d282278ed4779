"""Training that starts from an adapter file: exactly from what the file does, or not at all.

A file's alpha is folded into its matrices, a lower rank is padded with components that do nothing yet, a LoRA becomes a DoRA with the norms it
has. What the settings' modules cannot say exactly is refused with the setting to change, from the header alone where that is enough.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from charengine.adapter.files import check_layers, read_adapter
from charengine.adapter.fresh import by_name, create_network
from charengine.adapter.header import Entry, read_header
from charengine.adapter.parts import Parts, difference, rank_of, scale_of
from charengine.adapter.sorting import EMBEDDING, NEEDED, TEXT_ENCODER, algorithm_of, shown, split_key
from charengine.config import TrainSettings
from charengine.errors import BadInput
from charengine.wording import shape_told

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel

TRAINED = ("attentions", "resnets", "downsamplers", "upsamplers")  # the blocks whose layers kohya's LoCon trains
ALGORITHMS = {"LoRA": ("locon", "lora", "dora"), "DoRA LoRA": ("dora",), "LoHa": ("loha",), "LoKr": ("lokr",)}


def check_start(path: Path, settings: TrainSettings, unet: UNet2DConditionModel) -> None:
    """Whether training with these settings can start from a file, as far as the file itself tells.

    Args:
        path: the adapter file.
        settings: what is to be trained.
        unet: the base model's structure; its weights are not looked at.

    Raises:
        BadInput: there is no such file, it is damaged, of another kind, or for another base.
    """
    layers = _layers(read_header(path).tensors, path)
    for stem, parts in layers.items():
        _check_algorithm(stem, algorithm_of_file(stem, parts), settings.algorithm)
        _check_rank(stem, parts, settings)
    modules = check_layers(read_adapter(path), unet)
    for name, read in modules.items():
        _check_factors(name, read, tuple(unet.get_submodule(name).weight.shape), settings)
    untrained = [name for name in modules if not any(f".{block}." in name for block in TRAINED)]
    if untrained:
        raise BadInput(
            f"continue_from: the file also adapts {untrained[0]}, which is never trained here; start from another file"
        )
    _try_start(modules, settings, unet)


def start_layers(modules: Mapping[str, Any], found: Mapping[str, Parts], algorithm: str) -> None:
    """Give fresh modules what a file's layers do.

    Args:
        modules: LyCORIS' modules, by diffusers name.
        found: the file's layers, as `modules_of` has them.
        algorithm: the setting the modules were made by.

    Raises:
        BadInput: there is no module for a layer, or it cannot do exactly that; says which setting to change.
    """
    foreign = sorted(set(found) - set(modules))
    if foreign:
        first = "train.algorithm=locon and " if algorithm == "lora" else ""
        raise BadInput(
            f"continue_from: the file also adapts {len(foreign)} layers these settings do not train, e.g. {foreign[0]}; set {first}"
            "train.conv_rank to the file's"
        )
    for name, parts in found.items():
        start_layer(name, modules[name], parts, algorithm)


@torch.no_grad()
def _try_start(found: Mapping[str, Parts], settings: TrainSettings, unet: UNet2DConditionModel) -> None:
    """Fill modules that are hooked on nothing, as the training will; a DoRA's are a LoCon's, whose norms alone need the base's weights."""
    algorithm = "locon" if settings.algorithm == "dora" else settings.algorithm
    fresh = by_name(unet, create_network(unet, settings.model_copy(update={"algorithm": algorithm})))
    plain = {name: {part: parts[part] for part in parts if part != "dora_scale"} for name, parts in found.items()}
    start_layers(fresh, plain, algorithm)


def start_layer(name: str, module: Any, parts: Parts, algorithm: str) -> None:
    """Give a fresh LyCORIS module what a file's layer does at strength 1.

    Args:
        name: of the layer, for messages.
        module: as `inject` made it, its up matrices zero.
        parts: as `checked_parts` gives them.
        algorithm: the setting the module was made by.

    Raises:
        BadInput: the module cannot do exactly that; says which setting to change.
    """
    kind = algorithm_of(parts)
    _check_algorithm(name, kind, algorithm)
    factor = scale_of(parts) / float(module.scale)
    if "LoRA" in kind:
        _fill(name, module, (module.lora_down.weight, module.lora_up.weight), parts, factor)
    elif kind == "LoHa":
        _refuse_tucker(name, parts)
        _fill_product(name, module.hada_w1_a, module.hada_w1_b, parts["hada_w1_a"], parts["hada_w1_b"])
        _fill_product(name, module.hada_w2_a, module.hada_w2_b, parts["hada_w2_a"].float() * factor, parts["hada_w2_b"])
    else:
        _fill_kron(name, module, parts, factor)
    if algorithm == "dora":
        module.dora_scale.copy_(_norms(name, module, parts).reshape(module.dora_scale.shape))


def algorithm_of_file(stem: str, parts: Mapping[str, object]) -> str:
    """`algorithm_of`, a contradiction told as the file's."""
    try:
        return algorithm_of(parts)
    except ValueError as error:
        raise BadInput(f"the adapter's {stem} {error}; the file is damaged") from error


def _layers(tensors: Mapping[str, Entry], path: Path) -> dict[str, dict[str, Entry]]:
    """The U-Net's layers by their stems in the file."""
    layers: dict[str, dict[str, Entry]] = {}
    for key, entry in tensors.items():
        stem, part, kind = split_key(key)
        if stem.startswith((*TEXT_ENCODER, *EMBEDDING)) or not kind:
            continue
        if kind == "read":
            layers.setdefault(stem, {})[part] = entry
        elif kind in ("norm", "difference"):
            raise BadInput(
                f"{path} holds trained norms or whole differences ({shown([key])}), which cannot be trained on here"
            )
        else:
            raise BadInput(f"{path} adapts layers in a way that is not supported ({kind}: {shown([key])}); {NEEDED}")
    if not any(set(parts) != {"alpha"} for parts in layers.values()):
        raise BadInput(f"{path} holds no U-Net adapter; {NEEDED}")
    return layers


def _check_algorithm(name: str, kind: str, algorithm: str) -> None:
    if not kind or algorithm in ALGORITHMS.get(kind, ()):
        return
    fitting = ALGORITHMS.get(kind, ())
    remedy = f"set train.algorithm={fitting[0]}" if fitting else "no setting trains that; start from another file"
    raise BadInput(f"continue_from: {name} is {kind} in the file and train.algorithm={algorithm}; {remedy}")


def _check_rank(stem: str, parts: Mapping[str, Entry], settings: TrainSettings) -> None:
    """Ranks that the header shows to be too large, convolutions that are not trained."""
    down = parts.get("lora_down.weight") or parts.get("hada_w1_b")
    if down is None or len(down.shape) < 2 or "lora_mid.weight" in parts:
        return
    conv = len(down.shape) > 2 and down.shape[-1] > 1
    if conv and (settings.algorithm == "lora" or not settings.conv_rank):
        raise BadInput(
            f"continue_from: the file also adapts convolutions, e.g. {stem}; set train.algorithm=locon and train.conv_rank to the file's"
        )
    setting = "conv_rank" if conv else "rank"
    if "lora_down.weight" in parts and down.shape[0] > getattr(settings, setting):
        raise BadInput(_too_wide(stem, down.shape[0], setting, getattr(settings, setting)))


def _check_factors(name: str, parts: Parts, shape: tuple[int, ...], settings: TrainSettings) -> None:
    """What `start_layer` would refuse once the model is loaded, as far as shapes tell."""
    if "hada_w1_a" in parts:
        _refuse_tucker(name, parts)
        setting = "conv_rank" if len(shape) > 2 and shape[-1] > 1 else "rank"
        if rank_of(parts) > getattr(settings, setting):
            raise BadInput(_too_wide(name, rank_of(parts), setting, getattr(settings, setting)))
    if "dora_scale" in parts:
        _refuse_norms_by_input(name, parts, shape[0])


def _refuse_tucker(name: str, parts: Parts) -> None:
    if "hada_t1" in parts:
        raise BadInput(f"continue_from: {name} has Tucker factors, which are not trained here; start from another file")


def _refuse_norms_by_input(name: str, parts: Parts, outputs: int) -> None:
    if parts["dora_scale"].shape[0] != outputs:
        raise BadInput(
            f"continue_from: {name} has DoRA norms by input, which are not trained here; start from another file"
        )


def _too_wide(name: str, rank: int, setting: str, wanted: int) -> str:
    return f"continue_from: {name} has rank {rank} in the file and train.{setting}={wanted}; set train.{setting}={rank}"


def _fill(name: str, module: Any, targets: tuple[Tensor, Tensor], parts: Parts, factor: float) -> None:
    """Down and up matrices; components the file has not keep their fresh down rows, and zero up columns."""
    down, up = parts["lora_down.weight"], parts["lora_up.weight"]
    rank, wanted = down.shape[0], targets[0].shape[0]
    if rank > wanted:
        raise BadInput(_too_wide(name, rank, "conv_rank" if module.isconv and down.shape[-1] > 1 else "rank", wanted))
    targets[0][:rank] = down.reshape(rank, *targets[0].shape[1:]).to(targets[0])
    targets[1].zero_()
    targets[1][:, :rank] = (up.float() * factor).reshape(len(up), rank, *targets[1].shape[2:]).to(targets[1])


def _fill_product(name: str, first: Tensor, second: Tensor, left: Tensor, right: Tensor, zeros: int = 0) -> None:
    """Two factors of a product (rows, rank) · (rank, columns); of further components the side `zeros` (0 or 1) is zero."""
    rank, wanted = left.shape[1], first.shape[1]
    if rank > wanted or len(left) != len(first) or right.shape[1] != second.shape[1]:
        raise BadInput(
            f"continue_from: {name} has factors {shape_told(left.shape)} and {shape_told(right.shape)} in the file, {shape_told(first.shape)} and "
            f"{shape_told(second.shape)} by these settings; set train.rank and train.conv_rank to the file's"
        )
    (first, second)[zeros].zero_()
    first[:, :rank], second[:rank] = left.to(first), right.to(second)


def _fill_kron(name: str, module: Any, parts: Parts, factor: float) -> None:
    """LoKr's two sides, whole or as products, as the module has them."""
    for side, by in (("lokr_w1", factor), ("lokr_w2", 1.0)):
        whole = hasattr(module, side)
        if "lokr_t2" in parts or (not whole and side in parts):
            raise BadInput(
                f"continue_from: {name} is split in another way in the file than by these settings ({', '.join(sorted(parts))}); "
                "set train.rank and train.conv_rank to the file's"
            )
        if not whole:
            first, second = getattr(module, f"{side}_a"), getattr(module, f"{side}_b")
            _fill_product(name, first, second, parts[f"{side}_a"].float() * by, parts[f"{side}_b"], zeros=1)
            continue
        target = getattr(module, side)
        value = parts[side] if side in parts else parts[f"{side}_a"].float() @ parts[f"{side}_b"].float()
        if len(value) != len(target) or value.numel() != target.numel():
            raise BadInput(
                f"continue_from: {name}.{side} is {shape_told(value.shape)} in the file and {shape_told(target.shape)} by these settings, which "
                "no setting changes; start from another file"
            )
        target.copy_((value.float() * by).reshape(target.shape))


def _norms(name: str, module: Any, parts: Parts) -> Tensor:
    """The file's norms by output; of a LoRA, the norms that its sum with the base has."""
    if "dora_scale" in parts:
        _refuse_norms_by_input(name, parts, module.dora_scale.shape[0])
        return parts["dora_scale"]
    weight: Tensor = module.org_module[0].weight.detach().float().cpu()
    plain = {part: value.float().cpu() for part, value in parts.items()}
    adapted = weight + difference(plain, tuple(weight.shape), scale_of(parts))
    norms: Tensor = torch.linalg.vector_norm(adapted.flatten(1), dim=1)
    return norms
