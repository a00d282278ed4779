"""One axis smoothed over strength and step: every picture of a sweep says something about every cell.

A few pictures say little about their own cell, but cells are neighbours: identity and adherence change smoothly with strength
and with the logarithm of the step (measured: a quadratic in both chooses better than cells standing alone do, docs/lab-notes.md).
So an axis is a Gaussian process over the grid: a polynomial that passes through strength 0, plus a
deviation of every cell from it; what one seed shows, over all prompts, is its cell's value plus what that seed does in all
cells alike (the pairing) plus noise. Rasmussen and Williams, Gaussian Processes for Machine Learning (2006), 2.2 and 5.4.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch

# Scales that are tried, in shares of the axis; the likeliest together are used.
SCALES = (
    (0.5, 1.5),  # standard deviation of the polynomial's coefficients
    (0.02, 0.2),  # of a cell from the polynomial
    (0.01, 0.03, 0.1),  # noise of one seed, over all prompts
    (0.0, 0.03, 0.08),  # what a seed does in all cells; more would pass for a level of all cells
)


@dataclass(frozen=True)
class Observations:
    """What single seeds show: `values` (n,), the `cells` they are of (n,) and the `seeds` (n,), which pair them."""

    values: torch.Tensor
    cells: torch.Tensor
    seeds: torch.Tensor


@dataclass(frozen=True)
class Surface:
    """What is known of an axis: `mean` (cells,) and `covariance` (cells, cells)."""

    mean: torch.Tensor
    covariance: torch.Tensor

    def relative(self) -> Surface:
        """The axis as a share of its value at strength 0, which is then 1 (errors to first order)."""
        zero, share = self.mean[0], self.mean / self.mean[0]
        move = torch.eye(len(share), dtype=share.dtype)
        move[:, 0] -= share
        return Surface(share, move @ self.covariance @ move.T / zero**2)

    def draws(self, standard: torch.Tensor) -> torch.Tensor:
        """(rounds, cells) surfaces as likely as this one, from `standard` normal numbers of that shape."""
        values, vectors = torch.linalg.eigh(self.covariance)
        drawn: torch.Tensor = self.mean + (standard * values.clamp_min(0).sqrt()) @ vectors.T
        return drawn


def places(grid: Sequence[tuple[int, float]]) -> torch.Tensor:
    """Cells (step, strength) as (cells, 2): strength, and the step's logarithm with the last at 0 and the first at -1."""
    steps = torch.tensor([max(step, 1) for step, _ in grid], dtype=torch.float64).log()
    used = steps[[strength > 0 for _, strength in grid]]
    width = float(used.max() - used.min()) or 1.0
    late = ((steps - used.max()) / width).clamp(-1, 0)
    return torch.stack([torch.tensor([strength for _, strength in grid], dtype=torch.float64), late], dim=1)


def smooth(seen: Observations, where: torch.Tensor, origin: float, unsure: float = 0.0) -> Surface:
    """The axis over all cells.

    Args:
        seen: seeds of some of the cells.
        where: (cells, 2) from `places`.
        origin: the axis' value at strength 0.
        unsure: standard deviation of that value.

    Returns:
        Mean and covariance, with the scales (bend, noise, pairing) of the greatest marginal likelihood.
    """
    rises = _polynomial(where)
    away = torch.diag((where[:, 0] != 0).double())
    bends, deviations, noises, shared = torch.cartesian_prod(*(torch.tensor(s).double() for s in SCALES))[
        ..., None, None
    ].unbind(1)
    priors = bends**2 * (rises @ rises.T) + deviations**2 * away + unsure**2
    same = (seen.seeds[:, None] == seen.seeds[None]).double()
    spread = shared**2 * same + noises**2 * torch.eye(len(same), dtype=torch.float64)
    factors = torch.linalg.cholesky(priors[:, seen.cells][:, :, seen.cells] + spread)
    rest = (seen.values.double() - origin)[:, None]
    solved = torch.cholesky_solve(rest.expand(len(factors), -1, -1), factors)
    likelihood = -0.5 * (rest * solved).sum(dim=(1, 2)) - factors.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    best = int(likelihood.argmax())
    across = priors[best][:, seen.cells]
    known = across @ torch.cholesky_solve(across.T, factors[best])
    return Surface(origin + (across @ solved[best])[:, 0], priors[best] - known)


def _polynomial(where: torch.Tensor) -> torch.Tensor:
    """(cells, 5): what may be added to strength 0's value; all nothing at strength 0."""
    strength, late = where.T
    return torch.stack([strength, strength**2, strength * late, strength**2 * late, strength * late**2], dim=1)
