"""A sweep's cells one after the other: what stops them, what fails, and what runs beside the drawing."""

from __future__ import annotations

import threading

import pytest
import torch
from PIL import Image
from sweep_samples import GPU, PROMPTS, SETTINGS, Eye, Painter, Unet, run_sweep, trained

from charengine.errors import BadInput, Interrupted, StageFailed
from charengine.pictures import webp
from charengine.records import Ref
from charengine.stages.sweep import sweep
from charengine.store import Store

pytestmark = pytest.mark.usefixtures("known_adapter")


def test_a_sweep_asked_to_stop_stops_between_cells_and_restores_the_base_model(store, dataset) -> None:
    painter = Painter()
    with pytest.raises(Interrupted, match="after 2 cells"):
        run_sweep(store, dataset, painter, 100, 200, should_stop=lambda: len(painter.drawn) == 3)
    assert painter.model == Unet()


@pytest.mark.parametrize("device", [torch.device("cpu"), GPU])
def test_what_fails_while_pictures_are_scored_ends_the_sweep_and_restores_the_base_model(
    store, dataset, device: torch.device
) -> None:
    class Failing(Eye):
        def embed_images(self, images):
            if len(painter.drawn) > 1:
                raise ArithmeticError("no scores today")
            return super().embed_images(images)

    painter = Painter(device=device)
    with pytest.raises(ArithmeticError, match="no scores today"):
        sweep.sweep_adapter(trained(store, 200), dataset, SETTINGS, painter, Failing(), store, seed=7)
    assert painter.model == Unet()


def test_a_sweep_that_may_be_cut_concludes_from_the_cells_it_finished_and_says_so(store, dataset) -> None:
    painter = Painter()
    found = run_sweep(store, dataset, painter, 100, 200, should_stop=lambda: len(painter.drawn) == 3, keep_cut=True)
    whole = run_sweep(store, dataset, Painter(), 100, 200)
    assert [(cell.checkpoint_step, cell.strength) for cell in found.cells] == [(0, 0.0), (100, 0.25), (100, 0.5)]
    assert [cell.score for cell in found.cells] == [cell.score for cell in whole.cells[:3]]
    assert found.images.items() < whole.images.items()
    assert found.pick.overbaked.checkpoint_step == 100
    assert "cut after 2 of 8 cells" in found.warnings[0] and "cut" not in "".join(whole.warnings)
    assert painter.model == Unet()


def test_a_sweep_cut_before_its_first_cell_has_nothing_to_conclude(store, dataset) -> None:
    with pytest.raises(Interrupted, match="after 0 cells"):
        run_sweep(store, dataset, Painter(), 100, should_stop=lambda: True, keep_cut=True)


def test_no_picture_of_a_sweep_waits_for_cudnn_to_plan_attention(store, dataset) -> None:
    class Draws(Painter):
        def sample(self, *args, **kwargs):
            seen.append(torch.backends.cuda.cudnn_sdp_enabled())
            return super().sample(*args, **kwargs)

    seen = list[bool]()
    sweep.sweep_adapter(trained(store, 200), dataset, SETTINGS, Draws(), Eye(), store, seed=7)
    assert seen and not any(seen) and torch.backends.cuda.cudnn_sdp_enabled()


def test_a_cell_is_scored_while_the_next_one_is_drawn(store, dataset) -> None:
    drawing = threading.Event()

    class Slow(Painter):
        def sample(self, *args, **kwargs):
            if len(self.drawn) == 2:
                drawing.set()
                assert scored.wait(20), "the cell before was not scored while this one was drawn"
            return super().sample(*args, **kwargs)

    class Patient(Eye):
        def match(self, images, texts):
            rows = super().match(images, texts)
            if seen.count("cell") == 1:  # the first cell after strength 0
                assert drawing.wait(20), "nothing was drawn while this cell was scored"
                scored.set()
            seen.append("cell")
            return rows

    scored, seen = threading.Event(), list[str]()
    found = sweep.sweep_adapter(trained(store, 200), dataset, SETTINGS, Slow(device=GPU), Patient(), store, seed=7)
    assert found == run_sweep(store, dataset, Painter(), 200)


def test_where_the_cores_draw_they_score_on_the_same_thread(store, dataset) -> None:
    """Another thread would bring torch threads of its own."""
    seen = set()

    class Draws(Painter):
        def sample(self, *args, **kwargs):
            seen.add(threading.current_thread())
            return super().sample(*args, **kwargs)

    class Scores(Eye):
        def match(self, images, texts):
            seen.add(threading.current_thread())
            return super().match(images, texts)

    found = sweep.sweep_adapter(trained(store, 200), dataset, SETTINGS, Draws(), Scores(), store, seed=7)
    assert len(seen) == 1
    assert found == run_sweep(store, dataset, Painter(), 200)


def test_a_picture_that_cannot_be_stored_ends_the_sweep_and_restores_the_base_model(
    store, dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    put = Store.put

    def full(self, data: bytes, name: str, *rest) -> Ref:
        if name.startswith("100-0.5-1"):
            raise BadInput(f"cannot write {name}: no space left")
        return put(self, data, name, *rest)

    monkeypatch.setattr(Store, "put", full)
    painter = Painter()
    with pytest.raises(BadInput, match="cannot write 100-0.5-1-7.webp"):
        run_sweep(store, dataset, painter, 100, 200)
    assert painter.model == Unet()
    assert len(painter.drawn) <= 4, "one more cell may have been drawn meanwhile, no more"


def test_stored_pictures_are_in_order_and_the_bytes_of_each_are_its_own(store, dataset) -> None:
    painter = Painter()
    found = run_sweep(store, dataset, painter, 200)
    cells = [(0, 0.0), *((200, strength) for strength in SETTINGS.strengths)]
    wanted = [f"{step}/{strength:g}/{row}/{seed}" for step, strength in cells for row in range(3) for seed in (7, 8)]
    assert list(found.images) == wanted
    painter.model = Unet(200, 0.5)
    scene = painter.encode_prompts([PROMPTS[2]])
    again = painter.sample(scene, scene, seeds=[8], size=(64, 64), steps=1, guidance=1.0)[0]
    assert store.get(found.images["200/0.5/2/8"]) == webp(again)


class Blackout(Painter):
    """Draws black where the U-Net would answer with NaN."""

    black_from: float = 0.0

    def sample(self, *args, size, **kwargs):
        images = super().sample(*args, size=size, **kwargs)
        return [Image.new("RGB", size)] * len(images) if self.model.strength >= self.black_from else images


def test_a_cell_of_black_pictures_is_named_with_what_to_do_and_never_picked(store, dataset) -> None:
    painter = Blackout()
    painter.black_from = 0.9
    found = run_sweep(store, dataset, painter, 100)
    told = [warning for warning in found.warnings if "black" in warning]
    assert len(told) == 1 and told[0].startswith("step 100 at strength 1: ")
    assert "sweep.strengths" in told[0] and "train.learning_rate" in told[0]
    assert found.pick.strength < 0.9
    assert not any("black" in warning for warning in run_sweep(store, dataset, Painter(), 100).warnings)


def test_a_base_that_draws_black_ends_the_sweep_before_anything_is_compared_with_it(store, dataset) -> None:
    painter = Blackout()
    with pytest.raises(StageFailed, match=r"every picture of the base model is black.*models\.sdxl"):
        run_sweep(store, dataset, painter, 100, 200)
    assert len(painter.drawn) <= 2 and painter.model == Unet()
