"""Metrics on hand-made vectors and pictures, with the numbers worked out by hand."""

from __future__ import annotations

import math
from dataclasses import replace

import pytest
import torch
from PIL import Image

from charengine.likeness import metrics
from charengine.likeness.metrics import CellScores, Scale

NAN = float("nan")


def unit(*degrees: float) -> torch.Tensor:
    """Unit vectors in the plane."""
    return torch.tensor([[math.cos(math.radians(d)), math.sin(math.radians(d))] for d in degrees])


def scores(identity: float, adherence: float, diversity: float = 0.2) -> CellScores:
    """Two prompts, two seeds, all alike; the other prompt's text matches by 0.15."""
    grid = torch.ones(2, 2)
    margin = (adherence - 0.15) * grid
    return CellScores(
        identity * grid, adherence * grid, margin, diversity * torch.ones(2), NAN * grid, NAN * grid, NAN * grid
    )


SCALE = Scale(base=scores(0.4, 0.30), ceiling=0.8)


def test_identity_is_the_cosine_to_the_most_similar_allowed_view() -> None:
    references = unit(0, 60, 180).expand(2, 3, 2)
    allowed = torch.tensor([[True, True, True], [False, False, True]])
    found = metrics.identity(unit(90, 90), references, allowed)
    assert found.tolist() == pytest.approx([math.cos(math.radians(30)), 0.0], abs=1e-6)


def test_the_ceiling_is_the_mean_cosine_between_different_views() -> None:
    assert metrics.ceiling(unit(0, 60, 120)) == pytest.approx((0.5 + 0.5 - 0.5) / 3, abs=1e-6)
    assert metrics.ceiling(unit(0)) == 1.0


def test_diversity_is_zero_for_equal_seeds_and_the_mean_pairwise_distance_otherwise() -> None:
    ramp = torch.linspace(0, 1, 16).reshape(1, 4, 4).expand(3, 4, 4)
    across = ramp.transpose(1, 2)
    between = 1 - float(torch.corrcoef(torch.stack([ramp.flatten(), across.flatten()]))[0, 1])
    seeds = torch.stack([torch.stack([ramp, ramp, 0.5 * ramp]), torch.stack([ramp, across, 1 - ramp])])
    expected = (between + 2 + (2 - between)) / 3
    assert metrics.diversity(seeds).tolist() == pytest.approx([0.0, expected], abs=1e-5)


def test_diversity_of_a_single_seed_is_not_measured_and_costs_nothing() -> None:
    assert metrics.diversity(torch.rand(1, 1, 3, 4, 4)).isnan().all()
    single = scores(0.6, 0.3, NAN)
    assert metrics.relative(single, Scale(base=scores(0.4, 0.3, NAN), ceiling=0.8)).diversity == 1.0


def test_a_cell_is_placed_between_the_base_model_and_the_sheets_own_views() -> None:
    found = metrics.relative(scores(0.6, 0.27, 0.1), SCALE)
    assert found.gain == pytest.approx(0.5)
    assert found.kept == pytest.approx(0.8)  # 0.27 - 0.15 against 0.30 - 0.15
    assert found.diversity == pytest.approx(0.5)
    assert found.score == pytest.approx(2 * 0.5 * 0.8 / 1.3)


def test_what_a_reader_sees_is_seven_tenths_of_the_likeness() -> None:
    half = torch.full((2, 2), 0.5)
    scale = Scale(replace(SCALE.base, shown=0.2 * torch.ones(2, 2)), ceiling=0.8, sheet_shown=0.8)
    read = replace(scores(0.5, 0.27), shown=torch.tensor([[0.8, 0.8], [0.8, NAN]]))
    alike = metrics.progress(scores(0.5, 0.27), scale)
    assert alike.tolist() == [[pytest.approx(0.25)] * 2] * 2  # nobody read this cell
    assert metrics.progress(read, scale).tolist() == [
        [pytest.approx(0.3 * 0.25 + 0.7 * 1.0)] * 2, [pytest.approx(0.3 * 0.25 + 0.7), pytest.approx(0.25)],
    ]  # fmt: skip
    assert metrics.relative(replace(scores(0.6, 0.27), shown=half), scale).gain == pytest.approx(0.5)


def test_traits_that_the_sheet_hardly_shows_more_often_than_the_base_model_are_not_counted() -> None:
    near = Scale(replace(SCALE.base, shown=0.75 * torch.ones(2, 2)), ceiling=0.8, sheet_shown=0.8)
    assert metrics.reading_span(near) is None
    assert metrics.relative(replace(scores(0.6, 0.27), shown=torch.ones(2, 2)), near).gain == pytest.approx(0.5)


def test_one_seed_that_nobody_read_leaves_its_cell_unread() -> None:
    read = replace(scores(0.6, 0.27), shown=torch.ones(2, 2))
    assert metrics.joined([read, read]).shown.tolist() == [[1.0] * 4] * 2
    assert metrics.joined([read, scores(0.6, 0.27)]).shown is None


def test_neither_identity_without_adherence_nor_adherence_without_identity_scores() -> None:
    assert metrics.score(1.0, 0.0) == 0.0
    assert metrics.score(0.0, 1.0) == 0.0
    assert metrics.score(-0.3, 1.2) == 0.0
    assert metrics.score(1.4, 1.0) == 1.0  # beyond the sheet's own likeness there is nothing to win


def test_an_embedder_that_sees_no_difference_is_found_out_and_does_not_divide_by_nothing() -> None:
    blind = Scale(base=scores(0.95, 0.3), ceiling=0.95)
    assert metrics.blind(blind) and not metrics.blind(SCALE)
    assert metrics.relative(scores(0.96, 0.3), blind).gain == pytest.approx(0.2, abs=1e-3)


def test_a_training_view_is_a_copy_of_itself_and_its_negative_is_not() -> None:
    views = torch.rand(3, 3, 24, 24, generator=torch.Generator().manual_seed(0))
    images = torch.stack([views[1], 1 - views[1], 0.5 * views[2] + 0.2])
    copied = metrics.copying(images, views)
    assert copied[0] == pytest.approx(1.0, abs=1e-5)
    assert copied[1] < 0.2
    assert copied[2] == pytest.approx(1.0, abs=1e-5)  # brighter or paler is still the same picture


def test_background_leak_is_the_share_of_the_border_in_the_sheets_colour() -> None:
    image = Image.new("RGB", (100, 100), (250, 250, 250))
    image.paste((200, 160, 90), (0, 0, 50, 100))
    assert metrics.background_leak(image, (255, 255, 255)) == pytest.approx(0.5, abs=0.01)
    assert metrics.background_leak(image, (0, 0, 0)) == 0.0


def test_the_centre_of_a_picture_is_not_its_border() -> None:
    image = Image.new("RGB", (100, 100), (10, 90, 30))
    image.paste((255, 255, 255), (10, 10, 90, 90))
    assert metrics.background_leak(image, (255, 255, 255)) == 0.0


def test_seeds_scored_apart_are_one_cell_again_and_variety_is_measured_between_all_of_them() -> None:
    layout = torch.rand(2, 3, 3, 4, 4, generator=torch.Generator().manual_seed(0))
    whole = CellScores(**{**vars(scores(0.6, 0.27)), "identity": torch.rand(2, 3), "layout": layout})
    parts = [
        CellScores(**{**vars(scores(0.6, 0.27)), "identity": whole.identity[:, where], "layout": layout[:, where]})
        for where in (slice(0, 1), slice(1, 3))
    ]
    found = metrics.joined(parts)
    assert torch.equal(found.identity, whole.identity)
    assert torch.allclose(found.diversity, metrics.diversity(layout))
