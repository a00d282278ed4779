"""Fused kernels against torch: interpreted here, on a card in `stages/train/test_gpu.py` and below."""

from __future__ import annotations

import importlib.util
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional as F

from charengine.models.kernels import group_norm

CASES = {  # x, groups, shifted, SiLU; whole pieces and rows, and not
    "one piece": ((2, 8, 5, 7), 4, False, False),
    "shifted, with SiLU": ((2, 8, 5, 7), 4, True, True),
    "several pieces and rows": ((1, 4, 70, 121), 2, True, True),
    "a group a channel": ((3, 6, 16, 16), 6, False, True),
    "far from zero": ((1, 4, 64, 64), 2, False, False),
}


def case(name: str) -> tuple[torch.Tensor, nn.GroupNorm, torch.Tensor | None, bool]:
    shape, groups, shifted, silu = CASES[name]
    random = torch.Generator().manual_seed(len(name))
    norm = nn.GroupNorm(groups, shape[1])
    for parameter in norm.parameters():
        parameter.data = torch.randn(shape[1], generator=random)
    x = torch.randn(shape, generator=random) + (1000 if name == "far from zero" else 0)
    return x, norm.requires_grad_(False), torch.randn(shape[:2], generator=random) if shifted else None, silu


def wanted(x: torch.Tensor, norm: nn.GroupNorm, shift: torch.Tensor | None, silu: bool) -> torch.Tensor:
    """In float64."""
    x = x.double() if shift is None else x.double() + shift.double()[:, :, None, None]
    normed = F.group_norm(x, norm.num_groups, norm.weight.double(), norm.bias.double(), norm.eps)
    return F.silu(normed) if silu else normed


@pytest.mark.parametrize("name", CASES)
def test_group_norm_without_a_card_is_torchs_of_what_was_shifted(name: str) -> None:
    x, norm, shift, silu = case(name)
    found = group_norm(x, norm, shift=shift, silu=silu)
    assert torch.allclose(found.double(), wanted(x, norm, shift, silu), atol=1e-4 if x.mean() > 9 else 1e-5)


KERNELS = """
import sys, torch
sys.path.insert(0, sys.argv[1])
from test_kernels import CASES, case, wanted
from charengine.models import kernels
for name in CASES:
    x, norm, shift, silu = case(name)
    found = kernels._group_norm(x, norm, shift, silu).double()
    off = float((found - wanted(x, norm, shift, silu)).abs().max())
    assert off < 2e-4 if x.mean() > 9 else off < 5e-6, (name, off)
"""


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="needs triton, which CUDA builds of torch bring")
def test_the_group_norm_kernels_are_torchs() -> None:
    """Interpreted, in a process of its own: Triton decides at import whether it interprets."""
    environment = {**os.environ, "TRITON_INTERPRET": "1"}
    folder = str(Path(__file__).parent)
    done = subprocess.run([sys.executable, "-c", KERNELS, folder], capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr[-2000:]


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_group_norm_on_a_card_is_torchs_rounded_once(name: str, dtype: torch.dtype) -> None:
    x, norm, shift, silu = case(name)
    x, norm, shift = x.cuda().to(dtype), norm.cuda().to(dtype), shift if shift is None else shift.cuda().to(dtype)
    found, right = group_norm(x, norm, shift=shift, silu=silu), wanted(x, norm, shift, silu)
    assert found.dtype == dtype
    assert torch.allclose(found.double(), right, rtol=2**-8 if dtype == torch.bfloat16 else 1e-5, atol=2e-4)
