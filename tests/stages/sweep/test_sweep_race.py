"""A raced sweep on the painter: fewer pictures than the grid, the same pick, pictures paired."""

from __future__ import annotations

import pytest
from sweep_samples import SETTINGS, Eye, Merger, Notebook, Painter, Unet, run_sweep, trained

from charengine.adapter.files import load_adapter
from charengine.errors import BadInput, Interrupted
from charengine.likeness.prompts import sweep_prompts
from charengine.profiles.loading import load_profile
from charengine.stages.sweep import session, sweep
from charengine.stages.sweep.budget import base_seeds

pytestmark = pytest.mark.usefixtures("known_adapter")
RACE = SETTINGS.model_copy(
    update={"design": "race", "pictures": 36, "seeds": 3, "strengths": (0.25, 0.5, 0.75, 1.0, 1.25)}
)


def race(store, dataset, painter, *steps, settings=RACE, **more):
    return sweep.sweep_adapter(trained(store, *steps), dataset, settings, painter, Eye(), store, seed=7, **more)


def test_a_race_picks_what_the_whole_grid_picks_with_fewer_pictures(store, dataset) -> None:
    painter = Painter()
    found = race(store, dataset, painter, 50, 200)
    grid = run_sweep(store, dataset, Painter(), 50, 200)
    assert (found.pick.checkpoint_step, found.pick.strength) == (grid.pick.checkpoint_step, grid.pick.strength)
    drawn = sum(len(seeds) for _, _, seeds in painter.drawn)
    assert drawn == len(found.images) == sum(cell.images for cell in found.cells) <= RACE.pictures
    assert found.verdict is not None and found.verdict.kind == "over"
    assert painter.model == Unet()


@pytest.mark.parametrize("settings", [RACE, SETTINGS], ids=["race", "grid"])
def test_who_follows_a_sweep_hears_after_each_cell_how_many_pictures_are_drawn_of_how_many(
    store, dataset, settings
) -> None:
    told: list[tuple[int, int]] = []
    found = race(store, dataset, Painter(), 50, 200, settings=settings, on_drawn=lambda *numbers: told.append(numbers))
    assert [drawn for drawn, _ in told] == sorted({drawn for drawn, _ in told}) and len(told) >= len(found.cells)
    most = RACE.pictures if settings is RACE else len(found.images)
    assert told[-1] == (len(found.images), most)


def test_every_cell_of_a_race_starts_with_the_same_seeds_and_none_is_drawn_twice(store, dataset) -> None:
    painter = Painter()
    race(store, dataset, painter, 50, 100, 200)
    by_cell: dict[tuple[int, float], list[int]] = {}
    for step, strength, seeds in painter.drawn:
        by_cell.setdefault((step, strength), []).extend(dict.fromkeys(seeds))
    assert by_cell[0, 0.0] == [7, 8]
    assert all(seeds == [7, 8, 9][: len(seeds)] for seeds in by_cell.values())


def test_a_checkpoint_that_rounds_come_back_to_is_read_once_and_what_is_put_on_is_the_cells_own(
    store, dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    reads: list[int] = []

    class Reading(Merger):
        def read(self, data: bytes) -> int:
            reads.append(super().read(data))
            return reads[-1]

    monkeypatch.setattr(session, "AdapterMerger", Reading)
    painter = Painter()
    found = race(store, dataset, painter, 50, 100, 200)
    in_turn = [step for step, *_ in painter.drawn if step]
    assert sorted(reads) == sorted(set(in_turn)) and len(in_turn) > len(reads)
    monkeypatch.setattr(session, "KEPT_READ", 1)
    assert race(store, dataset, Painter(), 50, 100, 200) == found and len(reads) > 2 * len(set(in_turn))


def test_the_same_race_is_run_again_picture_by_picture(store, dataset) -> None:
    notebook = Notebook()
    first, second = (race(store, dataset, Painter(), 50, 200, tracker=notebook) for _ in range(2))
    assert first == second
    assert len(notebook.children) == len(first.cells)
    assert [run.params["strength"] for run in notebook.children.values()] == [cell.strength for cell in first.cells]


def test_variety_is_measured_between_seeds_that_were_drawn_in_different_rounds(store, dataset) -> None:
    found = race(store, dataset, Painter(), 50, 200)
    assert found.pick.metrics.images >= 2 * len(SETTINGS.prompts)
    assert found.pick.metrics.diversity > 0 and found.pick.metrics.smoothed.diversity_kept is not None


def test_the_pictures_of_all_cells_are_at_one_step_so_that_mlflow_shows_them_side_by_side(store, dataset) -> None:
    notebook = Notebook()
    race(store, dataset, Painter(), 50, 200, tracker=notebook)
    assert {(tuple(run.pictures), tuple(run.steps)) for run in notebook.children.values()} == {(("cell",), (0,))}


def test_variety_of_one_seed_is_logged_by_no_cell(store, dataset) -> None:
    notebook = Notebook()
    found = race(store, dataset, Painter(), 50, 200, tracker=notebook)
    single = [cell for cell in found.cells if cell.images == len(SETTINGS.prompts)]
    assert single
    for cell, child in zip(found.cells, notebook.children.values(), strict=True):
        assert child.params["strength"] == cell.strength
        assert ("diversity" in child.metrics) == ("diversity_kept" in child.metrics) == (cell not in single)


def test_an_adapter_that_is_best_beyond_strength_one_is_picked_and_exported_there(store, dataset) -> None:
    found = race(store, dataset, Painter(), 40, 80)
    assert found.pick.strength == 1.25 and found.pick.checkpoint_step == 80
    assert any("no strength above 1.25 was drawn" in reason for reason in found.pick.reasons)
    tensors, _ = load_adapter(store.get(found.recommended_adapter))
    assert tensors["lora_unet_x.alpha"].item() == pytest.approx(8.0 * 1.25)


def test_a_race_that_cannot_draw_a_single_cell_is_refused_before_anything_is_drawn(store, dataset) -> None:
    painter = Painter()
    with pytest.raises(BadInput, match="sweep.pictures is 8, but strength 0 and one cell take 9 with 3 prompts"):
        race(store, dataset, painter, 100, settings=RACE.model_copy(update={"pictures": 8}))
    assert not painter.drawn


def test_a_race_told_to_stop_stops_between_cells(store, dataset) -> None:
    painter = Painter()
    with pytest.raises(Interrupted, match="after 2 cells"):
        race(store, dataset, painter, 100, 200, should_stop=lambda: len(painter.drawn) == 3)
    assert painter.model == Unet()
    painter = Painter()
    found = race(store, dataset, painter, 100, 200, should_stop=lambda: len(painter.drawn) == 3, keep_cut=True)
    assert "cut after 2 cells" in found.warnings[0] and len(found.cells) == 3


@pytest.mark.parametrize(("profile", "most"), [("embedded", 56), ("sdxl-12gb", 64)])
def test_a_pick_of_a_shipped_profile_takes_few_pictures_and_reaches_beyond_strength_one(profile, most) -> None:
    settings = load_profile(profile).sweep
    assert settings.design == "race" and settings.pictures <= most
    assert max(settings.strengths) == 1.4
    assert len(sweep_prompts(settings)) * (base_seeds(settings) + 6) <= settings.pictures, "the whole opening fits"
