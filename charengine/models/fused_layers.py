"""SDXL's U-Net and VAE drawing with fewer passes over memory: group norms, residual blocks and GEGLUs by `kernels.py`.

Between products and convolutions a pass of SDXL's U-Net spends a third of its time, most of it reading and writing the same values
again; half of a decoded picture is torch's group norm waiting for one core a group. What is computed is the same but for rounding,
which happens less often.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from charengine.models.kernels import geglu, group_norm


@contextmanager
def fused(model: nn.Module) -> Iterator[None]:
    """Let a frozen model on a GPU compute with fewer kernels until left; elsewhere nothing changes.

    Modules whose forward is somebody's already (an adapter's) are left alone; what lies inside them is not.
    """
    faster = {} if torch.is_grad_enabled() or not _is_worth_it(model) else dict(_faster(model))
    for module, forward in faster.items():
        module.__dict__["forward"] = forward
    try:
        yield
    finally:
        for module in faster:
            module.__dict__.pop("forward", None)


def _is_worth_it(model: nn.Module) -> bool:
    """Whether the model is where there are kernels for it."""
    return next(model.parameters()).is_cuda


def _faster(model: nn.Module) -> Iterator[tuple[nn.Module, Callable[..., Tensor]]]:
    """The modules of which something quicker is known, with that."""
    from diffusers.models.activations import GEGLU
    from diffusers.models.resnet import ResnetBlock2D

    for module in model.modules():
        if "forward" in module.__dict__:
            continue
        if isinstance(module, ResnetBlock2D) and _is_plain(module):
            yield module, partial(_residual, module)
        elif isinstance(module, GEGLU):
            yield module, partial(_gated, module)
        elif isinstance(module, nn.GroupNorm) and module.affine:
            yield module, partial(_normed, module)


def _is_plain(block: Any) -> bool:
    """Whether a residual block is as SDXL's are: no change of size inside, the time added, SiLU between."""
    plain = block.upsample is None and block.downsample is None and block.time_embedding_norm == "default"
    quiet = not block.skip_time_act and not (block.training and block.dropout.p)
    norms = all(isinstance(norm, nn.GroupNorm) and norm.affine for norm in (block.norm1, block.norm2))
    return plain and quiet and norms and isinstance(block.nonlinearity, nn.SiLU)


def _residual(block: Any, x: Tensor, temb: Tensor | None = None) -> Tensor:
    """`ResnetBlock2D.forward`: the time is added and SiLU taken where the norm reads and writes anyway."""
    inner = block.conv1(group_norm(x, block.norm1, silu=True))
    shift = temb if block.time_emb_proj is None or temb is None else block.time_emb_proj(F.silu(temb))
    inner = block.conv2(group_norm(inner, block.norm2, shift=shift, silu=True))
    if block.conv_shortcut is not None:
        x = block.conv_shortcut(x)
    out: Tensor = x + inner
    return out if block.output_scale_factor == 1 else out / block.output_scale_factor


def _gated(layer: Any, x: Tensor) -> Tensor:
    """`GEGLU.forward`."""
    projected: Tensor = layer.proj(x)
    return geglu(projected.reshape(-1, projected.shape[-1])).view(*projected.shape[:-1], -1)


def _normed(norm: nn.GroupNorm, x: Tensor) -> Tensor:
    return group_norm(x, norm)
