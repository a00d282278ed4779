"""Key layouts of model files, translated to the names diffusers and transformers use.

Facts from the authors' files: sgm (sd_xl_base_1.0), ComfyUI repackages (bare or `model.diffusion_model.` keys, fp8 with
`scale_weight` or `weight_scale`), Wan (qwen_image_vae), Qwen (`visual.`, `model.`), GGUF, kohya and PEFT adapters.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

import torch

from charengine.errors import BadInput
from charengine.models.files import gguf_reader, weight_files
from charengine.models.identify import MARKER_2511, SDXL_FIRST, SDXL_SECOND, UNET
from charengine.models.quantised import FP8_NAMES, GGUF_READ, Packed, State, packed_fp8

SCALES = (".scale_weight", ".weight_scale")
IGNORED = (".scale_input", ".input_scale", ".comfy_quant", "scaled_fp8", MARKER_2511)
COMFY_FORMATS = ("float8_e4m3fn", "float8_e5m2")


# --- reading ---------------------------------------------------------------------------------------------------------


def read_state(path: Path, wanted: Callable[[str], bool] = lambda key: True) -> State:
    """The tensors of a file or folder under their own names; fp8 and GGUF weights stay packed, scales folded in.

    Raises:
        BadInput: a packing that is not read.
    """
    if path.suffix.lower() == ".gguf":
        return _read_gguf(path, wanted)
    raw: dict[str, torch.Tensor] = {}
    for file in weight_files(path):
        raw |= read_tensors(file, wanted)
    return _fold_scales(raw, str(path))


def read_tensors(path: Path, wanted: Callable[[str], bool] = lambda key: True) -> dict[str, torch.Tensor]:
    """Tensors of one safetensors file, exactly as stored (memory-mapped)."""
    from safetensors import safe_open

    with safe_open(path, framework="pt") as file:
        return {key: file.get_tensor(key) for key in file.keys() if wanted(key)}  # noqa: SIM118


def _fold_scales(raw: dict[str, torch.Tensor], source: str) -> State:
    for key in [key for key in raw if key.endswith(".comfy_quant")]:
        form = json.loads(bytes(raw[key].tolist())).get("format")
        if form not in COMFY_FORMATS:
            raise BadInput(
                f"{source}: {key.removesuffix('.comfy_quant')} is packed as {form!r}; read are {', '.join(COMFY_FORMATS)}"
            )
    scales = {key.removesuffix(end): raw[key] for key in raw for end in SCALES if key.endswith(end)}
    state: State = {}
    for key, tensor in raw.items():
        if key.endswith(IGNORED + SCALES):
            continue
        scale = scales.get(key.removesuffix(".weight"))
        if tensor.dtype in FP8_NAMES and tensor.ndim == 2:
            state[key] = packed_fp8(tensor, scale)
        else:
            state[key] = tensor if scale is None else tensor.float() * scale.float()
    return state


def _read_gguf(path: Path, wanted: Callable[[str], bool]) -> State:
    state: State = {}
    for tensor in gguf_reader(path).tensors:
        if not wanted(tensor.name):
            continue
        shape, kind = tuple(int(n) for n in reversed(tensor.shape)), tensor.tensor_type.name
        data = torch.from_numpy(tensor.data.copy())
        if kind in ("F32", "F16"):
            state[tensor.name] = data.reshape(shape)
        elif kind == "BF16":
            state[tensor.name] = data.view(torch.uint8).view(torch.bfloat16).reshape(shape)
        elif kind in GGUF_READ:
            state[tensor.name] = Packed(data, kind, shape)
        else:
            raise BadInput(
                f"{path}: {tensor.name} is packed as {kind}; read are F32, F16, BF16, {', '.join(GGUF_READ)}"
            )
    return state


def without_prefix(state: dict[str, Any], prefix: str) -> dict[str, Any]:
    """Entries under `prefix`, without it."""
    return {key[len(prefix) :]: value for key, value in state.items() if key.startswith(prefix)}


# --- Qwen ------------------------------------------------------------------------------------------------------------


def qwen_transformer(state: State) -> State:
    """Qwen-Image transformer: diffusers', ComfyUI's and GGUF keys differ by their prefix only."""
    for prefix in (UNET, "diffusion_model.", "transformer."):
        if any(key.startswith(prefix) for key in state):
            return without_prefix(state, prefix)
    return state


def qwen_text_encoder(state: State) -> State:
    """Qwen2.5-VL: the original (and ComfyUI's) `visual.`/`model.` keys to transformers' nested ones."""
    if any(key.startswith("model.language_model.") for key in state):
        return state
    renamed: State = {}
    for key, value in state.items():
        if key.startswith("visual."):
            key = f"model.{key}"
        elif key.startswith("model.") and not key.startswith("model.visual."):
            key = f"model.language_model.{key.removeprefix('model.')}"
        renamed[key] = value
    return renamed


def qwen_vae(state: State, resnets: int = 2) -> State:
    """Qwen-Image VAE from Wan's numbered layers.

    Args:
        state: `encoder.downsamples.N…` or already diffusers' keys.
        resnets: residual blocks a stage has (its decoder has one more); the real model has 2.
    """
    if "encoder.conv_in.weight" in state:
        return state
    return {_wan_key(key, resnets + 2): value for key, value in state.items()}


WAN_LAYERS = {
    ".residual.0.": ".norm1.", ".residual.2.": ".conv1.", ".residual.3.": ".norm2.", ".residual.6.": ".conv2.", ".shortcut.": ".conv_shortcut.",
}  # fmt: skip
WAN_PARTS = {
    "conv1.": "quant_conv.", "conv2.": "post_quant_conv.",
    "coder.conv1.": "coder.conv_in.", "coder.head.0.": "coder.norm_out.", "coder.head.2.": "coder.conv_out.",
    "coder.middle.0.": "coder.mid_block.resnets.0.", "coder.middle.1.": "coder.mid_block.attentions.0.",
    "coder.middle.2.": "coder.mid_block.resnets.1.", "encoder.downsamples.": "encoder.down_blocks.",
}  # fmt: skip


def _wan_key(key: str, stride: int) -> str:
    """One Wan key in diffusers' words; `stride` = layers of a decoder stage (its residual blocks and the upsampler)."""
    for old, new in WAN_PARTS.items():
        if key.startswith(old) or (old.startswith("coder") and key[2:].startswith(old)):
            key = key.replace(old, new, 1)
            break
    for old, new in WAN_LAYERS.items():
        key = key.replace(old, new)
    if key.startswith("decoder.upsamples."):
        number, rest = key.removeprefix("decoder.upsamples.").split(".", 1)
        stage, place = divmod(int(number), stride)
        upsampler = rest.startswith(("resample.", "time_conv."))
        key = f"decoder.up_blocks.{stage}.{'upsamplers.0' if upsampler else f'resnets.{place}'}.{rest}"
    return key


def adapter_layers(
    path: Path, layers: Iterable[str], strength: float = 1.0
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A Qwen-Image LoRA (diffusers, PEFT, ComfyUI or kohya keys) as layer name → down, up with alpha / rank and strength in.

    Args:
        path: the adapter file.
        layers: names of the model's layers; kohya's underscored names are matched against them.
        strength: 1 = as trained.
    """
    underscored = {name.replace(".", "_"): name for name in layers}
    state = read_tensors(path)
    found: dict[str, dict[str, torch.Tensor]] = {}
    for key, tensor in state.items():
        for end, role in ADAPTER_ROLES.items():
            if key.endswith(end):
                found.setdefault(_adapter_layer(key.removesuffix(end), underscored), {})[role] = tensor
                break
        else:
            raise BadInput(
                f"{path}: adapter key {key!r} is not a LoRA's; read are lora_down/lora_up/alpha and lora_A/lora_B"
            )
    result = {}
    for name, parts in found.items():
        if not {"down", "up"} <= parts.keys():
            raise BadInput(f"{path}: layer {name} has only {', '.join(sorted(parts))}; a LoRA needs both its matrices")
        rank = parts["down"].shape[0]
        alpha = float(parts["alpha"]) if "alpha" in parts else float(rank)
        result[name] = (parts["down"], parts["up"].float() * (strength * alpha / rank))
    return result


ADAPTER_ROLES = {
    ".lora_down.weight": "down", ".lora_up.weight": "up", ".lora_A.weight": "down", ".lora_B.weight": "up",
    ".lora_A.default.weight": "down", ".lora_B.default.weight": "up", ".lora.down.weight": "down", ".lora.up.weight": "up", ".alpha": "alpha",
}  # fmt: skip


def _adapter_layer(name: str, underscored: dict[str, str]) -> str:
    for prefix in (UNET, "diffusion_model.", "transformer.", "base_model.model."):
        name = name.removeprefix(prefix)
    if name.startswith(("lora_unet_", "lora_transformer_")):
        short = name.split("_", 2)[2]
        return underscored.get(short, short)
    return name


# --- SDXL ------------------------------------------------------------------------------------------------------------


def sdxl_unet(path: Path, config: dict[str, Any]) -> State:
    """The U-Net of a single-file checkpoint, by diffusers' own converter."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    state: State = convert_ldm_unet_checkpoint(read_tensors(path, lambda key: key.startswith(UNET)), config)
    return state


def sdxl_vae(path: Path, config: dict[str, Any]) -> State:
    """The VAE of a single-file checkpoint or of a VAE file, sgm or diffusers keys."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    raw: dict[str, torch.Tensor] = {}
    for file in weight_files(path):
        raw |= read_tensors(file, lambda key: not key.startswith((UNET, "conditioner.")))
    raw = without_prefix(raw, "first_stage_model.") or raw
    raw = {
        key: value
        for key, value in raw.items()
        if key.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
    }
    if any(".down_blocks." in key for key in raw):
        return dict(raw)
    state: State = convert_ldm_vae_checkpoint(raw, config)
    return state


def sdxl_first_encoder(path: Path) -> State:
    """CLIP ViT-L: transformers' keys under a prefix; a buffer of older releases is dropped."""
    prefix = SDXL_FIRST.removesuffix("text_model.")
    state = without_prefix(read_tensors(path, lambda key: key.startswith(prefix)), prefix)
    return {key: value for key, value in state.items() if not key.endswith("position_ids")}


OPEN_CLIP = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    ".ln_1.": ".layer_norm1.", ".ln_2.": ".layer_norm2.", ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2.", ".attn.out_proj.": ".self_attn.out_proj.",
}  # fmt: skip


def sdxl_second_encoder(path: Path) -> State:
    """OpenCLIP ViT-bigG: fused q/k/v split, the projection transposed to a linear layer's weight."""
    raw = without_prefix(read_tensors(path, lambda key: key.startswith(SDXL_SECOND)), SDXL_SECOND)
    state: State = {}
    for key, value in raw.items():
        if key in ("logit_scale", "text_model.embeddings.position_ids"):
            continue
        if key == "text_projection":
            state["text_projection.weight"] = value.T.contiguous()
            continue
        name = key
        for old, new in OPEN_CLIP.items():
            name = name.replace(old, new)
        if ".attn.in_proj_" in name:
            place, kind = name.split(".attn.in_proj_")
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                state[f"{place}.self_attn.{letter}_proj.{kind}"] = part.clone()
        else:
            state[name] = value
    return state
