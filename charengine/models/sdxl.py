"""`Diffusion` on SDXL's real classes: encode, decode and sample with an adaptable U-Net.

`SDXL` says how the modules are used; a `SDXLParts` (`sdxl_parts.py`) where they come from.
"""

from __future__ import annotations

import copy
import logging
import math
from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import TYPE_CHECKING, Any, TypeVar

import torch

from charengine.errors import BadInput
from charengine.models.latent_coder import LatentCoder, ready_vae
from charengine.models.loading import Loaded, in_parts, noise_from_seeds
from charengine.models.passes import Passes
from charengine.models.prediction import GUIDANCE_RESCALE, Prediction, rescaled_for_zero_terminal_snr, rescaled_guidance
from charengine.models.protocols import LatentPosterior, Solver, TextConditioning, Trace
from charengine.models.sdxl_parts import SDXLParts
from charengine.models.usage import Usage

if TYPE_CHECKING:
    from diffusers import UNet2DConditionModel
    from PIL import Image

log = logging.getLogger(__name__)

T = TypeVar("T")

PARTS = ("text_encoders", "vae", "unet")
PIXELS_PER_PASS = 4 * 1024 * 1024  # images of one U-Net pass, without the guidance copy
EVERYWHERE = (0.0, math.inf)
SCHEDULE = ("num_train_timesteps", "beta_start", "beta_end", "beta_schedule", "trained_betas", "prediction_type")


class SDXL:
    """`Diffusion` on SDXL modules.

    Args:
        parts: where the modules come from; nothing is loaded before it is needed.
        device: where conditionings and latents live.
        dtype: dtype of conditionings and of the U-Net's input.
        native_area: pixels of the images the model was trained on.
        fingerprint: digest of the weights, for cache keys.
        prediction: what the U-Net predicts, over which schedule.
        usage: how the checkpoint is prompted and sampled.
        pixels_per_pass: memory hint; larger requests are cut into several U-Net passes, and smaller where memory runs out.
        base_names: how sd-scripts names the checkpoint (`base_metadata`).
        recorded: passes as CUDA graphs (`models.cuda_graphs`).
    """

    def __init__(
        self,
        parts: SDXLParts,
        device: torch.device,
        dtype: torch.dtype,
        native_area: int,
        fingerprint: str,
        *,
        prediction: Prediction | None = None,
        usage: Usage = Usage(),
        pixels_per_pass: int = PIXELS_PER_PASS,
        base_names: Mapping[str, str] = MappingProxyType({}),
        recorded: bool = True,
    ) -> None:
        self.parts, self.device, self.dtype = parts, device, dtype
        self.native_area, self.usage = native_area, usage
        self.prediction = prediction or Prediction()
        self.fingerprint = self.prediction.fingerprint_of(fingerprint)
        self.sampling_fingerprint = usage.fingerprint_of(self.fingerprint)
        self.pixels_per_pass, self.base_names = pixels_per_pass, base_names
        self.recorded = recorded
        self._loaded = Loaded()

    # --- text ---

    @torch.no_grad()
    def encode_prompts(self, prompts: Sequence[str]) -> TextConditioning:
        """Penultimate states of both encoders side by side and the second's pooled output, as SDXL was trained.

        Args:
            prompts: n texts; what exceeds CLIP's window is cut, with a warning in the log.

        Returns:
            `embeds` (n, tokens, d1 + d2) and `pooled` (n, p) on `device` in `dtype`.
        """
        encoders = self._loaded.get("text_encoders", self.parts.text_encoders)
        outputs = [
            encoder(self._token_ids(tokenizer, list(prompts)).to(encoder.device), output_hidden_states=True)
            for tokenizer, encoder in zip(self._tokenizers(), encoders, strict=True)
        ]
        embeds = torch.cat([output.hidden_states[-2].to(self.device, self.dtype) for output in outputs], dim=-1)
        return TextConditioning(embeds, outputs[1].text_embeds.to(self.device, self.dtype))

    def count_tokens(self, text: str) -> int:
        """CLIP tokens of `text` without the start and end tokens."""
        return len(self._tokenizers()[0](text, add_special_tokens=False).input_ids)

    def _tokenizers(self) -> tuple[Any, Any]:
        return self._loaded.get("tokenizers", self.parts.tokenizers)

    @staticmethod
    def _token_ids(tokenizer: Any, prompts: list[str]) -> torch.Tensor:
        window = tokenizer.model_max_length
        for prompt in prompts:
            whole = tokenizer(prompt).input_ids
            if len(whole) > window:
                cut = tokenizer.decode(whole[window - 1 : -1])
                log.warning("prompt has %d tokens, CLIP reads %d; it will not see: %r", len(whole), window, cut)
        ids: torch.Tensor = tokenizer(
            prompts, padding="max_length", max_length=window, truncation=True, return_tensors="pt"
        ).input_ids
        return ids

    # --- images and latents ---

    @torch.no_grad()
    def encode_images(self, images: Sequence[Image.Image]) -> LatentPosterior:
        """Scaled VAE posterior (n, 4, h/8, w/8) of same-sized images, float32 on `device`.

        Raises:
            BadInput: the images differ in size, or a side is no multiple of the VAE's factor.
        """
        return self._vae().encode(images, self.device)

    @torch.no_grad()
    def decode(self, latents: torch.Tensor) -> list[Image.Image]:
        """Images from scaled latents (n, 4, h/8, w/8); where a model answered with NaN they are black, and the log says so."""
        return self._vae().decode(latents)

    def _vae(self) -> LatentCoder:
        return LatentCoder(self._loaded.get("vae", lambda: ready_vae(self.parts.vae(), self.dtype)))

    # --- U-Net and sampling ---

    def unet(self, device: torch.device | None = None) -> UNet2DConditionModel:
        """The U-Net in `dtype`, loaded on first use, frozen and in evaluation mode.

        It is loaded to the model's device, or to `device`, where it can be made smaller before it meets the GPU.
        """
        parts: Any = self.parts
        if device is not None:
            parts = copy.copy(parts)
            parts.device = device
        return self._loaded.get("unet", lambda: parts.unet().requires_grad_(False).eval())

    def alphas_cumprod(self) -> torch.Tensor:
        """(1000,) float32 cumulative alphas of the training noise schedule, the last 0 under zero terminal SNR."""
        config = self._base_scheduler().config
        plain = type(self._base_scheduler()).from_config(config, rescale_betas_zero_snr=False)
        alphas = plain.alphas_cumprod.to(torch.float32).cpu().clone()
        return rescaled_for_zero_terminal_snr(alphas) if self.prediction.zero_terminal_snr else alphas

    @torch.no_grad()
    def sample(
        self,
        prompts: TextConditioning,
        negative: TextConditioning,
        *,
        seeds: Sequence[int],
        size: tuple[int, int],
        steps: int,
        guidance: float,
        solver: Solver = "euler",
        guided: tuple[float, float] = EVERYWHERE,
    ) -> list[Image.Image]:
        """One image a row of `prompts`, classifier-free guided.

        Args:
            prompts: n rows.
            negative: n rows, or one for all.
            seeds: n seeds; row i's noise comes from `seeds[i]` alone, so results do not depend on the batch.
            size: width, height in pixels, multiples of the VAE's factor.
            steps: denoising steps; fewer where the checkpoint is distilled.
            guidance: classifier-free guidance scale; 1 or less = off, at half the cost; less where it is distilled.
            solver: of the second order it comes as near to the end in fewer steps; not with zero terminal SNR or a distilled
                checkpoint, which are drawn as they were made to be.
            guided: noise (standard deviations: 14.6 at the start, 0 at the end) above and up to which there is guidance.
        """
        count = len(prompts.embeds)
        if len(seeds) != count or len(negative.embeds) not in (1, count):
            raise BadInput(
                f"{count} prompts need {count} seeds and 1 or {count} negatives; got {len(seeds)}, {len(negative.embeds)}"
            )
        steps, guidance = self.usage.steps(steps), self.usage.guidance(guidance)

        def draw(part: slice) -> list[Image.Image]:
            rows = prompts.rows(part.start, part.stop)
            against = negative if len(negative.embeds) == 1 else negative.rows(part.start, part.stop)
            drawn = self._denoise(
                self._passes(), rows, against, seeds[part], size, steps, guidance, solver=solver, guided=guided
            )
            return self.decode(drawn)

        return [image for images in self._in_parts(count, size, draw) for image in images]

    @torch.no_grad()
    def trace(
        self,
        prompts: TextConditioning,
        beside: TextConditioning,
        negative: TextConditioning,
        *,
        seeds: Sequence[int],
        size: tuple[int, int],
        steps: int,
        guidance: float,
        on_pass: Callable[[int, int], None] | None = None,
    ) -> Trace:
        """Every pass of drawing what `sample` would draw, and what the U-Net predicts there by `beside`, row by row."""
        steps, guidance = self.usage.steps(steps), self.usage.guidance(guidance)

        def follow(part: slice) -> tuple[torch.Tensor, ...]:
            seen: list[tuple[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]]] = []
            rows = part.stop - part.start

            def watch(*one: Any) -> None:
                seen.append(one)
                if on_pass:
                    on_pass(part.start * steps + len(seen) * rows, len(seeds) * steps)

            texts = prompts.rows(part.start, part.stop), beside.rows(part.start, part.stop)
            passes = Passes(self.unet(), recorded=False)
            self._denoise(passes, texts[0], negative, seeds[part], size, steps, guidance, watch, texts[1])
            noisy = torch.stack([inputs for inputs, _, _ in seen])
            told = [torch.stack([predicted[-row] for _, _, predicted in seen]).to(self.dtype) for row in (2, 1)]
            unguided = [predicted[0] for _, _, predicted in seen] if guidance > 1 else None
            plain = torch.stack(unguided).to(self.dtype) if unguided else told[1]
            return torch.stack([t for _, t, _ in seen]), noisy, *told, plain

        traces = list(zip(*self._in_parts(len(seeds), size, follow, rows_each=3), strict=True))
        return Trace(traces[0][0].to(self.device), *(torch.cat(parts, dim=1) for parts in traces[1:]))

    def _in_parts(self, count: int, size: tuple[int, int], work: Callable[[slice], T], rows_each: int = 2) -> list[T]:
        """`work` on as many pictures at once as `pixels_per_pass` says; it learns what did not fit.

        Args:
            rows_each: of the U-Net's batch for a picture.
        """
        doubled = size[0] * size[1] * rows_each

        def fewer(rows: int) -> None:
            self.pixels_per_pass = rows * doubled // 2

        return in_parts(count, lambda: max(1, self.pixels_per_pass * 2 // doubled), fewer, work, self._spare)

    def _passes(self) -> Passes:
        """The U-Net's passes; what was recorded of them lives as long as it does."""
        return self._loaded.get("passes", lambda: Passes(self.unet(), recorded=self.recorded))

    def _spare(self) -> bool:
        """Give back what recordings take; whether there were any, or one was being made."""
        given = self._passes().give_up()
        if given:
            log.info("passes of the U-Net are no longer recorded: there is no room for that")
        return given

    def _denoise(
        self,
        passes: Passes,
        prompts: TextConditioning,
        negative: TextConditioning,
        seeds: Sequence[int],
        size: tuple[int, int],
        steps: int,
        guidance: float,
        watch: Callable[[torch.Tensor, torch.Tensor, Sequence[torch.Tensor]], None] | None = None,
        beside: TextConditioning | None = None,
        solver: Solver = "euler",
        guided: tuple[float, float] = EVERYWHERE,
    ) -> torch.Tensor:
        """Scaled latents (n, 4, h/8, w/8), float32; the loop of StableDiffusionXLPipeline.

        `watch` is told every pass: the U-Net's input, the timestep, and what it predicts by the negative prompt (where there is
        guidance), by the prompts, and `beside` them.
        """
        dtype, scheduler = passes.unet.dtype, self._sampling_scheduler(solver)
        texts = [*([negative] if guidance > 1 else []), prompts, *([beside] if beside else [])]
        text, alone = (self._said(_stacked(some, len(seeds)), size) for some in (texts, texts[guidance > 1 :]))
        scheduler.set_timesteps(steps, device=self.device)
        latents: torch.Tensor = self._initial_noise(seeds, size) * scheduler.init_noise_sigma
        passes.look()
        for step, t in enumerate(scheduler.timesteps):
            led = guidance > 1 and guided[0] < float(scheduler.sigmas[step]) <= guided[1]
            said = text if led else alone
            count = len(said[0]) // len(seeds)
            inputs = scheduler.scale_model_input(torch.cat([latents] * count), t).to(dtype)
            predicted = passes.predict(inputs, t, *said).float().chunk(count)
            if watch:
                watch(inputs[: len(latents)], t, predicted)
            noise = predicted[0]
            if led:
                plain, prompted = predicted[:2]
                noise = plain + guidance * (prompted - plain)
                if self.prediction.zero_terminal_snr:
                    noise = rescaled_guidance(noise, prompted, GUIDANCE_RESCALE)
            latents = scheduler.step(noise, t, latents, return_dict=False)[0]
        return latents

    def _initial_noise(self, seeds: Sequence[int], size: tuple[int, int]) -> torch.Tensor:
        factor = self._vae().factor
        width, height = size
        if width % factor or height % factor:
            raise BadInput(f"size {width}x{height} cannot be drawn: both sides must be multiples of {factor}")
        channels = self.unet().config["in_channels"]
        return noise_from_seeds(seeds, (channels, height // factor, width // factor)).to(self.device)

    def _said(self, text: TextConditioning, size: tuple[int, int]) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """What the U-Net is told beside latents: states, pooled, and truthful sizes (original = target, nothing cropped)."""
        width, height = size
        dtype = self.unet().dtype
        sizes = torch.tensor([[height, width, 0, 0, height, width]], device=self.device, dtype=dtype)
        return text.embeds.to(dtype), text.pooled.to(dtype), sizes.repeat(len(text.pooled), 1)

    def _base_scheduler(self) -> Any:
        return self._loaded.get("scheduler", self.parts.scheduler)

    def noise_of_steps(self, steps: int, solver: Solver = "euler") -> list[float]:
        """The noise that each step of `sample` sees, in standard deviations; no weights are loaded."""
        scheduler = self._sampling_scheduler(solver)
        scheduler.set_timesteps(self.usage.steps(steps))
        return [float(one) for one in scheduler.sigmas[: len(scheduler.timesteps)]]

    def _sampling_scheduler(self, solver: Solver = "euler") -> Any:
        """A fresh scheduler: its state belongs to one denoising run."""
        from diffusers import DPMSolverMultistepScheduler, EulerDiscreteScheduler

        config = dict(self._base_scheduler().config) | {
            "prediction_type": self.prediction.kind,
            "rescale_betas_zero_snr": self.prediction.zero_terminal_snr,
        }
        if self.prediction.zero_terminal_snr or self.usage.distilled:  # sampling must begin at the last step trained
            config["timestep_spacing"] = "trailing"
        elif solver == "dpm++":
            known = {name: config[name] for name in SCHEDULE if name in config}
            return DPMSolverMultistepScheduler(**known, timestep_spacing="trailing")  # ++, second order (2211.01095)
        return EulerDiscreteScheduler.from_config(config)

    def unload(self, *parts: str) -> None:
        """Free "text_encoders", "vae" and/or "unet"; all of them when none is named."""
        unknown = sorted(set(parts) - set(PARTS))
        if unknown:
            raise BadInput(f"cannot unload {unknown[0]!r}: parts are {', '.join(PARTS)}")
        self._loaded.free(*parts, *(["passes"] if "unet" in parts else []))


def _stacked(texts: Sequence[TextConditioning], count: int) -> TextConditioning:
    """`count` rows of each, one after the other: one U-Net pass serves all."""
    return TextConditioning(
        torch.cat([text.embeds.expand(count, -1, -1) for text in texts]),
        torch.cat([text.pooled.expand(count, -1) for text in texts]),
    )
