"""Full-size modules from the files people have: any layout of `layouts.py`, packed or not, resident or streamed."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from charengine import files
from charengine.models import classes, layouts
from charengine.models.classes import packaged_config
from charengine.models.llama_names import files_of_text_encoder
from charengine.models.quantised import State, fill
from charengine.models.sdxl_parts import SDXLFolder
from charengine.models.streaming import BlockStream, shrink_when_out_of_memory

if TYPE_CHECKING:
    from diffusers import AutoencoderKL, UNet2DConditionModel

    from charengine.models.memory import MemoryPlan

log = logging.getLogger(__name__)


def tiled_when_out_of_memory(vae: Any) -> Any:
    """A VAE that works in tiles from the first time the whole does not fit the memory budget; the log says so."""

    def guarded(work: Callable[..., Any]) -> Callable[..., Any]:
        def call(*args: Any, **kwargs: Any) -> Any:
            try:
                return work(*args, **kwargs)
            except torch.cuda.OutOfMemoryError:
                if vae.use_tiling:
                    raise
            log.warning("the VAE does not fit the memory budget whole: it works in tiles from here on")
            torch.cuda.empty_cache()
            vae.enable_tiling()
            if hasattr(vae, "tile_latent_min_size"):  # AutoencoderKL: half the side it was trained at
                vae.tile_sample_min_size, vae.tile_latent_min_size = (
                    vae.tile_sample_min_size // 2,
                    vae.tile_latent_min_size // 2,
                )
            return work(*args, **kwargs)

        return call

    vae.encode, vae.decode = guarded(vae.encode), guarded(vae.decode)
    return vae


class QwenFiles:
    """`QwenEditParts` from files: a transformer, a text encoder and a VAE, each a file or a folder.

    Args:
        transformer: diffusers, ComfyUI or GGUF layout.
        text_encoder: transformers', Qwen's or ComfyUI's layout.
        vae: diffusers' or Wan's layout.
        config: diffusers folder whose configurations describe them.
        tokenizer: folder with Qwen's tokenizer.
        device: where they compute.
        dtype: of everything that is not packed.
        plan: which blocks stay on the device.
        zero_cond_t: the transformer is Qwen-Image-Edit-2511, which keeps its reference tokens at time 0.
        roomy_host: host memory holds all weights page-locked, so that a model that left the device is back in no time.
    """

    def __init__(
        self,
        transformer: Path,
        text_encoder: Path,
        vae: Path,
        config: Path,
        tokenizer: Path,
        device: torch.device,
        dtype: torch.dtype,
        plan: MemoryPlan,
        *,
        zero_cond_t: bool = False,
        roomy_host: bool = True,
    ) -> None:
        self.paths = {"transformer": transformer, "text_encoder": text_encoder, "vae": vae}
        self.config, self.tokenizer_folder = config, tokenizer
        self.device, self.dtype, self.plan = device, dtype, plan
        self.zero_cond_t, self.roomy_host = zero_cond_t, roomy_host
        self._streams: dict[str, BlockStream] = {}

    def text_encoder(self) -> Any:
        """Qwen2_5_VLForConditionalGeneration, language blocks streamed if the plan says so."""
        return self._placed("text_encoder", self._build_text_encoder)

    def transformer(self) -> Any:
        """QwenImageTransformer2DModel, blocks streamed if the plan says so."""
        return self._placed("transformer", self._build_transformer)

    def vae(self) -> Any:
        """AutoencoderKLQwenImage; works in tiles if the plan says so."""
        module = classes.qwen_vae(self.config)
        state = self._read("vae", lambda raw: layouts.qwen_vae(raw, module.config["num_res_blocks"]))
        vae: Any = fill(module, state, self.dtype, str(self.paths["vae"])).to(self.device)
        if self.plan.tile_vae:
            vae.enable_tiling()
        return tiled_when_out_of_memory(vae)

    def processor(self) -> Any:
        """Qwen's processor over the tokenizer that was found."""
        from transformers import Qwen2Tokenizer
        from transformers.models.qwen2_vl.image_processing_pil_qwen2_vl import Qwen2VLImageProcessorPil

        from charengine.models.processor import ImageTextProcessor

        own = self.config / "processor" / "preprocessor_config.json"
        file = (
            own if files.is_file(own) else packaged_config("qwen-image-edit") / "processor" / "preprocessor_config.json"
        )
        known = (
            "min_pixels", "max_pixels", "patch_size", "temporal_patch_size", "merge_size", "image_mean", "image_std", "size",
        )  # fmt: skip
        config = {key: value for key, value in json.loads(file.read_text(encoding="utf-8")).items() if key in known}
        tokenizer = Qwen2Tokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True)
        return ImageTextProcessor(image_processor=Qwen2VLImageProcessorPil(**config), tokenizer=tokenizer)

    def tokenizer(self) -> Any:
        """The tokenizer inside the processor."""
        return self.processor().tokenizer

    def scheduler(self) -> Any:
        """The flow-matching scheduler of the configuration."""
        return classes.flow_schedule(self.config)

    def release(self, name: str) -> bool:
        """Take a model off the device; where its weights stay on the host, this is True."""
        if name in self._streams:
            self._streams[name].release()
        return name in self._streams

    def drop(self, name: str) -> None:
        """Give up a model that is off the device; the next use reads its file again."""
        self._streams.pop(name, None)

    def _placed(self, name: str, build: Callable[[], BlockStream]) -> Any:
        if name not in self._streams:
            log.info("loading %s from %s", name.replace("_", " "), self.paths[name])
            self._streams[name] = build()
        stream = self._streams[name]
        stream.place()
        return stream.module

    def _build_transformer(self) -> BlockStream:
        state = self._read("transformer", layouts.qwen_transformer)
        module = classes.transformer(self.config, classes.depth_of(state), zero_cond_t=self.zero_cond_t)
        placement = self.plan.transformer
        self._fill(module, state, "transformer", "transformer_blocks." if placement.fp8 else "")
        stream = self._stream(module, module.transformer_blocks, placement.resident)
        shrink_when_out_of_memory(stream)
        return stream

    def _build_text_encoder(self) -> BlockStream:
        from transformers import GenerationConfig

        module = classes.vision_language(self.config)
        state = self._read("text_encoder", layouts.qwen_text_encoder)
        if "lm_head.weight" not in state:  # tied, or left out because encoding prompts needs no answers
            state["lm_head.weight"] = state["model.language_model.embed_tokens.weight"]
        placement = self.plan.encoder
        self._fill(module, state, "text_encoder", "language_model.layers." if placement.fp8 else "")
        own = self.config / "text_encoder" / "generation_config.json"
        folder = own.parent if files.is_file(own) else packaged_config("qwen-image-edit") / "text_encoder"
        if files.is_file(own) or not files.is_file(self.config / "text_encoder" / "config.json"):
            module.generation_config = GenerationConfig.from_pretrained(folder, local_files_only=True)
        return self._stream(module, module.model.language_model.layers, placement.resident)

    def _stream(self, module: nn.Module, blocks: nn.ModuleList, resident: int) -> BlockStream:
        return BlockStream(module, blocks, self.device, resident, lock_resident=self.roomy_host)

    def _read(self, name: str, rename: Callable[[State], State]) -> State:
        """A file's weights under the module's own names."""
        path = self.paths[name]
        raw: State = {}
        for file in files_of_text_encoder(path) if name == "text_encoder" else [path]:
            raw |= layouts.read_state(file)
        return rename(raw)

    def _fill(self, module: nn.Module, state: State, name: str, rounded: str) -> None:
        """Weights into a meta module; linear layers whose name holds `rounded` become fp8."""
        fp8 = (lambda layer: rounded in layer) if rounded else None
        fill(module, state, self.dtype, str(self.paths[name]), fp8=fp8, device=self.device)


class SDXLFiles(SDXLFolder):
    """SDXL's modules from a single-file checkpoint, or from a diffusers folder with another VAE.

    Args:
        checkpoint: the file or folder.
        config: diffusers folder whose configurations describe it.
        tokenizer: folder with CLIP's vocabulary, or a diffusers folder.
        vae: a VAE file or folder to use instead of the checkpoint's own.
        device: where they compute.
        dtype: of U-Net and text encoders; the VAE is float32.
    """

    def __init__(
        self,
        checkpoint: Path,
        config: Path,
        tokenizer: Path | None,
        vae: Path | None,
        device: torch.device,
        dtype: torch.dtype,
    ) -> None:
        super().__init__(checkpoint if files.is_dir(checkpoint) else config, device, dtype)
        self.checkpoint, self.tokenizer_folder, self.vae_path = checkpoint, tokenizer, vae
        self.config = self.folder

    def text_encoders(self) -> tuple[Any, Any]:
        """CLIP ViT-L and OpenCLIP ViT-bigG."""
        read = {"text_encoder": layouts.sdxl_first_encoder, "text_encoder_2": layouts.sdxl_second_encoder}
        first, second = (
            self._filled(classes.sdxl_text_encoder(self.config, name), self._part(name) or read[name](self.checkpoint))
            for name in read
        )
        return first, second

    def tokenizers(self) -> tuple[Any, Any]:
        """One vocabulary, padded with its end token for the first encoder and with "!" for the second."""
        if self.tokenizer_folder is None:
            return super().tokenizers()
        from transformers import CLIPTokenizer

        first, second = (CLIPTokenizer.from_pretrained(self.tokenizer_folder, local_files_only=True) for _ in range(2))
        second.pad_token = "!"
        first.model_max_length = second.model_max_length = 77
        return first, second

    def vae(self) -> AutoencoderKL:
        """The VAE, float32 (its half precision overflows), one picture at a time."""
        source = self.vae_path or self.checkpoint
        inner = source / "vae" if files.is_dir(source / "vae") else source
        module = classes.sdxl_vae(source if inner != source else self.config)
        vae = self._filled(module, layouts.sdxl_vae(inner, dict(module.config)), torch.float32)
        vae.enable_slicing()
        return tiled_when_out_of_memory(vae)

    def unet(self) -> UNet2DConditionModel:
        """The U-Net."""
        module = classes.sdxl_unet(self.config)
        state = self._part("unet") or layouts.sdxl_unet(self.checkpoint, dict(module.config))
        unet: UNet2DConditionModel = self._filled(module, state)
        return unet

    def _part(self, name: str) -> State:
        """A part of a diffusers folder, whatever its files are called; nothing where the checkpoint is one file."""
        return layouts.sdxl_part_of_folder(self.checkpoint / name) if files.is_dir(self.checkpoint) else {}

    def _filled(self, module: nn.Module, state: State, dtype: torch.dtype | None = None) -> Any:
        state = classes.without_text_model(module, state)
        return fill(module, state, dtype or self.dtype, str(self.checkpoint)).to(self.device)
