"""A reference: what is seen in it, what is refused and why, and how the edit model is shown it."""

from __future__ import annotations

import io
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from PIL import Image, ImageDraw
from run_samples import doll, png
from sheet_samples import Sheet, paint

from charengine.config import Character, SheetSettings
from charengine.embedded.shape import PICTURE_SIZE, VIEW_SIZE
from charengine.errors import BadInput
from charengine.models import Sight
from charengine.pictures import open_image
from charengine.stages.sheet.draw import draw_sheet
from charengine.stages.sheet.prompt import write_sheet_prompt
from charengine.stages.sheet.reference import ReferenceRecord, as_shown, as_taught, look_at, reference_problems
from charengine.store import Store

ORC = Sight(1, "full body", "orc", "a green orc in a blue coat")
HERO = Character(name="Aya", prompt="a green orc", class_noun="orc", seed=7)


@dataclass
class Witness:
    """An onlooker that says what it is told to, and remembers what it was shown."""

    sight: Sight = ORC
    shown: list[Image.Image] = field(default_factory=list)
    fingerprint: str = "witness"

    def look(self, image: Image.Image) -> Sight:
        self.shown.append(image)
        return self.sight

    def unload(self) -> None:
        pass


@dataclass
class Painter:
    """An editor that draws a good sheet and remembers what it was asked for."""

    prompt_style: str = "rich"
    pictures: int = 2
    calls: list[dict[str, Any]] = field(default_factory=list)
    fingerprint: str = "painter"
    drawn: Sheet = field(default_factory=Sheet)

    def draw(self, template: Image.Image, prompt: str, **settings: Any) -> Image.Image:
        self.calls.append({"template": template, "prompt": prompt, **settings})
        return paint(self.drawn)

    def unknown_words(self, prompt: str) -> tuple[str, ...]:
        return ()

    def unload(self) -> None:
        pass


def saved(image: Image.Image, folder: Path, name: str = "mine.png", **how: Any) -> Path:
    path = folder / name
    image.save(path, **how)
    return path


def on_canvas(
    *places: tuple[int, int], size: tuple[int, int] = (480, 360), ground: Any = (255, 255, 255)
) -> Image.Image:
    """Dolls of 96×192 at these places."""
    canvas = Image.new("RGB", size, ground)
    for place in places:
        canvas.paste(doll(ground=ground), place)
    return canvas


def busy(size: tuple[int, int] = (256, 256)) -> Image.Image:
    """A doll before a wall of many colours."""
    noise = np.random.default_rng(3).integers(0, 255, (16, 16, 3), dtype=np.uint8)
    wall = Image.fromarray(noise).resize(size, Image.Resampling.NEAREST)
    figure = doll((96, 192))
    wall.paste(figure, (80, 40), figure.convert("L").point(lambda level: 255 * (level < 250)))
    return wall


# --- what is seen -----------------------------------------------------------------------------------------------------


def test_a_figure_on_a_plain_background_is_found_and_looked_at_from_close_by(store: Store, tmp_path: Path) -> None:
    witness = Witness()
    found = look_at(saved(on_canvas((200, 100)), tmp_path), witness, store)
    assert (found.class_noun, found.description, found.background) == (
        "orc",
        "a green orc in a blue coat",
        (255, 255, 255),
    )
    assert found.box is not None
    x0, y0, x1, y1 = found.box
    assert x0 + 30 > 200 and x1 < 300 and 95 < y0 < 115 and 275 < y1 < 295
    assert witness.shown[0].size == (x1 - x0, y1 - y0) == as_shown(found, store).size


def test_before_a_busy_background_the_whole_picture_is_looked_at(store: Store, tmp_path: Path) -> None:
    witness = Witness()
    found = look_at(saved(busy(), tmp_path), witness, store)
    assert (found.box, found.background) == (None, None)
    assert witness.shown[0].size == (256, 256)


def test_a_figure_that_is_cut_out_stands_on_white_whatever_is_under_the_transparency(
    store: Store, tmp_path: Path
) -> None:
    image = busy().convert("RGBA")
    alpha = Image.new("L", image.size, 0)
    alpha.paste(255, (100, 60, 160, 220))
    image.putalpha(alpha)
    found = look_at(saved(image, tmp_path), Witness(), store)
    assert found.background == (255, 255, 255) and found.box is not None
    assert found.box[0] > 80 and found.box[2] < 180
    assert open_image(store.get(found.image)).getpixel((5, 5)) == (255, 255, 255)


def test_a_picture_is_turned_upright_and_a_large_one_reduced_with_its_box(store: Store, tmp_path: Path) -> None:
    large = on_canvas((200, 100)).resize((2400, 1800))
    exif = Image.Exif()
    exif[0x0112] = 6  # the camera was held on its side
    turned = saved(large.rotate(90, expand=True), tmp_path, "turned.jpg", exif=exif)
    found = look_at(turned, Witness(), store)
    image = open_image(store.get(found.image))
    assert image.size == (1536, 1152) and found.box is not None
    assert abs(found.box[0] / 1536 - 222 / 480) < 0.02 and found.box[3] <= 1152


def test_what_stands_beside_the_figure_and_is_left_out_is_said(store: Store, tmp_path: Path) -> None:
    beside = on_canvas((100, 100))
    beside.paste(doll((36, 72)), (330, 210))  # a child, a pet: too small for a second figure
    told = look_at(saved(beside, tmp_path), Witness(), store)
    assert [one[:45] for one in told.warnings] == ["something beside the figure was left out of t"]
    assert told.box is not None and told.box[2] < 330
    assert look_at(saved(on_canvas((100, 100)), tmp_path), Witness(), store).warnings == ()


@pytest.mark.parametrize("place", [(-38, 100), (422, 100), (200, -30), (200, 190)])
def test_a_figure_that_an_edge_may_cut_off_is_said_to_be_once(
    store: Store, tmp_path: Path, place: tuple[int, int]
) -> None:
    path = saved(on_canvas(place), tmp_path)
    assert "runs along an edge" in " ".join(look_at(path, Witness(), store).warnings)
    (told,) = look_at(path, Witness(Sight(1, "upper body", "orc", "an orc")), store).warnings
    assert "does not show the whole character" in told


def test_a_picture_that_was_trimmed_to_its_figure_is_not_said_to_cut_it_off(store: Store, tmp_path: Path) -> None:
    image = doll((96, 192)).convert("RGBA")
    alpha = Image.new("L", image.size, 0)
    ImageDraw.Draw(alpha).ellipse((0, 0, 95, 191), fill=255)
    image.putalpha(alpha)
    found = look_at(saved(image, tmp_path), Witness(), store)
    assert found.box is not None and found.warnings == ()


def test_a_figure_that_is_too_small_is_told_from_none(tmp_path: Path) -> None:
    (told,) = reference_problems(saved(on_canvas((600, 500), size=(1600, 1200)), tmp_path))
    assert "fills 0.3% of it, and must fill 2%" in told and "cut closer" in told
    (told,) = reference_problems(saved(on_canvas(), tmp_path))
    assert "no figure stands out" in told


@pytest.mark.parametrize("mode", ["CMYK", "I;16", "P"])
def test_pictures_of_every_depth_and_colour_are_read(mode: str, store: Store, tmp_path: Path) -> None:
    image = on_canvas((200, 100))
    if mode == "I;16":
        grey = np.asarray(image.convert("L")).astype(np.uint16) * 257
        path = saved(Image.fromarray(grey), tmp_path)
    else:
        path = saved(image.convert(mode), tmp_path, "mine.jpg" if mode == "CMYK" else "mine.png")
    assert look_at(path, Witness(), store).box is not None


def test_what_a_half_figure_leaves_out_is_said(store: Store, tmp_path: Path) -> None:
    found = look_at(saved(busy(), tmp_path), Witness(Sight(1, "upper body", "orc", "an orc")), store)
    assert any("does not show the whole character" in warning for warning in found.warnings)


# --- what is refused --------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("picture", "sight", "said"),
    [
        (Image.new("RGB", (256, 256), "white"), ORC, "no figure stands out"),
        (on_canvas((60, 80), (300, 80)), ORC, "2 figures"),
        (paint(Sheet()), ORC, "give the picture with --sheet"),
        (busy(), Sight(0), "no figure was found"),
        (busy(), Sight(3, "full body", "orcs", "three orcs"), "several figures"),
        (busy(), Sight(1, "face", "orc", "an orc"), "a face alone"),
        (on_canvas((200, 100)), Sight(1, "face", "orc", "an orc"), "a face alone"),
        (Image.new("RGB", (20, 20)), ORC, "at least 64 pixels"),
    ],
    ids=["blank", "two", "a sheet", "nobody", "several", "a face", "a face on white", "too small"],
)
def test_a_picture_from_which_no_one_character_can_be_made_is_refused_with_what_would_work(
    picture: Image.Image, sight: Sight, said: str, store: Store, tmp_path: Path
) -> None:
    path = saved(picture, tmp_path)
    with pytest.raises(BadInput) as refused:
        look_at(path, Witness(sight), store)
    message = str(refused.value)
    assert said in message and message.startswith(f"--reference {path}")
    assert "small" in said or "pixels" in said or "Give a picture of one character" in message
    assert refused.value.exit_status == 2


def test_what_is_seen_without_a_model_is_refused_before_one_is_loaded(tmp_path: Path) -> None:
    assert "2 figures" in reference_problems(saved(on_canvas((60, 80), (300, 80)), tmp_path))[0]
    assert reference_problems(saved(on_canvas((200, 100)), tmp_path)) == []
    assert reference_problems(saved(busy(), tmp_path)) == []


# --- how it is drawn from ---------------------------------------------------------------------------------------------


def test_the_editor_is_shown_the_reference_and_the_record_names_it(store: Store, tmp_path: Path) -> None:
    found, painter = look_at(saved(on_canvas((200, 100)), tmp_path), Witness(), store), Painter()
    record = draw_sheet(HERO, SheetSettings(), painter, store, reference=found)
    assert record.reference == found.image
    assert painter.calls[0]["reference"].tobytes() == as_shown(found, store).tobytes()
    assert "Picture 1 is a template" in record.prompt and "the very orc of picture 2" in record.prompt
    assert "The character: a green orc." in record.prompt


def test_without_a_reference_nothing_is_asked_that_was_not_asked_before(store: Store) -> None:
    painter = Painter()
    record = draw_sheet(HERO, SheetSettings(), painter, store)
    assert painter.calls[0]["reference"] is None and record.reference is None
    assert record.prompt == write_sheet_prompt("a green orc", "orc")
    assert "reference" not in record.model_dump()


def test_an_editor_of_one_picture_is_told_that_the_picture_is_the_character(store: Store, tmp_path: Path) -> None:
    found = look_at(saved(busy(), tmp_path), Witness(), store)
    record = draw_sheet(HERO, SheetSettings(), Painter(pictures=1), store, reference=found)
    assert "of the orc in the picture" in record.prompt and "Picture 1" not in record.prompt


def test_a_repaired_box_is_drawn_from_the_sheet_not_from_the_reference(store: Store, tmp_path: Path) -> None:
    found = look_at(saved(busy(), tmp_path), Witness(), store)
    spots = Sheet().spots
    painter = Painter(drawn=Sheet((384, 384), (spots[0], spots[2])))
    with pytest.raises(Exception, match="passed the gate"):
        draw_sheet(HERO, SheetSettings(candidates=1, repair=True), painter, store, reference=found)
    assert [call["reference"] is not None for call in painter.calls] == [True, False]


@pytest.mark.parametrize(("picture", "size"), [(on_canvas((200, 100)), VIEW_SIZE), (busy(), PICTURE_SIZE)])
def test_the_embedded_editor_is_shown_a_size_that_it_was_taught(
    picture: Image.Image, size: tuple[int, int], store: Store, tmp_path: Path
) -> None:
    found = look_at(saved(picture, tmp_path), Witness(), store)
    assert as_taught(found, store).size == size


def seen(store: Store, description: str) -> ReferenceRecord:
    return ReferenceRecord(
        image=store.put(png(doll()), "reference.png"),
        box=None,
        background=None,
        class_noun="orc",
        description=description,
    )


def test_what_a_sentence_leaves_out_is_taken_from_the_picture_and_the_sentence_wins(store: Store) -> None:
    painter = Painter(prompt_style="plain", pictures=1)
    reference = seen(
        store, "a tall green skinned orc with long red hair, wearing a yellow tunic, black trousers and brown boots"
    )
    record = draw_sheet(
        HERO.model_copy(update={"prompt": "an orc in a blue coat"}),
        SheetSettings(),
        painter,
        store,
        reference=reference,
    )
    for words in ("blue coat", "long red hair", "black trousers", "brown boots", "green skinned"):
        assert words in record.prompt, record.prompt
    assert "tunic" not in record.prompt and "yellow" not in record.prompt
    [taken] = [warning for warning in record.warnings if "taken from the reference" in warning]
    assert "long red hair" in taken and "coat" not in taken
    nobody = HERO.model_copy(update={"prompt": "an orc"})
    told = draw_sheet(nobody, SheetSettings(), painter, store, reference=seen(store, "an orc")).warnings
    assert any("neither prompt nor reference" in one for one in told)


def test_a_warning_about_the_picture_is_the_sheets(store: Store) -> None:
    reference = seen(store, "an orc").model_copy(update={"warnings": ("its feet are not there",)})
    assert "its feet are not there" in draw_sheet(HERO, SheetSettings(), Painter(), store, reference=reference).warnings


def test_an_animated_picture_is_read_with_a_warning(store: Store, tmp_path: Path) -> None:
    frames = [on_canvas((200, 100)), on_canvas((100, 100))]
    buffer = io.BytesIO()
    frames[0].save(buffer, "WEBP", save_all=True, append_images=frames[1:], lossless=True)
    path = tmp_path / "mine.webp"
    path.write_bytes(buffer.getvalue())
    assert any("first frame" in warning for warning in look_at(path, Witness(), store).warnings)
