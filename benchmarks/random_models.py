"""The full-size family with random weights, made on the device in seconds: what a benchmark needs when nothing can be downloaded.

Every layer has weights of its own in memory, though layers of one shape hold the same values: neither speed nor memory
depends on them. Tokenizers are byte-level, so prompts have three to four times the tokens they would really have.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from functools import lru_cache, partial
from pathlib import Path
from typing import Any

import torch
from PIL import Image, ImageDraw
from torch import nn

from charengine.embedded.making import family
from charengine.models.classes import on_meta, packaged_config, read_config
from charengine.models.file_parts import QwenFiles, SDXLFiles, tiled_when_out_of_memory
from charengine.models.memory import MemoryPlan, Part
from charengine.models.quantised import Packed, State, pack_fp8

SPECIALS = (
    "<|endoftext|>",
    "<|im_start|>",
    "<|im_end|>",
    "<|vision_start|>",
    "<|vision_end|>",
    "<|image_pad|>",
    "<|video_pad|>",
)
LIGHTNING_RANK = 64


def write_configs(folder: Path, tiny: bool) -> Path:
    """Configurations and tokenizers, as diffusers folders `qwen` and `sdxl` without weights; full size or the tests' tiny."""
    from transformers import CLIPTokenizer, Qwen2Tokenizer
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    if tiny:
        family.build_random_family(folder / "family", tiny=True)
        for name in ("qwen", "sdxl"):
            keep = shutil.ignore_patterns("*.safetensors", "tokenizer*")
            shutil.copytree(folder / "family" / name, folder / name, ignore=keep)
    else:
        shutil.copytree(packaged_config("qwen-image-edit"), folder / "qwen")
        shutil.copytree(packaged_config("sdxl"), folder / "sdxl")
    letters = list(bytes_to_unicode().values())
    qwen = Qwen2Tokenizer(
        vocab={word: i for i, word in enumerate([*letters, *SPECIALS])},
        merges=[],
        additional_special_tokens=list(SPECIALS[1:]),
    )
    qwen.save_pretrained(folder / "qwen" / "tokenizer")
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77).save_pretrained(
        folder / "sdxl" / "tokenizer"
    )
    _point_at_tokenizer(folder / "qwen" / "text_encoder" / "config.json", qwen, tiny)
    if tiny:
        for name in ("text_encoder", "text_encoder_2"):
            _change(
                folder / "sdxl" / name / "config.json",
                {"vocab_size": len(words), "bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1},
            )
    return folder


def _point_at_tokenizer(file: Path, tokenizer: Any, tiny: bool) -> None:
    ids = {
        name: tokenizer.convert_tokens_to_ids(f"<|{name}|>")
        for name in ("image_pad", "video_pad", "vision_start", "vision_end")
    }
    config = json.loads(file.read_text())
    if tiny:
        config["text_config"]["vocab_size"] = 400  # more than the tokenizer has, as in the real model
    config |= {"image_token_id": ids["image_pad"], "video_token_id": ids["video_pad"], "tie_word_embeddings": False}
    config |= {"vision_start_token_id": ids["vision_start"], "vision_end_token_id": ids["vision_end"]}
    config["text_config"]["tie_word_embeddings"] = False
    file.write_text(json.dumps(config))


def _change(file: Path, values: dict[str, Any]) -> None:
    file.write_text(json.dumps(json.loads(file.read_text()) | values))


class RandomQwen(QwenFiles):
    """`QwenFiles` whose files are made up: fp8 in the blocks, as ComfyUI's files are; answers are `answer` tokens long."""

    def __init__(
        self, config: Path, device: torch.device, dtype: torch.dtype, plan: MemoryPlan, *, answer: int
    ) -> None:
        nowhere = Path("random weights")
        tokenizer = config / "tokenizer"
        super().__init__(nowhere, nowhere, nowhere, config, tokenizer, device, dtype, plan, zero_cond_t=True)  # as 2511
        self.answer = answer

    def text_encoder(self) -> Any:
        """As its base, but it never stops early."""
        model = super().text_encoder()
        model.generation_config.min_new_tokens = self.answer
        return model

    def _read(self, name: str, rename: Callable[[State], State]) -> State:
        packed = _in_blocks if name != "vae" else None
        return on_host(random_state(meta(self.config, name), self.dtype, self.device, packed=packed))


@lru_cache
def meta(config: Path, name: str) -> nn.Module:
    """A Qwen part without weights."""
    from diffusers import AutoencoderKLQwenImage, QwenImageTransformer2DModel
    from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

    values = read_config(config, "qwen-image-edit", name)
    if name == "text_encoder":
        return on_meta(lambda: Qwen2_5_VLForConditionalGeneration(Qwen2_5_VLConfig.from_dict(values)))
    kind = QwenImageTransformer2DModel if name == "transformer" else AutoencoderKLQwenImage
    return on_meta(lambda: kind.from_config(values))


def _in_blocks(name: str) -> bool:
    return "transformer_blocks." in name or "language_model.layers." in name or "visual.blocks." in name


def random_state(
    module: nn.Module, dtype: torch.dtype, device: torch.device, packed: Callable[[str], bool] | None
) -> State:
    """Random weights for a meta module, on `device`; equal shapes share one tensor."""
    linear = {f"{name}.weight" for name, layer in module.named_modules() if isinstance(layer, nn.Linear)}
    made: dict[tuple[Any, ...], torch.Tensor | Packed] = {}
    state: State = {}
    for name, tensor in module.state_dict().items():
        pack = packed is not None and name in linear and packed(name)
        role = (
            "pack"
            if pack
            else "scale"
            if name.endswith(("norm.weight", "gamma"))
            or (tensor.ndim == 1 and "norm" in name and name.endswith("weight"))
            else "bias"
            if tensor.ndim == 1
            else "plain"
        )
        key = (role, tuple(tensor.shape))
        if key not in made:
            made[key] = _random(role, tuple(tensor.shape), dtype, device)
        state[name] = made[key]
    return state


def _random(role: str, shape: tuple[int, ...], dtype: torch.dtype, device: torch.device) -> torch.Tensor | Packed:
    if role == "scale":
        return torch.ones(shape, dtype=dtype, device=device)
    if role == "bias":
        return torch.zeros(shape, dtype=dtype, device=device)
    weight = torch.empty(shape, dtype=dtype, device=device).normal_(0, 0.02)
    return weight if role == "plain" else pack_fp8(weight)


def on_host(state: State) -> State:
    """The same weights in host memory; what shares a tensor goes on sharing one, until it is placed."""
    moved: dict[int, torch.Tensor | Packed] = {}
    for value in state.values():
        if id(value) in moved:
            continue
        if isinstance(value, Packed):
            scale = None if value.scale is None else value.scale.cpu()
            moved[id(value)] = Packed(value.data.cpu(), value.packing, value.shape, scale)
        else:
            moved[id(value)] = value.cpu()
    return {name: moved[id(value)] for name, value in state.items()}


class RandomSDXL(SDXLFiles):
    """`SDXLFiles` with made-up weights, straight on the device."""

    def __init__(self, config: Path, device: torch.device, dtype: torch.dtype) -> None:
        super().__init__(Path("random weights"), config, config / "tokenizer", None, device, dtype)

    def text_encoders(self) -> tuple[Any, Any]:
        """CLIP ViT-L and OpenCLIP ViT-bigG."""
        from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection

        kinds = {"text_encoder": CLIPTextModel, "text_encoder_2": CLIPTextModelWithProjection}
        configs = {name: CLIPTextConfig(**read_config(self.config, "sdxl", name)) for name in kinds}
        first, second = (self._random(on_meta(partial(kinds[name], configs[name])), self.dtype) for name in kinds)
        return first, second

    def vae(self) -> Any:
        """The VAE, float32."""
        from diffusers import AutoencoderKL

        vae = self._random(
            on_meta(lambda: AutoencoderKL.from_config(read_config(self.config, "sdxl", "vae"))), torch.float32
        )
        vae.enable_slicing()
        return tiled_when_out_of_memory(vae)

    def unet(self) -> Any:
        """The U-Net."""
        from diffusers import UNet2DConditionModel

        return self._random(
            on_meta(lambda: UNet2DConditionModel.from_config(read_config(self.config, "sdxl", "unet"))), self.dtype
        )

    def _random(self, module: nn.Module, dtype: torch.dtype) -> Any:
        state = random_state(module, dtype, self.device, None)
        own = {key: value.clone() for key, value in state.items() if isinstance(value, torch.Tensor)}
        module.load_state_dict(own, strict=True, assign=True)
        return module.to(self.device).requires_grad_(False).eval()


def write_lightning(path: Path, config: Path, device: torch.device, rank: int = LIGHTNING_RANK) -> Path:
    """A LoRA of the published Lightning files' shape: attention and MLPs of both streams, rank 64, bf16."""
    from safetensors.torch import save_file

    tensors: dict[str, torch.Tensor] = {}
    for name, layer in meta(config, "transformer").named_modules():
        if isinstance(layer, nn.Linear) and "transformer_blocks." in name and "_mod." not in name:
            down = torch.empty(rank, layer.in_features, dtype=torch.bfloat16, device=device).normal_(0, 0.02)
            up = torch.empty(layer.out_features, rank, dtype=torch.bfloat16, device=device).normal_(0, 0.02)
            tensors |= {f"{name}.lora_down.weight": down.cpu(), f"{name}.lora_up.weight": up.cpu()}
    save_file(tensors, path)
    return path


def write_scorers(folder: Path, tiny: bool, device: torch.device) -> tuple[Path, Path]:
    """CLIP ViT-B/32 and DINOv2-base folders; byte-level tokenizer."""
    from transformers import CLIPConfig, CLIPModel, CLIPTokenizer, Dinov2Config, Dinov2Model
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), "<|startoftext|>", "<|endoftext|>"]
    ids = {"bos_token_id": len(words) - 2, "eos_token_id": len(words) - 1, "pad_token_id": len(words) - 1}
    small = {"hidden_size": 32, "intermediate_size": 37, "num_hidden_layers": 2, "num_attention_heads": 4}
    size = small if tiny else {}
    prepare = {
        "size": {"shortest_edge": 224},
        "crop_size": 224,
        "image_mean": [0.48, 0.46, 0.41],
        "image_std": [0.27, 0.26, 0.28],
    }
    with device:
        clip = CLIPModel(
            CLIPConfig(
                text_config={**size, **ids, "vocab_size": len(words)},
                vision_config={**size},
                projection_dim=32 if tiny else 512,
            )
        )
        dino = Dinov2Model(Dinov2Config(**({**small, "mlp_ratio": 2} if tiny else {})))
    for name, model in (("clip", clip), ("dino", dino)):
        model.to(torch.float16).save_pretrained(folder / name)
        (folder / name / "preprocessor_config.json").write_text(json.dumps(prepare))
    CLIPTokenizer(vocab={word: i for i, word in enumerate(words)}, merges=[], model_max_length=77).save_pretrained(
        folder / "clip"
    )
    return folder / "clip", folder / "dino"


def part_of(module: torch.nn.Module, name: str) -> Part:
    """Sizes of a meta module as it will be held: fp8 matrices in its blocks, two bytes for the rest."""
    blocks = "transformer_blocks." if name == "transformer" else "language_model.layers."
    inside: dict[str, int] = {}
    rest = 0
    for key, tensor in module.state_dict().items():
        packed = tensor.ndim == 2 and _in_blocks(key)
        size = tensor.numel() * (1 if packed else 2)
        if blocks in key:
            number = key.split(blocks)[1].split(".")[0]
            inside[number] = inside.get(number, 0) + size
        else:
            rest += size
    return Part(name.replace("_", " "), len(inside), max(inside.values()), rest, 0)


def figures(width: int, height: int) -> Image.Image:
    """A sheet of three plain figures on white, for the stages behind the sheet."""
    image = Image.new("RGB", (width, height), "white")
    draw = ImageDraw.Draw(image)
    for i, half in enumerate((90, 60, 90)):
        x = width * (2 * i + 1) // 6
        draw.ellipse((x - 45, 60, x + 45, 170), fill="#7a9a5b")
        draw.rectangle((x - half, 170, x + half, height - 320), fill="#27408b")
        draw.rectangle((x - half + 15, height - 320, x + half - 15, height - 60), fill="#3b2b20")
    return image
