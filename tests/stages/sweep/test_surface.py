"""Smoothing keeps its promises on made-up surfaces whose truth is known."""

from __future__ import annotations

import pytest
import torch

from charengine.stages.sweep import surface
from charengine.stages.sweep.surface import Observations, Shape, places, smooth

STRENGTHS = (0.4, 0.6, 0.8, 1.0, 1.2, 1.4)
GRID = [(0, 0.0), *((step, strength) for step in (75, 225, 300) for strength in STRENGTHS)]
WHERE = places(GRID)


def truth(where: torch.Tensor) -> torch.Tensor:
    """Identity as trainings show it: rising with strength and with steps, ever more slowly."""
    strength, late = where.T
    return (1.3 + 0.3 * late) * strength - 0.4 * strength**2


def observed(values: torch.Tensor, cells: list[int], seeds: int, noise: float, generator: torch.Generator):
    """Seeds of some cells, with a share of the noise that a seed has in all cells."""
    shared = torch.randn(seeds, generator=generator, dtype=torch.float64)
    where = torch.tensor([(cell, seed) for cell in cells for seed in range(seeds)])
    own = torch.randn(len(where), generator=generator, dtype=torch.float64)
    return Observations(values[where[:, 0]] + noise * (own + shared[where[:, 1]]), where[:, 0], where[:, 1])


def test_steps_count_by_their_logarithm_and_the_last_is_zero() -> None:
    found = places([(0, 0.0), (100, 0.5), (200, 0.5), (400, 1.0)])
    assert found[:, 0].tolist() == [0.0, 0.5, 0.5, 1.0]
    assert found[1:, 1].tolist() == pytest.approx([-1.0, -0.5, 0.0])


def test_the_value_at_strength_zero_is_known_and_stays_as_it_is() -> None:
    seen = Observations(torch.tensor([0.5, 0.9]), torch.tensor([5, 11]), torch.tensor([0, 0]))
    found = smooth(seen, WHERE, 0.25)
    assert float(found.mean[0]) == 0.25
    assert float(found.covariance[0, 0]) == 0.0


def test_smoothed_cells_are_nearer_to_the_truth_than_cells_that_stand_alone() -> None:
    generator = torch.Generator().manual_seed(0)
    true, alone, together = truth(WHERE), 0.0, 0.0
    for _ in range(8):
        seen = observed(true, list(range(1, 19)), 2, 0.1, generator)
        raw = torch.stack([seen.values[seen.cells == cell].mean() for cell in range(1, 19)])
        alone += float((raw - true[1:]).sub(float((raw - true[1:]).mean())).pow(2).mean())
        error = smooth(seen, WHERE, 0.0).mean[1:] - true[1:]
        together += float((error - error.mean()).pow(2).mean())
    assert together < 0.5 * alone


def test_a_cell_that_nobody_drew_is_told_by_its_neighbours() -> None:
    true = truth(WHERE)
    drawn = [cell for cell in range(1, 19) if GRID[cell] != (300, 1.0)]
    found = smooth(observed(true, drawn, 2, 0.02, torch.Generator().manual_seed(1)), WHERE, 0.0)
    missing = GRID.index((300, 1.0))
    assert float(found.mean[missing]) == pytest.approx(float(true[missing]), abs=0.05)
    assert float(found.covariance[missing, missing]) > float(found.covariance[missing - 1, missing - 1])


def test_a_cliff_on_which_the_seeds_agree_is_not_smoothed_away() -> None:
    true = torch.ones(len(GRID), dtype=torch.float64)
    true[[place[1] > 1.0 for place in GRID]] = 0.3
    found = smooth(observed(true, list(range(1, 19)), 2, 0.005, torch.Generator().manual_seed(2)), WHERE, 1.0)
    assert float((found.mean - true).abs().max()) < 0.05


def test_draws_are_reproducible_and_centred_on_the_mean() -> None:
    found = smooth(observed(truth(WHERE), [4, 6, 16, 18], 2, 0.1, torch.Generator().manual_seed(3)), WHERE, 0.0)
    standard = torch.randn(4000, len(GRID), generator=torch.Generator().manual_seed(4), dtype=torch.float64)
    draws = found.draws(standard)
    assert torch.equal(draws, found.draws(standard))
    assert torch.allclose(draws.mean(dim=0), found.mean, atol=0.02)
    assert torch.allclose(draws.var(dim=0), found.covariance.diagonal(), atol=0.01)


RISES = Shape((1.3, -0.4, 0.3, 0.0, 0.0), tuple(tuple(0.05 * (i == j) for j in range(5)) for i in range(5)))


def test_one_picture_is_enough_where_adapters_are_known_to_rise_so_and_many_pictures_outweigh_what_is_known() -> None:
    true = truth(WHERE)
    one = Observations(true[[12]], torch.tensor([12]), torch.tensor([0]))
    known, unknown = (smooth(one, WHERE, 0.0, shape=shape).mean - true for shape in (RISES, None))
    assert float(known.abs().max()) < 0.02 < float(unknown.abs().max())
    falls = 0.2 * WHERE[:, 0] - 0.3 * WHERE[:, 0] ** 2
    seen = observed(falls, list(range(1, 19)), 3, 0.01, torch.Generator().manual_seed(2))
    assert float((smooth(seen, WHERE, 0.0, shape=RISES).mean - falls).abs().max()) < 0.03


def test_scales_that_explain_the_pictures_are_averaged_and_what_they_differ_by_is_doubt(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    seen = Observations(torch.tensor([0.9, 1.0]), torch.tensor([3, 12]), torch.tensor([0, 0]))
    for name, value in (("AWAY", 0.02), ("BENDS", 0.5), ("SHARED", 0.0)):
        monkeypatch.setattr(surface, name, (value,))
    found = {}
    for noises in ((0.05,), (1.0,), (0.05, 1.0)):
        monkeypatch.setattr(surface, "NOISES", noises)
        found[noises] = smooth(seen, WHERE, 0.0)
    quiet, loud, both = (one.mean[1:] for one in found.values())
    share = (both - quiet) / (loud - quiet)
    assert 0.02 < float(share[0]) < 0.98 and share.sub(share[0]).abs().max() < 1e-6
    variances = [one.covariance.diagonal()[1:] for one in found.values()]
    expected = (1 - share) * (variances[0] + (quiet - both) ** 2) + share * (variances[1] + (loud - both) ** 2)
    assert torch.allclose(variances[2], expected)
