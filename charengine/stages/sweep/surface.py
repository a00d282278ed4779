"""One axis smoothed over strength and step: every picture of a sweep says something about every cell.

A few pictures say little about their own cell, but cells are neighbours: identity and adherence change smoothly with strength
and with the logarithm of the step (measured: a quadratic in both chooses better than cells standing alone do, docs/lab-notes.md).
So an axis is a Gaussian process over the grid: a polynomial that passes through strength 0, plus a
deviation of every cell from it; what one seed shows, over all prompts, is its cell's value plus what that seed does in all
cells alike (the pairing) plus noise. How polynomials of adapters are spread was measured where the axis has a `Shape`. Rasmussen and
Williams, Gaussian Processes for Machine Learning (2006), 2.2, 2.7 and 5.2: the scales are averaged over, by their likelihood.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

# Scales that are averaged over, in shares of the axis.
BENDS = (0.5, 1.5)  # standard deviation of the polynomial's coefficients where the axis has no shape
WIDTHS = (1.0, 2.0, 4.0)  # how many times as far as the measured adapters an adapter may be from their mean
AWAY = (0.02, 0.2)  # of a cell from the polynomial
NEAR = (0.01, 0.02, 0.05)  # the same where the axis has a shape
NOISES = (0.01, 0.03, 0.1)  # of one seed, over all prompts
SHARED = (0.0, 0.03, 0.08)  # what a seed does in all cells; more would pass for a level of all cells


@dataclass(frozen=True)
class Shape:
    """How an axis rose on adapters that were measured: their polynomials' `mean` (5,) and a `root` (5, 5) of their covariance."""

    mean: tuple[float, ...]
    root: tuple[tuple[float, ...], ...]


@dataclass(frozen=True)
class Observations:
    """What single seeds show: `values` (n,), the `cells` they are of (n,) and the `seeds` (n,), which pair them."""

    values: Tensor
    cells: Tensor
    seeds: Tensor


@dataclass(frozen=True)
class Surface:
    """What is known of an axis: `mean` (cells,) and `covariance` (cells, cells)."""

    mean: Tensor
    covariance: Tensor

    def relative(self) -> Surface:
        """The axis as a share of its value at strength 0, which is then 1 (errors to first order)."""
        zero, share = self.mean[0], self.mean / self.mean[0]
        move = torch.eye(len(share), dtype=share.dtype)
        move[:, 0] -= share
        return Surface(share, move @ self.covariance @ move.T / zero**2)

    def draws(self, standard: Tensor) -> Tensor:
        """(rounds, cells) surfaces as likely as this one, from `standard` normal numbers of that shape."""
        values, vectors = torch.linalg.eigh(self.covariance)
        drawn: Tensor = self.mean + (standard * values.clamp_min(0).sqrt()) @ vectors.T
        return drawn


def places(grid: Sequence[tuple[int, float]]) -> Tensor:
    """Cells (step, strength) as (cells, 2): strength, and the step's logarithm with the last at 0 and the first at -1."""
    steps = torch.tensor([max(step, 1) for step, _ in grid], dtype=torch.float64).log()
    used = steps[[strength > 0 for _, strength in grid]]
    width = float(used.max() - used.min()) or 1.0
    late = ((steps - used.max()) / width).clamp(-1, 0)
    return torch.stack([torch.tensor([strength for _, strength in grid], dtype=torch.float64), late], dim=1)


def smooth(
    seen: Observations, where: Tensor, origin: float, unsure: float = 0.0, shape: Shape | None = None
) -> Surface:
    """The axis over all cells.

    Args:
        seen: seeds of some of the cells.
        where: (cells, 2) from `places`.
        origin: the axis' value at strength 0.
        unsure: standard deviation of that value.
        shape: what is known of other adapters; None: nothing, any polynomial may be.

    Returns:
        Mean and covariance over all scales, each as likely as it makes what was seen.
    """
    mean, bent = _before(where, shape)
    away = torch.diag((where[:, 0] != 0).double())
    steps = (BENDS if shape is None else WIDTHS, AWAY if shape is None else NEAR, NOISES, SHARED)
    bends, deviations, noises, shared = torch.cartesian_prod(*(torch.tensor(s).double() for s in steps))[
        ..., None, None
    ].unbind(1)
    priors = bends**2 * bent + deviations**2 * away + unsure**2
    same = (seen.seeds[:, None] == seen.seeds[None]).double()
    spread = shared**2 * same + noises**2 * torch.eye(len(same), dtype=torch.float64)
    across = priors[:, :, seen.cells]
    factors = torch.linalg.cholesky(across[:, seen.cells] + spread)
    rest = (seen.values.double() - origin - mean[seen.cells])[:, None].expand(len(factors), -1, -1)
    solved = torch.cholesky_solve(rest, factors)
    likelihood = -0.5 * (rest * solved).sum(dim=(1, 2)) - factors.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    means = origin + mean + (across @ solved)[..., 0]
    left = priors - across @ torch.cholesky_solve(across.mT, factors)
    weights = likelihood.softmax(dim=0)
    average = weights @ means
    apart = means - average
    return Surface(average, torch.einsum("s,sij->ij", weights, left) + apart.T @ (weights[:, None] * apart))


def _before(where: Tensor, shape: Shape | None) -> tuple[Tensor, Tensor]:
    """(cells,) mean and (cells, cells) covariance of the polynomial before anything is seen, above the origin."""
    rises = polynomial(where)
    if shape is None:
        return torch.zeros(len(rises), dtype=torch.float64), rises @ rises.T
    spread = rises @ torch.tensor(shape.root, dtype=torch.float64)
    return rises @ torch.tensor(shape.mean, dtype=torch.float64), spread @ spread.T


def polynomial(where: Tensor) -> Tensor:
    """(cells, 5): what may be added to strength 0's value; all nothing at strength 0."""
    strength, late = where.T
    return torch.stack([strength, strength**2, strength * late, strength**2 * late, strength * late**2], dim=1)
