"""Sheets: the prompt that is written, the candidates that are drawn, and the files that are taken."""

import io
import struct
import zlib

import numpy as np
import pytest
from PIL import Image
from sheet_samples import BAD, HERO, THREE, Look, Painter, Sheet, Spot, paint, stored_image

from charengine.config import SheetSettings
from charengine.embedded.grammar import parse_prompt
from charengine.errors import BadInput, SheetRejected
from charengine.figures.cut import examine_sheet
from charengine.figures.template import boxes
from charengine.language.sides import side_bound_items
from charengine.models import Description
from charengine.stages.sheet import draw
from charengine.stages.sheet.draw import candidate_seed, draw_sheet
from charengine.stages.sheet.given import take_sheet
from charengine.stages.sheet.judge import Verdict
from charengine.stages.sheet.prompt import full_prompt, write_sheet_prompt


class Rewriting:
    fingerprint = "rewriting"

    def __init__(self, answer):
        self.answer, self.questions = answer, []

    def describe(self, image, hint=""):
        return Description(())

    def ask(self, image, question, *, max_tokens=64):
        self.questions.append(question)
        return self.answer

    def unload(self):
        pass


# --- prompt -----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("prompt", "items"),
    [
        ("an orc woman, her right hand is a hook", {"right": "hook"}),
        ("eye patch on the left eye", {"left": "eye patch"}),
        ("a pirate with a hook for a left hand", {"left": "hook"}),
        ("a dwarf who carries a lantern in his left hand", {"left": "lantern"}),
        ("holding a long sword in her right hand and a round shield in her left hand", {"right": "long sword", "left": "round shield"}),
        ("holding a lantern in the left hand, a staff in the right hand", {"left": "lantern", "right": "staff"}),
        ("in his left hand he carries a glowing lantern, red coat", {"left": "glowing lantern"}),
        ("a robot with a left mechanical arm", {"left": "mechanical arm"}),
        ("a knight with a blade instead of his right arm", {"right": "blade"}),
        ("woman, right hand hook, left eye patch", {"right": "hook", "left": "eye patch"}),
        ("her left eye is red", {"left": "red eye"}),
        ("his left arm has been replaced by a steam cannon and he wears a hat", {"left": "steam cannon"}),
        ("a woman in a blue coat who turns right at the corner", {}),
    ],
)  # fmt: skip
def test_side_bound_items_are_read_from_free_text(prompt, items):
    assert side_bound_items(prompt) == items


def test_the_prompt_says_where_in_each_view_a_side_bound_item_is():
    prompt = full_prompt("an orc woman, her right hand is a hook, a scar over the left eye", "orc woman", Painter(BAD))
    assert "hook belongs to the character's right hand: on the left of the picture in the front view" in prompt
    assert "near side, fully visible in the side view, on the right of the picture in the back view" in prompt
    assert "scar belongs to the character's left eye: on the right of the picture in the front view" in prompt
    assert "hidden by the body in the side view, not visible in the back view" in prompt
    assert "rotated about the vertical axis" in prompt and "three full-body views of the same orc woman" in prompt


def test_an_editor_of_plain_style_gets_the_wording_it_was_trained_on():
    painter = Painter(BAD)
    painter.prompt_style = "plain"
    prompt = full_prompt("An orc woman in a blue coat, her right hand is a hook.", "orc woman", painter)
    assert prompt == (
        "three views of the same orc: front view, side view, back view, full body, plain white background: an orc woman in a "
        "blue coat, her right hand is a hook, the right hook is on the left of the picture in the front view and on the right "
        "of the picture in the back view"
    )


@pytest.mark.parametrize(
    ("prompt", "left"),
    [
        ("a blue robot in the forest, waving", "a blue robot"),
        ("a red robot running in the rainy city at night with a sword in its left hand", "a red robot with a sword in its left hand"),
        ("standing in a meadow, an elf in a green robe", "an elf in a green robe"),
        ("a snow elf in a space suit", "a snow elf in a space suit"),
        ("running", "running"),
    ],
)  # fmt: skip
def test_poses_and_places_are_kept_out_of_a_plain_sheet_prompt(prompt, left):
    painter = Painter(BAD)
    painter.prompt_style = "plain"
    assert (
        full_prompt(prompt, "robot", painter).split("plain white background: ")[1].split(", the left sword")[0] == left
    )


def test_a_prompt_without_a_class_noun_or_items_still_makes_sense():
    assert "views of the same character." in write_sheet_prompt("a thing with legs", "")


# --- drawing ----------------------------------------------------------------------------------------------------------


def test_a_good_first_candidate_is_kept_and_no_second_is_drawn(store):
    painter = Painter(Sheet((384, 384), rules="exact"))
    record = draw_sheet(HERO, SheetSettings(candidates=4), painter, store)
    assert len(painter.calls) == record.candidates == 1
    assert painter.calls[0]["seed"] == record.seed == 7
    assert painter.calls[0]["template"].size == (384, 384)
    assert (record.source, record.width, record.height) == ("drawn", 384, 384)
    assert record.prompt == painter.calls[0]["prompt"]
    assert record.gate["accepted"] and record.gate["facts"]["rules_erased"] == 6
    assert stored_image(record.image, store).tobytes() == paint(Sheet((384, 384), rules="exact")).tobytes()


@pytest.mark.parametrize(("scores", "drawn", "kept"), [((0.76, 0.9), 1, 0), ((0.74, 0.9), 2, 1), ((0.74, 0.5), 2, 0)])
def test_an_accepted_sheet_that_scores_low_is_only_kept_when_no_other_scores_higher(
    scores, drawn, kept, store, monkeypatch
):
    verdicts = [Verdict(score, (), None, {}, {}, (), Image.new("RGB", (8, 8))) for score in scores]
    monkeypatch.setattr(draw, "judge_sheet", lambda *_, **__: verdicts.pop(0))
    painter = Painter(Sheet((384, 384)))
    record = draw_sheet(HERO, SheetSettings(candidates=2), painter, store)
    assert len(painter.calls) == record.candidates == drawn
    assert record.seed == painter.calls[kept]["seed"]


def test_a_bad_first_candidate_is_followed_by_another_seed(store):
    painter = Painter(BAD, Sheet((384, 384)))
    record = draw_sheet(HERO, SheetSettings(candidates=4), painter, store)
    seeds = [call["seed"] for call in painter.calls]
    assert seeds == [7, candidate_seed(7, 1)] and record.seed == seeds[1] != 7
    assert "side box is empty" in record.gate["candidates"][0]["reasons"][0]


def test_candidate_seeds_differ_and_are_the_same_everywhere():
    seeds = [candidate_seed(42, k) for k in range(8)]
    assert len(set(seeds)) == 8 and all(0 <= seed < 2**31 for seed in seeds)
    assert seeds[:3] == [42, 167889491, 862913270]


def test_a_sheet_is_given_up_with_a_picture_of_every_candidate_and_the_reasons(store):
    with pytest.raises(SheetRejected, match=r"none of 3 sheets passed.*side box is empty.*--sheet") as refusal:
        draw_sheet(HERO, SheetSettings(candidates=3), Painter(BAD), store)
    assert refusal.value.box == 1
    with Image.open(refusal.value.picture) as picture:
        assert picture.size == (3 * 384, 384)


def test_without_the_gate_the_first_sheet_is_taken_as_it_is(store):
    painter = Painter(BAD)
    record = draw_sheet(HERO, SheetSettings(gate=False, candidates=5), painter, store)
    assert len(painter.calls) == 1 and record.gate == {}


def test_drafts_are_cheap_and_only_the_keeper_is_drawn_in_full_with_the_same_seed(store):
    painter = Painter(BAD, Sheet((384, 384)), Sheet((384, 384), rules="exact"))
    record = draw_sheet(HERO, SheetSettings(candidates=4, steps=40, draft_steps=8), painter, store)
    assert [call["steps"] for call in painter.calls] == [8, 8, 40]
    assert painter.calls[2]["seed"] == painter.calls[1]["seed"] == record.seed
    assert record.gate["facts"]["rules_erased"] == 6  # the finished one, not its draft


@pytest.mark.parametrize(("draft_steps", "said"), [(8, True), (4, False), (0, False)])
def test_a_draft_has_no_more_steps_than_the_sheet_and_where_more_were_asked_for_that_is_said(store, draft_steps, said):
    painter = Painter(BAD, Sheet((384, 384)))
    record = draw_sheet(HERO, SheetSettings(candidates=2, steps=4, draft_steps=draft_steps), painter, store)
    assert [call["steps"] for call in painter.calls] == [4, 4]  # the second is kept as it is
    told = "sheet.draft_steps is 8 and sheet.steps 4: a draft has no more steps than the sheet, so it has 4 too"
    assert [warning.partition(";")[0] for warning in record.warnings] == [told] * said


def test_a_keeper_that_fails_in_full_gives_way_to_its_draft(store):
    painter = Painter(Sheet((384, 384)), BAD)
    record = draw_sheet(HERO, SheetSettings(candidates=1, steps=40, draft_steps=8), painter, store)
    assert record.gate["accepted"] and "a draft of 8 steps" in record.warnings[0]
    assert stored_image(record.image, store).tobytes() == paint(Sheet((384, 384))).tobytes()


def test_the_captioner_is_asked_about_finished_sheets_only_and_its_veto_holds_for_their_drafts(store):
    class Sceptic(Rewriting):
        def describe(self, image, hint=""):
            self.questions.append(hint)
            return Description(("front view",), "", {"view": "front"})

    settings = SheetSettings(candidates=2, steps=40, draft_steps=8, ask_model=True)
    sceptic = Sceptic("left")
    with pytest.raises(SheetRejected, match="side box shows a front view, says the captioner"):
        draw_sheet(HERO, settings, Painter(Sheet((384, 384))), store, captioner=sceptic)
    assert len(sceptic.questions) == 2 * (3 + 1)  # three views and the hook, for one finished sheet and its draft


def test_repair_redraws_only_the_box_to_blame(store):
    painter = Painter(BAD, Sheet((384, 384)))
    record = draw_sheet(HERO, SheetSettings(candidates=1, repair=True), painter, store)
    assert painter.calls[1]["redraw"] == boxes(384, 384)[1]
    assert painter.calls[1]["template"].tobytes() == paint(BAD).tobytes()
    assert record.gate["accepted"] and record.gate["repaired_box"] == 1


def test_the_edit_model_is_told_what_the_settings_say(store):
    painter = Painter(Sheet((384, 384)))
    settings = SheetSettings(
        steps=9, guidance=2.5, guided_above=0.6, negative_prompt="blurry", conditioning="vision", candidates=1
    )
    draw_sheet(HERO, settings, painter, store)
    told = {name: value for name, value in painter.calls[0].items() if name not in ("template", "prompt")}
    assert told == {
        "reference": None,
        "seed": 7,
        "steps": 9,
        "guidance": 2.5,
        "guided_above": 0.6,
        "negative_prompt": "blurry",
        "conditioning": "vision",
        "redraw": None,
    }


def test_unknown_words_are_named_in_a_warning(store):
    record = draw_sheet(HERO, SheetSettings(), Painter(Sheet((384, 384)), unknown=("zeppelin", "tuba")), store)
    assert "zeppelin, tuba" in record.warnings[0]


@pytest.mark.parametrize("guidance", [1.0, 3.0])
def test_unknown_words_of_a_negative_prompt_are_named_where_it_is_read(store, guidance):
    painter = Painter(Sheet((384, 384)))
    painter.unknown_words = lambda text: ("blurry",) if "blurry" in text else ()
    record = draw_sheet(HERO, SheetSettings(negative_prompt="blurry", guidance=guidance), painter, store)
    told = "sheet.negative_prompt: the model was never taught these words and ignores them: blurry"
    assert record.warnings == ((told,) if guidance > 1 else ())


def test_a_prompt_is_enriched_by_a_captioner_that_answers_questions(store):
    painter = Painter(Sheet((384, 384)))
    rewriting = Rewriting('"An orc woman in a heavy blue wool coat with brass buttons, her right hand is a hook."')
    record = draw_sheet(HERO, SheetSettings(rewrite=True), painter, store, captioner=rewriting)
    assert HERO.prompt in rewriting.questions[0]
    assert "heavy blue wool coat with brass buttons" in painter.calls[0]["prompt"]
    assert "hook belongs to the character's right hand" in painter.calls[0]["prompt"]
    assert record.warnings == ()


@pytest.mark.parametrize(
    ("captioner", "words"),
    [
        (None, "cannot rewrite"),
        (Rewriting(""), "empty or too long"),
        (Rewriting("orc " * 400), "empty or too long"),
        (Rewriting("An orc woman, her left hand is a hook"), "bound to a side"),
    ],
)
def test_a_rewriting_that_cannot_be_trusted_leaves_the_prompt_as_written(captioner, words, store):
    painter = Painter(Sheet((384, 384)))
    record = draw_sheet(HERO, SheetSettings(rewrite=True), painter, store, captioner=captioner)
    assert words in record.warnings[0]
    assert f"{HERO.prompt}." in painter.calls[0]["prompt"]


def test_the_embedded_family_is_told_a_whole_character_and_the_user_what_was_made_up(store):
    painter = Painter(Sheet((384, 384)))
    painter.prompt_style = "plain"
    as_written = draw_sheet(HERO, SheetSettings(), painter, store)
    completed = draw_sheet(HERO, SheetSettings(rewrite=True), painter, store)
    assert "boots" not in as_written.prompt and "shoes" not in as_written.prompt
    made_up = completed.warnings[0].removeprefix("the prompt does not say it, so it was made up: ").split(" (")[0]
    said = parse_prompt(completed.prompt)
    assert (said["top"], said["top_colour"], said["right_item"]) == ("coat", "blue", "hook")
    assert f"{said['footwear_colour']} {said['footwear']}" in made_up
    assert f"{said['skin']} skin" in made_up
    assert ", ".join(completed.added) == made_up and as_written.added == ()


# --- taking -----------------------------------------------------------------------------------------------------------


def save(image, path, **options):
    image.save(path, **options)
    return path


def test_a_taken_sheet_keeps_its_pixels(tmp_path, store):
    image = paint(Sheet((640, 480)))
    record = take_sheet(save(image, tmp_path / "mine.png"), store)
    assert (record.source, record.prompt, record.width, record.height) == ("given", "", 640, 480)
    assert stored_image(record.image, store).tobytes() == image.tobytes()


@pytest.mark.parametrize("mode", ["CMYK", "P", "L", "1"])
def test_other_colour_modes_become_rgb_and_keep_three_figures(mode, tmp_path, store):
    image = paint(Sheet((640, 480))).convert(mode)
    path = tmp_path / ("sheet.jpg" if mode == "CMYK" else "sheet.png")
    taken = stored_image(take_sheet(save(image, path), store).image, store)
    assert taken.mode == "RGB" and len(examine_sheet(taken, 24)[1].figures) == 3


def test_sixteen_bit_grey_is_scaled_and_not_clipped(tmp_path, store):
    grey = np.asarray(paint(Sheet((640, 480))).convert("L")).astype(np.uint16) * 257
    taken = stored_image(take_sheet(save(Image.fromarray(grey), tmp_path / "deep.png"), store).image, store)
    assert np.abs(np.asarray(taken)[..., 0].astype(int) - grey // 257).max() <= 1


def test_a_rotated_photo_file_is_turned_upright(tmp_path, store):
    image = paint(Sheet((640, 480)))
    exif = Image.Exif()
    exif[0x0112] = 6  # the viewer must turn it by 90 degrees clockwise
    path = save(image.transpose(Image.Transpose.ROTATE_90), tmp_path / "turned.png", exif=exif)
    record = take_sheet(path, store)
    assert (record.width, record.height) == (640, 480)
    assert stored_image(record.image, store).convert("RGB").tobytes() == image.tobytes()


def test_a_transparent_background_becomes_white_and_its_outline_is_kept(tmp_path, store):
    layer = paint(Sheet((640, 480), background=(255, 0, 255))).convert("RGBA")
    values = np.array(layer)
    values[np.abs(values[..., :3].astype(int) - (255, 0, 255)).max(axis=2) < 60] = 0
    taken = stored_image(take_sheet(save(Image.fromarray(values), tmp_path / "cut.png"), store).image, store)
    assert taken.mode == "RGBA"
    assert np.asarray(taken.convert("RGB"))[0, 0].tolist() == [255, 255, 255]
    assert (np.asarray(taken)[..., 3] == values[..., 3]).all()


def test_an_alpha_channel_that_is_all_opaque_is_dropped(tmp_path, store):
    path = save(paint(Sheet((640, 480))).convert("RGBA"), tmp_path / "opaque.png")
    assert stored_image(take_sheet(path, store).image, store).mode == "RGB"


def test_a_huge_sheet_is_reduced_with_a_warning(tmp_path, store):
    image = paint(Sheet((750, 500))).resize((3000, 2000))
    record = take_sheet(save(image, tmp_path / "huge.jpg"), store)
    assert (record.width, record.height) == (2048, 1365)
    assert "3000×2000 to 2048×1365" in record.warnings[0]


def test_of_an_animation_the_first_frame_is_taken_with_a_warning(tmp_path, store):
    first, second = paint(Sheet((480, 320))), paint(Sheet((480, 320), look=Look(lantern=True)))
    path = save(first, tmp_path / "moving.webp", save_all=True, append_images=[second], lossless=True)
    record = take_sheet(path, store)
    assert "only its first frame" in record.warnings[0]
    assert stored_image(record.image, store).tobytes() == first.tobytes()


def test_what_is_no_usable_sheet_is_refused_by_name_with_a_remedy(tmp_path, store):
    png = io.BytesIO()
    paint(Sheet((384, 384))).save(png, "PNG")
    (tmp_path / "cut.png").write_bytes(png.getvalue()[: len(png.getvalue()) // 2])
    (tmp_path / "notes.png").write_text("not a picture")
    (tmp_path / "anim.gif").write_bytes(gif())
    (tmp_path / "bomb.png").write_bytes(png_header(60_000, 60_000))
    Image.new("RGB", (95, 200)).save(tmp_path / "tiny.png")
    Image.new("RGB", (1300, 100)).save(tmp_path / "strip.png")
    for name, words in {
        "absent.png": "is not a file",
        "cut.png": "damaged",
        "notes.png": "not a readable PNG, JPEG or WebP",
        "anim.gif": "not a readable PNG, JPEG or WebP",
        "bomb.png": "pixels",
        "tiny.png": "at least 96",
        "strip.png": "three figures side by side",
    }.items():
        with pytest.raises(BadInput, match=words) as refusal:
            take_sheet(tmp_path / name, store)
        assert name in str(refusal.value)
    with pytest.raises(BadInput, match="is not a file"):
        take_sheet(tmp_path, store)


def gif():
    buffer = io.BytesIO()
    Image.new("P", (200, 200)).save(buffer, "GIF")
    return buffer.getvalue()


def png_header(width, height):
    """The start of a PNG that claims a size and holds almost nothing."""

    def chunk(kind, body):
        return struct.pack(">I", len(body)) + kind + body + struct.pack(">I", zlib.crc32(kind + body))

    start = struct.pack(">IIBBBBB", width, height, 8, 2, 0, 0, 0)
    return (
        b"\x89PNG\r\n\x1a\n" + chunk(b"IHDR", start) + chunk(b"IDAT", zlib.compress(b"\0" * 100)) + chunk(b"IEND", b"")
    )


def test_figures_smaller_than_a_third_of_their_box_are_still_found(store):
    painter = Painter(Sheet((384, 384), tuple(Spot(spot.view, spot.x, 0.4, 0.3) for spot in THREE)))
    assert draw_sheet(HERO, SheetSettings(), painter, store).gate["accepted"]
