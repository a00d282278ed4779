"""What a file says of one layer: which algorithm, whether all of it is there, of the layer's shape, and finite.

Parts have LyCORIS' names. With W (out, in, *kernel) the layer's weight and r the rank, the difference an adapter adds is

    LoRA, LoCon   alpha/r · up (out, r) · down (r, in·kernel)
    LoHa          alpha/r · (w1_a (out, r) · w1_b (r, in·kernel)) ∘ (w2_a · w2_b)
    LoKr          alpha/r · w1 (a, c) ⊗ w2 (b, d, *kernel), a·b = out, c·d = in; each whole or a product of two; both whole: no scale

Without an alpha the scale is 1, as ComfyUI, A1111 and LyCORIS read it. A `dora_scale` gives the sum's norms, by output (out, 1…) or, as
older LyCORIS wrote, by input (1, in, 1…).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from math import prod

import torch
from torch import Tensor

from charengine.adapter.sorting import LORA, MOST_VALUE, missing_of
from charengine.errors import BadInput
from charengine.wording import shape_told

Parts = dict[str, Tensor]

MOST_CHANGE = 100  # of a weight
MOST_NORM = 1000  # of a DoRA's rows; SDXL's longest has 23,040 weights: were each 1, its norm would be 152
NO_CHANGE = 1e-12  # of a weight: no float of a model's notices
FLOATS = (torch.float64, torch.float32, torch.float16, torch.bfloat16, torch.float8_e4m3fn, torch.float8_e5m2)


def checked_parts(name: str, parts: Mapping[str, Tensor], shape: tuple[int, ...] | None = None) -> Parts:
    """The parts of one layer in their plain form: float, an alpha, Tucker's middle multiplied out for LoRA, matrices in the layer's shape.

    Args:
        name: of the layer, for messages.
        parts: LyCORIS part → tensor.
        shape: of the layer's weight; None where it is not known, and only the parts are held against each other.

    Raises:
        BadInput: they are incomplete, of wrong shapes or element types, not finite, or for a layer of another shape.
    """
    try:
        missing = missing_of(parts)
    except ValueError as error:
        raise BadInput(f"the adapter's {name} {error}; the file is damaged") from error
    if missing:
        only = " has only one of the two matrices of" if missing[0] in LORA else " lacks a part of"
        raise BadInput(f"the adapter{only} {name}: {', '.join(missing)} missing; the file is incomplete")
    if shape is not None and len(shape) < 2:
        raise BadInput(f"the adapter's {name} is a norm of the model's, which takes no low-rank adapter")
    if is_whole(parts) and "alpha" in parts:  # nobody reads its value: ai-toolkit's 9999999999 is infinite in float16
        parts = {**parts, "alpha": torch.ones(parts["alpha"].shape)}
    plain = {part: floats(name, part, value) for part, value in parts.items()}
    try:
        plain = _plain_lora(plain, shape) if LORA[0] in plain else _checked_factors(plain, shape)
        rank = rank_of(plain)
        if not rank:
            raise _Misfit("rank 0")
        plain["alpha"] = _alpha(name, plain.get("alpha"), rank)
        if "dora_scale" in plain and shape is not None:
            plain["dora_scale"] = _norms(plain["dora_scale"], shape)
    except _Misfit as misfit:
        raise BadInput(_misfit(name, plain, shape, misfit)) from misfit
    return plain


def rank_of(parts: Mapping[str, Tensor]) -> int:
    """r of the formulas above; 1 for a LoKr of two whole matrices."""
    for part, axis in (("lora_down.weight", 0), ("hada_w1_b", 0), ("lokr_w2_b", 0), ("lokr_w1_b", 0)):
        if part in parts:
            return parts[part].shape[axis]
    return 1


def is_whole(parts: Collection[str]) -> bool:
    """Whether it is a LoKr of two whole matrices."""
    return "lokr_w1" in parts and "lokr_w2" in parts


def scale_of(parts: Mapping[str, Tensor]) -> float:
    """alpha / rank; 1 for a LoKr of two whole matrices, whose alpha loaders ignore."""
    if is_whole(parts):
        return 1.0
    return float(parts["alpha"]) / rank_of(parts) if "alpha" in parts else 1.0


def is_turned_round(parts: Mapping[str, Tensor]) -> bool:
    """Whether an alpha below 0 takes away what the matrices say instead of adding it."""
    return "alpha" in parts and parts["alpha"].numel() == 1 and not is_whole(parts) and float(parts["alpha"]) < 0


def difference(parts: Mapping[str, Tensor], shape: tuple[int, ...], scale: float) -> Tensor:
    """What these (checked) parts add to a weight of this shape; `scale` as `scale_of` gives it, from an alpha of full precision."""
    if "lora_down.weight" in parts:
        change = parts["lora_up.weight"].flatten(1) @ parts["lora_down.weight"].flatten(1)
    elif "hada_w1_a" in parts:
        change = _product(parts, "hada_w1", "hada_t1") * _product(parts, "hada_w2", "hada_t2")
    else:
        first, second = (_side(parts, side) for side in ("lokr_w1", "lokr_w2"))
        inner = second.view(second.shape[0], -1, *shape[2:])
        change = torch.kron(first.view(*first.shape, *[1] * (len(shape) - 2)), inner.contiguous())
    return change.reshape(shape) * scale


def with_norms(weight: Tensor, scale: Tensor) -> Tensor:
    """DoRA: the weight with the norms of `scale`, by output or by input, whichever it has a row for."""
    axes = [axis for axis in range(weight.dim()) if scale.shape[axis] == 1]
    if scale.shape[0] == weight.shape[0]:
        axes = list(range(1, weight.dim()))
    norms = torch.linalg.vector_norm(weight, dim=axes, keepdim=True)
    scaled: Tensor = weight * (scale / norms.clamp(min=torch.finfo(weight.dtype).tiny))
    return scaled


def refuse_huge(name: str, parts: Mapping[str, Tensor]) -> None:
    """Finite values can still be no adapter's: what they add drowns every weight, and the first step of a training ends in NaN.

    The largest change of a weight is bounded by the norms of the factors' rows and columns (Cauchy-Schwarz). SDXL's weights and
    useful changes are about 1; of a small U-Net a change of 900 makes NaN.

    Args:
        name: of the layer, for messages.
        parts: as `checked_parts` gives them.

    Raises:
        BadInput: a value or a change is larger than any adapter's.
    """
    factors = _factors(parts)
    if not all(value.numel() for value in factors.values()):
        return  # they change nothing
    norms = float(factors["dora_scale"].max()) if "dora_scale" in factors else 1.0
    if norms <= 0:
        raise BadInput(
            f"the adapter's {name}.dora_scale holds no norm above 0, which takes the layer's weights away: the file is damaged, get it again"
        )
    values = max(float(value.abs().max()) for value in factors.values())
    for what, found, most in (
        ("holds values of", values, MOST_VALUE),
        ("gives a DoRA's rows norms of", norms, MOST_NORM),
        ("changes weights by", largest_change(parts), MOST_CHANGE),
    ):
        if not found <= most:
            raise BadInput(
                f"the adapter's {name} {what} up to {found:.3g}; allowed is at most {most:g}: the file is damaged, get it again or take "
                "an earlier checkpoint"
            )


def largest_change(parts: Mapping[str, Tensor]) -> float:
    """What no weight is changed by more than, before a DoRA's norms; 0 where a factor is empty."""
    factors = _factors(parts)
    if not all(value.numel() for value in factors.values()):
        return 0.0
    sides = sorted({part[:7] for part in factors if part.startswith(("hada_w", "lokr_w"))})
    return abs(scale_of(parts)) * (
        prod(_largest(factors, side) for side in sides) if sides else _largest(factors, LORA)
    )


def _factors(parts: Mapping[str, Tensor]) -> Parts:
    """All but the alpha, as matrices."""
    plain = {part: value.float() for part, value in parts.items() if part != "alpha"}
    return {part: value.flatten(1) if value.dim() > 1 else value.reshape(-1, 1) for part, value in plain.items()}


def _largest(factors: Parts, side: str | tuple[str, str]) -> float:
    """No value of a product, or of a side that is there whole, is larger."""
    if side in factors:
        return float(factors[side].abs().max())
    second, first = (f"{side}_b", f"{side}_a") if isinstance(side, str) else side
    middle = factors.get(str(side).replace("w", "t"))
    if middle is not None:  # Tucker
        return float(factors[first].norm(dim=0).max() * factors[second].norm(dim=0).max() * middle.norm())
    return float(factors[first].norm(dim=1).max() * factors[second].norm(dim=0).max())


class _Misfit(Exception):
    """Parts that do not fit each other or the layer."""


def floats(name: str, part: str, value: Tensor) -> Tensor:
    """The tensor as floats that can be computed with; float8 and float64 as float32."""
    counts = part == "alpha" and not value.is_complex() and value.dtype != torch.bool  # some write it as an integer
    if value.dtype not in FLOATS and not counts:
        kind = str(value.dtype).removeprefix("torch.")
        raise BadInput(
            f"the adapter's {name}.{part} holds {kind} values; floats are needed (float16, bfloat16, float32, float64 or float8)"
        )
    if part == "alpha" or value.dtype not in (torch.float16, torch.bfloat16):
        exact, value = value, value.float()
        if exact.dtype == torch.float64 and exact.isfinite().all() and not value.isfinite().all():
            raise BadInput(
                f"the adapter's {name}.{part} holds values of up to {float(exact.abs().max()):.3g}; allowed is at most {MOST_VALUE:g}: "
                "the file is damaged, get it again or take an earlier checkpoint"
            )
    if not _all_finite(value):
        raise BadInput(
            f"the adapter's {name}.{part} holds values that are not finite (NaN or Inf): the file is damaged"
        )
    return value


def times(value: Tensor, factor: float) -> Tensor:
    """Multiplied in float32; float8, which has four bits of a number, and what half precision cannot hold stay float32."""
    product = value.float() * factor
    if value.dtype not in FLOATS or value.element_size() == 1:
        return product
    narrow = product.to(value.dtype)
    return narrow if narrow.isfinite().equal(value.isfinite()) else product


def _all_finite(value: Tensor) -> bool:
    """Whether no value is NaN or infinite; by its sum where that is finite, which takes a sixth of the time of looking at each."""
    return bool(torch.isfinite(value.sum(dtype=torch.float32))) or bool(torch.isfinite(value).all())


def _alpha(name: str, value: Tensor | None, rank: int) -> Tensor:
    if value is None:
        return torch.tensor(float(rank))
    if value.numel() != 1:
        raise _Misfit(f"alpha has {value.numel()} values")
    if not float(value):
        raise BadInput(
            f"the adapter's {name}.alpha is 0, which ComfyUI reads as no effect and kohya's scripts as the rank; write the one you mean"
        )
    return value.reshape(())


def _plain_lora(parts: Parts, shape: tuple[int, ...] | None) -> Parts:
    """Down (r, in, *kernel) and up (out, r, 1…), as LyCORIS' module has them."""
    parts = dict(parts)
    down, up, mid = parts["lora_down.weight"], parts["lora_up.weight"], parts.pop("lora_mid.weight", None)
    if down.dim() < 2 or up.dim() < 2 or prod(up.shape[2:]) != 1:
        raise _Misfit("the matrices have too few or too many axes")
    if mid is not None:
        if mid.dim() < 3 or mid.shape[:2] != (up.shape[1], down.shape[0]) or prod(down.shape[2:]) != 1:
            raise _Misfit(f"lora_mid is {shape_told(mid.shape)}")
        down = torch.einsum("ij...,jr->ir...", mid.float(), down.flatten(1).float())
    if up.shape[1] != down.shape[0]:
        raise _Misfit("they have different ranks")
    parts |= {"lora_down.weight": down, "lora_up.weight": up}
    if shape is None:
        return parts
    if up.shape[0] != shape[0] or prod(down.shape[1:]) != prod(shape[1:]):
        raise _Misfit("not the layer's")
    if down.dim() > 2 and len(shape) > 2 and tuple(down.shape[1:]) != shape[1:]:
        raise _Misfit("another kernel")
    parts["lora_down.weight"] = down.reshape(down.shape[0], *shape[1:])
    parts["lora_up.weight"] = up.reshape(*up.shape[:2], *[1] * (len(shape) - 2))
    return parts


def _checked_factors(parts: Parts, shape: tuple[int, ...] | None) -> Parts:
    """LoHa's and LoKr's, held against each other and the layer."""
    sides = ("hada_w1", "hada_w2") if "hada_w1_a" in parts else ("lokr_w1", "lokr_w2")
    sizes = [_side_shape(parts, side) for side in sides]
    ranks = {parts[f"{side}_b"].shape[0] for side in sides if f"{side}_b" in parts}
    if len(ranks) > 1:
        raise _Misfit("they have different ranks")
    if sides[0] == "hada_w1":
        if sizes[0] != sizes[1]:
            raise _Misfit("the two products have different shapes")
        whole = sizes[0]
    else:
        whole = (sizes[0][0] * sizes[1][0], sizes[0][1] * sizes[1][1])
        if shape is not None and sizes[1][1] % prod(shape[2:]):
            raise _Misfit("another kernel")
    if shape is not None and whole != (shape[0], prod(shape[1:])):
        raise _Misfit("not the layer's")
    for middle in ("hada_t1", "hada_t2", "lokr_t2"):
        if middle in parts and shape is not None and tuple(parts[middle].shape[2:]) != shape[2:]:
            raise _Misfit("another kernel")
    return parts


def _side_shape(parts: Parts, side: str) -> tuple[int, int]:
    """(rows, columns) of one factor of a LoHa or LoKr, its kernel among the columns."""
    if side in parts:
        if f"{side}_a" in parts or f"{side}_b" in parts:
            raise _Misfit(f"{side} is there whole and as a product")
        value = parts[side]
        if value.dim() < 2 or (side == "lokr_w1" and value.dim() > 2):
            raise _Misfit(f"{side} is {shape_told(value.shape)}")
        return value.shape[0], prod(value.shape[1:])
    first, second = parts[f"{side}_a"], parts[f"{side}_b"]
    if first.dim() != 2 or second.dim() != 2:
        raise _Misfit("the matrices have too few or too many axes")
    middle = parts.get(side.replace("w", "t"))
    if middle is not None:
        if middle.dim() < 3 or middle.shape[:2] != (first.shape[0], second.shape[0]):
            raise _Misfit(f"the middle of {side} is {shape_told(middle.shape)}")
        return first.shape[1], second.shape[1] * prod(middle.shape[2:])
    if first.shape[1] != second.shape[0]:
        raise _Misfit("they have different ranks")
    return first.shape[0], second.shape[1]


def _side(parts: Mapping[str, Tensor], side: str) -> Tensor:
    return parts[side] if side in parts else _product(parts, side, side.replace("w", "t"))


def _product(parts: Mapping[str, Tensor], side: str, middle: str) -> Tensor:
    first, second = parts[f"{side}_a"], parts[f"{side}_b"]
    if middle in parts:  # Tucker: factors are (r, rows) and (r, columns) about an (r, r, *kernel)
        return torch.einsum("ij...,jc,ir->rc...", parts[middle], second, first)
    return first @ second


def _norms(scale: Tensor, shape: tuple[int, ...]) -> Tensor:
    """By output (out, 1…) or by input (1, in, 1…)."""
    ones = [1] * (len(shape) - 2)
    if scale.dim() >= 2 and scale.shape[0] == 1 and shape[0] != 1 and scale.numel() == shape[1]:
        return scale.reshape(1, shape[1], *ones)
    if scale.numel() != shape[0] or scale.dim() == 0 or scale.shape[0] != shape[0]:
        raise _Misfit(f"dora_scale is {shape_told(scale.shape)}")
    return scale.reshape(shape[0], 1, *ones)


def _misfit(name: str, parts: Parts, shape: tuple[int, ...] | None, misfit: _Misfit) -> str:
    matrices = [shape_told(value.shape) for part, value in sorted(parts.items()) if part not in ("alpha", "dora_scale")]
    told = f"the adapter's {name} maps {' and '.join(matrices)}"
    if shape is None:
        return f"{told}, which do not go together ({misfit}); the file is damaged"
    return f"{told}, the model's layer is {shape} ({misfit}); the adapter was made for another model, or is damaged"
