"""GGUF's commonest packings (Q4_K, Q5_K, Q6_K) unpacked in few passes over memory, with nothing copied from the host.

diffusers' own functions, which read all the other packings, copy a table of shifts to the GPU for each matrix, and the host waits
for the GPU each time; and they write every weight some six times. Here shifts are plain numbers, and a product is rounded as it is
written. The values are the same to the bit. Layouts: ggml's `block_q4_K`, `block_q5_K`, `block_q6_K`, 256 weights each.
On a GPU with Triton each is one kernel (`gguf_kernels.py`), which writes a weight once where torch writes it three times.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from charengine.machine import kernels

WEIGHTS = 256  # of a block
GROUP, GROUPS = 32, 8  # weights that share a scale and a least value, and such groups, of Q4_K and Q5_K
SCALES = 12  # bytes of eight scales and eight least values of 6 bits


def unpack_q4_k(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, 256) in `dtype` of blocks (n, 144) of uint8: two float16, scales, and nibbles."""
    return _scaled(blocks, _nibbles(blocks[:, 4 + SCALES :].reshape(-1, 4, GROUP)), dtype)


def unpack_q5_k(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, 256) in `dtype` of blocks (n, 176) of uint8: as Q4_K with a fifth bit of each, those of a group side by side in their bytes."""
    fifth = blocks[:, 4 + SCALES : 4 + SCALES + GROUP]
    values = _nibbles(blocks[:, 4 + SCALES + GROUP :].reshape(-1, 4, GROUP))
    for group in range(GROUPS):
        values[:, group] |= ((fifth >> group) & 1) << 4
    return _scaled(blocks, values, dtype)


def unpack_q6_k(blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, 256) in `dtype` of blocks (n, 210) of uint8: nibbles, two bits more of each, 16 scales of int8, one float16."""
    count = len(blocks)
    nibbles = _nibbles(blocks[:, :128].reshape(-1, 2, 64)).view(count, 2, 4, GROUP)
    more = blocks[:, 128:192].reshape(-1, 2, GROUP)
    for part in range(4):
        nibbles[:, :, part] |= ((more >> (2 * part)) & 3) << 4
    values = nibbles.view(torch.int8) - 32
    scale = _half(blocks[:, 208:]) * blocks[:, 192:208].view(torch.int8)
    out = torch.empty(count, 16, 16, dtype=dtype, device=blocks.device)
    return torch.mul(values.view(count, 16, 16), scale[:, :, None], out=out).view(count, WEIGHTS)


UNPACK: dict[str, Callable[[Tensor, torch.dtype], Tensor]] = {
    "Q4_K": unpack_q4_k,
    "Q5_K": unpack_q5_k,
    "Q6_K": unpack_q6_k,
}


def unpack_blocks(packing: str, blocks: Tensor, dtype: torch.dtype) -> Tensor:
    """(n, 256) in `dtype` of blocks (n, bytes of a block) of uint8, of a packing in UNPACK; where the blocks are."""
    if blocks.is_cuda and blocks.is_contiguous() and _kernels_work(blocks.device):
        unpacked: Tensor = _kernels().unpacked(packing, blocks, dtype)
        return unpacked
    return UNPACK[packing](blocks, dtype)


@functools.cache
def _kernels_work(device: torch.device) -> bool:
    """Whether every kernel gives on this device what torch gives, to the bit."""

    def trial() -> None:
        for packing, size in {"Q4_K": 144, "Q5_K": 176, "Q6_K": 210}.items():
            blocks = (torch.arange(9 * size) * 37 % 101).view(9, size).to(device, torch.uint8)
            for dtype in (torch.float32, torch.bfloat16):
                if not torch.equal(_kernels().unpacked(packing, blocks, dtype), UNPACK[packing](blocks, dtype)):
                    raise ArithmeticError(f"{packing} is unpacked to other values")

    return kernels.work(trial, "GGUF weights")


def _kernels() -> Any:
    from charengine.models import gguf_kernels

    return gguf_kernels


def _nibbles(packed: Tensor) -> Tensor:
    """(n, 2 a, b) of bytes (n, a, b): the lower halves of each row, then the upper ones."""
    count, rows, width = packed.shape
    values = torch.empty(count, rows, 2, width, dtype=torch.uint8, device=packed.device)
    torch.bitwise_and(packed, 15, out=values[:, :, 0])
    torch.bitwise_right_shift(packed, 4, out=values[:, :, 1])
    return values.view(count, 2 * rows, width)


def _scaled(blocks: Tensor, values: Tensor, dtype: torch.dtype) -> Tensor:
    """values × scale − least, each group with its own, in float32 and rounded once."""
    scale, least = _scales_and_leasts(blocks[:, 4 : 4 + SCALES])
    scale, least = _half(blocks[:, :2]) * scale, _half(blocks[:, 2:4]) * least
    product = values * scale[:, :, None]
    out = torch.empty(product.shape, dtype=dtype, device=product.device)
    return torch.sub(product, least[:, :, None], out=out).view(-1, WEIGHTS)


def _scales_and_leasts(packed: Tensor) -> tuple[Tensor, Tensor]:
    """Eight scales and eight least values (n, 8) of 6 bits each, out of 12 bytes."""
    low, high, rest = packed[:, :4], packed[:, 4:8], packed[:, 8:]
    scales = torch.cat([low & 63, (rest & 15) | ((low >> 2) & 48)], dim=1)
    leasts = torch.cat([high & 63, (rest >> 4) | ((high >> 2) & 48)], dim=1)
    return scales, leasts


def _half(two_bytes: Tensor) -> Tensor:
    """Float16 (n, 2 bytes) as float32 (n, 1)."""
    return two_bytes.contiguous().view(torch.float16).float()
