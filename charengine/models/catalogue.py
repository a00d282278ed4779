"""What the full-size family is made of: names people have the files under, sizes, licences, and where to get them."""

from __future__ import annotations

from dataclasses import dataclass

from charengine.models.identify import Kind


@dataclass(frozen=True)
class Need:
    """One thing a profile of the full-size family needs.

    Args:
        field: the setting of `models` that names it.
        title: for people.
        kinds: what a file or folder may be.
        words: all of these stand in a file's name, lower case, before its header is looked at.
        hubs: Hugging Face ids, the best first; the first is what `allow_downloads` gets.
        size: of what is recommended.
        licence: of the same.
        advice: how to get it by hand.
        required: whether nothing works without it.
    """

    field: str
    title: str
    kinds: tuple[Kind, ...]
    words: tuple[str, ...]
    hubs: tuple[str, ...]
    size: str
    licence: str
    advice: str
    required: bool = True


COMFY = "https://huggingface.co/Comfy-Org"
EDIT = Need(
    "edit",
    "Qwen-Image-Edit transformer",
    ("qwen-image-edit", "qwen-image"),
    ("qwen", "edit"),
    ("Qwen/Qwen-Image-Edit-2511", "Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit"),
    "20.4 GB in fp8 (57.7 GB as the bf16 folder, which holds encoder and VAE too)",
    "Apache-2.0",
    f"an fp8 file from {COMFY}/Qwen-Image-Edit_ComfyUI into ComfyUI/models/diffusion_models, or: hf download Qwen/Qwen-Image-Edit-2511",
)
VL = Need(
    "vl",
    "Qwen2.5-VL 7B (prompt encoder, captioner and judge)",
    ("qwen2.5-vl",),
    ("qwen", "vl"),
    ("Qwen/Qwen2.5-VL-7B-Instruct",),
    "9.4 GB in fp8 (16.6 GB in bf16)",
    "Apache-2.0",
    f"qwen_2.5_vl_7b_fp8_scaled.safetensors from {COMFY}/Qwen-Image_ComfyUI into ComfyUI/models/text_encoders",
)
VAE = Need(
    "vae",
    "Qwen-Image VAE",
    ("qwen-image-vae",),
    ("qwen", "vae"),
    (),
    "0.25 GB",
    "Apache-2.0",
    f"qwen_image_vae.safetensors from {COMFY}/Qwen-Image_ComfyUI into ComfyUI/models/vae",
)
SDXL = Need(
    "sdxl",
    "SDXL checkpoint",
    ("sdxl",),
    (),
    ("stabilityai/stable-diffusion-xl-base-1.0",),
    "6.9 GB",
    "CreativeML Open RAIL++-M (fine-tunes: their own)",
    "sd_xl_base_1.0.safetensors from https://huggingface.co/stabilityai/stable-diffusion-xl-base-1.0 into ComfyUI/models/checkpoints",
)
CLIP = Need(
    "clip",
    "CLIP model (scores how well a picture follows its prompt)",
    ("clip",),
    ("clip",),
    ("openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16"),
    "1.7 GB",
    "MIT",
    "hf download openai/clip-vit-large-patch14 config.json model.safetensors vocab.json merges.txt tokenizer_config.json preprocessor_config.json",
)
DINO = Need(
    "dino",
    "DINOv2 model (scores identity; without it CLIP's image tower does)",
    ("dino",),
    ("dino",),
    ("facebook/dinov2-base", "facebook/dinov2-large", "facebook/dinov2-small"),
    "0.35 GB",
    "Apache-2.0",
    "hf download facebook/dinov2-base config.json model.safetensors preprocessor_config.json",
    required=False,
)
LIGHTNING = Need(
    "lightning",
    "Lightning LoRA (sheets in 4 or 8 steps; without it drafts use the same steps undistilled)",
    ("adapter",),
    ("qwen", "lightning"),
    (),
    "0.85 GB",
    "Apache-2.0",
    "the 4- or 8-step file of your edit model's version into ComfyUI/models/loras: for 2511 from "
    "https://huggingface.co/lightx2v/Qwen-Image-Edit-2511-Lightning, for 2509 and the first from "
    "https://huggingface.co/lightx2v/Qwen-Image-Lightning",
    required=False,
)
NEEDS = (EDIT, VL, VAE, LIGHTNING, SDXL, CLIP, DINO)

QWEN_TOKENIZER = (
    "Qwen's tokenizer (vocab.json, merges.txt, tokenizer_config.json; 4 MB, Apache-2.0): it comes with ComfyUI in "
    "comfy/text_encoders/qwen25_tokenizer and with every Qwen-Image folder; set models.edit_config to such a folder, or: "
    "hf download Qwen/Qwen-Image-Edit-2511 --include 'tokenizer/*' 'processor/*'"
)
CLIP_TOKENIZER = (
    "CLIP's tokenizer (vocab.json, merges.txt; 1.5 MB, MIT): it comes with ComfyUI in comfy/sd1_tokenizer and with every SDXL "
    "folder; set models.sdxl_config to such a folder, or: hf download stabilityai/stable-diffusion-xl-base-1.0 --include 'tokenizer*/*'"
)
