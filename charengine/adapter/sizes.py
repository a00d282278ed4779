"""How much an adapter's layer changes weights at most, from the norms of its parts (Cauchy-Schwarz); numpy alone."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, NamedTuple

import numpy as np

MOST_CHANGE = (
    100  # of a weight: SDXL's weights and useful changes are about 1, of a small U-Net a change of 900 makes NaN
)
SIDES = (  # a side of a product, its rows' and its columns' factor, Tucker's middle between them
    ("", "lora_up.weight", "lora_down.weight", "lora_mid.weight"),
    *(
        (f"{kind}_w{n}", f"{kind}_w{n}_a", f"{kind}_w{n}_b", f"{kind}_t{n}")
        for kind in ("hada", "lokr")
        for n in (1, 2)
    ),
)


class Norms(NamedTuple):
    """Of a tensor as a matrix (first axis × all others): its largest value, row, and column, and all of it."""

    most: float
    row: float
    column: float
    whole: float


def norms_of(values: np.ndarray[Any, Any]) -> Norms:
    """The norms of floats of any shape."""
    if not values.size:
        return Norms(0, 0, 0, 0)
    matrix = values.reshape(*values.shape[:1], -1)
    with np.errstate(over="ignore"):  # infinite is too large as well
        squares = matrix * matrix
        row, column = (float(np.sqrt(squares.sum(axis).max())) for axis in (-1, 0))
        return Norms(float(abs(matrix).max()), row, column, float(np.sqrt(squares.sum())))


def largest_change(norms: Mapping[str, Norms], scale: float) -> float:
    """No weight is changed by more, at strength 1.

    Args:
        norms: by LyCORIS part; whole layers.
        scale: alpha / rank, as `parts.scale_of` gives it.
    """
    change = abs(scale)
    for side, rows, columns, middle in SIDES:
        if side in norms:
            change *= norms[side].most
        elif columns in norms:
            row = (
                norms[rows].column if side and middle in norms else norms[rows].row
            )  # Tucker's factors stand (r, rows)
            change *= row * norms[columns].column * (norms[middle].whole if middle in norms else 1)
    return change
