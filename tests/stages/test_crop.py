"""The crop finds three figures wherever they stand, keeps them whole, and says what is wrong with a bad sheet."""

import numpy as np
import pytest
from PIL import Image, ImageDraw
from sheet_samples import COAT, THREE, Look, Sheet, Spot, paint, photo, record_of, stored_image, true_boxes

from charengine.config import CropSettings
from charengine.errors import SheetRejected
from charengine.figures.cut import choose_bucket, examine_sheet
from charengine.stages import crop as crop_stage
from charengine.stages.crop import crop_views

TOY, MEDIUM, LARGE, WIDE = (384, 384), (960, 640), (1024, 1024), (1536, 1024)
FRONT, SIDE, BACK = THREE
WHITE_OUTLINED = Look(coat=(255, 255, 255))
WHITE_SHADED = Look(coat=(243, 243, 245), outline=None)

GOOD = {
    "clean": {},
    "exact rules": {"rules": "exact"},
    "drifted rules, noise and JPEG": {"rules": "drifted", "noise": 2, "jpeg": 85},
    "partial rules and floor shadows": {"rules": "partial", "shadow": True},
    "grey rules, soft focus, floor shadows": {"rules": "grey", "blur": 0.7, "shadow": True, "look": Look(outline=None)},
    "gradient and vignette": {"gradient": 0.15, "vignette": 0.2, "background": (200, 205, 210), "noise": 2, "jpeg": 85},
    "white outlined costume on white": {"look": WHITE_OUTLINED, "rules": "exact"},
    "off-white costume on white": {"look": WHITE_SHADED, "noise": 1},
    "black background": {"background": (12, 12, 14), "look": Look(coat=(200, 60, 40), outline=(240, 240, 240))},
}


def crop(sheet, store, **settings):
    image = paint(sheet) if isinstance(sheet, Sheet) else sheet
    if max(image.size) > 384:
        settings.setdefault("bucket_area", 512 * 512)  # small views are found in the same places, and written sooner
    return crop_views(record_of(image, store), CropSettings(**settings), store)


def pixels(ref, store):
    return np.asarray(stored_image(ref, store)).astype(int)


@pytest.mark.parametrize("size", [TOY, MEDIUM], ids=["toy", "medium"])
@pytest.mark.parametrize("defect", GOOD)
def test_every_figure_is_found_to_within_a_hundredth_of_the_sheet(defect, size, store):
    spots = tuple(Spot(spot.view, spot.x, height=0.78, top=0.1) for spot in THREE)
    sheet = Sheet(size, spots, **GOOD[defect])
    views = crop(sheet, store)
    assert [view.view for view in views.views] == ["front", "side", "back"]
    for view, truth in zip(views.views, true_boxes(sheet), strict=True):
        slack = max(4, size[1] // 100)
        assert np.abs(np.subtract(view.source_box, truth)).max() <= slack, (view.view, view.source_box, truth)
    assert views.warnings == ()


@pytest.mark.parametrize("size", [TOY, LARGE, WIDE])
def test_all_views_share_one_bucket_and_one_scale_and_no_figure_is_cut(size, store):
    area = 128 * 384 if size == TOY else 1024 * 1024
    views = crop(Sheet(size, rules="exact"), store, bucket_area=area)
    assert len({(view.width, view.height) for view in views.views}) == 1
    width, height = views.views[0].width, views.views[0].height
    assert width % 64 == 0 and height % 64 == 0 and width * height <= area
    heights = []
    for view in views.views:
        alpha = pixels(view.alpha, store)
        assert alpha.shape == pixels(view.image, store).shape[:2] == (height, width)
        rows, columns = np.flatnonzero(alpha.max(axis=1) > 127), np.flatnonzero(alpha.max(axis=0) > 127)
        assert rows[0] > 2 and rows[-1] < height - 3 and columns[0] > 2 and columns[-1] < width - 3
        heights.append(rows[-1] - rows[0])
    assert max(heights) - min(heights) <= 0.01 * height


@pytest.mark.parametrize("look", [WHITE_OUTLINED, WHITE_SHADED], ids=["outlined", "shaded"])
@pytest.mark.parametrize("size", [TOY, MEDIUM])
def test_a_white_costume_on_white_does_not_vanish(look, size, store):
    views = crop(Sheet(size, look=look, noise=1), store)
    for view in views.views:
        alpha = pixels(view.alpha, store)
        middle = alpha[int(0.3 * view.height) : int(0.4 * view.height), view.width // 2]
        assert (middle > 250).all(), view.view


def test_template_rules_do_not_end_up_in_the_views(store):
    views = crop(Sheet(MEDIUM, rules="drifted", look=Look(outline=None)), store)
    for view in views.views:
        outside = pixels(view.alpha, store) == 0
        assert (pixels(view.image, store)[outside] > 225).all()
    assert views.facts["rules_erased"] == 4  # the drift pushed two of the six off the sheet


def test_a_gradient_becomes_one_plain_background_colour(store):
    views = crop(Sheet(MEDIUM, gradient=0.15, vignette=0.2, background=(200, 205, 210)), store)
    for view in views.views:
        image = pixels(view.image, store)
        corners = np.concatenate([image[:20].reshape(-1, 3), image[-20:].reshape(-1, 3)])
        assert (corners == views.background).all()


def test_a_soft_shadow_on_the_floor_is_not_part_of_the_figure(store):
    plain, shaded = (crop(Sheet(MEDIUM, shadow=shadow), store) for shadow in (False, True))
    for with_shadow, without in zip(shaded.views, plain.views, strict=True):
        assert abs(with_shadow.facts["figure_width"] - without.facts["figure_width"]) <= 6


@pytest.mark.parametrize("size", [TOY, MEDIUM])
def test_pale_boots_without_an_outline_are_not_taken_for_a_shadow(size, store):
    sheet = Sheet(size, look=Look(outline=None, legs=(215, 215, 217), boots=(205, 206, 208)), blur=1)
    views = crop(sheet, store)
    for view, truth in zip(views.views, true_boxes(sheet), strict=True):
        assert abs(view.source_box[3] - truth[3]) <= size[1] // 100
        alpha = pixels(view.alpha, store)
        soles = np.flatnonzero((alpha > 127).any(axis=1))[-1]
        assert (alpha[soles - view.height // 60] > 127).sum() > 0.1 * view.facts["figure_width"] * view.facts["scale"]


def test_a_floating_prop_goes_to_the_figure_beside_it(store):
    views = crop(Sheet(MEDIUM, look=Look(lantern=True)), store)
    plain = crop(Sheet(MEDIUM), store)
    front, back = views.views[0], views.views[2]
    assert front.source_box[2] > plain.views[0].source_box[2] + 20
    assert back.source_box[0] < plain.views[2].source_box[0] - 20
    assert (pixels(front.alpha, store)[:, int(0.8 * front.width) :] > 127).any()


def test_what_reaches_over_the_third_stays_with_its_figure_and_out_of_its_neighbour(store):
    image = paint(Sheet(LARGE))
    ImageDraw.Draw(image).line((240, 500, 420, 300), fill=(230, 20, 20), width=12)  # a sword past x = 341
    views = crop(image, store)
    assert views.views[0].source_box[2] >= 415
    side = pixels(views.views[1].image, store)
    red = (side[..., 0] > 180) & (side[..., 1] < 90) & (side[..., 2] < 90)
    assert red.sum() < 10


def test_figures_joined_by_something_thin_are_parted_with_a_warning(store):
    image = paint(Sheet(LARGE))
    boxes = true_boxes(Sheet(LARGE))
    ImageDraw.Draw(image).line((boxes[0][2] - 40, 420, boxes[1][0] + 20, 420), fill=(60, 60, 60), width=8)
    views = crop(image, store)
    assert any("touch" in warning for warning in views.warnings)
    assert abs(views.views[2].source_box[0] - boxes[2][0]) <= 8
    assert views.views[1].source_box[0] > boxes[0][2]


BAD = {
    "missing side": (Sheet(MEDIUM, (FRONT, BACK)), "side box is empty", 1),
    "missing front, with rules": (Sheet(TOY, (SIDE, BACK), rules="exact"), "front box is empty", 0),
    "missing back": (Sheet(TOY, (FRONT, SIDE)), "back box is empty", 2),
    "doubled front": (
        Sheet(MEDIUM, (Spot("front", 0.1, 0.5), Spot("front", 0.24, 0.5), Spot("side", 0.5, 0.5), Spot("back", 0.83, 0.5))),
        "front box holds more than one",
        0,
    ),
    "doubled front, empty side": (
        Sheet(TOY, (Spot("front", 0.1, 0.5), Spot("side", 0.26, 0.5), Spot("back", 0.83, 0.5))),
        "front box holds two",
        0,
    ),
    "merged front and side": (Sheet(MEDIUM, (Spot("front", 0.3), Spot("side", 0.38), BACK)), "front and side figures are merged", 0),
    "five figures": (Sheet(MEDIUM, tuple(Spot("side", 0.1 + 0.2 * k, 0.5) for k in range(5))), "5 figures", 0),
    "one figure": (Sheet(TOY, (Spot("front", 0.5),)), "only one figure", None),
    "blank": (Sheet(TOY, ()), "empty", None),
    "specks": (Sheet(MEDIUM, tuple(Spot(spot.view, spot.x, 0.15) for spot in THREE)), "quarter of the sheet", None),
}  # fmt: skip


@pytest.mark.parametrize("case", BAD)
def test_a_bad_sheet_is_refused_with_a_picture_and_the_box_to_blame(case, store):
    sheet, words, box = BAD[case]
    with pytest.raises(SheetRejected, match=words) as refusal:
        crop(sheet, store)
    assert refusal.value.box == box
    assert refusal.value.picture.is_file()
    assert str(refusal.value.picture) in str(refusal.value)
    with Image.open(refusal.value.picture) as picture:
        assert picture.size == sheet.size


def test_a_photo_is_refused_for_its_background(store):
    with pytest.raises(SheetRejected, match="no plain background"):
        crop(photo(LARGE), store)


def test_a_scene_with_an_even_sky_is_no_sheet_either(store):
    image = paint(Sheet(LARGE, (Spot("front", 0.5),), background=(20, 60, 66)))
    draw = ImageDraw.Draw(image)
    draw.rectangle((0, 940, 1024, 1024), fill=(150, 120, 60))
    for x in range(0, 1024, 128):
        draw.rectangle((x, 800 - x // 4, x + 60, 960), fill=(190, 170, 160))
    with pytest.raises(SheetRejected, match="no plain background"):
        crop(image, store)


def test_a_figure_at_the_sheets_edge_is_a_warning_that_names_view_and_edge(store):
    views = crop(Sheet(WIDE, (Spot("front", 0.07), SIDE, BACK)), store)
    assert views.warnings == ("the front figure touches the left edge of the sheet: it may be cut off",)
    assert [view.facts["edge_touched"] for view in views.views] == [1, 0, 0]


def test_lettering_under_the_figures_is_left_out(store):
    image = paint(Sheet(LARGE, tuple(Spot(spot.view, spot.x, 0.75, 0.05) for spot in THREE)))
    for x, word in ((140, "FRONT"), (490, "SIDE"), (830, "BACK")):
        ImageDraw.Draw(image).text((x, 900), word, fill="black", font_size=36)
    views = crop(image, store)
    assert all(view.source_box[3] < 890 for view in views.views)
    assert any("no full figure was ignored" in warning for warning in views.warnings)


def test_a_transparent_sheet_is_cut_by_its_alpha_channel(store):
    opaque = paint(Sheet(LARGE, look=WHITE_SHADED))
    figures = np.asarray(paint(Sheet(LARGE, look=WHITE_SHADED, background=(255, 0, 255)))).astype(int)
    mask = np.abs(figures - (255, 0, 255)).max(axis=2) > 60
    opaque.putalpha(Image.fromarray((mask * 255).astype(np.uint8)))
    views = crop(opaque, store)
    truth = true_boxes(Sheet(LARGE, look=WHITE_SHADED))
    assert [view.source_box for view in views.views] == truth


def test_the_numbers_describe_the_sheet(store):
    sheet = Sheet(MEDIUM)
    views = crop(sheet, store)
    front, side, back = true_boxes(sheet)
    assert views.background == (255, 255, 255)
    assert views.facts["gutter_min"] == pytest.approx(min(side[0] - front[2], back[0] - side[2]), abs=4)
    assert views.facts["height_spread"] < 0.01
    assert views.facts["side_to_front_width"] == pytest.approx((side[2] - side[0]) / (front[2] - front[0]), abs=0.03)
    other_coat = paint(sheet)
    recoloured = np.asarray(other_coat).copy()
    coat = (np.abs(recoloured.astype(int) - COAT).max(axis=2) < 12) & (np.arange(MEDIUM[0]) > 2 * MEDIUM[0] // 3)
    recoloured[coat] = (200, 180, 20)
    changed = crop(Image.fromarray(recoloured), store)
    assert changed.facts["colour_distance"] > views.facts["colour_distance"] + 0.3


def test_small_figures_are_enlarged_only_when_asked_and_get_a_smaller_bucket_otherwise(store):
    sheet = Sheet(LARGE, tuple(Spot(spot.view, spot.x, 0.4, 0.3) for spot in THREE))
    large, small = (crop(sheet, store, bucket_area=1024 * 1024, upscale=upscale) for upscale in (True, False))
    assert large.views[0].facts["scale"] > 2
    assert small.views[0].facts["scale"] == 1
    assert small.views[0].width * small.views[0].height < large.views[0].width * large.views[0].height / 4
    shape = (small.views[0].width, small.views[0].height)
    assert all(side % 64 == 0 for side in shape)


def test_the_same_sheet_gives_the_same_bytes(store):
    sheet = Sheet(TOY, rules="drifted", noise=3, jpeg=80)
    assert crop(sheet, store) == crop(sheet, store)


@pytest.mark.parametrize(
    ("box", "area", "step", "bucket"),
    [
        ((110, 360), 128 * 384, 64, (128, 384)),
        ((340, 1000), 1024 * 1024, 64, (576, 1792)),
        ((700, 900), 1024 * 1024, 64, (896, 1152)),
        ((1000, 300), 128 * 384, 64, (384, 128)),
    ],
)
def test_the_bucket_is_the_one_in_which_the_figures_are_largest(box, area, step, bucket):
    assert choose_bucket(*box, area, step) == bucket


@pytest.mark.parametrize(
    ("box", "bucket"), [((260, 990), (320, 1024)), ((330, 1100), (384, 1152)), ((900, 2000), (704, 1472))]
)
def test_without_enlarging_the_bucket_is_the_smallest_that_holds_the_figures_and_large_figures_still_shrink(
    box, bucket
):
    assert choose_bucket(*box, 1024 * 1024, 64, upscale=False) == bucket


def test_every_setting_reaches_the_crop(store, monkeypatch):
    thresholds = []
    whole = examine_sheet

    def noting(image, threshold):
        thresholds.append(threshold)
        return whole(image, threshold)

    monkeypatch.setattr(crop_stage, "examine_sheet", noting)
    sheet = Sheet(TOY)
    tight, loose = crop(sheet, store, margin=0.0, threshold=30), crop(sheet, store, margin=0.3, bucket_step=96)
    assert thresholds == [30, 24]
    assert (loose.views[0].width, loose.views[0].height) == (192, 192)  # steps of 64 would give 192, 256
    for views, margin in ((tight, 0.0), (loose, 0.3)):
        facts = [view.facts for view in views.views]
        high = max(fact["figure_height"] for fact in facts) * (1 + 2 * margin)
        wide = max(fact["figure_width"] for fact in facts) + 2 * margin * max(fact["figure_height"] for fact in facts)
        first = views.views[0]
        assert first.scale == facts[0]["scale"] == pytest.approx(min(first.width / wide, first.height / high))


def test_a_view_has_its_own_mask_and_its_own_box(store):
    views = crop(Sheet(TOY), store)
    for view, truth in zip(views.views, true_boxes(Sheet(TOY)), strict=True):
        mask = stored_image(view.alpha, store)
        assert mask.mode == "L" and stored_image(view.image, store).mode == "RGB"
        assert mask.getpixel((0, 0)) == 0 and mask.getpixel((view.width // 2, view.height // 2)) == 255
        assert view.source_box == pytest.approx(truth, abs=4)


def test_the_views_know_what_the_sheet_was_told_beside_the_prompt(store) -> None:
    sheet = record_of(paint(Sheet(TOY, THREE)), store)
    assert crop_views(sheet, CropSettings(), store).added == ()
    told = crop_views(sheet.model_copy(update={"added": ("green skin",)}), CropSettings(), store)
    assert told.added == ("green skin",)
    assert "added" not in crop_views(sheet, CropSettings(), store).model_dump()  # digests stay what they were
