"""Whether files fit the classes they will be loaded into, from their headers alone: names and shapes, in seconds.

The classes are built without weights from the configuration that loading will use, and the headers go through the same
translation as the weights will, so nothing that passes here can fail on its shapes later.
"""

from __future__ import annotations

import os
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch
from torch import nn

from charengine import files
from charengine.errors import BadInput
from charengine.models import layouts
from charengine.models.classes import (
    depth_of,
    scorer,
    sdxl_text_encoder,
    sdxl_unet,
    sdxl_vae,
    transformer,
    vision_language,
    without_text_model,
)
from charengine.models.classes import qwen_vae as build_qwen_vae
from charengine.models.files import read_header_of_folder
from charengine.models.identify import Identity
from charengine.models.llama_names import files_of_text_encoder
from charengine.models.quantised import State, check_complete
from charengine.models.reading import TORCH_TYPES, WEIGHTS, header_plain, header_state, no_weight

Shapes = dict[str, tuple[int, ...]]


@dataclass(frozen=True)
class Configurations:
    """Folders whose configurations describe files that have none: `qwen` for the edit model's, `sdxl` for SDXL's."""

    qwen: Path
    sdxl: Path


def check_fit(path: Path, identity: Identity, configurations: Configurations) -> None:
    """Compare a file's or folder's weights with what its class expects.

    Raises:
        BadInput: how many are missing, left over or of another shape, and the first of them.
    """
    checks: dict[str, Callable[[Path, Identity, Configurations], None]] = {
        "qwen-image": _transformer,
        "qwen-image-edit": _edit_folder,
        "qwen2.5-vl": _vision_language,
        "qwen-image-vae": _qwen_vae,
        "sdxl": _sdxl,
        "sdxl-vae": _vae,
        "clip": _scorer,
        "dino": _scorer,
    }
    if identity.kind in checks:
        key = (identity.kind, path, _stamp(path), configurations)
        if key not in _fits:
            checks[identity.kind](path, identity, configurations)
            _fits.add(key)


_fits: set[tuple[Any, ...]] = (
    set()
)  # what was found to fit, by path, size and time: a profile is checked more than once


def _stamp(path: Path) -> tuple[tuple[int, int], ...]:
    found = [path] if files.is_file(path) else files.below(path)
    stats = [files.asked(file, lambda file=file: os.stat(file)) for file in found]  # type: ignore[misc]
    return tuple((stat.st_size, stat.st_mtime_ns) for stat in stats)


def _compare(module: nn.Module, state: State, path: Path) -> None:
    weights = module.state_dict()
    expected: Shapes = {name: tuple(tensor.shape) for name, tensor in weights.items()}
    given: Shapes = {name: tuple(value.shape) for name, value in state.items()}
    check_complete(expected, given, str(path), type(module).__name__)
    for name, value in state.items():
        if isinstance(value, torch.Tensor) and weights[name].is_floating_point() and not value.is_floating_point():
            raise no_weight(path, name, next(told for told, dtype in TORCH_TYPES.items() if dtype == value.dtype))


@lru_cache(maxsize=32)
def _built(build: Callable[..., Any], *description: Any) -> Any:
    """A class without weights, made once: several files are compared with the same one."""
    return build(*description)


def edit_layers(path: Path, identity: Identity, configurations: Configurations) -> dict[str, tuple[int, int]]:
    """(out, in) of every linear layer of the edit transformer that a file or folder holds."""
    whole = identity.kind == "qwen-image-edit"
    state = layouts.qwen_transformer(header_state(path / "transformer" if whole else path))
    module = _built(transformer, path if whole else configurations.qwen, depth_of(state))
    linear = {name: layer for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    return {name: (layer.out_features, layer.in_features) for name, layer in linear.items()}


def _transformer(path: Path, _identity: Identity, configurations: Configurations) -> None:
    state = layouts.qwen_transformer(header_state(path))
    _compare(_built(transformer, configurations.qwen, depth_of(state)), state, path)


def _edit_folder(path: Path, _identity: Identity, _configurations: Configurations) -> None:
    state = layouts.qwen_transformer(header_state(path / "transformer"))
    _compare(_built(transformer, path, depth_of(state)), state, path / "transformer")


def _vision_language(path: Path, _identity: Identity, configurations: Configurations) -> None:
    raw: State = {}
    for file in files_of_text_encoder(path):
        raw |= header_state(file)
    state = layouts.qwen_text_encoder(raw)
    embedding = "model.language_model.embed_tokens.weight"
    if "lm_head.weight" not in state and embedding in state:
        state["lm_head.weight"] = state[embedding]
    _compare(_built(vision_language, configurations.qwen), state, path)


def _qwen_vae(path: Path, _identity: Identity, configurations: Configurations) -> None:
    module = _built(build_qwen_vae, path.parent if _is_part(path) else configurations.qwen)
    _compare(module, layouts.qwen_vae(header_state(path), module.config["num_res_blocks"]), path)


def _is_part(path: Path) -> bool:
    return files.is_dir(path) and path.name == "vae" and files.is_file(path / "config.json")


def _sdxl(path: Path, identity: Identity, configurations: Configurations) -> None:
    folder = path if files.is_dir(path) else None
    config = folder or configurations.sdxl
    unet = _built(sdxl_unet, config)
    if unet.config["in_channels"] != 4:
        raise BadInput(
            f"{path} takes {unet.config['in_channels']} channels of latents: it is an inpainting or editing model, and "
            "models.sdxl needs a text-to-image one, which takes 4"
        )
    state = (
        layouts.sdxl_part_of_folder(folder / "unet", header_plain)
        if folder
        else layouts.sdxl_unet(path, dict(unet.config), header_plain)
    )
    _compare(unet, state, path)
    if identity.note != "no vae":
        _compare_vae(path / "vae" if folder else path, config)
    for name, read in (("text_encoder", layouts.sdxl_first_encoder), ("text_encoder_2", layouts.sdxl_second_encoder)):
        module = _built(sdxl_text_encoder, config, name)
        state = layouts.sdxl_part_of_folder(folder / name, header_plain) if folder else read(path, header_plain)
        _compare(module, without_text_model(module, state), path / name if folder else path)


def _vae(path: Path, _identity: Identity, configurations: Configurations) -> None:
    _compare_vae(path, path.parent if _is_part(path) else configurations.sdxl)


def _compare_vae(path: Path, config: Path) -> None:
    module = _built(sdxl_vae, config)
    _compare(module, layouts.sdxl_vae(path, dict(module.config), header_plain), path)


def _scorer(path: Path, identity: Identity, _configurations: Configurations) -> None:
    """CLIP and DINOv2 folders: transformers renames as it loads, so only the shapes are counted, not the names."""
    module = scorer(path, identity.kind)
    expected = Counter(tuple(tensor.shape) for tensor in module.state_dict().values())
    tensors = read_header_of_folder(path).tensors
    for key, tensor in tensors.items():
        if tensor.dtype not in WEIGHTS and not key.endswith("position_ids"):
            raise no_weight(path, key, tensor.dtype)
    given = Counter(tensor.shape for tensor in tensors.values())
    lacking = expected - given
    if lacking:
        shape, count = next(iter(lacking.items()))
        raise BadInput(
            f"{path} lacks {lacking.total()} of the {expected.total()} weights its config.json describes ({count} of shape {shape}): "
            "download it again"
        )
