"""A picture's scores: identity by the figure alone, adherence by the margin over the other prompts."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from run_samples import doll, doll_mask, png
from sweep_samples import OWN_COAT, SCENES, SETTINGS, Eye

from charengine.dataset.reading import read_views
from charengine.likeness import scoring
from charengine.likeness.prompts import sweep_prompts


def test_a_white_background_by_itself_earns_no_identity(store, dataset) -> None:
    references = scoring.References(dataset.views, Eye(), store)
    prompts = sweep_prompts(SETTINGS)[1:2]
    on_sand, on_white = (
        scoring.score_cell([[doll(coat=OWN_COAT, ground=ground)]], prompts, "orc", references).identity.item()
        for ground in (SCENES["desert"], SCENES["white"])
    )
    assert on_sand > 0.99
    assert on_white == pytest.approx(on_sand, abs=0.005)


def test_a_named_view_is_compared_with_that_view_alone(store, dataset) -> None:
    references = scoring.References(dataset.views, Eye(), store)
    assert references.allowed("side").tolist() == [False, True, False]
    assert references.allowed(None).all()


def test_a_picture_that_fits_every_prompt_alike_keeps_no_adherence() -> None:
    class Grid(Eye):
        def match(self, images, texts):
            rows = {"desert": 0.5, "city": 0.2, "white": 0.2}
            return torch.tensor([0.3 + (rows[next(k for k in rows if k in text)] if image.width == 1 else 0.4)
                                 for image, text in zip(images, texts, strict=True)])  # fmt: skip

    prompts = sweep_prompts(SETTINGS)
    images = [Image.new("RGB", (1, 1)), Image.new("RGB", (2, 2))]
    adherence, margin = scoring.match_all(images, [prompts[1]] * 2, prompts, "orc", Grid())
    assert adherence.tolist() == pytest.approx([0.8, 0.7])
    assert margin.tolist() == pytest.approx([0.3, 0.0], abs=1e-6)


def test_pictures_without_masks_are_cut_from_their_plain_background(store, tmp_path) -> None:
    for view in ("front", "side", "back"):
        doll(ground=SCENES["forest"]).save(tmp_path / f"{view}.png")
    views = read_views(tmp_path, store)
    assert views.background == SCENES["forest"]
    mask = scoring.open_image(store.get(views.views[0].alpha), "L")
    assert mask.getbbox() == doll_mask().getbbox()


def test_a_figure_on_a_plain_background_is_cut_out_and_a_scene_is_left_whole() -> None:
    scene = doll((80, 80), ground=(255, 255, 255))
    cut = scoring.figure(scene, (255, 255, 255))
    assert cut.size == (81, 81)  # the figure is 72 pixels tall, and has a margin of 6 % on either side
    scene.paste((10, 80, 20), (0, 0, 80, 30))
    assert scoring.figure(scene, scoring.border_colour(scene)).size == (80, 80)
    assert png(scoring.figure(Image.new("RGB", (40, 40)), (0, 0, 0))) == png(Image.new("RGB", (40, 40)))
