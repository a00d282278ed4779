"""The embedded family's architectures, and the Hugging Face folders they are kept in.

    <folder>/qwen/   QwenImageEditPlusPipeline      draws sheets; its Qwen2.5-VL also captions
    <folder>/sdxl/   StableDiffusionXLPipeline      draws single pictures, and takes adapters
    <folder>/clip/   CLIPModel                      scores pictures

`Sizes()` is what ships; `TINY` is for unit tests.
"""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch

from charengine.embedded.eight_bits import SCALE
from charengine.embedded.making.vocabulary import build_qwen_tokenizer, clip_tokenizer

if TYPE_CHECKING:
    from diffusers import QwenImageEditPlusPipeline, StableDiffusionXLPipeline
    from transformers import CLIPModel


"""Sheets are SHEET_SIZE x SHEET_SIZE pixels."""
"""`pipeline_qwenimage_edit_plus.VAE_IMAGE_SIZE` for this family: the template is encoded at the sheet's own size."""
"""`pipeline_qwenimage_edit_plus.CONDITION_IMAGE_SIZE`: the VL encoder sees the template in 3 x 3 tokens."""
CLIP_SIZE = 192
"""The CLIP model's input side. Pictures are padded to a square with white before they are resized to it."""
LATENT_CHANNELS = {"qwen": 16, "sdxl": 4}


@dataclass(frozen=True)
class Sizes:
    """Widths and depths. Names: dit, vl (language), vit (the VL's eyes), qvae, svae, unet, te (SDXL text), clip."""

    dit_layers: int = 5
    dit_heads: int = 6
    dit_head_dim: int = 32
    dit_rope: tuple[int, int, int] = (4, 14, 14)
    vl_width: int = 160
    vl_layers: int = 4
    vl_heads: int = 5
    vl_mlp: int = 448
    vit_width: int = 128
    vit_layers: int = 4
    vit_heads: int = 4
    vit_mlp: int = 352
    qvae_width: int = 24
    qvae_mult: tuple[int, ...] = (1, 2, 2, 2)
    svae_widths: tuple[int, ...] = (24, 48, 64, 64)
    unet_widths: tuple[int, ...] = (64, 96, 128)
    unet_heads: tuple[int, ...] = (2, 3, 4)
    unet_resnets: int = 1
    unet_transformers: tuple[int, ...] = (1, 1, 1)
    te_width: int = 96
    te_layers: tuple[int, int] = (3, 3)
    clip_width: int = 128
    clip_layers: int = 5
    clip_text_width: int = 96
    clip_text_layers: int = 3


TINY = Sizes(
    dit_layers=2, dit_heads=2, dit_head_dim=16, dit_rope=(4, 6, 6), vl_width=32, vl_layers=2, vl_heads=2, vl_mlp=32,
    vit_width=32, vit_layers=2, vit_heads=2, vit_mlp=32, qvae_width=4, qvae_mult=(1, 1, 1, 1), svae_widths=(8, 8, 8, 8),
    unet_widths=(16, 32), unet_heads=(2, 2), unet_resnets=1, unet_transformers=(1, 1), te_width=16,
    te_layers=(2, 2), clip_width=32, clip_layers=2, clip_text_width=32, clip_text_layers=2,
)  # fmt: skip


def build_transformer(sizes: Sizes) -> torch.nn.Module:
    """The sheet model's denoiser, `QwenImageTransformer2DModel`."""
    from diffusers import QwenImageTransformer2DModel

    model: torch.nn.Module = QwenImageTransformer2DModel(
        patch_size=2,
        in_channels=4 * LATENT_CHANNELS["qwen"],
        out_channels=LATENT_CHANNELS["qwen"],
        num_layers=sizes.dit_layers,
        attention_head_dim=sizes.dit_head_dim,
        num_attention_heads=sizes.dit_heads,
        joint_attention_dim=sizes.vl_width,
        axes_dims_rope=sizes.dit_rope,
    )
    return model


def build_qwen_vae(sizes: Sizes) -> torch.nn.Module:
    """`AutoencoderKLQwenImage`: 8x smaller, 16 channels; no temporal layers, for it only ever sees still pictures."""
    from diffusers import AutoencoderKLQwenImage

    channels = LATENT_CHANNELS["qwen"]
    model: torch.nn.Module = AutoencoderKLQwenImage(
        base_dim=sizes.qvae_width,
        z_dim=channels,
        dim_mult=list(sizes.qvae_mult),
        num_res_blocks=1,
        temperal_downsample=[False, False, False],
        latents_mean=[0.0] * channels,
        latents_std=[1.0] * channels,
    )
    return model


def build_vision_language(sizes: Sizes, tokenizer: Any) -> torch.nn.Module:
    """`Qwen2_5_VLForConditionalGeneration`: reads the sheet prompt for the denoiser, and captions pictures."""
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    token = tokenizer.convert_tokens_to_ids
    half = sizes.vl_width // sizes.vl_heads // 2
    time = half // 4
    height = (half - time) // 2
    config = Qwen2_5_VLConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": sizes.vl_width,
            "intermediate_size": sizes.vl_mlp,
            "num_hidden_layers": sizes.vl_layers,
            "num_attention_heads": sizes.vl_heads,
            "num_key_value_heads": sizes.vl_heads,
            "max_position_embeddings": 2048,
            "rope_parameters": {
                "mrope_section": [time, height, half - time - height],
                "rope_type": "default",
                "rope_theta": 10000.0,
            },
            "bos_token_id": token("<|endoftext|>"),
            "eos_token_id": token("<|im_end|>"),
            "pad_token_id": token("<|endoftext|>"),
            "tie_word_embeddings": True,
        },
        vision_config={
            "depth": sizes.vit_layers,
            "hidden_size": sizes.vit_width,
            "intermediate_size": sizes.vit_mlp,
            "num_heads": sizes.vit_heads,
            "out_hidden_size": sizes.vl_width,
            "fullatt_block_indexes": list(range(sizes.vit_layers)),
        },
        image_token_id=token("<|image_pad|>"),
        video_token_id=token("<|video_pad|>"),
        vision_start_token_id=token("<|vision_start|>"),
        vision_end_token_id=token("<|vision_end|>"),
        tie_word_embeddings=True,
    )
    model = Qwen2_5_VLForConditionalGeneration(config)
    model.generation_config.eos_token_id = token("<|im_end|>")
    model.generation_config.pad_token_id = token("<|endoftext|>")
    reader: torch.nn.Module = model
    return reader


def build_processor(tokenizer: Any) -> Any:
    """Pictures and text for the VL model, without torchvision."""
    from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

    from charengine.models.processor import ImageTextProcessor

    # The pipeline hands over an already small template; `caption_inputs` sets its own size.
    images = Qwen2VLImageProcessorPil(min_pixels=56 * 56, max_pixels=448 * 448)
    return ImageTextProcessor(image_processor=images, tokenizer=tokenizer, chat_template=None)


def build_qwen(sizes: Sizes) -> QwenImageEditPlusPipeline:
    """The sheet pipeline with fresh weights."""
    from diffusers import FlowMatchEulerDiscreteScheduler, QwenImageEditPlusPipeline

    tokenizer = build_qwen_tokenizer()
    return QwenImageEditPlusPipeline(
        scheduler=FlowMatchEulerDiscreteScheduler(shift=3.0),
        vae=build_qwen_vae(sizes),
        text_encoder=build_vision_language(sizes, tokenizer),
        tokenizer=tokenizer,
        processor=build_processor(tokenizer),
        transformer=build_transformer(sizes),
    )


def build_sdxl_vae(sizes: Sizes) -> torch.nn.Module:
    """`AutoencoderKL`: 8x smaller, 4 channels."""
    from diffusers import AutoencoderKL

    blocks = len(sizes.svae_widths)
    model: torch.nn.Module = AutoencoderKL(
        down_block_types=("DownEncoderBlock2D",) * blocks,
        up_block_types=("UpDecoderBlock2D",) * blocks,
        block_out_channels=sizes.svae_widths,
        layers_per_block=1,
        latent_channels=LATENT_CHANNELS["sdxl"],
        norm_num_groups=8,
        sample_size=256,
        scaling_factor=1.0,
        force_upcast=False,
    )
    return model


def build_unet(sizes: Sizes) -> torch.nn.Module:
    """`UNet2DConditionModel` with SDXL's structure: text_time conditioning, no attention at full resolution."""
    from diffusers import UNet2DConditionModel

    deeper = len(sizes.unet_widths) - 1
    model: torch.nn.Module = UNet2DConditionModel(
        sample_size=32,
        in_channels=LATENT_CHANNELS["sdxl"],
        out_channels=LATENT_CHANNELS["sdxl"],
        down_block_types=("DownBlock2D", *("CrossAttnDownBlock2D",) * deeper),
        up_block_types=(*("CrossAttnUpBlock2D",) * deeper, "UpBlock2D"),
        block_out_channels=sizes.unet_widths,
        layers_per_block=sizes.unet_resnets,
        transformer_layers_per_block=sizes.unet_transformers,
        attention_head_dim=sizes.unet_heads,  # as in SDXL's own config, this is the number of heads
        cross_attention_dim=2 * sizes.te_width,
        norm_num_groups=8,
        use_linear_projection=True,
        addition_embed_type="text_time",
        addition_time_embed_dim=32,
        projection_class_embeddings_input_dim=6 * 32 + sizes.te_width,
    )
    return model


def build_text_encoders(sizes: Sizes, tokenizer: Any) -> tuple[torch.nn.Module, torch.nn.Module]:
    """SDXL's two text encoders; the second also gives the pooled embedding."""
    from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

    def config(layers: int) -> CLIPTextConfig:
        return CLIPTextConfig(
            vocab_size=len(tokenizer),
            hidden_size=sizes.te_width,
            intermediate_size=4 * sizes.te_width,
            num_hidden_layers=layers,
            num_attention_heads=sizes.te_width // 16 if sizes.te_width < 64 else sizes.te_width // 32,
            projection_dim=sizes.te_width,
            bos_token_id=tokenizer.bos_token_id,
            eos_token_id=tokenizer.eos_token_id,
            pad_token_id=tokenizer.pad_token_id,
        )

    return CLIPTextModel(config(sizes.te_layers[0])), CLIPTextModelWithProjection(config(sizes.te_layers[1]))


def build_sdxl(sizes: Sizes) -> StableDiffusionXLPipeline:
    """The picture pipeline with fresh weights."""
    from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

    tokenizer = clip_tokenizer()
    text_encoder, text_encoder_2 = build_text_encoders(sizes, tokenizer)
    return StableDiffusionXLPipeline(
        vae=build_sdxl_vae(sizes),
        text_encoder=text_encoder,
        text_encoder_2=text_encoder_2,
        tokenizer=tokenizer,
        tokenizer_2=clip_tokenizer(),
        unet=build_unet(sizes),
        scheduler=EulerDiscreteScheduler(
            beta_start=0.00085,
            beta_end=0.012,
            beta_schedule="scaled_linear",
            steps_offset=1,
            timestep_spacing="leading",
        ),
        force_zeros_for_empty_prompt=False,
        add_watermarker=False,
    )


def build_clip(sizes: Sizes) -> tuple[CLIPModel, Any, Any]:
    """The scoring model with fresh weights, its tokenizer and its image processor."""
    from transformers import CLIPConfig, CLIPModel
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    tokenizer = clip_tokenizer()
    config = CLIPConfig(
        text_config={
            "vocab_size": len(tokenizer),
            "hidden_size": sizes.clip_text_width,
            "intermediate_size": 4 * sizes.clip_text_width,
            "num_hidden_layers": sizes.clip_text_layers,
            "num_attention_heads": sizes.clip_text_width // 16,
            "bos_token_id": tokenizer.bos_token_id,
            "eos_token_id": tokenizer.eos_token_id,
            "pad_token_id": tokenizer.pad_token_id,
        },
        vision_config={
            "hidden_size": sizes.clip_width,
            "intermediate_size": 4 * sizes.clip_width,
            "num_hidden_layers": sizes.clip_layers,
            "num_attention_heads": sizes.clip_width // 16,
            "image_size": CLIP_SIZE,
            "patch_size": 16,
        },
        projection_dim=sizes.clip_width,
    )
    side = {"height": CLIP_SIZE, "width": CLIP_SIZE}
    images = CLIPImageProcessorPil(size=side, crop_size=side, do_center_crop=False, resample=2)
    return CLIPModel(config), tokenizer, images


def save_qwen(pipeline: QwenImageEditPlusPipeline, folder: Path) -> None:
    """Write the sheet pipeline, fp16."""
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)


def save_sdxl(pipeline: StableDiffusionXLPipeline, folder: Path) -> None:
    """Write the picture pipeline, fp16."""
    pipeline.to(dtype=torch.float16)
    pipeline.save_pretrained(folder, safe_serialization=True)


def save_clip(model: CLIPModel, tokenizer: Any, images: Any, folder: Path) -> None:
    """Write the scoring model, fp16."""
    model.to(dtype=torch.float16).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    images.save_pretrained(folder)


def build_random_family(folder: Path, seed: int = 0, *, tiny: bool = False) -> Path:
    """Write the whole family with random weights.

    Args:
        folder: gets `qwen/`, `sdxl/` and `clip/`.
        seed: of the weights; the caller's global generator is left as it was.
        tiny: the two-layer sizes of unit tests instead of the shipped ones.

    Returns:
        `folder`.
    """
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    sizes = TINY if tiny else Sizes()
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        save_qwen(build_qwen(sizes), folder / "qwen")
        save_sdxl(build_sdxl(sizes), folder / "sdxl")
        save_clip(*build_clip(sizes), folder / "clip")
    return folder


def count_parameters(folder: Path) -> dict[str, int]:
    """Parameters in each safetensors file under `folder`, by path relative to it; reads headers only."""
    counts: dict[str, int] = {}
    for path in sorted(folder.rglob("*.safetensors")):
        with path.open("rb") as file:
            header = json.loads(file.read(int.from_bytes(file.read(8), "little")))
        shapes = [
            entry["shape"] for name, entry in header.items() if name != "__metadata__" and not name.endswith(SCALE)
        ]
        counts[path.relative_to(folder).as_posix()] = sum(int(torch.Size(shape).numel()) for shape in shapes)
    return counts
