"""Writes tiny models in the layouts people's files have: sgm, open_clip, Wan, Qwen, ComfyUI fp8, GGUF, kohya.

The tables here go from diffusers' names to the originals, by hand, so that the engine's tables are checked by others.
"""

from __future__ import annotations

from pathlib import Path

import torch
from safetensors.torch import save_file

Tensors = dict[str, torch.Tensor]
RESNET = {
    "norm1.": "in_layers.0.", "conv1.": "in_layers.2.", "time_emb_proj.": "emb_layers.1.", "norm2.": "out_layers.0.",
    "conv2.": "out_layers.3.", "conv_shortcut.": "skip_connection.",
}  # fmt: skip
UNET_ENDS = {
    "conv_in.": "input_blocks.0.0.", "time_embedding.linear_1.": "time_embed.0.", "time_embedding.linear_2.": "time_embed.2.",
    "add_embedding.linear_1.": "label_emb.0.0.", "add_embedding.linear_2.": "label_emb.0.2.", "conv_norm_out.": "out.0.", "conv_out.": "out.2.",
}  # fmt: skip


def sgm_unet(state: Tensors, layers: int, levels: int = 3) -> Tensors:
    """A diffusers SDXL U-Net under the original names; `layers` = resnets a level."""
    return {f"model.diffusion_model.{_sgm_unet_key(key, layers, levels)}": value for key, value in state.items()}


def _sgm_unet_key(key: str, layers: int, levels: int) -> str:
    for start, old in UNET_ENDS.items():
        if key.startswith(start):
            return key.replace(start, old, 1)
    parts = key.split(".")
    if parts[0] == "mid_block":
        place = {("resnets", "0"): 0, ("attentions", "0"): 1, ("resnets", "1"): 2}[parts[1], parts[2]]
        return f"middle_block.{place}." + _inner(parts[1], ".".join(parts[3:]))
    level, kind, index = int(parts[1]), parts[2], int(parts[3])
    rest = ".".join(parts[4:])
    if parts[0] == "down_blocks":
        if kind == "downsamplers":
            return f"input_blocks.{(level + 1) * (layers + 1)}.0.op.{parts[-1]}"
        return f"input_blocks.{1 + level * (layers + 1) + index}.{int(kind == 'attentions')}." + _inner(kind, rest)
    place = level * (layers + 1) + (layers if kind == "upsamplers" else index)
    if kind == "upsamplers":
        return f"output_blocks.{place}.{1 if level == levels - 1 else 2}.conv.{parts[-1]}"
    return f"output_blocks.{place}.{int(kind == 'attentions')}." + _inner(kind, rest)


def _inner(kind: str, rest: str) -> str:
    if kind == "resnets":
        for new, old in RESNET.items():
            rest = rest.replace(new, old) if rest.startswith(new) else rest
    return rest


def sgm_vae(state: Tensors, levels: int) -> Tensors:
    """A diffusers AutoencoderKL under the original names (attention weights as 1x1 convolutions)."""
    result: Tensors = {}
    for key, value in state.items():
        name = key.replace("mid_block.resnets.0", "mid.block_1").replace("mid_block.resnets.1", "mid.block_2")
        if "mid_block.attentions.0" in name:
            name = name.replace("mid_block.attentions.0", "mid.attn_1")
            for new, old in {
                "group_norm": "norm",
                "to_q": "q",
                "to_k": "k",
                "to_v": "v",
                "to_out.0": "proj_out",
            }.items():
                name = name.replace(f".{new}.", f".{old}.")
            value = value[:, :, None, None] if value.ndim == 2 else value
        parts = name.split(".")
        if parts[1] in ("down_blocks", "up_blocks"):
            way = parts[1].removesuffix("_blocks")
            level = int(parts[2]) if way == "down" else levels - 1 - int(parts[2])
            inner = ".".join(parts[5:]).replace("conv_shortcut", "nin_shortcut")
            sampler = f"{parts[0]}.{way}.{level}.{way}sample.{'.'.join(parts[5:])}"
            name = sampler if "samplers" in parts[3] else f"{parts[0]}.{way}.{level}.block.{parts[4]}.{inner}"
        result[f"first_stage_model.{name.replace('conv_norm_out', 'norm_out')}"] = value
    return result


def sgm_text_encoders(first: Tensors, second: Tensors) -> Tensors:
    """CLIP-L under a prefix and CLIP-G as open_clip stores it: fused q/k/v, the projection transposed."""
    result = {
        f"conditioner.embedders.0.transformer.text_model.{k.removeprefix('text_model.')}": v for k, v in first.items()
    }
    prefix = "conditioner.embedders.1.model."
    second = {key.removeprefix("text_model."): value for key, value in second.items()}
    names = {
        "embeddings.token_embedding.weight": "token_embedding.weight", "embeddings.position_embedding.weight": "positional_embedding",
        "final_layer_norm.": "ln_final.", "encoder.layers.": "transformer.resblocks.", ".layer_norm1.": ".ln_1.", ".layer_norm2.": ".ln_2.",
        ".mlp.fc1.": ".mlp.c_fc.", ".mlp.fc2.": ".mlp.c_proj.", ".self_attn.out_proj.": ".attn.out_proj.",
    }  # fmt: skip
    for key, value in second.items():
        if key == "text_projection.weight":
            result[f"{prefix}text_projection"] = value.T.contiguous()
        elif ".q_proj." in key:
            fused = torch.cat([second[key.replace(".q_proj.", f".{letter}_proj.")] for letter in "qkv"])
            layer, kind = key.split(".")[2], key.split(".")[-1]
            result[f"{prefix}transformer.resblocks.{layer}.attn.in_proj_{kind}"] = fused
        elif ".k_proj." not in key and ".v_proj." not in key:
            for new, old in names.items():
                key = key.replace(new, old)
            result[prefix + key] = value
    result[f"{prefix}logit_scale"] = torch.tensor(4.6)
    return result


def wan_vae(state: Tensors, resnets: int) -> Tensors:
    """A diffusers AutoencoderKLQwenImage under Wan's numbered layers."""
    inner = {
        "norm1.": "residual.0.",
        "conv1.": "residual.2.",
        "norm2.": "residual.3.",
        "conv2.": "residual.6.",
        "conv_shortcut.": "shortcut.",
    }
    ends = {"conv_in.": "conv1.", "norm_out.": "head.0.", "conv_out.": "head.2."}
    result: Tensors = {}
    for key, value in state.items():
        if key.startswith(("quant_conv", "post_quant_conv")):
            result[key.replace("post_quant_conv", "conv2").replace("quant_conv", "conv1")] = value
            continue
        side, rest = key.split(".", 1)
        for new, old in ends.items():
            rest = rest.replace(new, old, 1) if rest.startswith(new) else rest
        rest = (
            rest.replace("mid_block.resnets.0.", "middle.0.")
            .replace("mid_block.attentions.0.", "middle.1.")
            .replace("mid_block.resnets.1.", "middle.2.")
        )
        rest = rest.replace("down_blocks.", "downsamples.")
        if rest.startswith("up_blocks."):
            _, stage, kind, index, tail = rest.split(".", 4)
            number = int(stage) * (resnets + 2) + (resnets + 1 if kind == "upsamplers" else int(index))
            rest = f"upsamples.{number}.{tail}"
        if rest.startswith(("middle.0", "middle.2", "downsamples", "upsamples")):
            head, number, tail = rest.split(".", 2)
            for new, old in inner.items():
                tail = tail.replace(new, old, 1) if tail.startswith(new) else tail
            rest = f"{head}.{number}.{tail}"
        result[f"{side}.{rest}"] = value
    return result


def qwen_text_encoder(state: Tensors) -> Tensors:
    """transformers' nested Qwen2.5-VL names as Qwen (and ComfyUI) wrote them."""
    return {
        key.replace("model.language_model.", "model.").replace("model.visual.", "visual."): value
        for key, value in state.items()
    }


def scaled_fp8(state: Tensors, *, old: bool = True, prefix: str = "") -> tuple[Tensors, Tensors]:
    """ComfyUI's scaled fp8 of all 2-D weights of layers, and what they should unpack to.

    Args:
        old: `scale_weight` and a `scaled_fp8` marker; else `weight_scale` and a `comfy_quant` note a layer.
        prefix: before every key.
    """
    stored: Tensors = {}
    expected: Tensors = {}
    for key, value in state.items():
        if value.ndim == 2 and ".embed" not in key and "lm_head" not in key:
            scale = value.float().abs().max() / 448
            stored[prefix + key] = (value.float() / scale).to(torch.float8_e4m3fn)
            expected[key] = stored[prefix + key].float() * scale
            layer = prefix + key.removesuffix(".weight")
            if old:
                stored |= {f"{layer}.scale_weight": scale.reshape(1), f"{layer}.scale_input": torch.ones(1)}
            else:
                note = torch.tensor(list(b'{"format": "float8_e4m3fn"}'), dtype=torch.uint8)
                stored |= {
                    f"{layer}.weight_scale": scale,
                    f"{layer}.input_scale": torch.ones(()),
                    f"{layer}.comfy_quant": note,
                }
        else:
            stored[prefix + key], expected[key] = value, value.float()
    if old:
        stored[f"{prefix}scaled_fp8"] = torch.zeros(2, dtype=torch.float8_e4m3fn)
    return stored, expected


def write(path: Path, tensors: Tensors) -> Path:
    """A safetensors file; tensors are made contiguous and unshared."""
    path.parent.mkdir(parents=True, exist_ok=True)
    save_file({key: value.contiguous().clone() for key, value in tensors.items()}, path)
    return path


def write_gguf(path: Path, state: Tensors, kind: str, architecture: str = "qwen_image") -> Tensors:
    """A GGUF file with every 2-D weight of whole blocks packed as `kind`; returns what they should unpack to."""
    import gguf

    quantisation = gguf.GGMLQuantizationType[kind]
    writer = gguf.GGUFWriter(path, architecture)
    expected: Tensors = {}
    block = gguf.GGML_QUANT_SIZES[quantisation][0]
    for key, value in state.items():
        packable = value.ndim == 2 and value.shape[1] % block == 0
        chosen = quantisation if packable else gguf.GGMLQuantizationType.F32
        data = gguf.quants.quantize(value.float().numpy(), chosen)
        writer.add_tensor(key, data, raw_dtype=chosen)
        expected[key] = torch.from_numpy(gguf.quants.dequantize(data, chosen).copy()).reshape(value.shape)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return expected
