"""`SheetEditor` on Qwen-Image-Edit's real classes: encode, free, denoise, free, decode.

The loop is QwenImageEditPlusPipeline's own, cut into stages that never hold two big modules at once, with what
that pipeline does not offer: a template seen by the language model only, and repainting of one box.
"""

from __future__ import annotations

import hashlib
import math
from collections import OrderedDict
from collections.abc import Callable, Collection, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal

import torch
from PIL import Image

from charengine.errors import BadInput
from charengine.models.classes import begin
from charengine.models.loading import Loaded, noise_from_seeds
from charengine.models.low_rank import switch_adapter
from charengine.models.pixels import images_to_tensor, tensor_to_images
from charengine.models.qwen_parts import QwenEditParts, lightning_scheduler, load_loras, load_text_encoder, refuse_nan

Box = tuple[int, int, int, int]
Variant = Literal["edit_plus", "edit"]
PARTS = ("text_encoder", "transformer", "vae")
VAE_AREA = 1024 * 1024  # pixels of the template as latents (diffusers: VAE_IMAGE_SIZE)
CONDITION_AREA = 384 * 384  # pixels of the template for the language model (diffusers: CONDITION_IMAGE_SIZE)
LIGHTNING_STEPS = 8  # drawings this short use the Lightning LoRA, if there is one
REMEMBERED = 8  # encoded prompts kept, so that further candidates need no text encoder


@dataclass(frozen=True)
class _Encoded:
    """One prompt with its picture as the transformer takes it."""

    embeds: torch.Tensor
    mask: torch.Tensor | None


@dataclass(frozen=True)
class _Repaint:
    """What stays outside a box: packed clean latents, and 1 where tokens may change."""

    latents: torch.Tensor
    mask: torch.Tensor


class QwenEdit:
    """`SheetEditor` on Qwen-Image-Edit modules.

    Args:
        parts: where the modules come from; nothing is loaded before it is needed.
        device: where inputs and latents live.
        fingerprint: digest of the weights, for cache keys.
        variant: "edit_plus" (2509, 2511: the language model sees a small picture) or "edit" (a full-size one).
        vae_area: pixels of the template as VAE latents.
        enlarges: a smaller template is enlarged to that, as diffusers does.
        condition_area: pixels of the template for the language model ("edit" uses `vae_area`).
        keep: parts that stay loaded between stages, of "text_encoder", "transformer", "vae".
        lightning: a Lightning LoRA file; drawings of at most `LIGHTNING_STEPS` steps use it, in its own number of steps and
            without guidance.
        lightning_steps: that number.
        fused_steps: of a transformer with Lightning fused in, which draws everything in so many steps without guidance; 0 = none is.
        loras: files and strengths of further LoRAs, always on.
        unknown_words: names the words of a prompt that the model was never taught.
        prompt_style: "rich" (instructions per view) or "plain" (the wording of the embedded grammar).
        on_step: called with (steps done, steps in all); may raise to stop.
        loaded: shared with a captioner so that one set of Qwen2.5-VL weights serves both.
    """

    def __init__(
        self,
        parts: QwenEditParts,
        device: torch.device,
        fingerprint: str,
        *,
        variant: Variant = "edit_plus",
        vae_area: int = VAE_AREA,
        enlarges: bool = True,
        condition_area: int = CONDITION_AREA,
        keep: Collection[str] = (),
        lightning: Path | None = None,
        lightning_steps: int = LIGHTNING_STEPS,
        fused_steps: int = 0,
        loras: Sequence[tuple[Path, float]] = (),
        unknown_words: Callable[[str], tuple[str, ...]] | None = None,
        prompt_style: Literal["plain", "rich"] = "rich",
        on_step: Callable[[int, int], None] | None = None,
        loaded: Loaded | None = None,
    ) -> None:
        self.parts, self.device, self.fingerprint = parts, device, fingerprint
        self.variant, self.vae_area, self.enlarges = variant, vae_area, enlarges
        self.condition_area = vae_area if variant == "edit" else condition_area
        self.keep, self.lightning, self.loras = frozenset(keep), lightning, tuple(loras)
        self.lightning_steps, self.fused_steps = lightning_steps, fused_steps
        self.prompt_style, self.on_step = prompt_style, on_step
        self.pictures = 2 if variant == "edit_plus" and prompt_style == "rich" else 1
        self._unknown_words = unknown_words
        self._loaded = loaded or Loaded()
        self._encoded: OrderedDict[tuple[str, bytes], _Encoded] = OrderedDict()
        self._cell: int | None = None

    @torch.no_grad()
    def draw(
        self,
        template: Image.Image,
        prompt: str,
        *,
        negative_prompt: str = " ",
        seed: int,
        steps: int,
        guidance: float,
        guided_above: float = 0.0,
        conditioning: str = "latents",
        redraw: Box | None = None,
        size: tuple[int, int] | None = None,
        reference: Image.Image | None = None,
    ) -> Image.Image:
        """One image.

        Args:
            template: what the model sees; with `redraw` a sheet, of which the model sees all but the box. Alpha is
                laid over white.
            prompt: the full sheet prompt.
            negative_prompt: for true classifier-free guidance.
            seed: of the noise, drawn on the CPU.
            steps: denoising steps.
            guidance: true CFG scale; 1 = off, at half the cost.
            guided_above: noise (1 at the first step, 0 at the end) below which there is no guidance: by then it changes little
                (Kynkäänniemi et al. 2404.07724), and a step costs half.
            conditioning: "latents" (template as VAE latents too) or "vision" (language model only).
            redraw: x0, y0, x1, y1 in pixels: repaint only this box; pixels outside keep their exact values.
            size: width and height of what is drawn; the template's when left out, and always with `redraw`.
            reference: whom to draw: shown as a second picture, or instead of the template where `pictures` is 1.

        Raises:
            BadInput: a size, box or conditioning that cannot be drawn.
        """
        template = over_white(template)
        size = template.size if size is None or redraw is not None else size
        self._check(size, conditioning, redraw)
        fast = bool(self.fused_steps) or (self.lightning is not None and steps <= LIGHTNING_STEPS)
        steps = (self.fused_steps or self.lightning_steps) if fast else steps
        prompts = [prompt] if guidance <= 1 or fast else [prompt, negative_prompt]
        base = template if redraw is None else blanked(template, redraw)
        shown = [base] if reference is None else [base, over_white(reference)][-self.pictures :]
        seen = self._seen_latents(shown) if conditioning == "latents" else []
        repaint = None if redraw is None else self._repaint(base, redraw)
        self._free_unless_kept("vae")
        encoded = self._encode(prompts, shown)
        latents = self._denoise(encoded, seen, repaint, size, seed, steps, guidance, guided_above, fast)
        image = self._decode(latents, size)
        return image if redraw is None else _paste(template, image, redraw)

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """Words the model was never taught; empty for models with an open vocabulary."""
        return self._unknown_words(prompt) if self._unknown_words else ()

    def unload(self) -> None:
        """Free all memory the weights take."""
        self._encoded.clear()
        self._loaded.forget(*PARTS, "processor")

    # --- prompts ---

    def _encode(self, prompts: list[str], shown: list[Image.Image]) -> list[_Encoded]:
        """Each prompt with what is shown, through Qwen2.5-VL; remembered, so that candidates share the work."""
        digest = hashlib.sha256(b"".join(image.tobytes() for image in shown)).digest()
        keys = [(prompt, digest) for prompt in prompts]
        if any(key not in self._encoded for key in keys):
            pipeline = self._encoding_pipeline()
            small = [
                image.resize(dimensions(self.condition_area, image.width / image.height), Image.Resampling.LANCZOS)
                for image in shown
            ]
            images = small if self.variant == "edit_plus" else small[0]
            for key in keys:
                embeds, mask = pipeline.encode_prompt(key[0], image=images, device=self.device)
                self._encoded[key] = _Encoded(embeds, mask)
            del pipeline
        found = [self._encoded[key] for key in keys]
        while len(self._encoded) > REMEMBERED:
            self._encoded.popitem(last=False)
        self._free_unless_kept("text_encoder")
        return found

    def _encoding_pipeline(self) -> Any:
        """The stock pipeline with nothing but its text side."""
        from diffusers import QwenImageEditPipeline, QwenImageEditPlusPipeline

        kind = QwenImageEditPlusPipeline if self.variant == "edit_plus" else QwenImageEditPipeline
        processor = self._loaded.get("processor", self.parts.processor)
        encoder = load_text_encoder(self._loaded, self.parts)
        return kind(
            text_encoder=encoder,
            processor=processor,
            tokenizer=processor.tokenizer,
            vae=None,
            transformer=None,
            scheduler=None,
        )

    # --- pictures and pixels ---

    def _seen_latents(self, shown: list[Image.Image]) -> list[torch.Tensor]:
        """What is shown as latents, each picture near `vae_area`; they become tokens beside the noise."""
        sizes = []
        for image in shown:
            area = self.vae_area if self.enlarges else min(self.vae_area, image.width * image.height)
            sizes.append(dimensions(area, image.width / image.height))
        resized = [image.resize(size, Image.Resampling.LANCZOS) for image, size in zip(shown, sizes, strict=True)]
        return [self._encode_pixels(image) for image in resized]

    def _repaint(self, base: Image.Image, box: Box) -> _Repaint:
        """What a repainted box is surrounded by."""
        return _Repaint(pack(self._encode_pixels(base)), self._token_mask(box, base.size))

    def _check(self, size: tuple[int, int], conditioning: str, redraw: Box | None) -> None:
        if conditioning not in ("latents", "vision"):
            raise BadInput(f"conditioning is {conditioning!r}; it must be 'latents' or 'vision'")
        step = 2 * self._factor()
        if size[0] % step or size[1] % step:
            raise BadInput(
                f"a picture of {size[0]}x{size[1]} cannot be drawn on: both sides must be multiples of {step}"
            )
        if redraw is not None:
            x0, y0, x1, y1 = redraw
            if not (0 <= x0 < x1 <= size[0] and 0 <= y0 < y1 <= size[1]):
                raise BadInput(f"redraw box {redraw} must lie inside {size[0]}x{size[1]} as x0 < x1, y0 < y1")

    def _vae(self) -> Any:
        return self._loaded.get("vae", self.parts.vae)

    def _factor(self) -> int:
        """Pixels a latent cell covers along one side; remembered, so that asking does not load a freed VAE."""
        if self._cell is None:
            self._cell = int(2 ** len(self._vae().temperal_downsample))
        return self._cell

    def _encode_pixels(self, image: Image.Image) -> torch.Tensor:
        """Normalised latents (1, c, 1, h, w), the mode of the posterior."""
        vae = self._vae()
        pixels = images_to_tensor([image]).unsqueeze(2).to(self.device, vae.dtype)
        latents: torch.Tensor = vae.encode(pixels).latent_dist.mode()
        mean, std = _latent_statistics(vae, latents)
        return ((latents - mean) / std).float()

    def _token_mask(self, box: Box, size: tuple[int, int]) -> torch.Tensor:
        """(1, tokens, 1): 1 for every token that touches the box."""
        step = 2 * self._factor()
        mask = torch.zeros(size[1] // step, size[0] // step, device=self.device)
        x0, y0, x1, y1 = box
        mask[y0 // step : -(-y1 // step), x0 // step : -(-x1 // step)] = 1
        return mask.reshape(1, -1, 1)

    def _decode(self, latents: torch.Tensor, size: tuple[int, int]) -> Image.Image:
        """The image of packed latents."""
        self._free_unless_kept("transformer")
        vae = self._vae()
        cells = unpack(latents, size[1] // self._factor(), size[0] // self._factor()).to(vae.dtype)
        mean, std = _latent_statistics(vae, cells)
        pixels = vae.decode(cells * std + mean, return_dict=False)[0][:, :, 0]
        refuse_nan(cells, pixels)
        image = tensor_to_images(pixels)[0]
        self._free_unless_kept("vae")
        return image

    # --- denoising ---

    def _denoise(
        self,
        encoded: list[_Encoded],
        seen: list[torch.Tensor],
        repaint: _Repaint | None,
        size: tuple[int, int],
        seed: int,
        steps: int,
        guidance: float,
        guided_above: float,
        fast: bool,
    ) -> torch.Tensor:
        """Packed latents (1, tokens, 4c), float32."""
        transformer = self._transformer(fast)
        factor, channels = self._factor(), transformer.config["in_channels"] // 4
        noise = pack(noise_from_seeds([seed], (channels, 1, size[1] // factor, size[0] // factor))).to(self.device)
        shapes = [(1, size[1] // factor // 2, size[0] // factor // 2)]
        shapes += [(1, cells.shape[-2] // 2, cells.shape[-1] // 2) for cells in seen]
        context = torch.cat([pack(cells) for cells in seen], dim=1).to(transformer.dtype) if seen else None
        scheduler = self._scheduler(fast, steps, tokens=noise.shape[1])
        latents = noise
        for done, t in enumerate(scheduler.timesteps, start=1):
            read = encoded if float(scheduler.sigmas[done - 1]) > guided_above else encoded[:1]
            predictions = [_predict(transformer, latents, context, t, text, shapes) for text in read]
            velocity = predictions[0] if len(predictions) == 1 else true_guidance(*predictions, scale=guidance)
            latents = scheduler.step(velocity, t, latents, return_dict=False)[0]
            if repaint is not None:
                sigma = scheduler.sigmas[done]
                kept = sigma * noise + (1 - sigma) * repaint.latents
                latents = torch.lerp(kept, latents, repaint.mask)
            if self.on_step is not None:
                self.on_step(done, steps)
        return latents

    def _transformer(self, fast: bool) -> Any:
        transformer = self._loaded.get("transformer", self._load_transformer)
        if self.lightning is not None:
            switch_adapter(transformer, fast)
        return transformer

    def _load_transformer(self) -> Any:
        transformer = self.parts.transformer().requires_grad_(False).eval()
        if self.loras or self.lightning is not None:
            load_loras(transformer, self.loras, self.lightning)
        return transformer

    def _scheduler(self, fast: bool, steps: int, tokens: int) -> Any:
        scheduler = lightning_scheduler() if fast else self.parts.scheduler()
        if steps == 1:  # stretching one sigma to its terminal value divides 0 by 0
            scheduler = type(scheduler).from_config(scheduler.config, shift_terminal=None)
        begin(scheduler, steps, tokens, self.device)
        return scheduler

    def _free_unless_kept(self, part: str) -> None:
        if part not in self.keep:
            self._loaded.free(part)


def true_guidance(prompted: torch.Tensor, plain: torch.Tensor, *, scale: float) -> torch.Tensor:
    """Classifier-free guidance with the length of each token's prediction restored (QwenImageEditPlusPipeline)."""
    combined = plain + scale * (prompted - plain)
    length: torch.Tensor = prompted.norm(dim=-1, keepdim=True) / combined.norm(dim=-1, keepdim=True)
    return combined * length


def dimensions(area: int, ratio: float) -> tuple[int, int]:
    """Width and height of about `area` pixels at width/height = `ratio`, multiples of 32 (diffusers)."""
    width = math.sqrt(area * ratio)
    return round(width / 32) * 32, round(width / ratio / 32) * 32


def pack(latents: torch.Tensor) -> torch.Tensor:
    """(1, c, 1, h, w) cells as (1, h/2 * w/2, 4c) tokens of 2x2 cells."""
    _, channels, _, height, width = latents.shape
    cells = latents.reshape(1, channels, height // 2, 2, width // 2, 2).permute(0, 2, 4, 1, 3, 5)
    return cells.reshape(1, (height // 2) * (width // 2), channels * 4)


def unpack(tokens: torch.Tensor, height: int, width: int) -> torch.Tensor:
    """Inverse of `pack`; `height` and `width` in cells."""
    channels = tokens.shape[-1] // 4
    cells = tokens.reshape(1, height // 2, width // 2, channels, 2, 2).permute(0, 3, 1, 4, 2, 5)
    return cells.reshape(1, channels, 1, height, width)


def over_white(image: Image.Image) -> Image.Image:
    """RGB, with transparency laid over white (an RGBA template fails deep inside the VAE)."""
    if image.mode == "RGB":
        return image
    rgba = image.convert("RGBA")
    return Image.alpha_composite(Image.new("RGBA", rgba.size, "white"), rgba).convert("RGB")


def _predict(
    transformer: Any,
    latents: torch.Tensor,
    context: torch.Tensor | None,
    t: torch.Tensor,
    text: _Encoded,
    shapes: list[tuple[int, int, int]],
) -> torch.Tensor:
    """The transformer's velocity for the noise tokens, float32."""
    tokens = latents.to(transformer.dtype)
    output = transformer(
        hidden_states=tokens if context is None else torch.cat([tokens, context], dim=1),
        timestep=t.expand(1).to(transformer.dtype) / 1000,
        encoder_hidden_states=text.embeds.to(transformer.dtype),
        encoder_hidden_states_mask=text.mask,
        img_shapes=[shapes],
        return_dict=False,
    )[0]
    velocity: torch.Tensor = output[:, : latents.shape[1]].float()
    return velocity


def _latent_statistics(vae: Any, like: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """The VAE's per-channel mean and standard deviation, broadcastable over (1, c, 1, h, w)."""
    mean, std = (
        torch.tensor(vae.config[name], device=like.device, dtype=like.dtype).view(1, -1, 1, 1, 1)
        for name in ("latents_mean", "latents_std")
    )
    return mean, std


def blanked(image: Image.Image, box: Box) -> Image.Image:
    """The image with a white box, so that what is to be replaced is not copied."""
    result = image.copy()
    result.paste("white", box)
    return result


def _paste(template: Image.Image, drawn: Image.Image, box: Box) -> Image.Image:
    result = template.copy()
    result.paste(drawn.crop(box), box[:2])
    return result
