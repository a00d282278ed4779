"""The model protocols every stage sees, and `load(profile)`, the one place that knows which family is in use.

Images are PIL RGB unless said otherwise. Every implementation loads its weights on first use and frees them with
`unload()`, so that a stage holds only what it needs (docs/design.md, "Models and profiles").
"""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Literal, Protocol, runtime_checkable

from charengine.config import Character, ExpandSettings, SheetSettings
from charengine.models.prediction import Prediction
from charengine.models.usage import Usage
from charengine.wording import never_taught

if TYPE_CHECKING:
    import torch
    from diffusers import UNet2DConditionModel
    from PIL.Image import Image


Solver = Literal["euler", "dpm++"]


@dataclass(frozen=True)
class TextConditioning:
    """SDXL text conditioning: `embeds` (n, tokens, d) penultimate states of both encoders; `pooled` (n, p)."""

    embeds: torch.Tensor
    pooled: torch.Tensor

    def rows(self, first: int, end: int | None) -> TextConditioning:
        """Some of the rows."""
        return TextConditioning(self.embeds[first:end], self.pooled[first:end])


@dataclass(frozen=True)
class LatentPosterior:
    """VAE posterior, already multiplied by the VAE's scaling factor: `mean`, `std` (n, 4, h/8, w/8), float32."""

    mean: torch.Tensor
    std: torch.Tensor


@dataclass(frozen=True)
class Trace:
    """Every U-Net pass of drawing n pictures in s steps: (s, n, 4, h/8, w/8) each, in the U-Net's dtype.

    Args:
        timesteps: (s,).
        noisy: the U-Net's inputs.
        prompted: what it predicts by the prompts.
        beside: by the prompts beside them, which do not change what is drawn.
        negative: by the negative prompt; as `beside` where the model draws without guidance.
    """

    timesteps: torch.Tensor
    noisy: torch.Tensor
    prompted: torch.Tensor
    beside: torch.Tensor
    negative: torch.Tensor


@dataclass(frozen=True)
class Description:
    """What a captioner saw: `tags` in the captioner's order, and its raw answer."""

    tags: tuple[str, ...]
    raw: str = ""
    facts: dict[str, str] = field(default_factory=dict)  # view, framing, pose, background… when the captioner says so


Framing = Literal["full body", "upper body", "face"]


@dataclass(frozen=True)
class Sight:
    """What a picture of somebody shows at a glance.

    Args:
        figures: how many stand out; 0 none, 2 or more several.
        framing: how much of the one is in the picture.
        class_noun: what it is, "woman", "robot"; empty when that is not told.
        description: what it looks like, as a prompt says it; empty when that is not told.
    """

    figures: int
    framing: Framing = "full body"
    class_noun: str = ""
    description: str = ""


class Onlooker(Protocol):
    """Looks at a picture from which a character is to be made (questions to Qwen2.5-VL; the embedded family's own two)."""

    @property
    def fingerprint(self) -> str:
        """Of the weights and of what is asked, for cache keys."""
        ...

    def look(self, image: Image) -> Sight:
        """What the picture shows.

        Raises:
            BadInput: that cannot be told.
        """
        ...

    def unload(self) -> None:
        """Free all memory the weights take."""
        ...


class SheetEditor(Protocol):
    """Fills a template with three views of a character (Qwen-Image-Edit).

    `prompt_style` says what it reads: "rich" (instructions per view) or "plain" (the wording of the embedded grammar).
    `pictures` is how many it looks at: 2, the template and a reference beside it; 1, a reference instead of the template.
    """

    fingerprint: str
    prompt_style: Literal["plain", "rich"]
    pictures: int

    def draw(
        self,
        template: Image,
        prompt: str,
        *,
        negative_prompt: str = " ",
        seed: int,
        steps: int,
        guidance: float,
        guided_above: float = 0.0,
        conditioning: str = "latents",
        redraw: tuple[int, int, int, int] | None = None,
        size: tuple[int, int] | None = None,
        reference: Image | None = None,
    ) -> Image:
        """One image of `size`, or of the template's.

        `redraw` = x0, y0, x1, y1 repaints only that box of `template`; `reference` shows the character that is to be drawn.
        """
        ...

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        """Words the model was never taught; empty for models with an open vocabulary."""
        ...

    def unload(self) -> None:
        """Free all memory the weights take."""
        ...


def untaught_by_editor(
    editor: SheetEditor, character: Character, section: str, settings: SheetSettings | ExpandSettings
) -> tuple[str, ...]:
    """Warnings that name words of a character's prompt, and of a section's negative prompt where that is read, which were never taught."""
    negative = settings.negative_prompt if settings.guidance > 1 else ""
    return (
        *never_taught(editor.unknown_words(f"{character.prompt}, {character.class_noun}")),
        *never_taught(editor.unknown_words(negative), f"{section}.negative_prompt"),
    )


def reads_plain_words(editor: SheetEditor) -> bool:
    """Whether the editor wants the embedded grammar's wording instead of instructions."""
    return getattr(editor, "prompt_style", "rich") == "plain"


def pictures_seen(editor: SheetEditor) -> int:
    """How many pictures the editor looks at: 1, or the template and a reference."""
    return getattr(editor, "pictures", 1)


class Captioner(Protocol):
    """Says what a picture shows (Qwen2.5-VL or WD14)."""

    fingerprint: str

    def describe(self, image: Image, hint: str = "") -> Description:
        """Tags of one picture; `hint` may name the class noun."""
        ...

    def unload(self) -> None:
        """Free all memory the weights take."""
        ...


@runtime_checkable
class BatchCaptioner(Protocol):
    """A captioner that looks at several pictures in about the time of one (Qwen2.5-VL)."""

    def describe_all(self, images: Sequence[Image], hint: str = "") -> list[Description]:
        """What `describe` says of each picture."""
        ...


def describe_all(captioner: Captioner, images: Sequence[Image], hint: str = "") -> list[Description]:
    """Tags of each picture, in as few passes as the captioner can."""
    if isinstance(captioner, BatchCaptioner):
        return captioner.describe_all(images, hint=hint)
    return [captioner.describe(image, hint=hint) for image in images]


@runtime_checkable
class Questioner(Protocol):
    """A captioner that also answers free questions (Qwen2.5-VL)."""

    def ask(self, image: Image, question: str, *, max_tokens: int = 64) -> str:
        """The answer to a question about one picture."""
        ...


class TraitReader(Protocol):
    """Says which of a character's traits a picture shows (yes/no questions to Qwen2.5-VL; the embedded family's probe)."""

    @property
    def fingerprint(self) -> str:
        """Of the weights, for cache keys."""
        ...

    def shown(self, images: Sequence[Image], traits: Sequence[str], class_noun: str) -> list[list[bool | None]]:
        """A row per picture, in it for each trait whether the picture shows it; None where that cannot be told.

        Args:
            images: of one character each, any size.
            traits: short phrases, "long red hair"; left and right are the character's own.
            class_noun: whom to look at.
        """
        ...

    def step_aside(self) -> None:
        """Leave the GPU to another model; host memory may keep the weights, so that the next use need not read them again."""
        ...

    def unload(self) -> None:
        """Free all memory the weights take."""
        ...


class Diffusion(Protocol):
    """A latent text-to-image model with an SDXL U-Net that can be adapted."""

    fingerprint: str  # of the weights and of what they are taken to predict
    sampling_fingerprint: str  # the same with `usage`: of what is drawn
    base_names: Mapping[str, str]  # how sd-scripts names the checkpoint, for an adapter's metadata; may be empty
    device: torch.device
    dtype: torch.dtype
    prediction: Prediction  # what the U-Net predicts, over which schedule
    usage: Usage  # how the checkpoint is prompted and sampled
    native_area: int  # pixels the model was trained at: 1024*1024 for SDXL, 128*384 upwards for the embedded family

    def encode_prompts(self, prompts: Sequence[str]) -> TextConditioning:
        """Text conditioning on `device`, one row a prompt."""
        ...

    def count_tokens(self, text: str) -> int:
        """CLIP tokens of `text` without the start and end tokens."""
        ...

    def encode_images(self, images: Sequence[Image]) -> LatentPosterior:
        """Scaled VAE posterior of same-sized images, computed in float32 (or with a fixed VAE) so that it has no NaN."""
        ...

    def decode(self, latents: torch.Tensor) -> list[Image]:
        """Images from scaled latents (n, 4, h/8, w/8)."""
        ...

    def unet(self, device: torch.device | None = None) -> UNet2DConditionModel:
        """The U-Net in `dtype`, loaded on first use to the model's device or to `device`, frozen (requires_grad False)."""
        ...

    def alphas_cumprod(self) -> torch.Tensor:
        """(1000,) float32 cumulative alphas of the training noise schedule, the last 0 under zero terminal SNR."""
        ...

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
        guided: tuple[float, float] = (0.0, math.inf),
    ) -> list[Image]:
        """One image a row; `size` = width, height; row i's noise comes from `seeds[i]` alone (batch-independent).

        `solver` follows the noise down, `guided` = noise above and up to which there is guidance, in standard deviations.
        """
        ...

    def noise_of_steps(self, steps: int, solver: Solver = "euler") -> list[float]:
        """The noise that each step of `sample` sees; no weights are loaded."""
        ...

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
        """Every pass of drawing what `sample` would draw, and what the U-Net predicts there by `beside`, row by row.

        `on_pass` is told after each pass how many of how many are done; what it raises ends the drawing.
        """
        ...

    def unload(self, *parts: str) -> None:
        """Free "text_encoders", "vae" and/or "unet"; all of them when none is named."""
        ...


class Embedder(Protocol):
    """Scores pictures: identity embeddings and prompt adherence."""

    fingerprint: str

    def embed_images(self, images: Sequence[Image]) -> torch.Tensor:
        """Identity embeddings (n, d), L2-normalised float32 on the CPU (DINOv2, or the CLIP image tower)."""
        ...

    def match(self, images: Sequence[Image], texts: Sequence[str]) -> torch.Tensor:
        """Cosine of each image with its own text (n,), float32: CLIP-T."""
        ...

    def unload(self) -> None:
        """Free all memory the weights take."""
        ...


@dataclass(frozen=True)
class Models:
    """The models of a profile, not yet loaded; `reader` and `onlooker` may be the captioner's weights once more."""

    editor: SheetEditor
    captioner: Captioner
    diffusion: Diffusion
    embedder: Embedder
    reader: TraitReader
    onlooker: Onlooker
