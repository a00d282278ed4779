"""Readers of pose, scenery and place, by which the picture model learns not to draw one picture again and again."""

from __future__ import annotations

import json
import math
from pathlib import Path

import pytest
import torch

from charengine.embedded.making.data import WHITE, Renderer
from charengine.embedded.making.run import Run
from charengine.embedded.making.scene_eye import (
    CLOSE,
    PLACES,
    SCENE_EYES,
    alike,
    build_scene_eye,
    load_scene_eyes,
    places_of,
    shown,
    spreads,
    train_scene_eye,
)
from charengine.embedded.traits import BACKGROUNDS

FREE = torch.ones(4, dtype=torch.bool)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """A tiny one on the CPU."""
    return Run(tmp_path, torch.device("cpu"), tiny=True, max_steps=2)


def pictures(**apart: float) -> torch.Tensor:
    """Places of two pairs of pictures; a pair differs by so much in the first number of a place."""
    places, at = torch.zeros(4, sum(PLACES.values())), 0
    for name, size in PLACES.items():
        places[1::2, at] = apart.get(name, 0.0)
        at += size
    return places


def test_places_say_how_a_render_is_turned_how_close_it_is_and_where_its_scenery_stands(run: Run) -> None:
    renderer = Renderer(run.device, 3)
    *_, scene = renderer.pictures(renderer.characters(3), (64, 64), plain=0.0, exact=0.0)
    assert 0 <= float(scene.shift.min()) < float(scene.shift.max()) < 1
    for place, yaw, zoom, shift in zip(places_of(scene), scene.yaw, scene.zoom, scene.shift.tolist(), strict=True):
        turned, close, once, far = place.split(list(PLACES.values()))
        assert math.isclose(math.atan2(*turned.tolist()), math.remainder(yaw, 2 * math.pi), abs_tol=1e-5)
        assert math.isclose(float(close) * CLOSE[1] + CLOSE[0], zoom, abs_tol=1e-5)
        assert math.isclose(math.atan2(*once.tolist()) % (2 * math.pi), 2 * math.pi * shift, abs_tol=1e-4)
        assert math.isclose(float(far[1]), math.cos(14 * math.pi * shift), abs_tol=1e-3)


def test_portraits_and_white_have_no_place(run: Run) -> None:
    part = shown(Renderer(run.device, 5), 40, (64, 64), exact=0.5, plain=0.4)
    close = part.places[:, 2] * CLOSE[1] + CLOSE[0] > 1.2
    assert close.any() and (part.backgrounds == WHITE).any()
    assert torch.equal(part.placed, ~close & (part.backgrounds != WHITE))


def test_pictures_are_alike_by_what_they_lack_of_the_renders_distance() -> None:
    apart = torch.full((len(PLACES), len(BACKGROUNDS)), 0.5)
    scenes = torch.tensor([1, 1, 4, 4])
    assert float(alike(pictures(), scenes, FREE, apart)) == 1
    far = {name: 0.5**0.5 for name in PLACES}
    assert abs(float(alike(pictures(**far), scenes, FREE, apart))) < 1e-6
    assert (
        abs(float(alike(pictures(**{name: 9.0 for name in PLACES}), scenes, FREE, apart))) < 1e-6
    )  # more is not better
    half = {**far, "close": 0.5}
    assert abs(float(alike(pictures(**half), scenes, FREE, apart)) - 0.5 / 4) < 1e-6


def test_nobody_must_turn_where_a_view_is_said_nor_move_what_cannot_be_seen() -> None:
    apart, scenes = torch.full((len(PLACES), len(BACKGROUNDS)), 0.5), torch.tensor([1, 1, 4, 4])
    far = {name: 0.5**0.5 for name in PLACES if name != "turned"}
    assert abs(float(alike(pictures(**far), scenes, ~FREE, apart))) < 1e-6
    assert abs(float(alike(pictures(**far), scenes, FREE, apart)) - 1 / 4) < 1e-6
    apart[3] = 0
    hidden = {name: size for name, size in far.items() if name != "shifted_far"}
    assert abs(float(alike(pictures(**hidden), scenes, ~FREE, apart))) < 1e-6


def test_a_scenery_that_is_always_the_same_is_not_made_up_for_by_another() -> None:
    apart, scenes = torch.full((len(PLACES), len(BACKGROUNDS)), 0.5), torch.tensor([1, 1, 4, 4])
    places = pictures(**{name: 2.0 for name in PLACES})
    places[2:] = 0
    assert abs(float(alike(places, scenes, FREE, apart)) - 1 / 2) < 1e-6
    three = torch.tensor([1, 1, 1, 1, 4, 4])  # two cities that are one, a desert that is not: two of three
    places = torch.cat([places[2:], places[2:], places[:2]])
    assert abs(float(alike(places, three, torch.ones(6, dtype=torch.bool), apart)) - 2 / 3) < 1e-6


def test_alike_pictures_are_pushed_apart() -> None:
    places = pictures(turned=0.1, close=0.1).requires_grad_()
    alike(places, torch.tensor([1, 1, 4, 4]), FREE, torch.full((len(PLACES), len(BACKGROUNDS)), 0.5)).backward()
    assert places.grad is not None
    first, second = places.grad[0], places.grad[1]
    assert first[0] > 0 > second[0] and first[2] > 0 > second[2] and torch.equal(first, -second)


def test_a_trained_one_is_found_again_and_its_spread_on_white_is_none(run: Run) -> None:
    for name in SCENE_EYES:
        train_scene_eye(run, 10, name)
    eyes = load_scene_eyes(run)
    assert len(eyes) == 2 and not any(p.requires_grad for eye in eyes for p in eye.parameters())
    assert sum(p.numel() for p in build_scene_eye(run, "scene_eye").parameters()) > 0
    row = json.loads((run.out / "scene_eye.jsonl").read_text().splitlines()[-1])
    assert row["event"] == "measured" and set(PLACES) <= set(row)
    found = spreads(run, eyes[0])
    assert found.shape == (len(PLACES), len(BACKGROUNDS)) and float(found[:, WHITE].abs().max()) == 0
