"""What a model file is, told from the keys and shapes in its header; nothing is loaded.

Key layouts as written by their authors: sgm (Stability), diffusers, ComfyUI, kohya, Wan; each rule names one key that
only that model has.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from charengine import files
from charengine.errors import BadInput
from charengine.models.files import Header, TensorInfo, read_header, read_header_of_folder, read_json, shown
from charengine.models.llama_names import is_language, is_vision
from charengine.models.packing import MARKER_2511, refuse_unread_packing

Kind = Literal[
    "sdxl", "sdxl-vae", "qwen-image", "qwen-image-vae", "qwen2.5-vl", "qwen2.5-vl-vision", "qwen-image-edit", "adapter", "clip", "dino", "other",
]  # fmt: skip
TITLES: dict[str, str] = {
    "sdxl": "SDXL checkpoint",
    "sdxl-vae": "SDXL VAE",
    "qwen-image": "Qwen-Image-Edit transformer",
    "qwen-image-vae": "Qwen-Image VAE",
    "qwen2.5-vl": "Qwen2.5-VL",
    "qwen-image-edit": "Qwen-Image-Edit pipeline folder",
    "adapter": "LoRA",
    "clip": "CLIP model folder",
    "dino": "DINOv2 model folder",
}
ADAPTER_ENDINGS = (
    ".lora_down.weight", ".lora_A.weight", ".lora_A.default.weight", ".lora.down.weight", ".hada_w1_a", ".lokr_w1", ".lokr_w1_a",
)  # fmt: skip
QWEN_IMAGE_21 = (
    "Qwen-Image-2.1, which is not used here: its licence (Qwen Research) allows research and evaluation alone, and it needs Qwen3-VL "
    "and a VAE of its own; use Qwen-Image-Edit-2511 (Apache-2.0)"
)
RELATIVES = re.compile(r"qwen[-_. ]?image[-_. ]?2[-_.]1|qwenimage21", re.IGNORECASE)  # how it is called
UNET = "model.diffusion_model."
SDXL_FIRST, SDXL_SECOND = "conditioner.embedders.0.transformer.text_model.", "conditioner.embedders.1.model."
QWEN_LAYER = re.compile(  # a transformer block that is not inside a U-Net's attentions
    r"^(transformer\.|diffusion_model\.|model\.diffusion_model\.|base_model\.model\.|lora_unet_|lora_transformer_)?transformer_blocks[._]\d"
)

# Families of other models: a key (with or without ComfyUI's prefix) that only they have, and what people call them.
OTHER_MODELS = {
    "double_blocks.0.img_attn.norm.key_norm.scale": "a FLUX transformer",
    "double_blocks.0.img_attn.norm.key_norm.weight": "a FLUX transformer",
    "single_transformer_blocks.0.attn.to_q.weight": "a FLUX transformer",
    "joint_blocks.0.context_block.adaLN_modulation.1.bias": "a Stable Diffusion 3 transformer",
    "cap_embedder.0.weight": "a Lumina or Z-Image transformer",
    "patchify_proj.weight": "an LTX-Video transformer",
    "double_layers.0.attn.w1q.weight": "an AuraFlow transformer",
    "blocks.0.cross_attn.q_linear.weight": "a Sana transformer",
    "patch_embedding.weight": "a Wan video transformer",
    "vision_model.embeddings.class_embedding": "a CLIP vision encoder",
    "encoder.block.0.layer.0.SelfAttention.q.weight": "a T5 text encoder",
    "control_model.input_blocks.0.0.weight": "a ControlNet",
    "blk.0.attn_q.weight": "a llama.cpp language model other than Qwen2.5-VL",
}
OTHER_NOISE = {  # keys of SDXL checkpoints trained on another noise schedule
    "edm_vpred.sigma_max": "EDM v-prediction (CosXL)",
    "edm_mean": "EDM (Playground v2.5)",
}


@dataclass(frozen=True)
class Identity:
    """What a file is: `layout` names its key scheme, `prefix` what stands before each key, `note` what sets it apart."""

    kind: Kind
    layout: str
    title: str
    prefix: str = ""
    note: str = ""


def identify(header: Header) -> Identity:
    """The model a header describes.

    Raises:
        BadInput: quantised in a way that is not read.
    """
    keys = header.tensors
    refuse_unread_packing(header)
    if any(key.endswith(ADAPTER_ENDINGS) for key in keys):
        return _adapter(header)
    prefix = next((p for p in (UNET, "diffusion_model.", "transformer.") if any(k.startswith(p) for k in keys)), "")
    if f"{prefix}transformer_blocks.0.img_mod.1.weight" in keys and f"{prefix}txt_norm.weight" in keys:
        return _qwen_image(header, prefix)
    if f"{prefix}txt_in.text_norm.weight" in keys and f"{prefix}modulation.1.weight" in keys:
        return Identity("other", header.format, f"a transformer of {QWEN_IMAGE_21}", prefix)
    if any(key.endswith("visual.blocks.0.attn.qkv.weight") for key in keys):
        return _qwen_vl(header)
    if is_vision(header):
        return Identity("qwen2.5-vl-vision", "gguf", "the vision tower of a Qwen2.5-VL")
    if is_language(header):
        return Identity("qwen2.5-vl", "gguf", "Qwen2.5-VL (llama.cpp)")
    if "encoder.middle.0.residual.0.gamma" in keys:
        return _qwen_vae(header, "encoder.conv1.weight", "wan", "Qwen-Image VAE (original keys)")
    if "encoder.mid_block.attentions.0.to_qkv.weight" in keys:
        return _qwen_vae(header, "encoder.conv_in.weight", "diffusers", "Qwen-Image VAE")
    return _stable_diffusion(header) or _vae(header) or _other(header, prefix)


def identify_path(path: Path) -> Identity:
    """What a file or a model folder is.

    Raises:
        BadInput: not a model, damaged, or truncated.
        UnsafeFile: a pickle.
    """
    return _identify_folder(path) if files.is_dir(path) else identify(read_header(path))


def expect(path: Path, kinds: tuple[Kind, ...], field: str) -> Identity:
    """What `path` is, if it is one of `kinds`.

    Raises:
        BadInput: says what the file is and what the field needs.
    """
    identity = identify_path(path)
    if identity.kind not in kinds:
        wanted = " or ".join(TITLES[kind] for kind in kinds)
        raise BadInput(f"{field}: {path} is {with_article(identity.title)}; {field} needs {with_article(wanted)}")
    return identity


def with_article(title: str) -> str:
    """A title as it stands in a sentence."""
    if title.split()[0] in ("a", "an", "the", "part", "something"):
        return title
    return f"{'an' if title[0] in 'AEIO' or title[:2] == 'SD' else 'a'} {title}"


def _adapter(header: Header) -> Identity:
    keys = list(header.tensors)
    if any("double_blocks" in key or "single_transformer_blocks" in key or "single_blocks" in key for key in keys):
        return Identity("adapter", "flux", "FLUX LoRA")
    if any(QWEN_LAYER.match(key) for key in keys):
        return Identity("adapter", "qwen-image", "Qwen-Image LoRA")
    return Identity("adapter", "sdxl", "LoRA (an adapter, not a whole model)")


def _qwen_image(header: Header, prefix: str) -> Identity:
    layout = header.format if header.format == "gguf" else ("comfyui" if prefix else "diffusers")
    if any("addition_t_embedding" in key for key in header.tensors):
        return Identity("other", layout, "a Qwen-Image-Layered transformer")
    depth = sum(
        key.startswith(f"{prefix}transformer_blocks.") and key.endswith(".img_mod.1.weight") for key in header.tensors
    )
    if "2512" in header.path.name:
        return Identity("other", layout, "Qwen-Image-2512, which draws from text alone: no edit model")
    edit_2511 = any(key.endswith(MARKER_2511) for key in header.tensors) or "2511" in header.path.name
    note = "2511" if edit_2511 else ""
    return Identity("qwen-image", layout, f"Qwen-Image transformer of {depth} blocks", prefix, note)


def _qwen_vl(header: Header) -> Identity:
    keys = header.tensors
    if not any("layers.0.self_attn.q_proj.bias" in key for key in keys):
        return Identity("other", "", "a vision-language model other than Qwen2.5-VL")
    if not any(
        "layers.0.mlp.gate_proj" in key for key in keys if "language_model" in key or key.startswith("model.layers")
    ):
        return Identity("other", "", "part of a vision-language model")
    layout = "transformers" if any(key.startswith("model.language_model.") for key in keys) else "qwen"
    note = "" if any(key.endswith("lm_head.weight") for key in keys) else "no lm_head"
    return Identity("qwen2.5-vl", layout, "Qwen2.5-VL", note=note)


def _qwen_vae(header: Header, entry: str, layout: str, title: str) -> Identity:
    """Its relatives share the keys: Qwen-Image-Layered's takes 4 channels, Wan 2.2's and Qwen-Image-2.1's are deeper."""
    first = header.tensors.get(entry)
    if any(".upsamples.0.upsamples." in key or ".downsamples.0.downsamples." in key for key in header.tensors):
        return Identity("other", layout, "a VAE of Wan 2.2 or Qwen-Image-2.1")
    if first is not None and len(first.shape) > 1 and first.shape[1] != 3:
        if len(first.shape) == 4:
            return Identity("other", layout, f"a VAE of Qwen-Image-2.1 ({first.shape[1]} image channels)")
        of = "Qwen-Image-Layered" if first.shape[1] == 4 else "another model"
        return Identity("other", layout, f"a VAE of {of} ({first.shape[1]} image channels)")
    return Identity("qwen-image-vae", layout, title)


def _stable_diffusion(header: Header) -> Identity | None:
    keys = header.tensors
    entry = keys.get(f"{UNET}input_blocks.0.0.weight")
    if entry is None:
        return None
    if f"{UNET}label_emb.0.0.weight" not in keys:
        old = (
            "Stable Diffusion 2" if any(k.startswith("cond_stage_model.model.") for k in keys) else "Stable Diffusion 1"
        )
        return Identity("other", "sgm", f"{old}.x checkpoint")
    if not any(key.startswith(SDXL_SECOND) for key in keys):
        refiner = any(key.startswith("conditioner.embedders.0.model.") for key in keys)
        return Identity("other", "sgm", "SDXL refiner" if refiner else "SDXL U-Net without its text encoders")
    if _channels(entry) != 4:
        return Identity(
            "other", "sgm", "SDXL inpainting checkpoint" if _channels(entry) == 9 else "SDXL editing checkpoint"
        )
    for mark, kind in OTHER_NOISE.items():
        if mark in keys:
            return Identity("other", "sgm", f"SDXL checkpoint of {kind}, which is neither trained nor sampled here")
    title = "SDXL v-prediction checkpoint" if "v_pred" in keys else "SDXL checkpoint"
    if not any(key.startswith("first_stage_model.") for key in keys):
        return Identity("sdxl", "sgm", f"{title} without a VAE", note="no vae")
    return Identity("sdxl", "sgm", title)


def _vae(header: Header) -> Identity | None:
    keys = header.tensors
    for prefix in ("", "first_stage_model."):
        first = keys.get(f"{prefix}decoder.conv_in.weight")
        if first is None:
            continue
        layout = "sgm" if any(".down.0.block." in key for key in keys) else "diffusers"
        if _channels(first) != 4:
            return Identity("other", layout, f"a VAE of {_channels(first)} latent channels (SDXL's has 4)")
        return Identity("sdxl-vae", layout, "SDXL or Stable Diffusion VAE", prefix)
    return None


def _channels(kernel: TensorInfo) -> int:
    """That a convolution takes; 0 for what is none."""
    return kernel.shape[1] if len(kernel.shape) > 1 else 0


def _other(header: Header, prefix: str) -> Identity:
    for key, title in OTHER_MODELS.items():
        if key in header.tensors or prefix + key in header.tensors:
            return Identity("other", "", title)
    keys = list(header.tensors)
    return Identity(
        "other", "", f"something not known here (first key {shown(keys[0])!r})" if keys else "something empty"
    )


def _identify_folder(folder: Path) -> Identity:
    index, config = folder / "model_index.json", folder / "config.json"
    if files.is_file(index):
        return _pipeline(folder, str(read_json(index).get("_class_name", "")))
    if not files.is_file(config):
        raise BadInput(f"{folder} is no model folder: it holds neither model_index.json nor config.json")
    return _by_config(folder, read_json(config))


def _pipeline(folder: Path, name: str) -> Identity:
    parts = {"QwenImageEdit": ("transformer",), "StableDiffusionXL": ("unet", "vae", "text_encoder", "text_encoder_2")}
    for start, needed in parts.items():
        if name.startswith(start):
            for part in needed:
                refuse_unread_packing(read_header_of_folder(folder / part))
    if name.startswith("QwenImageEdit"):
        note = "2511" if _transformer_config(folder).get("zero_cond_t") else ""
        return Identity("qwen-image-edit", "diffusers", f"{name} folder", note=name + note)
    if name.startswith("StableDiffusionXL"):
        return Identity("sdxl", "diffusers", f"{name} folder")
    if RELATIVES.search(name):
        return Identity("other", "diffusers", f"a pipeline folder of {QWEN_IMAGE_21}")
    return Identity("other", "diffusers", f"{with_article(shown(name) if name.strip() else 'pipeline')} folder")


def _transformer_config(folder: Path) -> dict[str, object]:
    path = folder / "transformer" / "config.json"
    return read_json(path) if files.is_file(path) else {}


def _by_config(folder: Path, config: dict[str, object]) -> Identity:
    name = str(config.get("_class_name") or config.get("model_type") or "")
    kinds: dict[str, Kind] = {
        "QwenImageTransformer2DModel": "qwen-image", "AutoencoderKLQwenImage": "qwen-image-vae", "AutoencoderKL": "sdxl-vae",
        "qwen2_5_vl": "qwen2.5-vl", "clip": "clip", "dinov2": "dino", "dinov2_with_registers": "dino",
    }  # fmt: skip
    if name not in kinds:
        return Identity("other", "", f"a folder of {shown(name) or 'an unnamed model'}")
    refuse_unread_packing(read_header_of_folder(folder))  # and pickles, missing shards, truncated files: now
    note = "2511" if config.get("zero_cond_t") else ""
    return Identity(
        kinds[name], "transformers" if "model_type" in config else "diffusers", TITLES[kinds[name]], note=note
    )
