"""ComfyUI's folder with the files its users have, tiny: what the tests of the production path look in."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import original_layouts as original
import pytest
import torch
from PIL import Image, ImageDraw
from safetensors.torch import load_file

from charengine.config import ModelSettings, Profile, SheetSettings
from charengine.models.qwen_edit import QwenEdit

Tensors = dict[str, torch.Tensor]
WEIGHTS = "diffusion_pytorch_model.safetensors"


def configurations(source: Path, target: Path) -> Path:
    """A diffusers folder without weights, as `models.edit_config` and `models.sdxl_config` want it."""
    shutil.copytree(source, target, ignore=shutil.ignore_patterns("*.safetensors", "tokenizer*", "vocab*", "merges*"))
    return target


@pytest.fixture(scope="session")
def comfyui(tmp_path_factory: pytest.TempPathFactory, qwen_folder: Path, sdxl_folder: Path, clip_folder: Path) -> Path:
    """ComfyUI's folder with the files its users have; returns its `models`."""
    root = tmp_path_factory.mktemp("user") / "ComfyUI"
    files = root / "models"
    transformer = load_file(qwen_folder / "transformer" / WEIGHTS)
    plain = {key: value.to(torch.float8_e4m3fn) for key, value in transformer.items()}
    original.write(files / "diffusion_models" / "qwen_image_edit_2509_fp8_e4m3fn.safetensors", plain)
    encoder = original.qwen_text_encoder(load_file(qwen_folder / "text_encoder" / "model.safetensors"))
    original.write(files / "text_encoders" / "qwen_2.5_vl_7b_fp8_scaled.safetensors", original.scaled_fp8(encoder)[0])
    original.write(
        files / "vae" / "qwen_image_vae.safetensors", original.wan_vae(load_file(qwen_folder / "vae" / WEIGHTS), 1)
    )
    original.write(files / "checkpoints" / "sd_xl_base_1.0.safetensors", sdxl_tensors(sdxl_folder))
    down, up = torch.randn(2, 48) * 0.3, torch.randn(48, 2) * 0.3
    name = "transformer_blocks.0.attn.to_q"
    lora = {f"{name}.lora_down.weight": down, f"{name}.lora_up.weight": up, f"{name}.alpha": torch.tensor(2.0)}
    original.write(files / "loras" / "Qwen-Image-Edit-2509-Lightning-8steps-V1.0-bf16.safetensors", lora)
    shutil.copytree(clip_folder, files / "clip-vit-base-patch32")
    for source, target in (
        (sdxl_folder / "tokenizer", "sd1_tokenizer"),
        (qwen_folder / "tokenizer", "text_encoders/qwen25_tokenizer"),
    ):
        shutil.copytree(source, root / "comfy" / target)
    configurations(qwen_folder, root / "configs" / "qwen")
    configurations(sdxl_folder, root / "configs" / "sdxl")
    return files


def sdxl_tensors(folder: Path) -> Tensors:
    unet = original.sgm_unet(load_file(folder / "unet" / WEIGHTS), layers=1, levels=2)
    vae = original.sgm_vae(load_file(folder / "vae" / WEIGHTS), levels=4)
    encoders = [load_file(folder / name / "model.safetensors") for name in ("text_encoder", "text_encoder_2")]
    return unet | vae | original.sgm_text_encoders(*encoders)


def profile(comfyui: Path, **changes: object) -> Profile:
    root = comfyui.parent
    settings = {
        "family": "sdxl",
        "folders": (str(comfyui),),
        "edit_config": str(root / "configs" / "qwen"),
        "sdxl_config": str(root / "configs" / "sdxl"),
        "device": "cpu",
    }
    return Profile(name="test", models=ModelSettings(**(settings | changes)), sheet=SheetSettings(width=96, height=96))  # type: ignore[arg-type]


def template() -> Image.Image:
    image = Image.new("RGB", (96, 96), "white")
    draw = ImageDraw.Draw(image)
    for x in (2, 33, 64):
        draw.rectangle((x, 2, x + 28, 92), outline="black", width=2)
    return image


def draw(editor: QwenEdit, steps: int = 2, guidance: float = 2.0) -> np.ndarray:
    editor.vae_area, editor.condition_area = 64 * 64, 56 * 56
    return np.asarray(editor.draw(template(), "an orc", seed=1, steps=steps, guidance=guidance), dtype=np.int16)


def without_loras(comfyui: Path, tmp_path: Path) -> Path:
    root = tmp_path / "ComfyUI"
    shutil.copytree(comfyui.parent, root, ignore=shutil.ignore_patterns("loras"))
    return root / "models"
