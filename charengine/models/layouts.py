"""Key layouts of model files, translated to the names diffusers and transformers use.

Facts from the authors' files: sgm (sd_xl_base_1.0), ComfyUI repackages (bare or `model.diffusion_model.` keys, fp8 with
`scale_weight` or `weight_scale`), Wan (qwen_image_vae), Qwen (`visual.`, `model.`), GGUF, kohya and PEFT adapters.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

import torch

from charengine.errors import BadInput
from charengine.models.files import shown, weight_files
from charengine.models.identify import SDXL_FIRST, SDXL_SECOND, UNET
from charengine.models.llama_names import from_llama_names
from charengine.models.quantised import State
from charengine.models.reading import Reader, everything, header_plain, read_plain, read_state, read_tensors, unpacked
from charengine.wording import shape_told

__all__ = ["read_state", "read_tensors"]


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
    """Qwen2.5-VL: the original (and ComfyUI's) `visual.`/`model.` keys, or llama.cpp's, to transformers' nested ones."""
    if any(key.startswith("model.language_model.") for key in state):
        return state
    state = from_llama_names(state)
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


Parts = dict[str, dict[str, torch.Tensor]]


def adapter_layers(
    path: Path, layers: Iterable[str], strength: float = 1.0
) -> dict[str, tuple[torch.Tensor, torch.Tensor]]:
    """A Qwen-Image LoRA (diffusers, PEFT, ComfyUI or kohya keys) as layer name → down, up with alpha / rank and strength in.

    Args:
        path: the adapter file.
        layers: names of the model's layers; kohya's underscored names are matched against them.
        strength: 1 = as trained.
    """
    result = {}
    for name, parts in _adapter_parts(path, layers, read_plain).items():
        rank = parts["down"].shape[0]
        alpha = float(parts["alpha"]) if "alpha" in parts else float(rank)
        result[name] = (parts["down"], parts["up"].float() * (strength * alpha / rank))
    return result


def check_adapter(path: Path, layers: dict[str, tuple[int, int]]) -> None:
    """Compare a LoRA's header with the layers it is to go on, given as (out, in) by name.

    Raises:
        BadInput: a layer is not the model's, has another shape, or holds what are no weights.
    """
    parts = _adapter_parts(path, layers, header_plain)
    unknown = sorted(parts.keys() - layers.keys())
    if unknown:
        raise BadInput(
            f"{path} adapts {len(unknown)} layers this model lacks (first {shown(unknown[0])}): it was made for another model"
        )
    for name, part in parts.items():
        for role, tensor in part.items():
            right = tensor.numel() == 1 if role == "alpha" else tensor.ndim == 2 and tensor.numel()
            if not right or not tensor.is_floating_point():
                raise BadInput(
                    f"{path}: {name} ({role}) is {tensor.dtype} of shape {shape_told(tensor.shape)}; allowed are two matrices of floats of "
                    "rank 1 or more, and one alpha: get it again"
                )
        shape = (part["up"].shape[0], part["down"].shape[1])
        if shape != layers[name] or part["up"].shape[1] != part["down"].shape[0]:
            raise BadInput(f"{path}: {name} is {shape}, the model's is {layers[name]}")
    for key, value in read_plain(path).items():
        if not unpacked(value).float().isfinite().all():
            raise BadInput(f"{path}: {shown(key)} holds NaN or infinity: get it again")


def _adapter_parts(path: Path, layers: Iterable[str], read: Reader) -> Parts:
    underscored = {name.replace(".", "_"): name for name in layers}
    found: Parts = {}
    for key, tensor in read(path, everything).items():
        for end, role in ADAPTER_ROLES.items():
            if key.endswith(end):
                found.setdefault(_adapter_layer(key.removesuffix(end), underscored), {})[role] = unpacked(tensor)
                break
        else:
            raise BadInput(
                f"{path}: adapter key {shown(key)!r} is not a LoRA's; read are lora_down/lora_up/alpha and lora_A/lora_B"
            )
    for name, parts in found.items():
        if not {"down", "up"} <= parts.keys():
            raise BadInput(f"{path}: layer {name} has only {', '.join(sorted(parts))}; a LoRA needs both its matrices")
    return found


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

# What other programs write beside a text encoder's weights: a buffer of older releases (ComfyUI's merges have it for both
# encoders), the contrastive temperature, and a projection of CLIP-L that SDXL never uses.
LEFT_OUT = (".position_ids", "logit_scale")


def sdxl_unet(path: Path, config: dict[str, Any], read: Reader = read_plain) -> State:
    """The U-Net of a single-file checkpoint, by diffusers' own converter."""
    from diffusers.loaders.single_file_utils import convert_ldm_unet_checkpoint

    state: State = convert_ldm_unet_checkpoint(read(path, lambda key: key.startswith(UNET)), config)
    return state


def sdxl_vae(path: Path, config: dict[str, Any], read: Reader = read_plain) -> State:
    """The VAE of a single-file checkpoint or of a VAE file, sgm or diffusers keys."""
    from diffusers.loaders.single_file_utils import convert_ldm_vae_checkpoint

    raw: State = {}
    for file in weight_files(path):
        raw |= read(file, lambda key: not key.startswith((UNET, "conditioner.")))
    raw = without_prefix(raw, "first_stage_model.") or raw
    raw = {
        key: value
        for key, value in raw.items()
        if key.startswith(("encoder.", "decoder.", "quant_conv.", "post_quant_conv."))
    }
    if any(".down_blocks." in key for key in raw):
        return {_attention_as_now(key): value for key, value in raw.items()}
    state: State = convert_ldm_vae_checkpoint(raw, config)
    return state


OLD_ATTENTION = {".query.": ".to_q.", ".key.": ".to_k.", ".value.": ".to_v.", ".proj_attn.": ".to_out.0."}


def _attention_as_now(key: str) -> str:
    """A key of a VAE saved before diffusers renamed its attention."""
    for old, now in OLD_ATTENTION.items():
        key = key.replace(old, now) if ".attentions." in key else key
    return key


def sdxl_first_encoder(path: Path, read: Reader = read_plain) -> State:
    """CLIP ViT-L: transformers' keys under a prefix."""
    prefix = SDXL_FIRST.removesuffix("text_model.")
    state = without_prefix(read(path, lambda key: key.startswith(prefix)), prefix)
    return {k: v for k, v in state.items() if not k.endswith(LEFT_OUT) and not k.startswith("text_projection")}


OPEN_CLIP = {
    "positional_embedding": "text_model.embeddings.position_embedding.weight",
    "token_embedding.weight": "text_model.embeddings.token_embedding.weight",
    "ln_final.": "text_model.final_layer_norm.",
    "transformer.resblocks.": "text_model.encoder.layers.",
    ".ln_1.": ".layer_norm1.", ".ln_2.": ".layer_norm2.", ".mlp.c_fc.": ".mlp.fc1.", ".mlp.c_proj.": ".mlp.fc2.", ".attn.out_proj.": ".self_attn.out_proj.",
}  # fmt: skip


def sdxl_second_encoder(path: Path, read: Reader = read_plain) -> State:
    """OpenCLIP ViT-bigG: fused q/k/v split, the projection transposed to a linear layer's weight.

    Some merges hold it under transformers' keys instead (`transformer.text_model.…`), its projection either way round.
    """
    raw = without_prefix(read(path, lambda key: key.startswith(SDXL_SECOND)), SDXL_SECOND)
    raw = {key: value for key, value in raw.items() if not key.endswith(LEFT_OUT)}
    state: State = {}
    for key, value in raw.items():
        if key == "text_projection":
            state["text_projection.weight"] = unpacked(value).T.contiguous()
            continue
        if key.startswith(("transformer.text_model.", "transformer.text_projection")):
            state[key.removeprefix("transformer.")] = value
            continue
        name = key
        for old, new in OPEN_CLIP.items():
            name = name.replace(old, new)
        if ".attn.in_proj_" in name:
            place, kind = name.split(".attn.in_proj_")
            for letter, part in zip("qkv", unpacked(value).chunk(3), strict=True):
                state[f"{place}.self_attn.{letter}_proj.{kind}"] = part.clone()
        else:
            state[name] = value
    if state and "text_projection.weight" not in state:  # some merges lost it; ComfyUI then projects with the identity
        norm = state["text_model.final_layer_norm.weight"]
        state["text_projection.weight"] = torch.eye(norm.shape[0], device=unpacked(norm).device)
    return state


def sdxl_part_of_folder(folder: Path, read: Reader = read_plain) -> State:
    """A U-Net, VAE or text encoder of a diffusers folder, whatever its files are called ("fp16" variants, shards)."""
    return {key: value for key, value in read(folder, lambda key: not key.endswith(LEFT_OUT)).items()}
