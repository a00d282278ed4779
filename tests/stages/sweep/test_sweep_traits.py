"""What a reader sees of the described traits counts for the pick, in every round or once all pictures are drawn."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

import pytest
import torch
from PIL import Image
from sweep_samples import SETTINGS, Eye, Notebook, Painter, trained

from charengine.config import SweepSettings
from charengine.likeness.prompts import classify
from charengine.records import DatasetRecord, SweepRecord
from charengine.stages.sweep import sweep
from charengine.stages.sweep.traits import TraitReading, described_traits
from charengine.store import Store

pytestmark = pytest.mark.usefixtures("known_adapter")
RED = (250, 10, 10)
PROMPT = "an orc in a blue coat, with a hook for a right hand"


class Hooked(Painter):
    """The checkpoint of step 100 draws the hook too, which no embedding sees: a red corner."""

    def sample(self, *args, **kwargs):
        images = super().sample(*args, **kwargs)
        if self.model.steps == 100:
            for image in images:
                image.paste(RED, (0, 58, 6, 64))
        return images


@dataclass
class Reader:
    """Sees hooks, in pictures by their corner and in all of the sheet's views; cannot tell the coat."""

    painter: Painter
    fingerprint: str = "reader"
    asked: list[int] = field(default_factory=list)
    drawn_before: list[int] = field(default_factory=list)
    freed: int = 0
    aside: int = 0
    eye: Eye | None = None
    beside: list[bool] = field(default_factory=list)

    def shown(self, images: Sequence[Image.Image], traits: Sequence[str], class_noun: str) -> list[list[bool | None]]:
        assert class_noun == "orc"
        self.asked.append(len(images))
        self.beside.append(self.eye is not None and self.eye.loaded)
        self.drawn_before.append(len(self.painter.drawn))
        return [[self._sees(image) if "hook" in words else None for words in traits] for image in images]

    def _sees(self, image: Image.Image) -> bool:
        red, green, _ = image.convert("RGB").getpixel((2, image.height - 3))  # type: ignore[misc]
        return image.size != (64, 64) or red - green > 150

    def step_aside(self) -> None:
        self.aside += 1

    def unload(self) -> None:
        self.freed += 1


def swept(
    store: Store, dataset: DatasetRecord, traits: str, description: str = PROMPT, key: str = "", **settings
) -> tuple[SweepRecord, Reader, Notebook]:
    painter, notebook, eye = Hooked(), Notebook(), Eye()
    reader = Reader(painter, eye=eye)
    found = sweep.sweep_adapter(
        trained(store, 100, 200), dataset, SETTINGS.model_copy(update={"traits": traits, **settings}), painter, eye,
        store, seed=7, reader=reader, description=description, tracker=notebook, key=key,
    )  # fmt: skip
    return found, reader, notebook


def test_what_only_a_reader_sees_decides_between_checkpoints_that_look_alike(store, dataset) -> None:
    blind, reader, _ = swept(store, dataset, "off")
    assert (blind.pick.checkpoint_step, reader.asked) == (200, [])
    seeing, reader, _ = swept(store, dataset, "rounds")
    assert seeing.pick.checkpoint_step == 100
    assert reader.aside == 1


def test_each_cell_says_what_was_read_and_strength_zero_what_the_sheet_shows(store, dataset) -> None:
    found, _, notebook = swept(store, dataset, "rounds")
    base, *cells = found.cells
    assert (base.shown, base.sheet_shown) == (0.0, 1.0)
    assert {(cell.checkpoint_step, cell.shown) for cell in cells} == {(100, 1.0), (200, 0.0)}
    assert all(cell.sheet_shown is None for cell in cells)
    assert [run.metrics["shown"] for run in notebook.children.values()] == [0.0, *[1.0] * 4, *[0.0] * 4]
    assert notebook.metrics["pick/shown"] == 1.0


def test_read_at_the_end_the_same_pictures_say_the_same_and_the_picture_model_has_made_room(store, dataset) -> None:
    now, _, _ = swept(store, dataset, "rounds")
    found, reader, notebook = swept(store, dataset, "end")
    assert found.cells == now.cells and found.pick == now.pick
    assert set(reader.drawn_before) == {len(reader.painter.drawn)}  # nothing is read before the last picture
    assert reader.asked == [3, len(found.images)], "all pictures are read at once"
    assert () in reader.painter.freed and reader.aside == 1
    assert reader.beside and not any(reader.beside), "the scorers must have made room"
    assert reader.eye is not None and not reader.eye.loaded
    gains = [run.metrics["gain"] for run in notebook.children.values()]
    assert gains == [cell.gain for cell in found.cells]


def test_a_race_reads_what_it_draws_and_no_more(store, dataset) -> None:
    found, reader, _ = swept(store, dataset, "rounds", design="race", pictures=36, seeds=3)
    views, *rest = reader.asked
    assert views == 3
    assert sum(rest) == len(found.images)


def test_a_sweep_that_goes_on_does_not_read_again_what_it_had_read(store, dataset) -> None:
    found, _, _ = swept(store, dataset, "rounds", key="sweep-01")
    again, reader, _ = swept(store, dataset, "rounds", key="sweep-01")
    assert reader.asked == [3]  # the sheet's views
    assert again.model_dump_json() == found.model_dump_json()


@pytest.mark.parametrize("description", ["", "an orc", "zorgax"])
def test_a_description_without_traits_leaves_identity_alone(store, dataset, description: str) -> None:
    found, reader, _ = swept(store, dataset, "rounds", description)
    assert reader.asked == []
    assert found.pick == swept(store, dataset, "off")[0].pick


def test_a_reader_that_sees_no_difference_is_found_out_and_not_counted(store, dataset, monkeypatch) -> None:
    monkeypatch.setattr(Reader, "_sees", lambda self, image: True)
    found, _, _ = swept(store, dataset, "rounds")
    assert found.pick.checkpoint_step == 200
    assert any("100% in the sheet's own views and 100% in the base model's" in warning for warning in found.warnings)


def test_a_class_prompt_shows_anybody_and_is_not_read() -> None:
    reading = TraitReading(Reader(Painter()), ("hook for a right hand",), "orc")
    prompts = [classify("{subject}, running, desert"), classify("{class}, walking, meadow")]
    shown = reading.of_cell([[Image.new("RGB", (8, 8))] * 2] * 2, prompts)
    assert shown[0].tolist() == [1.0, 1.0]
    assert shown[1].isnan().all()


def test_the_trigger_is_no_trait() -> None:
    assert described_traits("zorgax, an orc in a blue coat", "zorgax", "orc") == described_traits(
        "an orc in a blue coat", "zorgax", "orc"
    )


def test_runs_of_cells_are_reopened_only_by_the_same_reader(store, dataset) -> None:
    _, _, first = swept(store, dataset, "rounds")
    _, _, blind = swept(store, dataset, "off")
    assert not set(first.children) & set(blind.children)


def test_by_default_a_small_reader_is_asked_in_every_round_and_qwen_at_the_end() -> None:
    from charengine.profiles.loading import load_profile

    assert SweepSettings().traits == load_profile("embedded").sweep.traits == "rounds"
    assert {load_profile(name).sweep.traits for name in ("sdxl-12gb", "sdxl-24gb", "sdxl-80gb", "origin")} == {"end"}


def test_shares_leave_out_what_a_picture_cannot_tell() -> None:
    class Told(Reader):
        def shown(self, images, traits, class_noun):
            return [[True, None, False], [None, None, None]]

    reading = TraitReading(Told(Painter()), ("a", "b", "c"), "orc")
    shares = reading.shares([Image.new("RGB", (8, 8))] * 2)
    assert shares[0] == 0.5 and torch.isnan(shares[1])
    assert reading.of_views([Image.new("RGB", (8, 8))] * 2) == 0.5
