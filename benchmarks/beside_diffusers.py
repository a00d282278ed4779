"""What diffusers' and transformers' own pipelines take for the same work, for `full_pipeline.py --beside diffusers`.

As favourable to them as can be: eager as a page of their manual shows it, but with every weight in bfloat16 on the GPU and no
memory budget. What ran is a part, and what is concluded from it says so.
"""

from __future__ import annotations

import itertools
import statistics
import time
from functools import partial
from pathlib import Path
from typing import Any

import random_models
import torch
from PIL import Image
from stages import Bench

from charengine.models import classes
from charengine.models.processor import fix_position_ids

SHEET_STEPS, TOKENS = 4, 24  # that are run of the sheet's and of an answer's


class BesideDiffusers:
    """The stock pipelines over random weights.

    Args:
        bench: runs the stages.
        parts: of our pipeline; its processor, scheduler and VAE are used.
        sdxl: likewise.
        folder: with configurations.
    """

    def __init__(
        self, bench: Bench, parts: random_models.RandomQwen, sdxl: random_models.RandomSDXL, folder: Path
    ) -> None:
        self.bench, self.parts, self.sdxl, self.folder = bench, parts, sdxl, folder
        self.device, self.dtype = parts.device, parts.dtype

    def run(self, template: Image.Image, prompt: str, views: list[Image.Image], question: str, size: Any) -> None:
        """All of it, without a cap on memory."""
        if self.device.type == "cuda":
            torch.cuda.set_per_process_memory_fraction(1.0, torch.cuda.current_device())
        self._with_encoder(template, prompt, views, question)
        self.bench.stage("diffusers: four pictures, 20 steps, CFG", lambda: self._pictures(*size))

    def _with_encoder(self, template: Image.Image, prompt: str, views: list[Image.Image], question: str) -> None:
        """What Qwen2.5-VL is needed for; it is freed with the last of it."""
        encoder = self._whole("text_encoder")
        fix_position_ids(encoder)
        self.bench.stage("diffusers: captions", partial(self._captions, encoder, views, question))
        self.bench.stage("diffusers: sheet, CFG", partial(self._sheet, encoder, template, prompt))

    def _whole(self, name: str) -> Any:
        """A Qwen part in the compute type, every weight its own."""
        if name == "text_encoder":
            module = classes.vision_language(self.folder)
        else:
            depth = classes.read_config(self.folder, "qwen-image-edit", name)["num_layers"]
            module = classes.transformer(self.folder, depth, zero_cond_t=True)
        state = random_models.random_state(module, self.dtype, self.device, None)
        own = {key: value.clone() for key, value in state.items() if isinstance(value, torch.Tensor)}
        module.load_state_dict(own, strict=True, assign=True)
        return module.to(self.device).requires_grad_(False).eval()

    def _captions(self, encoder: Any, views: list[Image.Image], question: str) -> dict[str, Any]:
        """Stock `generate`, eager."""
        from charengine.models.captioners import CHAT, PICTURE

        processor = self.parts.processor()
        text = [CHAT.format(question=PICTURE + question)] * len(views)
        inputs = dict(processor(text=text, images=views, padding=True, padding_side="left", return_tensors="pt"))
        placed = {name: value.to(self.device) for name, value in inputs.items()}
        seconds = []
        for tokens in (1, TOKENS, 1, TOKENS):
            self.bench._wait()
            start = time.perf_counter()
            encoder.generate(**placed, do_sample=False, max_new_tokens=tokens, min_new_tokens=tokens)
            self.bench._wait()
            seconds.append(time.perf_counter() - start)
        each = (seconds[3] - seconds[2]) / (TOKENS - 1)
        wanted = self.parts.answer
        return {
            "ran_tokens": TOKENS,
            "first_token_s": round(seconds[2], 2),
            "ms_per_further_token": round(1000 * each, 1),
            "extrapolated_seconds": round(seconds[2] + (wanted - 1) * each, 1),
            "tokens": wanted,
        }

    def _sheet(self, encoder: Any, template: Image.Image, prompt: str) -> dict[str, Any]:
        """QwenImageEditPlusPipeline, a few steps."""
        from diffusers import QwenImageEditPlusPipeline

        processor = self.parts.processor()
        pipeline = QwenImageEditPlusPipeline(
            scheduler=self.parts.scheduler(),
            vae=self.parts.vae(),
            text_encoder=encoder,
            tokenizer=processor.tokenizer,
            processor=processor,
            transformer=self._whole("transformer"),
        )
        pipeline.set_progress_bar_config(disable=True)
        ticks: list[float] = []

        def tick(_pipeline: Any, _step: int, _time: Any, kept: dict[str, Any]) -> dict[str, Any]:
            self.bench._wait()
            ticks.append(time.perf_counter())
            return kept

        start = time.perf_counter()
        pipeline(
            image=template,
            prompt=prompt,
            negative_prompt=" ",
            true_cfg_scale=4.0,
            num_inference_steps=SHEET_STEPS,
            width=template.width,
            height=template.height,
            generator=torch.Generator().manual_seed(1),
            callback_on_step_end=tick,
        )
        self.bench._wait()
        whole = time.perf_counter() - start
        step = statistics.median([b - a for a, b in itertools.pairwise(ticks)])
        return {
            "ran_steps": SHEET_STEPS,
            "step_s": round(step, 3),
            "extrapolated_seconds": round(whole + (40 - SHEET_STEPS) * step, 1),
            "steps": 40,
        }

    def _pictures(self, width: int, height: int, steps: int) -> dict[str, Any]:
        """StableDiffusionXLPipeline, a batch of four, without an adapter."""
        from diffusers import EulerDiscreteScheduler, StableDiffusionXLPipeline

        encoders, tokenizers = self.sdxl.text_encoders(), self.sdxl.tokenizers()
        pipeline = StableDiffusionXLPipeline(
            vae=self.sdxl.vae(),
            text_encoder=encoders[0],
            text_encoder_2=encoders[1],
            tokenizer=tokenizers[0],
            tokenizer_2=tokenizers[1],
            unet=self.sdxl.unet(),
            scheduler=EulerDiscreteScheduler.from_config(self.sdxl.scheduler().config),
        )
        pipeline.vae.to(pipeline.unet.dtype)  # this pipeline knows no VAE that is wider than its U-Net
        pipeline.set_progress_bar_config(disable=True)
        seconds = []
        for seed in (1, 2):
            self.bench._wait()
            start = time.perf_counter()
            pipeline(
                prompt=["a woman, walking, full body, beach at sunset"] * 4,
                width=width,
                height=height,
                num_inference_steps=steps,
                guidance_scale=5.0,
                generator=[torch.Generator().manual_seed(seed + i) for i in range(4)],
            )
            self.bench._wait()
            seconds.append(time.perf_counter() - start)
        return {"seconds_per_image": round(seconds[1] / 4, 3), "steps": steps, "batch": 4}
