"""Small adapter files of every algorithm, spelling and defect, made in code."""

from __future__ import annotations

import json

import torch
from torch import Tensor

from charengine.adapter.files import save_adapter
from charengine.adapter.keys import file_names

UNET = {
    "sample_size": 16,
    "down_block_types": ("DownBlock2D", "CrossAttnDownBlock2D"),
    "up_block_types": ("CrossAttnUpBlock2D", "UpBlock2D"),
    "block_out_channels": (16, 32),
    "layers_per_block": 1,
    "transformer_layers_per_block": (1, 1),
    "attention_head_dim": (2, 4),
    "cross_attention_dim": 24,
    "use_linear_projection": True,
    "addition_embed_type": "text_time",
    "addition_time_embed_dim": 8,
    "projection_class_embeddings_input_dim": 16 + 6 * 8,
    "norm_num_groups": 8,
}
BASE = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1"
LINEAR = "down_blocks.1.attentions.0.transformer_blocks.0.attn1.to_k"  # 32 → 32
WIDE = "down_blocks.1.attentions.0.transformer_blocks.0.attn2.to_k"  # 24 → 32
CONV = "down_blocks.1.resnets.0.conv1"  # 16 → 32, 3x3
LAYERS = (LINEAR, WIDE, CONV)
ALGORITHMS = (
    "LoRA", "LoHa", "LoKr", "DoRA LoRA", "DoRA LoHa", "LoRA Tucker", "LoHa Tucker", "LoKr whole", "LoKr Tucker",
)  # fmt: skip

LEFT_OUT = {
    "bundle_emb.griqul.clip_g": ("embeddings", (2, 64)),
    "lora_te2_text_model_encoder_layers_0_mlp_fc1.lora_up.weight": ("text-encoder", (4, 4)),
    "text_encoder.text_model.encoder.layers.0.self_attn.q_proj.lora_A.weight": ("text-encoder", (4, 4)),
    "lora_unet_out_0.w_norm": ("trained norms", (16,)),
    "lora_unet_out_0.b_norm": ("trained norms", (16,)),
    "lora_unet_input_blocks_1_0_in_layers_0.diff": ("trained norms", (16,)),
    "iteration": ("belong to no layer", (1,)),
    "__index_timestep_zero__": ("belong to no layer", (0,)),
}


def tiny_unet(device: str = "cpu"):
    from diffusers import UNet2DConditionModel

    torch.manual_seed(0)
    with torch.device(device):
        unet = UNet2DConditionModel.from_config(UNET)
    return unet.requires_grad_(False).eval()


def output(unet) -> Tensor:
    """The U-Net's on fixed inputs."""
    generator = torch.Generator().manual_seed(1)

    def draw(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator)

    conditions = {"text_embeds": draw(1, 16), "time_ids": torch.ones(1, 6)}
    with torch.no_grad():
        return unet(draw(1, 4, 16, 8), torch.tensor([500]), draw(1, 8, 24), added_cond_kwargs=conditions).sample


def parts_of(algorithm: str, shape: tuple[int, ...], rank: int = 2, alpha: float | None = 1.0, seed: int = 0) -> dict:
    """One layer's parts with values that change every output."""
    generator = torch.Generator().manual_seed(seed)

    def draw(*sizes: int) -> Tensor:
        return torch.randn(*sizes, generator=generator) * 0.3

    out, into, kernel = shape[0], shape[1], shape[2:]
    flat = into * int(torch.tensor(kernel).prod()) if kernel else into
    tucker = "Tucker" in algorithm and kernel
    if "LoRA" in algorithm:
        parts = {"lora_down.weight": draw(rank, into, *kernel), "lora_up.weight": draw(out, rank, *[1] * len(kernel))}
        if tucker:
            parts["lora_down.weight"] = draw(rank, into, *[1] * len(kernel))
            parts["lora_mid.weight"] = draw(rank, rank, *kernel)
    elif "LoHa" in algorithm:
        parts = {}
        for side in ("1", "2"):
            parts |= {f"hada_w{side}_a": draw(out, rank), f"hada_w{side}_b": draw(rank, flat)}
            if tucker:
                parts |= {f"hada_w{side}_a": draw(rank, out), f"hada_w{side}_b": draw(rank, into)}
                parts[f"hada_t{side}"] = draw(rank, rank, *kernel)
    else:
        parts = {"lokr_w1": draw(4, 4)}
        if "whole" in algorithm:
            parts["lokr_w2"] = draw(out // 4, into // 4, *kernel)
        elif tucker:
            parts |= {"lokr_w2_a": draw(rank, out // 4), "lokr_w2_b": draw(rank, into // 4)}
            parts["lokr_t2"] = draw(rank, rank, *kernel)
        else:
            parts |= {"lokr_w2_a": draw(out // 4, rank), "lokr_w2_b": draw(rank, flat // 4)}
    if "DoRA" in algorithm:
        parts["dora_scale"] = draw(out, *[1] * (len(shape) - 1)).abs() + 0.5
    if alpha is not None:
        parts["alpha"] = torch.tensor(alpha)
    return parts


def tensors_of(unet, algorithm: str = "LoRA", layers: tuple[str, ...] = LAYERS, **more) -> dict[str, Tensor]:
    """A file's tensors in kohya's spelling."""
    stems = file_names(unet)
    return {
        f"{stems[name]}.{part}": value
        for seed, name in enumerate(layers)
        for part, value in parts_of(algorithm, tuple(unet.get_submodule(name).weight.shape), seed=seed, **more).items()
    }


def spelt(unet, tensors: dict[str, Tensor], spelling: str) -> dict[str, Tensor]:
    """The same tensors as another program writes them."""
    names = {stem: name for name, stem in file_names(unet).items()}
    ends = {"lora_down.weight": "lora_A.weight", "lora_up.weight": "lora_B.weight"} if spelling in PEFT else {}
    found = {}
    for key, value in tensors.items():
        stem, part = key.split(".", 1)
        if spelling in PEFT and part == "alpha":
            continue
        found[f"{SPELLINGS[spelling](names[stem], stem)}.{ends.get(part, part)}"] = value
    return found


PEFT = ("unet.", "base_model.model.", "base_model.model.unet.", "bare")
SPELLINGS = {
    "kohya": lambda name, stem: stem,
    "kohya-diffusers": lambda name, stem: "lora_unet_" + name.replace(".", "_"),
    "lycoris": lambda name, stem: "lycoris_" + name.replace(".", "_"),
    "unet.": lambda name, stem: "unet." + name,
    "bare": lambda name, stem: name,
    "base_model.model.": lambda name, stem: "base_model.model." + name,
    "base_model.model.unet.": lambda name, stem: "base_model.model.unet." + name,
}


def file_of(tensors: dict[str, Tensor], **metadata: str) -> bytes:
    return save_adapter(tensors, {"ss_steps": "4", "modelspec.trigger_phrase": "griqul"} | metadata)


def raw(header: object, data: bytes = b"") -> bytes:
    """A safetensors file with any header."""
    text = header if isinstance(header, bytes) else json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + data
