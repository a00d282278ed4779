"""The pick keeps its promises on hand-made cells."""

from __future__ import annotations

import pytest
from sweep_estimates import known

from charengine.config import SweepSettings
from charengine.likeness.metrics import score
from charengine.records import CellMetrics
from charengine.stages.sweep.pick import Choice, choose, complaints, pareto_front

SETTINGS = SweepSettings(adherence_floor=0.9, diversity_floor=0.6)


def cell(
    step: int, strength: float, gain: float, kept: float, diversity: float = 1.0, copying: float = 0.1
) -> CellMetrics:
    return CellMetrics(
        checkpoint_step=step,
        strength=strength,
        identity=0.4 + 0.4 * gain,
        adherence=0.3 * kept,
        diversity=0.2 * diversity,
        copying=copying,
        score=score(gain, kept),
        images=8,
        gain=gain,
        kept=kept,
        diversity_kept=diversity,
    )


def pick(cells: list[CellMetrics], noise: float = 0.0) -> Choice:
    """Choose among cells whose numbers are known up to `noise`; the index counts from 0."""
    choice = choose(dict(enumerate(cells, start=1)), known(cells, SETTINGS, noise), SETTINGS)
    return Choice(choice.index - 1, choice.reasons, choice.warnings, choice.expected_loss)


def test_an_overbaked_cell_with_the_highest_identity_is_never_picked() -> None:
    cells = [cell(100, 0.6, 0.70, 0.97), cell(300, 0.6, 0.81, 0.96), cell(300, 1.0, 1.0, 0.89)]
    assert pick(cells).index == 1


def test_the_reasons_name_the_overbaked_cell_and_its_numbers() -> None:
    reasons = pick([cell(225, 0.6, 0.81, 0.96), cell(300, 1.0, 0.95, 0.71)]).reasons
    assert reasons[0].startswith("strength 0.6 of step 225: likeness 0.81 of the way")
    assert "adherence 96%" in reasons[0]
    assert "strength 1 of step 300" in reasons[-1] and "71%" in reasons[-1] and "floor of 90%" in reasons[-1]


def test_equal_scores_go_to_the_lower_strength_then_to_the_earlier_checkpoint() -> None:
    cells = [cell(s, g, 0.8, 0.95) for s, g in ((300, 0.8), (300, 0.6), (200, 0.6), (200, 1.0))]
    assert pick(cells).index == 2


def test_a_milder_cell_is_taken_only_when_it_is_shown_to_lose_no_identity() -> None:
    cells = [cell(300, 0.4, 0.808, 0.96), cell(300, 0.8, 0.81, 0.96)]
    sure = pick(cells, noise=0.001)
    assert sure.index == 0
    assert any(reason.startswith("strength 0.8 of step 300 scores 0.88 but shows no more") for reason in sure.reasons)
    assert pick(cells, noise=0.05).index == 1, "not knowing is no reason to be mild"
    assert pick([cell(300, 0.4, 0.78, 0.96), cells[1]]).index == 1


def test_the_reasons_say_how_sure_the_pick_is() -> None:
    cells = [cell(300, 0.8, 0.70, 0.96), cell(300, 1.0, 0.80, 0.96)]
    sure, unsure = pick(cells, noise=0.005), pick(cells, noise=0.2)
    assert "the chance that none of these cells is better is 100%" in sure.reasons[1]
    assert "from 16 pictures of 2 cells" in sure.reasons[1]
    assert sure.expected_loss == 0.0 < unsure.expected_loss
    assert f"expected to score {unsure.expected_loss:.3f} more" in unsure.reasons[1]


def test_a_pick_at_the_highest_strength_says_that_it_is_the_highest() -> None:
    cells = [cell(300, 1.0, 0.7, 0.96), cell(300, 1.4, 0.9, 0.96)]
    assert any("no strength above 1.4 was drawn" in reason for reason in pick(cells).reasons)
    assert not any("no strength above" in reason for reason in pick([cells[1], cell(300, 1.6, 0.5, 0.9)]).reasons)


def test_noise_never_buys_mildness_with_much_of_the_character() -> None:
    cells = [cell(300, 0.4, 0.4, 0.99), cell(300, 0.8, 0.8, 0.96)]
    assert pick(cells, noise=0.5).index == 1


def test_a_cell_whose_seeds_all_look_alike_is_not_picked() -> None:
    cells = [cell(300, 0.6, 0.6, 0.95), cell(300, 0.8, 0.9, 0.95, diversity=0.3)]
    assert pick(cells).index == 0
    assert "diversity 30%" in complaints(cells[1], SETTINGS)[0]


def test_each_floor_is_held_against_its_own_number() -> None:
    settings = SweepSettings(adherence_floor=0.9, diversity_floor=0.6)
    assert complaints(cell(300, 0.6, 0.6, kept=0.91, diversity=0.61, copying=0.89), settings) == []
    assert complaints(cell(300, 0.6, 0.6, kept=0.89, diversity=0.59, copying=0.91), settings) == [
        "adherence below the floor of 90%",
        "diversity 59%, below the floor of 60%",
        "scenes copy a training view (correlation 0.91)",
    ]


def test_a_cell_that_redraws_a_training_view_in_every_scene_is_not_picked() -> None:
    cells = [cell(300, 0.6, 0.6, 0.95), cell(300, 0.8, 0.9, 0.95, copying=0.97)]
    assert pick(cells).index == 0


def test_when_nothing_passes_the_best_compromise_comes_with_a_warning() -> None:
    choice = pick([cell(100, 0.4, 0.3, 0.85), cell(100, 0.8, 0.9, 0.3), cell(300, 0.4, 0.6, 0.8)])
    assert choice.index == 2
    assert len(choice.warnings) == 1 and choice.warnings[0].startswith("no checkpoint and strength passes")


def test_an_adapter_that_learned_nothing_is_said_to_have_learned_nothing() -> None:
    choice = pick([cell(10, 0.5, 0.01, 1.0), cell(10, 1.0, 0.02, 1.0)])
    assert any("barely moves" in warning for warning in choice.warnings)
    assert not pick([cell(10, 0.5, 0.7, 1.0)]).warnings


@pytest.mark.parametrize("order", [(0, 1, 2), (2, 1, 0), (1, 2, 0)])
def test_the_order_of_the_cells_does_not_matter(order: tuple[int, ...]) -> None:
    cells = [cell(100, 0.4, 0.5, 0.99), cell(200, 0.6, 0.8, 0.95), cell(300, 1.0, 0.9, 0.8)]
    assert order[pick([cells[i] for i in order]).index] == 1


def test_the_pareto_front_holds_what_nothing_beats() -> None:
    assert pareto_front([(0.1, 1.0), (0.5, 0.9), (0.4, 0.8), (0.9, 0.2), (0.9, 0.2)]) == [0, 1, 3, 4]
