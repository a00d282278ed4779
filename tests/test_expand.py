"""More views: what is kept is as like the sheet's views as these are to each other; what is not is refused and recorded."""

from __future__ import annotations

import hashlib
import math
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from PIL import Image, ImageChops
from run_samples import WHITE, doll, sample_dataset

from charengine.caption import STAGE_VERSION, caption_views
from charengine.config import CaptionSettings, Character, ExpandSettings, Profile, load_profile
from charengine.dataset import dataset_digest, export_dataset, with_edits
from charengine.errors import BadInput, ConfigError
from charengine.evaluation.scoring import References, frame, open_image
from charengine.expand import WISHES, Yardstick, expand_views, head_box, held_out_of, tasks_of
from charengine.folders import read_dataset, read_extras
from charengine.models import Description, load
from charengine.outputs import write_expansion, write_views
from charengine.records import DatasetRecord, ExpansionRecord, ExtraView, ViewsRecord
from charengine.store import Store

GRISHA = Character(name="Grisha", prompt="an orc in a blue coat", class_noun="orc", trigger="zorgax", seed=7)
RED = (200, 30, 40)
Brush = Callable[[Image.Image, str, int], Image.Image]


class Painter:
    """An edit model that does as the test says, and remembers what it was told."""

    fingerprint, prompt_style = "painter", "rich"

    def __init__(self, brush: Brush) -> None:
        self.brush, self.told = brush, list[dict]()

    def draw(self, template, prompt, **options):
        self.told.append({"template": template, "prompt": prompt, **options})
        return self.brush(template, prompt, options["seed"])

    def unknown_words(self, prompt):
        return ()

    def unload(self):
        pass


class Eye:
    """Identity as the small picture itself: the same figure elsewhere is the same, another coat is somebody else."""

    fingerprint = "eye"

    def embed_images(self, images):
        small = [np.asarray(image.resize((12, 12), Image.Resampling.BOX), np.float32).ravel() - 200 for image in images]
        rows = torch.from_numpy(np.stack(small))
        return rows / rows.norm(dim=1, keepdim=True)

    def unload(self):
        pass


class Witness:
    """A captioner that says the same of every picture."""

    fingerprint = "witness"

    def __init__(self, tags: tuple[str, ...] = (), **facts: str) -> None:
        self.said = Description(tags, "", facts)

    def describe(self, image, hint=""):
        return self.said

    def unload(self):
        pass


@pytest.fixture
def store(tmp_path) -> Store:
    return Store(tmp_path / "store")


@pytest.fixture
def views(store) -> ViewsRecord:
    return sample_dataset(store).views


def shifted(picture: Image.Image, prompt: str, seed: int) -> Image.Image:
    """The picture as it was, a little to one side."""
    return ImageChops.offset(picture, 3, 0)


def stranger(picture: Image.Image, prompt: str, seed: int) -> Image.Image:
    """Somebody else."""
    return frame(doll(coat=RED), None, WHITE, margin=0.0).resize(picture.size)


def expand(views: ViewsRecord, store: Store, brush: Brush, **settings) -> tuple[ExpansionRecord, Painter]:
    painter = Painter(brush)
    chosen = ExpandSettings(**{"count": 1, "kinds": ("pose",), "candidates": 1, **settings})
    return expand_views(views, GRISHA, chosen, painter, Eye(), store), painter


def captioned(views: ViewsRecord, store: Store, expansion: ExpansionRecord, witness: Witness) -> DatasetRecord:
    return caption_views(views, GRISHA, CaptionSettings(), witness, store, expansion.kept)


# --- the rule ---------------------------------------------------------------------------------------------------------


def test_the_view_itself_slightly_shifted_is_kept_and_another_character_is_refused(views, store) -> None:
    [same] = expand(views, store, shifted)[0].views
    [other] = expand(views, store, stranger)[0].views
    assert same.fate == "trained" and same.identity >= same.threshold
    assert other.fate == "refused" and other.identity < other.threshold
    assert same.threshold == other.threshold


def test_the_threshold_is_the_likeness_of_the_two_views_that_are_least_alike(views, store) -> None:
    rows = References(sample_dataset(store), Eye(), store).on(WHITE)
    pairs = [float(rows[i] @ rows[j]) for i, j in ((0, 1), (0, 2), (1, 2))]
    assert Yardstick(views, Eye(), store).least("full body") == pytest.approx(min(pairs))
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
    poses = [task.wish for task in tasks_of(ExpandSettings(count=6, kinds=("pose",)))]
    assert poses == list(WISHES["pose"])


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


# --- captions and files -----------------------------------------------------------------------------------------------


def test_captions_say_view_framing_and_background_and_leave_out_the_characters_own_traits(views, store) -> None:
    found, _ = expand(views, store, shifted, count=3, kinds=("three-quarter", "pose"), margin=0.1)
    witness = Witness(("blue coat", "walking", "white background"))
    dataset = captioned(views, store, found, witness)
    texts = {caption.view: caption.text for caption in dataset.captions}
    plain = "simple background, white background"
    assert texts["three-quarter-1"] == f"zorgax, orc, three-quarter view, full body, walking, {plain}"
    assert texts["three-quarter-2"] == f"zorgax, orc, three-quarter view, from behind, full body, walking, {plain}"
    assert texts["pose-1"] == f"zorgax, orc, front view, full body, walking, {plain}"
    assert all("blue coat" in caption.pruned for caption in dataset.captions)


def test_a_caption_says_what_is_seen_when_the_edit_model_drew_another_view(views, store) -> None:
    found, _ = expand(views, store, shifted, kinds=("three-quarter",))
    dataset = captioned(views, store, found, Witness(view="side"))
    assert dataset.captions[-1].text.startswith("zorgax, orc, from side, profile, full body, ")


def test_a_scene_is_captioned_as_the_captioner_calls_it(views, store) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)
    found, painter = expand(
        views, store, lambda *_: Image.fromarray(noise), kinds=("background",), margin=0.5, holdout=0
    )
    [scene] = found.views
    assert scene.background is None and "Plain" not in painter.told[0]["prompt"]
    kept = ExpansionRecord(views=(scene.model_copy(update={"fate": "trained"}),))
    text = (
        captioned(views, store, kept, Witness(("forest background",), background="forest background")).captions[-1].text
    )
    assert text == "zorgax, orc, front view, full body, forest background"


def test_more_views_change_no_other_caption_and_no_digest_but_their_own(views, store) -> None:
    witness = Witness(("standing", "green skin"))
    without = captioned(views, store, ExpansionRecord(views=()), witness)
    with_more = captioned(views, store, expand(views, store, shifted, count=3)[0], witness)
    assert with_more.captions[:3] == without.captions and len(with_more.captions) == 6
    assert with_more.digest != without.digest
    swapped = tuple(_fate(extra, "held out" if extra.fate == "trained" else "trained") for extra in with_more.extras)
    assert dataset_digest(views, with_more.captions, swapped) != with_more.digest


def _fate(extra: ExtraView, fate: str) -> ExtraView:
    return extra.model_copy(update={"fate": fate})


def test_a_trainer_that_reads_the_folder_never_meets_what_is_held_out(views, store, tmp_path) -> None:
    dataset = captioned(views, store, expand(views, store, shifted, count=4)[0], Witness())
    export_dataset(dataset, tmp_path / "out", store)
    subset = {path.stem for path in (tmp_path / "out" / "10_zorgax orc").glob("*.png")}
    assert subset == {"front", "side", "back", *(extra.view for extra in dataset.trained_extras)}
    [held_out] = dataset.held_out
    sidecar = tmp_path / "out" / "held_out" / f"{held_out.view}.txt"
    assert with_edits(dataset, tmp_path / "out") is dataset
    sidecar.write_text("zorgax, orc, waving")
    assert with_edits(dataset, tmp_path / "out").captions[-4:] != dataset.captions[-4:]


def test_more_views_of_an_earlier_run_are_gone_from_the_folder_when_there_are_none(views, store, tmp_path) -> None:
    first = captioned(views, store, expand(views, store, shifted, count=4)[0], Witness())
    export_dataset(first, tmp_path / "out", store)
    export_dataset(captioned(views, store, ExpansionRecord(views=()), Witness()), tmp_path / "out", store)
    left = sorted(str(path.relative_to(tmp_path / "out")) for path in (tmp_path / "out").rglob("*") if path.is_file())
    place = "10_zorgax orc"
    assert left == sorted(
        name for view in ("front", "side", "back") for name in (f"{place}/{view}.png", f"{place}/{view}.txt", f"masks/{view}.png")
    )  # fmt: skip


def test_a_folder_is_read_back_as_it_was_written_less_what_was_deleted_by_hand(views, store, tmp_path) -> None:
    found, _ = expand(views, store, shifted, count=4)
    write_views(views, tmp_path / "views", store)
    paths = write_expansion(found, tmp_path / "views", store)
    assert read_extras(tmp_path / "views", store) == tuple(
        extra.model_copy(update={"alpha": extra.alpha.model_copy(update={"name": f"{extra.view}.alpha.png"})})
        for extra in found.kept
    )
    paths[0].unlink()
    assert [extra.view for extra in read_extras(tmp_path / "views", store)] == [extra.view for extra in found.kept[1:]]
    (tmp_path / "views" / "expansion.json").write_text("{")
    with pytest.raises(BadInput, match="expansion.json is damaged"):
        read_extras(tmp_path / "views", store)


def test_refused_pictures_can_be_looked_at_and_are_not_read_back(views, store, tmp_path) -> None:
    found, _ = expand(views, store, stranger, candidates=2)
    assert write_expansion(found, tmp_path, store) == []
    assert len(list((tmp_path / "refused").glob("pose-1-*.png"))) == 2
    assert read_extras(tmp_path, store) == ()
    write_expansion(ExpansionRecord(views=()), tmp_path, store)
    assert list((tmp_path / "refused").iterdir()) == []


# --- settings, and runs that leave it off -----------------------------------------------------------------------------


def test_it_is_off_in_every_shipped_profile_and_one_setting_turns_it_on() -> None:
    from charengine.config import profile_names

    assert {load_profile(name).expand.count for name in profile_names()} == {0}
    assert load_profile("sdxl-12gb", ["expand.count=6"]).expand.count == 6


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("expand.cuont=3", "did you mean expand.count?"),
        ("expand.count=41", "less than or equal to 40"),
        ("expand.kinds=[portrait]", "'close-up', 'three-quarter'"),
        ("expand.kinds=[]", "at least 1 item"),
        ("expand.holdout=1", "less than or equal to 0.5"),
    ],
)
def test_a_wrong_setting_is_refused_by_name(setting: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words.replace("?", r"\?")):
        load_profile("embedded", [setting])


def test_off_it_leaves_no_trace_in_what_keys_and_recipes_are_made_of(views, store) -> None:
    off, on = load_profile("embedded"), load_profile("embedded", ["expand.count=2"])
    assert "expand" not in off.model_dump(mode="json")
    assert on.model_dump(mode="json")["expand"]["count"] == 2
    assert {key: value for key, value in on.model_dump(mode="json").items() if key != "expand"} == off.model_dump(
        mode="json"
    )
    assert Profile.model_validate(off.model_dump(mode="json")) == off
    dataset = captioned(views, store, ExpansionRecord(views=()), Witness())
    assert "extras" not in dataset.model_dump(mode="json")
    assert DatasetRecord.model_validate_json(dataset.model_dump_json()) == dataset


def test_a_dataset_without_more_views_has_the_digest_it_always_had(views, store) -> None:
    dataset = captioned(views, store, ExpansionRecord(views=()), Witness())
    parts = [
        part
        for view, caption in zip(views.views, dataset.captions, strict=True)
        for part in (view.view, view.image.sha256, view.alpha.sha256, caption.text)
    ]
    assert dataset.digest == hashlib.sha256("".join(f"{part}\0" for part in parts).encode()).hexdigest()


def test_the_caption_stage_has_the_key_it_always_had_until_there_are_more_views(views, store) -> None:
    from types import SimpleNamespace
    from typing import Any

    from charengine.keys import stage_key
    from tasks.caption import caption_key

    models = SimpleNamespace(captioner=SimpleNamespace(fingerprint="witness"))
    workspace: Any = SimpleNamespace(profile=load_profile("embedded"), character=GRISHA, models=models)
    always = stage_key(
        "caption",
        STAGE_VERSION,
        character={"prompt": GRISHA.prompt, "class_noun": "orc", "trigger": "zorgax"},
        settings=workspace.profile.caption,
        inputs=[part for view in views.views for part in (view.view, view.image.sha256, view.alpha.sha256)],
        models=["witness"],
    )
    kept = expand(views, store, shifted, count=2)[0].kept
    assert caption_key(workspace, views) == always
    assert len({always, caption_key(workspace, views, kept), caption_key(workspace, views, kept[:1])}) == 3


def test_the_report_shows_every_picture_with_its_identity_and_fate_and_nothing_when_it_is_off(views, store) -> None:
    from run_samples import sample_run

    from charengine.report import render

    run = sample_run(store)
    assert "More views" not in render(run, store)
    fates = iter((stranger, shifted, shifted))
    found, _ = expand(views, store, lambda *given: next(fates)(*given), count=3)
    dataset = run.dataset.model_copy(update={"extras": found.kept})
    page = render(run.model_copy(update={"expansion": found, "dataset": dataset}), store)
    for extra in found.views:
        assert f"{extra.view}: <b>{extra.fate}</b>, identity {extra.identity:.3f}" in page
    assert {extra.fate for extra in found.views} == {"refused", "trained", "held out"}
    assert "from them and from the 1 more view below" in page and "on 4 views" in page
    assert found.warnings[0].split("(")[0] in page


def test_the_report_draws_all_held_out_pictures_as_one_line_beside_the_views(store) -> None:
    from run_samples import sample_run

    from charengine.report_parts import validation_charts

    training = sample_run(store).training
    more = {"pose-1": 0.2, "pose-2": 0.4, "held out pose-3": 0.5, "held out pose-4": 0.7}
    points = tuple(point.model_copy(update={"by_view": point.by_view | more}) for point in training.validation)
    chart = validation_charts(training.model_copy(update={"validation": points}))[0]
    assert chart.count(">more views<") == chart.count(">held out<") == 1
    assert "pose-" not in chart


# --- real models ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    """Pictures of three characters as the embedded world renders them: (character, yaw, pose, zoom) -> image."""
    from charengine.embedded.traits import sample_indices
    from charengine.embedded.world import render

    indices = sample_indices(3, torch.Generator().manual_seed(5))

    def picture(who: int, yaw: float, size=(192, 192), pose=0, framing=1.0) -> tuple[Image.Image, Image.Image]:
        made = render(
            indices[who : who + 1],
            yaw=torch.tensor([yaw]),
            pose=torch.tensor([pose]),
            background=torch.tensor([0]),
            size=size,
            framing=framing,
        )
        pixels = (made.image[0].permute(1, 2, 0) * 255).round().byte().numpy()
        return Image.fromarray(pixels), Image.fromarray((made.alpha[0, 0] * 255).round().byte().numpy())

    return picture


def test_the_embedded_embedder_keeps_the_character_turned_posed_and_close_and_refuses_others(world, store) -> None:
    from charengine.crop import png
    from charengine.records import VIEWS, ViewRecord

    records = []
    for name, yaw in zip(VIEWS, (0.0, math.pi / 2, math.pi), strict=True):
        image, alpha = world(0, yaw, size=(128, 384))
        refs = store.put(png(image), f"{name}.png"), store.put(png(alpha), f"{name}_mask.png")
        records.append(
            ViewRecord(view=name, image=refs[0], alpha=refs[1], width=128, height=384, source_box=(0, 0, 128, 384))
        )
    views = ViewsRecord(views=tuple(records), background=WHITE, overlay=records[0].image)
    yardstick = Yardstick(views, load(load_profile("embedded")).embedder, store)
    own = [world(0, math.pi / 4)[0], world(0, 0.0, pose=1)[0], world(0, 0.0, pose=4)[0]]
    others = [world(who, yaw)[0] for who in (1, 2) for yaw in (0.0, math.pi / 4)]
    assert min(yardstick.identity(image, "full body") for image in own) >= yardstick.least("full body")
    assert max(yardstick.identity(image, "full body") for image in others) < yardstick.least("full body")
    faces = [world(who, 0.0, framing=3.2)[0] for who in (0, 1, 2)]
    same, *strange = [yardstick.identity(face, "close-up") for face in faces]
    assert same >= yardstick.least("close-up") > max(strange)


def test_the_embedded_edit_model_is_held_to_the_rule_and_said_to_be_untaught(views, store) -> None:
    models = load(load_profile("embedded"))
    settings = ExpandSettings(count=3, kinds=("pose", "close-up"), candidates=1, steps=2, guidance=1.0)
    found = expand_views(views, GRISHA, settings, models.editor, models.embedder, store)
    assert len(found.views) == 3
    assert all((view.identity >= view.threshold) == (view.fate != "refused") for view in found.views)
    assert "was taught to draw sheets" in found.warnings[-1]
    dataset = captioned(views, store, found, Witness())
    assert {caption.view for caption in dataset.captions} == {"front", "side", "back", *(v.view for v in found.kept)}


def test_the_single_stage_reads_and_writes_a_folder_that_caption_and_train_read_too(
    charengine, tiny_settings, tmp_path: Path
) -> None:
    store, folder = Store(tmp_path / "own"), tmp_path / "views"
    write_views(sample_dataset(store).views, folder, store)
    sets = [part for setting in (*tiny_settings, "expand.steps=1", "expand.margin=0.5") for part in ("--set", setting)]
    done = charengine("expand", folder, "--prompt", GRISHA.prompt, "--count", 2, *sets)
    assert done.returncode == 0, done.stderr
    record = ExpansionRecord.model_validate_json((folder / "expansion.json").read_bytes())
    assert len({extra.view for extra in record.views}) == 2
    assert f"of {len(record.views)} pictures, " in done.stdout
    for extra in record.views:
        assert f"{extra.view}, seed {extra.seed}: identity {extra.identity:.3f}" in done.stderr
    kept = {str(path) for path in folder.rglob("*.png") if path.stem in {extra.view for extra in record.kept}}
    assert set(done.stdout.splitlines()[:-1]) == kept
    captions = charengine("caption", folder, "--prompt", GRISHA.prompt, "--name", "Grisha", *sets)
    assert captions.returncode == 0, captions.stderr
    texts = {path.stem for path in folder.rglob("*.txt")}
    assert texts == {"front", "side", "back", *(extra.view for extra in record.kept)}
    dataset = read_dataset(folder, store)
    assert dataset.extras and [extra.fate for extra in dataset.extras] == [extra.fate for extra in record.kept]
    assert [caption.view for caption in dataset.captions][3:] == [extra.view for extra in record.kept]
