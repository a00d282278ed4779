"""Faster, equal forwards for training on batches of same-sized still pictures. Each is tested against the stock one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch.nn import functional as F
from transformers.image_utils import OPENAI_CLIP_MEAN, OPENAI_CLIP_STD


def still_convolutions() -> None:
    """Let Qwen's causal 3-D convolutions run as 2-D ones on single frames: the padded frames are zero anyway."""
    from diffusers.models.autoencoders import autoencoder_kl_qwenimage as source

    stock: Callable[..., torch.Tensor] = source.QwenImageCausalConv3d.forward
    if getattr(stock, "still", False):
        return

    def forward(self: Any, x: torch.Tensor, cache_x: torch.Tensor | None = None) -> torch.Tensor:
        if x.shape[2] != 1 or cache_x is not None or self.stride[0] != 1:
            return stock(self, x, cache_x)
        pad = (self._padding[2], self._padding[0])
        out = F.conv2d(x[:, :, 0], self.weight[:, :, -1], self.bias, self.stride[1:], pad)
        return out.unsqueeze(2)

    forward.still = True  # type: ignore[attr-defined]
    source.QwenImageCausalConv3d.forward = forward


# --- Qwen2.5-VL ------------------------------------------------------------------------------------------------------


def normalised(pixels: torch.Tensor) -> torch.Tensor:
    """uint8 pictures as CLIP's image processor scales them."""
    mean = torch.tensor(OPENAI_CLIP_MEAN, device=pixels.device).view(1, 3, 1, 1)
    std = torch.tensor(OPENAI_CLIP_STD, device=pixels.device).view(1, 3, 1, 1)
    return (pixels.float() / 255 - mean) / std


def pixel_patches(pictures: torch.Tensor, patch: int = 14, merge: int = 2) -> tuple[torch.Tensor, tuple[int, int]]:
    """Normalised pictures (n, 3, h, w) to Qwen's patch rows (n, patches, 1176) and the patch grid."""
    n, c, h, w = pictures.shape
    rows, columns = h // patch, w // patch
    x = pictures.reshape(n, c, rows // merge, merge, patch, columns // merge, merge, patch)
    x = x.permute(0, 2, 5, 3, 6, 1, 4, 7)  # n, row, column, row in merge, column in merge, c, y, x
    x = x.unsqueeze(6).expand(-1, -1, -1, -1, -1, -1, 2, -1, -1)
    return x.reshape(n, rows * columns, -1), (rows, columns)


def look(visual: Any, patches: torch.Tensor, grid: tuple[int, int]) -> torch.Tensor:
    """The vision tower on same-sized pictures with full attention: (n, patches / 4, d)."""
    n, length, _ = patches.shape
    rows, columns = grid
    heads = visual.config.num_heads
    x = visual.patch_embed(patches.reshape(n * length, -1)).reshape(n, length, -1)
    cos, sin = _vision_rotation(rows, columns, x.shape[-1] // heads, x.device)
    for block in visual.blocks:
        q, k, v = block.attn.qkv(block.norm1(x)).reshape(n, length, 3, heads, -1).permute(2, 0, 3, 1, 4)
        q, k = (t * cos + _rotate_half(t) * sin for t in (q.float(), k.float()))
        seen = F.scaled_dot_product_attention(q.to(v.dtype), k.to(v.dtype), v)
        x = x + block.attn.proj(seen.transpose(1, 2).reshape(n, length, -1))
        x = x + block.mlp(block.norm2(x))
    merged: torch.Tensor = visual.merger(x.reshape(n * length, -1))
    return merged.reshape(n, length // 4, -1)


def _rotate_half(x: torch.Tensor) -> torch.Tensor:
    first, second = x.chunk(2, -1)
    return torch.cat((-second, first), -1)


def _vision_rotation(rows: int, columns: int, width: int, device: torch.device) -> tuple[torch.Tensor, torch.Tensor]:
    inverse = 1.0 / 10000.0 ** (torch.arange(0, width // 2, 2, device=device).float() / (width // 2))
    row = torch.arange(rows, device=device)[:, None].expand(rows, columns)
    column = torch.arange(columns, device=device)[None].expand(rows, columns)
    place = [p.reshape(rows // 2, 2, columns // 2, 2).permute(0, 2, 1, 3).reshape(-1) for p in (row, column)]
    angles = torch.cat([p[:, None].float() * inverse for p in place], -1)
    angles = torch.cat([angles, angles], -1)
    return angles.cos(), angles.sin()


def positions(before: int, grid: tuple[int, int] | None, after: int, device: torch.device) -> torch.Tensor:
    """M-RoPE positions (3, 1, before + picture + after) of text, one picture, text."""
    start = torch.arange(before, device=device).expand(3, before)
    if grid is None:
        return torch.arange(before + after, device=device).expand(3, 1, -1)
    rows, columns = grid[0] // 2, grid[1] // 2
    row = torch.arange(rows, device=device)[:, None].expand(rows, columns).reshape(-1)
    column = torch.arange(columns, device=device)[None].expand(rows, columns).reshape(-1)
    picture = torch.stack([torch.zeros_like(row), row, column]) + before
    rest = torch.arange(after, device=device).expand(3, after) + before + max(rows, columns)
    return torch.cat([start, picture, rest], 1)[:, None]


def read(
    model: Any, ids: torch.Tensor, seen: torch.Tensor | None, before: int, grid: tuple[int, int] | None
) -> torch.Tensor:
    """Last hidden states (n, tokens, d) of same-layout prompts.

    Args:
        model: `Qwen2_5_VLForConditionalGeneration`.
        ids: (n, tokens) with the picture's pad tokens already repeated.
        seen: vision tokens (n or 1, k, d) that replace them, or None.
        before: tokens before the picture.
        grid: its patch grid.
    """
    n, length = ids.shape
    embeds = model.get_input_embeddings()(ids)
    after = length - before
    if seen is not None:
        k = seen.shape[1]
        after -= k
        embeds = torch.cat([embeds[:, :before], seen.expand(n, -1, -1).to(embeds.dtype), embeds[:, before + k :]], 1)
    place = positions(before, grid if seen is not None else None, after, ids.device).expand(3, n, -1)
    # No mask: rows are all of one length or padded on the right, where causal attention never looks.
    found = model.model.language_model(inputs_embeds=embeds, position_ids=place, use_cache=False)
    states: torch.Tensor = found.last_hidden_state
    return states


# --- Qwen-Image transformer ------------------------------------------------------------------------------------------


class RealRotation(torch.nn.Module):
    """Stands in for `pos_embed`: the same angles as (cos, sin) pairs, which compile well, instead of complex numbers."""

    def __init__(self, stock: torch.nn.Module) -> None:
        super().__init__()
        self.stock = stock

    def forward(self, *args: Any, **kwargs: Any) -> tuple[torch.Tensor, torch.Tensor]:
        """As `QwenEmbedRope.forward`; each (tokens, d / 2, 2)."""
        picture, text = self.stock(*args, **kwargs)
        return torch.view_as_real(picture).contiguous(), torch.view_as_real(text).contiguous()


def _turn(x: torch.Tensor, angles: torch.Tensor) -> torch.Tensor:
    """Rotate (n, tokens, heads, d) by (tokens, d / 2, 2)."""
    first, second = x.float().unflatten(-1, (-1, 2)).unbind(-1)
    cos, sin = angles[None, :, None, :, 0], angles[None, :, None, :, 1]
    return torch.stack([first * cos - second * sin, first * sin + second * cos], -1).flatten(-2).to(x.dtype)


class RealAttention:
    """`QwenDoubleStreamAttnProcessor2_0` with real rotations and no mask."""

    def __call__(
        self,
        attn: Any,
        hidden_states: torch.Tensor,
        encoder_hidden_states: torch.Tensor,
        encoder_hidden_states_mask: torch.Tensor | None = None,
        attention_mask: torch.Tensor | None = None,
        image_rotary_emb: Any = None,
    ) -> tuple[torch.Tensor, torch.Tensor]:
        """Joint attention of text and picture tokens."""
        heads = attn.heads
        q, k, v = (f(hidden_states).unflatten(-1, (heads, -1)) for f in (attn.to_q, attn.to_k, attn.to_v))
        tq, tk, tv = (
            f(encoder_hidden_states).unflatten(-1, (heads, -1))
            for f in (attn.add_q_proj, attn.add_k_proj, attn.add_v_proj)
        )
        q, k, tq, tk = attn.norm_q(q), attn.norm_k(k), attn.norm_added_q(tq), attn.norm_added_k(tk)
        picture, text = image_rotary_emb
        q, k, tq, tk = _turn(q, picture), _turn(k, picture), _turn(tq, text), _turn(tk, text)
        query, key, value = (torch.cat(pair, 1).transpose(1, 2) for pair in ((tq, q), (tk, k), (tv, v)))
        query, key = query.to(value.dtype), key.to(value.dtype)
        out = F.scaled_dot_product_attention(query, key, value).transpose(1, 2).flatten(2)
        length = encoder_hidden_states.shape[1]
        return attn.to_out[0](out[:, length:]), attn.to_add_out(out[:, :length])


def real_rotations(transformer: Any) -> None:
    """Prepare a `QwenImageTransformer2DModel` for training: equal results, no complex numbers, no masks."""
    transformer.pos_embed = RealRotation(transformer.pos_embed)
    for block in transformer.transformer_blocks:
        block.attn.processor = RealAttention()
