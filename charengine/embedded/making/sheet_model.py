"""The sheet model as it is trained: the denoiser, the Qwen2.5-VL that reads for it, and what each is wrong by."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn import functional as F

from charengine.embedded.making.data import allow_recompiles
from charengine.embedded.making.family import build_transformer, build_vision_language
from charengine.embedded.making.heads import TraitHeads
from charengine.embedded.making.run import Run
from charengine.embedded.making.still import look, normalised, pixel_patches, read, real_rotations
from charengine.embedded.making.vocabulary import EDIT_PREFIX, EDIT_SUFFIX, build_qwen_tokenizer
from charengine.embedded.shape import SHEET_SIZE
from charengine.figures.template import template

ANSWER = 64  # tokens of the longest caption, rounded up
Shape = tuple[int, int]  # rows and columns of tokens


class Reader:
    """The VL with its tokenizer and the template it is shown, where it is shown no other picture."""

    def __init__(self, run: Run) -> None:
        self.device = run.device
        self.tokenizer = build_qwen_tokenizer()
        self.model: Any = build_vision_language(run.sizes, self.tokenizer).to(run.device)
        picture = template(SHEET_SIZE, SHEET_SIZE).resize((96, 96), 1).resize((84, 84), 3)
        pixels = torch.from_numpy(np.array(picture)).permute(2, 0, 1)[None].to(run.device)
        self.patches, self.grid = pixel_patches(normalised(pixels))
        self.opening = EDIT_PREFIX + "Picture 1: <|vision_start|>"
        self.before = len(self.tokenizer(self.opening)["input_ids"])
        self.padding = self.tokenizer.convert_tokens_to_ids("<|endoftext|>")
        self.dropped = len(self.tokenizer(EDIT_PREFIX)["input_ids"])  # 64: the pipeline drops as many

    def tokens(self, prompts: list[str], seen: int = 0) -> list[list[int]]:
        """Token ids of whole edit prompts, with a picture of so many tokens; 0: the template."""
        pads = "<|image_pad|>" * (seen or self.patches.shape[1] // 4)
        texts = [f"{self.opening}{pads}<|vision_end|>{prompt}{EDIT_SUFFIX}" for prompt in prompts]
        return list(self.tokenizer(texts)["input_ids"])

    def encode(
        self, ids: torch.Tensor, patches: torch.Tensor | None = None, grid: tuple[int, int] | None = None
    ) -> torch.Tensor:
        """What the denoiser reads, (n, tokens, d), of prompts of one length with the picture of these patches, or the template."""
        if patches is None or grid is None:
            patches, grid = self.patches, self.grid
        seen = look(self.model.model.visual, patches, grid)
        return read(self.model, ids, seen, self.before, grid)[:, self.dropped :]


def to_tokens(latents: torch.Tensor) -> torch.Tensor:
    """(n, 16, h, w) to tokens (n, h w / 4, 64), as the pipeline does."""
    n, c, h, w = latents.shape
    return latents.view(n, c, h // 2, 2, w // 2, 2).permute(0, 2, 4, 1, 3, 5).reshape(n, h * w // 4, c * 4)


def from_tokens(tokens: torch.Tensor, shape: Shape = (SHEET_SIZE // 16, SHEET_SIZE // 16)) -> torch.Tensor:
    """Inverse of `to_tokens`; `shape` in tokens."""
    n, _, c = tokens.shape
    h, w = shape
    return tokens.view(n, h, w, c // 4, 2, 2).permute(0, 3, 1, 4, 2, 5).reshape(n, c // 4, 2 * h, 2 * w)


class Denoiser:
    """The transformer, its blocks compiled for training on CUDA.

    Real rotations are made once a length: a captured step may not copy from the host.
    """

    def __init__(self, run: Run) -> None:
        self.model: Any = build_transformer(run.sizes).to(run.device)
        self.rotations: dict[tuple[tuple[Shape, ...], int], Any] = {}
        self.blocks: list[Any] = list(self.model.transformer_blocks)  # type: ignore[arg-type]

    def prepare(self) -> None:
        """After weights are loaded."""
        real_rotations(self.model)
        if next(self.model.parameters()).is_cuda:
            allow_recompiles()
            self.blocks = [torch.compile(block, dynamic=True) for block in self.blocks]

    def __call__(
        self, tokens: torch.Tensor, text: torch.Tensor, sigma: torch.Tensor, shapes: tuple[Shape, ...]
    ) -> torch.Tensor:
        """Velocity of the first picture's tokens; `shapes` are those of all pictures that `tokens` hold."""
        m = self.model
        x, e = m.img_in(tokens), m.txt_in(m.txt_norm(text))
        temb = m.time_text_embed(sigma, x)
        x, e = x.float(), e.float()  # a precise residual stream
        key = (shapes, e.shape[1])
        if key not in self.rotations:
            placed = [[(1, *shape) for shape in shapes]]
            self.rotations[key] = m.pos_embed(placed, max_txt_seq_len=e.shape[1], device=x.device)
        for block in self.blocks if torch.is_grad_enabled() else m.transformer_blocks:
            e, x = block(
                hidden_states=x, encoder_hidden_states=e, encoder_hidden_states_mask=None, temb=temb,
                image_rotary_emb=self.rotations[key], joint_attention_kwargs={}, modulate_index=None,
            )  # fmt: skip
        x = m.norm_out(x[:, : shapes[0][0] * shapes[0][1]], temb)
        velocity: torch.Tensor = m.proj_out(x)
        return velocity


def zero_gates(transformer: Any) -> None:
    """Blocks start as the identity (adaLN-zero), the output at zero."""
    for block in transformer.transformer_blocks:
        for layer in (block.img_mod[1], block.txt_mod[1]):
            torch.nn.init.zeros_(layer.weight)
            torch.nn.init.zeros_(layer.bias)
    torch.nn.init.zeros_(transformer.proj_out.weight)
    torch.nn.init.zeros_(transformer.proj_out.bias)


def shape_of(latents: torch.Tensor) -> Shape:
    """Rows and columns of tokens that latents (n, 16, h, w) become."""
    return latents.shape[-2] // 2, latents.shape[-1] // 2


def flow_loss(
    denoiser: Denoiser,
    heads: TraitHeads,
    latents: torch.Tensor,
    weights: torch.Tensor,
    text: torch.Tensor,
    traits: torch.Tensor,
    shown: torch.Tensor | None,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Flow matching on one batch, and the trait loss of its prompts.

    Args:
        denoiser: the transformer.
        heads: read traits off the text.
        latents: (n, 16, h, w), clean.
        weights: (n, 1, h / 2, w / 2), what each token counts.
        text: what the VL made of the prompts.
        traits: (n, n_traits).
        shown: (1 or n, 16, h, w), latents of the picture beside the noise, or none.
    """
    named = heads(torch.cat([text[:, -1], text.mean(1)], -1), traits)
    clean = to_tokens(latents.float())
    noise = torch.randn_like(clean)
    u = torch.sigmoid(torch.randn(len(clean), device=clean.device) * 1.1)
    sigma = 2.0 * u / (1 + u)
    noisy = torch.lerp(clean, noise, sigma[:, None, None])
    shapes: tuple[Shape, ...] = (shape_of(latents),)
    if shown is not None:
        beside = to_tokens(shown.float()).expand(len(noisy), -1, -1)
        noisy, shapes = torch.cat([noisy, beside], 1), (*shapes, shape_of(shown))
    velocity = denoiser(noisy, text, sigma, shapes)
    wrong = (velocity.float() - (noise - clean)).square().mean(-1)
    return (wrong * weights.float().flatten(1)).mean(), named


def caption_loss(
    reader: Reader, before: int, pixels: torch.Tensor, ids: torch.Tensor, labels: torch.Tensor
) -> torch.Tensor:
    """Cross-entropy of the tags, given the picture; the answer is the last `ANSWER` tokens."""
    patches, grid = pixel_patches(pixels)
    seen = look(reader.model.model.visual, patches, grid)
    hidden = read(reader.model, ids, seen, before, grid)
    logits = reader.model.lm_head(hidden[:, -ANSWER - 1 : -1]).float()
    return F.cross_entropy(logits.flatten(0, 1), labels[:, -ANSWER:].flatten(), ignore_index=-100)
