"""Model files of full size whose bytes are holes: a real header, then nothing. What a header check sees, in kilobytes of disk."""

from __future__ import annotations

import json
import struct
from functools import lru_cache
from math import prod
from pathlib import Path

import torch
from models import original_layouts as original

from charengine.models import classes

Shapes = dict[str, tuple[str, tuple[int, ...]]]  # name → element type as safetensors spells it, shape
WIDTHS = {"F32": 4, "F16": 2, "BF16": 2, "F8_E4M3": 1, "I8": 1, "U8": 1, "I64": 8}


def write(
    path: Path, shapes: Shapes, values: dict[str, bytes] | None = None, metadata: dict[str, str] | None = None
) -> Path:
    """A safetensors file; `values` are the few bytes that are really there."""
    values = values or {}
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    start = 0
    for name, (dtype, shape) in shapes.items():
        size = len(values[name]) if name in values else WIDTHS[dtype] * prod(shape)
        header[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [start, start + size]}
        start += size
    text = json.dumps(header).encode()
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("wb") as file:
        file.write(struct.pack("<Q", len(text)) + text)
        file.truncate(8 + len(text) + start)
        for name, data in values.items():
            entry: dict = header[name]  # type: ignore[assignment]
            file.seek(8 + len(text) + entry["data_offsets"][0])
            file.write(data)
    return path


def write_gguf(path: Path, shapes: Shapes, architecture: str, packing: str = "Q4_K", **fields: list) -> Path:
    """A GGUF file: matrices of whole blocks as `packing`, the rest F32; `fields` are arrays such as a tokenizer's."""
    import gguf

    kind = gguf.GGMLQuantizationType[packing]
    block, size = gguf.GGML_QUANT_SIZES[kind]
    writer = gguf.GGUFWriter(path, architecture)
    for name, values in fields.items():
        writer.add_array(name.replace("__", "."), values)
    path.parent.mkdir(parents=True, exist_ok=True)
    total = 0
    for name, (_, shape) in shapes.items():
        packed = len(shape) == 2 and shape[1] % block == 0
        chosen = kind if packed else gguf.GGMLQuantizationType.F32
        count = prod(shape)
        nbytes = count // block * size if packed else 4 * count
        stored = (*shape[:-1], shape[-1] // block * size) if packed else shape
        dtype = torch.zeros(0, dtype=torch.uint8 if packed else torch.float32).numpy().dtype
        writer.add_tensor_info(name, stored, dtype, nbytes, raw_dtype=chosen if packed else None)
        total += -(-nbytes // 32) * 32
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_ti_data_to_file()
    writer.close()
    data = -(-path.stat().st_size // 32) * 32
    with path.open("r+b") as file:
        file.truncate(data + total)
    return path


def shapes_of(state: dict[str, torch.Tensor], dtype: str, prefix: str = "") -> Shapes:
    """Names and shapes of a state without weights."""
    return {prefix + name: (dtype, tuple(tensor.shape)) for name, tensor in state.items()}


@lru_cache
def states() -> dict[str, dict[str, torch.Tensor]]:
    """The published models' weights, as tensors without memory, under the names people's files have."""
    qwen, sdxl = classes.packaged_config("qwen-image-edit"), classes.packaged_config("sdxl")
    encoders = [meta(classes.sdxl_text_encoder(sdxl, name)) for name in ("text_encoder", "text_encoder_2")]
    encoders = [
        {
            key if key.startswith(("text_model.", "text_projection")) else f"text_model.{key}": value
            for key, value in one.items()
        }
        for one in encoders
    ]
    vae = meta(classes.sdxl_vae(sdxl))
    unet = meta(classes.sdxl_unet(sdxl))
    return {
        "transformer": meta(classes.transformer(qwen, 60)),
        "vl": original.qwen_text_encoder(meta(classes.vision_language(qwen))),
        "vae": original.wan_vae(meta(classes.qwen_vae(qwen)), 2),
        "sdxl": original.sgm_unet(unet, layers=2)
        | original.sgm_vae(vae, levels=4)
        | original.sgm_text_encoders(encoders[0], encoders[1]),
    }


def meta(module: torch.nn.Module) -> dict[str, torch.Tensor]:
    return {name: torch.empty(tensor.shape, device="meta") for name, tensor in module.state_dict().items()}


def sdxl() -> Shapes:
    """A full SDXL checkpoint of 2,515 tensors in half precision."""
    return shapes_of(states()["sdxl"], "F16")


def transformer(dtype: str = "BF16", prefix: str = "") -> Shapes:
    """Qwen-Image-Edit's 1,933 tensors."""
    return shapes_of(states()["transformer"], dtype, prefix)


def scaled(shapes: Shapes, dtype: str, scale: str, rows: bool, note: bytes | None) -> tuple[Shapes, dict[str, bytes]]:
    """Matrices inside the blocks packed with a scale beside each, as ComfyUI's converters write them."""
    stored: Shapes = {}
    values: dict[str, bytes] = {}
    for name, (plain, shape) in shapes.items():
        inside = len(shape) == 2 and "blocks." in name
        stored[name] = (dtype if inside else plain, shape)
        if inside:
            layer = name.removesuffix(".weight")
            stored[layer + scale] = ("F32", (shape[0], 1) if rows else ())
            if note is not None:
                stored[layer + ".comfy_quant"] = ("U8", (len(note),))
                values[layer + ".comfy_quant"] = note
    return stored, values


LLAMA = {
    "model.embed_tokens.": "token_embd.", "model.norm.": "output_norm.", "lm_head.": "output.", "model.layers.": "blk.",
    "input_layernorm.": "attn_norm.", "post_attention_layernorm.": "ffn_norm.", "self_attn.o_proj.": "attn_output.",
    "self_attn.q_proj.": "attn_q.", "self_attn.k_proj.": "attn_k.", "self_attn.v_proj.": "attn_v.",
    "mlp.gate_proj.": "ffn_gate.", "mlp.up_proj.": "ffn_up.", "mlp.down_proj.": "ffn_down.",
}  # fmt: skip
MMPROJ = {
    "visual.merger.mlp.": "mm.", "visual.merger.ln_q.": "v.post_ln.", "visual.patch_embed.proj.": "v.patch_embd.", "visual.blocks.": "v.blk.",
    "attn.proj.": "attn_out.", "mlp.gate_proj.": "ffn_gate.", "mlp.up_proj.": "ffn_up.", "mlp.down_proj.": "ffn_down.",
    "norm1.": "ln1.", "norm2.": "ln2.",
}  # fmt: skip


def llama_files(state: dict[str, torch.Tensor]) -> tuple[dict[str, torch.Tensor], dict[str, torch.Tensor]]:
    """Qwen2.5-VL under Qwen's names as llama.cpp stores it: language model, and vision tower with split q/k/v and frames."""
    language: dict[str, torch.Tensor] = {}
    vision: dict[str, torch.Tensor] = {}
    for key, value in state.items():
        name = key
        for old, new in (MMPROJ if key.startswith("visual.") else LLAMA).items():
            name = name.replace(old, new)
        if not key.startswith("visual."):
            language[name] = value
        elif ".attn.qkv." in key:
            for letter, part in zip("qkv", value.chunk(3), strict=True):
                vision[name.replace("attn.qkv.", f"attn_{letter}.")] = part.clone()
        elif key == "visual.patch_embed.proj.weight":
            vision[name], vision[f"{name}.1"] = value[:, :, 0].contiguous(), value[:, :, 1].contiguous()
        else:
            vision[name] = value
    return language, vision
