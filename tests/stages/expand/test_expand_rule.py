"""More views: what is kept is as like the sheet's views as these are to each other; what is not is refused and recorded."""

from __future__ import annotations

import numpy as np
import pytest
from expansion_samples import GRISHA, Eye, expand, shifted, stranger
from PIL import ImageChops
from run_samples import WHITE, sample_dataset

from charengine.config import ExpandSettings
from charengine.likeness.scoring import References, frame
from charengine.pictures import open_image
from charengine.stages.expand.expand import held_out_of, tasks_of
from charengine.stages.expand.identity_rule import IdentityRule, head_box
from charengine.stages.expand.requests import REQUESTS

# --- the rule ---------------------------------------------------------------------------------------------------------


def test_the_view_itself_slightly_shifted_is_kept_and_another_character_is_refused(views, store) -> None:
    [same] = expand(views, store, shifted)[0].views
    [other] = expand(views, store, stranger)[0].views
    assert same.fate == "trained" and same.identity >= same.threshold
    assert other.fate == "refused" and other.identity < other.threshold
    assert same.threshold == other.threshold


def test_the_threshold_is_the_likeness_of_the_two_views_that_are_least_alike(views, store) -> None:
    rows = References(sample_dataset(store).views, Eye(), store).on(WHITE)
    pairs = [float(rows[i] @ rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert IdentityRule(views, Eye(), store).least("full body") == pytest.approx(min(pairs))
    assert expand(views, store, shifted)[0].views[0].threshold == pytest.approx(min(pairs))


def test_the_margin_moves_the_threshold_and_nothing_else(views, store) -> None:
    [before] = expand(views, store, stranger)[0].views
    gap = before.threshold - before.identity
    [after] = expand(views, store, stranger, margin=gap + 1e-4)[0].views
    assert (before.fate, after.fate) == ("refused", "trained")
    assert after.identity == before.identity and after.threshold == pytest.approx(before.identity - 1e-4)
    assert expand(views, store, stranger, margin=gap - 1e-4)[0].views[0].fate == "refused"


def test_a_refused_picture_is_drawn_again_with_another_seed_and_every_attempt_is_recorded(views, store) -> None:
    seeds: list[int] = []

    def better_the_third_time(picture, prompt, seed):
        seeds.append(seed)
        return (shifted if len(seeds) == 3 else stranger)(picture, prompt, seed)

    found, _ = expand(views, store, better_the_third_time, candidates=5)
    assert [view.fate for view in found.views] == ["refused", "refused", "trained"]
    assert [view.seed for view in found.views] == seeds and len(set(seeds)) == 3
    assert all(store.has(view.image) and store.has(view.alpha) for view in found.views)
    assert found.kept == found.views[2:] and found.warnings == ()


def test_the_edit_model_is_told_what_the_settings_say_with_a_seed_made_of_character_picture_and_attempt(
    views, store
) -> None:
    settings = {"count": 2, "candidates": 2, "steps": 9, "guidance": 2.5, "negative_prompt": "blurry"}
    found, painter = expand(views, store, stranger, **settings)
    told = [
        {name: value for name, value in call.items() if name not in ("template", "prompt")} for call in painter.told
    ]
    seeds = [1614459777, 207459209, 181644458, 1404722718]
    assert told == [
        {
            "seed": seed, "steps": 9, "guidance": 2.5, "guided_above": 0.0, "negative_prompt": "blurry", "conditioning": "latents",
            "size": painter.told[0]["template"].size,
        }
        for seed in seeds
    ]  # fmt: skip
    assert [view.seed for view in found.views] == seeds


def test_how_much_of_the_picture_is_left_is_measured_apart_from_identity(views, store) -> None:
    [copy] = expand(views, store, lambda picture, prompt, seed: picture)[0].views
    [moved] = expand(views, store, lambda picture, prompt, seed: ImageChops.offset(picture, 40, 0))[0].views
    assert copy.copying == pytest.approx(1.0)
    assert moved.copying < 0.8 and moved.identity > 0.8


def test_what_never_came_out_right_is_a_warning_that_names_it(views, store) -> None:
    found, painter = expand(views, store, stranger, count=2, candidates=3)
    assert len(painter.told) == len(found.views) == 6 and found.kept == ()
    assert "2 of 2 more views were refused (pose-1, pose-2)" in found.warnings[0]


def test_a_close_up_is_compared_with_the_heads_of_the_views(views, store) -> None:
    front = views.views[0]
    head = open_image(store.get(front.image)).crop(head_box(open_image(store.get(front.alpha), "L")))

    def close_up(picture, prompt, seed):
        return head.resize(picture.size)

    assert expand(views, store, close_up, kinds=("close-up",))[0].views[0].fate == "trained"
    assert expand(views, store, close_up, kinds=("pose",))[0].views[0].fate == "refused"


def test_a_picture_in_which_nothing_changed_says_so(views, store) -> None:
    unchanged = expand(views, store, lambda picture, prompt, seed: picture)[0].views[0]
    assert unchanged.copying == pytest.approx(1.0, abs=1e-5)
    assert expand(views, store, stranger)[0].views[0].copying < 0.99


def test_the_same_inputs_make_the_same_record(views, store) -> None:
    assert expand(views, store, shifted, count=5)[0] == expand(views, store, shifted, count=5)[0]


# --- what is asked for ------------------------------------------------------------------------------------------------


def test_the_editor_is_shown_a_square_of_the_view_as_latents_and_told_who_it_is(views, store) -> None:
    _, painter = expand(views, store, shifted, count=1, steps=9, guidance=2.5)
    [told] = painter.told
    assert told["template"].size == (128, 128)  # 96 x 192 pixels, in steps of 64
    assert told["conditioning"] == "latents" and (told["steps"], told["guidance"]) == (9, 2.5)
    assert "The same orc as in the picture" in told["prompt"] and GRISHA.prompt in told["prompt"]
    assert "Plain white background" in told["prompt"]


def test_a_view_from_behind_is_drawn_from_the_back_view(views, store) -> None:
    _, painter = expand(views, store, shifted, count=2, kinds=("three-quarter",))
    shown = [open_image(store.get(view.image)) for view in views.views]
    squares = [frame(image, None, WHITE, margin=0.0).resize((128, 128)) for image in shown]
    for told, square in zip(painter.told, (squares[0], squares[2]), strict=True):
        assert np.array_equal(np.asarray(told["template"]), np.asarray(square))


def test_kinds_take_turns_and_no_wish_comes_twice_before_all_came_once() -> None:
    tasks = tasks_of(ExpandSettings(count=12))
    assert [task.kind for task in tasks[:5]] == ["close-up", "three-quarter", "expression", "pose", "background"]
    assert len({task.name for task in tasks}) == 12
    poses = [task.request for task in tasks_of(ExpandSettings(count=6, kinds=("pose",)))]
    assert poses == list(REQUESTS["pose"])


# --- the slice held out -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("count", "share", "expected"), [(1, 0.5, 0), (2, 0.1, 1), (5, 0.2, 1), (10, 0.3, 3), (9, 0, 0)]
)
def test_the_slice_held_out_is_the_share_of_what_was_kept_and_never_all_of_it(count, share, expected) -> None:
    names = [f"pose-{i}" for i in range(count)]
    assert len(held_out_of(names, share, seed=1)) == expected


def test_the_seed_alone_decides_what_is_held_out() -> None:
    names = [f"pose-{i}" for i in range(10)]
    assert held_out_of(names, 0.3, 5) == held_out_of(names[::-1], 0.3, 5)
    assert len({held_out_of(names, 0.3, seed) for seed in range(20)}) > 5
