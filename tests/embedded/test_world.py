"""What the renderer promises about its pictures."""

from __future__ import annotations

import math

import pytest
import torch

from charengine.embedded.making.data import CELL, ITEM_WEIGHT, weights_of
from charengine.embedded.traits import BACKGROUNDS, POSES, Traits, as_indices
from charengine.embedded.world import Rendered, item_cells, render, render_sheet, template

PLAIN = Traits(
    species="woman", build="average", skin="tan", hair_style="short", hair_colour="black", top="shirt",
    top_colour="blue", pattern="plain", bottom="trousers", bottom_colour="grey", footwear="boots",
    footwear_colour="brown", headgear="none", headgear_colour="none", right_item="none", left_item="none",
    tattoo="none",
)  # fmt: skip


def _with(**changes: str) -> Traits:
    return Traits.from_dict({**PLAIN.to_dict(), **changes})


def _draw(*characters: Traits, yaw: float = 0.0, pose: str = "standing", background: int = 0) -> Rendered:
    n = len(characters)
    return render(
        as_indices(characters), yaw=torch.full((n,), yaw), pose=torch.full((n,), POSES.index(pose)),
        background=torch.full((n,), background), size=(64, 192),
    )  # fmt: skip


def _centre_of_change(before: Traits, after: Traits, yaw: float) -> float:
    """Mean column, -1 (left) to 1 (right), of the pixels that one trait changes."""
    changed = (_draw(before, yaw=yaw).image - _draw(after, yaw=yaw).image).abs().amax((0, 1)) > 0.2
    columns = changed.float().sum(0)
    return float((columns * torch.linspace(-1, 1, len(columns))).sum() / columns.sum())


ITEM_COLOURS = {"hook": (0.80, 0.83, 0.88), "lantern": (1.0, 0.88, 0.35), "mechanical arm": (0.86, 0.62, 0.22)}


def _centre_of_colour(character: Traits, colour: tuple[float, float, float], yaw: float) -> float:
    """Mean column, -1 (left) to 1 (right), of the pixels of one lit colour."""
    near = (_draw(character, yaw=yaw).image[0] - torch.tensor(colour)[:, None, None]).abs().amax(0) < 0.03
    columns = near.float().sum(0)
    assert columns.sum() > 5
    return float((columns * torch.linspace(-1, 1, len(columns))).sum() / columns.sum())


@pytest.mark.parametrize("item", ITEM_COLOURS)
@pytest.mark.parametrize(("side", "sign"), [("right", -1), ("left", 1)])
def test_an_item_in_the_right_hand_is_on_the_left_of_the_front_view_and_on_the_right_of_the_back_view(
    item: str, side: str, sign: int
) -> None:
    holder = _with(**{f"{side}_item": item, "bottom_colour": "blue"})
    assert sign * _centre_of_colour(holder, ITEM_COLOURS[item], 0.0) > 0.3
    assert sign * _centre_of_colour(holder, ITEM_COLOURS[item], math.pi) < -0.3


def test_an_eye_patch_covers_its_own_side_and_cannot_be_seen_from_behind() -> None:
    patched = _with(right_item="eye patch")
    assert _centre_of_change(PLAIN, patched, 0.0) < -0.05
    assert torch.equal(_draw(PLAIN, yaw=math.pi).image, _draw(patched, yaw=math.pi).image)


def test_the_profile_faces_the_right_of_the_picture() -> None:
    goblin = _draw(_with(species="goblin"), yaw=math.pi / 2).alpha[0, 0] > 0.5
    head = goblin[: goblin.shape[0] // 3].any(0).nonzero()
    feet = goblin[-40:].any(0).nonzero()
    assert head.max() > feet.max(), "the goblin's long nose points right, past its toes"


def test_the_face_shows_in_front_only() -> None:
    def white_of_eye(yaw: float) -> int:
        head = _draw(PLAIN, yaw=yaw).image[0, :, 20:70, 16:48]
        alpha = _draw(PLAIN, yaw=yaw).alpha[0, 0, 20:70, 16:48] > 0.99
        return int(((head.amin(0) > 0.95) & alpha).sum())

    assert white_of_eye(0.0) > 10
    assert white_of_eye(math.pi) == 0


def test_same_traits_and_seed_give_identical_pixels_and_another_seed_another_scene() -> None:
    def scene(seed: int) -> torch.Tensor:
        return render(
            as_indices([PLAIN]), yaw=torch.zeros(1), pose=torch.zeros(1, dtype=torch.long),
            background=torch.tensor([2]), size=(64, 96), generator=torch.Generator().manual_seed(seed),
        ).image  # fmt: skip

    assert torch.equal(scene(1), scene(1))
    assert not torch.equal(scene(1), scene(2))


def test_a_batch_of_two_equals_two_singles() -> None:
    pair = as_indices(
        [
            PLAIN,
            _with(
                species="robot", top="robe", headgear="crown", left_item="shield", bottom="none", bottom_colour="none"
            ),
        ]
    )
    arguments = {"yaw": torch.tensor([0.4, 2.0]), "pose": torch.tensor([2, 5]), "background": torch.tensor([1, 6])}
    together = render(pair, **arguments, size=(64, 96), chunk=2).image
    for i in range(2):
        alone = render(pair[i : i + 1], **{k: v[i : i + 1] for k, v in arguments.items()}, size=(64, 96)).image
        assert torch.allclose(together[i], alone[0], atol=2e-3)


def test_a_white_costume_on_white_keeps_a_closed_outline() -> None:
    """Flooding the white from the corner never reaches the inside of the figure."""
    ghost = _with(
        species="skeleton", skin="white", hair_colour="white", top="robe", top_colour="white", bottom="none",
        bottom_colour="none", footwear_colour="white",
    )  # fmt: skip
    rendered = _draw(ghost)
    light = rendered.image[0].amin(0) > 0.80
    outside = torch.zeros_like(light)
    outside[0, 0] = True
    for _ in range(400):
        grown = torch.nn.functional.max_pool2d(outside[None].float(), 3, 1, 1)[0].bool() & light
        cross = outside.clone()
        for shift, axis in ((1, 0), (-1, 0), (1, 1), (-1, 1)):
            cross |= outside.roll(shift, axis)
        grown &= cross
        if torch.equal(grown, outside):
            break
        outside = grown
    inside = rendered.alpha[0, 0] > 0.999
    assert int((outside & inside).sum()) == 0
    assert int((light & inside).sum()) > 500, "most of the costume is white"


def test_a_sheet_has_three_figures_in_their_thirds_and_white_gutters() -> None:
    characters = [_with(left_item="staff", right_item="sword", headgear="pointed hat", headgear_colour="red"), PLAIN]
    sheets = render_sheet(as_indices(characters), size=192)
    assert sheets.shape == (2, 3, 192, 192)
    ink = (sheets < 0.97).any(1)
    for edge in (0, 63, 64, 127, 128, 191):
        assert not ink[:, :, edge].any()
    for k in range(3):
        third = ink[:, :, 64 * k : 64 * (k + 1)]
        heights = third.any(2).float().sum(1) / 192
        assert bool((heights > 0.75).all()) and bool((heights < 0.93).all())
        columns = third.any(1).float()
        centre = (columns * torch.linspace(-1, 1, 64)).sum(1) / columns.sum(1)
        assert bool((centre.abs() < 0.12).all())


def test_every_pose_differs_from_standing_and_every_background_from_every_other() -> None:
    standing = _draw(PLAIN).alpha
    for pose in POSES[1:]:
        overlap = (standing.minimum(_draw(PLAIN, pose=pose).alpha)).sum() / standing.sum()
        assert overlap < 0.97, pose
    scenes = torch.cat([_draw(PLAIN, background=i).image for i in range(len(BACKGROUNDS))])
    different = (scenes[:, None] - scenes[None]).abs().mean((2, 3, 4)) + torch.eye(len(scenes))
    assert float(different.min()) > 0.04


def test_zooming_in_keeps_the_head_in_the_picture() -> None:
    def top_row(zoom: float) -> int:
        alpha = render(
            as_indices([PLAIN]), yaw=torch.zeros(1), pose=torch.zeros(1, dtype=torch.long),
            background=torch.zeros(1, dtype=torch.long), size=(96, 96), framing=zoom,
        ).alpha  # fmt: skip
        return int(alpha[0, 0].any(1).nonzero().min())

    assert abs(top_row(2.0) - top_row(1.0)) <= 2


def test_the_template_is_three_boxes_of_hard_black_rules_on_white() -> None:
    image = template(384)
    assert image.unique().tolist() == [0.0, 1.0]
    row = image[0, 192]
    starts = [i for i in range(384) if row[i] == 0 and (i == 0 or row[i - 1] == 1)]
    assert starts == [0, 127, 255, 382]


def test_what_a_hand_holds_is_found_where_it_is_seen_and_nowhere_else() -> None:
    held, bare = _with(right_item="sword", skin="white", bottom_colour="white"), PLAIN
    place = {"yaw": torch.zeros(2), "pose": torch.zeros(2, dtype=torch.long), "framing": torch.ones(2)}
    found = item_cells(as_indices([held, bare]), size=(64, 192), cell=8, **place)
    assert found.shape == (2, 1, 24, 8)
    assert found[1].sum() == 0
    changed = (_draw(held).image - _draw(_with(skin="white", bottom_colour="white")).image).abs().amax(1) > 0.2
    cells = torch.nn.functional.max_pool2d(changed[None].float(), 8)[0, 0]
    assert 2 <= found[0].sum() <= 12
    assert (found[0, 0] * cells).sum() == found[0].sum()


def test_a_held_thing_weighs_more_in_the_trainers_loss() -> None:
    images, figure = torch.full((1, 3, 16, 16), 90, dtype=torch.uint8), torch.ones(1, 1, 16, 16)
    item = torch.zeros(1, 1, 2, 2, dtype=torch.bool)
    item[0, 0, 0, 1] = True
    (weights,) = weights_of(images, figure, CELL, item)
    assert torch.equal(weights[0] / weights[0, 0, 0], torch.tensor([[1.0, 1 + ITEM_WEIGHT], [1.0, 1.0]]))
