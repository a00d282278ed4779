"""The race spends its pictures where they decide, and no more of them than it may."""

from __future__ import annotations

from sweep_estimates import known
from test_pick import cell

from charengine.config import SweepSettings
from charengine.stages.sweep.budget import base_seeds
from charengine.stages.sweep.race import Unit, next_round, opening, units_left, whole_grid

SETTINGS = SweepSettings()
GRID = [(0, 0.0), *((step, strength) for step in (75, 225, 300) for strength in SETTINGS.strengths)]
CELLS = [cell(300, 0.6, 0.5, 0.98), cell(300, 1.0, 0.80, 0.96), cell(300, 1.2, 0.82, 0.96), cell(300, 1.4, 0.9, 0.5)]


def test_the_opening_looks_at_full_strength_first_then_at_the_ends() -> None:
    units = opening(GRID)
    assert [GRID[unit.cell] for unit in units] == [(300, 1.0), (300, 1.4), (225, 1.4), (300, 0.6), (75, 1.0), (75, 1.4)]
    assert {unit.seeds for unit in units} == {(0,)}


def test_the_opening_of_a_small_grid_draws_no_cell_twice() -> None:
    assert [unit.cell for unit in opening([(0, 0.0), (10, 0.3), (10, 0.6)])] == [2]
    assert [unit.cell for unit in opening([(0, 0.0), (10, 1.0)])] == [1]


def test_the_budget_counts_strength_zero_and_whole_sets_of_prompts() -> None:
    assert base_seeds(SETTINGS) == 2
    assert units_left(SETTINGS, 4, {0: 2}) == 12
    assert units_left(SETTINGS, 4, {0: 2, 5: 3, 7: 1}) == 8
    assert units_left(SETTINGS, 10, {0: 2}) == 3


def test_the_next_pictures_go_to_the_best_cell_and_its_rival_with_the_seeds_in_order() -> None:
    found = known(CELLS, SETTINGS, noise=0.05)
    assert {unit.cell for unit in next_round(found, {0: 2, 1: 1, 2: 1, 3: 1, 4: 1}, SETTINGS, 5)} == {2, 3}
    assert next_round(found, {0: 2, 2: 3, 3: 4}, SETTINGS, 1) == [Unit(2, (3,))]


def test_a_round_never_draws_more_than_the_budget_allows() -> None:
    found = known(CELLS, SETTINGS, noise=0.05)
    drawn = {0: 2, 1: 2, 2: 2, 3: 2, 4: 2}
    assert [len(next_round(found, drawn, SETTINGS, left)) for left in (0, 1, 2, 5)] == [0, 1, 2, 2]


def test_a_leader_drawn_once_is_drawn_again_before_the_budget_ends() -> None:
    found = known(CELLS, SETTINGS, noise=0.05)
    leader = int(found.chances(range(1, 5)).argmax())
    assert next_round(found, {0: 2, leader: 1}, SETTINGS, 1) == [Unit(leader, (1,))]


def test_one_seed_below_a_floor_does_not_end_a_cell_but_as_many_as_a_pick_needs_do() -> None:
    found = known([cell(300, 0.6, 0.5, 0.98), cell(300, 1.0, 0.9, 0.8)], SETTINGS, noise=0.001)
    assert not found.passing[2] and found.score[2] > found.score[1]
    assert next_round(found, {0: 2, 1: 2, 2: 1}, SETTINGS, 5) == [Unit(2, (1,))]
    assert next_round(found, {0: 2, 1: 2, 2: 2}, SETTINGS, 5) == []


def test_a_decided_race_draws_no_more() -> None:
    found = known(CELLS, SETTINGS, noise=0.001)
    assert next_round(found, {0: 2, 3: 2}, SETTINGS, 5) == []
    assert next_round(found, {0: 2, 3: 1}, SETTINGS, 5) == [Unit(3, (1,))], "variety takes two seeds"
    assert next_round(known(CELLS, SETTINGS, noise=0.05), {0: 2, 3: 2}, SETTINGS, 0) == []


def test_the_whole_grid_is_every_cell_with_every_seed() -> None:
    settings = SETTINGS.model_copy(update={"design": "grid", "seeds": 3})
    assert base_seeds(settings) == 3
    assert whole_grid(GRID, settings) == [Unit(cell, (0, 1, 2)) for cell in range(1, 19)]
