"""More views: what they leave in settings, keys and report, and that they leave nothing when off."""

from __future__ import annotations

from typing import Literal

import pytest
from expansion_samples import GRISHA, Witness, captioned, expand, shifted, stranger

from charengine.config import Profile
from charengine.dataset.digest import dataset_digest
from charengine.errors import ConfigError
from charengine.profiles.loading import load_profile
from charengine.records import (
    VIEWS,
    CaptionRecord,
    DatasetRecord,
    ExpansionRecord,
    ExtraView,
    Ref,
    ViewRecord,
    ViewsRecord,
)

# --- settings, and runs that leave it off -----------------------------------------------------------------------------


def test_it_is_off_in_every_shipped_profile_and_one_setting_turns_it_on() -> None:
    from charengine.profiles.loading import profile_names

    assert {load_profile(name).expand.count for name in profile_names()} == {0}
    assert load_profile("sdxl-12gb", ["expand.count=6"]).expand.count == 6


@pytest.mark.parametrize(
    ("setting", "words"),
    [
        ("expand.cuont=3", "got 3, but there is no such setting; did you mean expand.count"),
        ("expand.count=41", "got 41; give a whole number, 0 to 40"),
        ("expand.kinds=[portrait]", "give a list in brackets: close-up or three-quarter"),
        ("expand.kinds=[]", "not empty"),
        ("expand.holdout=1", "got 1; give a number, 0 to 0.5"),
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


def told_views() -> ViewsRecord:
    """Three views whose files are named by made-up digests, so that what is made of them is the same on every machine."""

    def ref(letter: str) -> Ref:
        return Ref(sha256=letter * 64, size=1, media_type="image/png", name=f"{letter}.png")

    views = tuple(
        ViewRecord(view=view, image=ref(image), alpha=ref(alpha), width=64, height=128, source_box=(0, 0, 64, 128))
        for view, image, alpha in zip(VIEWS, "abc", "123", strict=True)
    )
    return ViewsRecord(views=views, background=(255, 255, 255), overlay=ref("f"))


def told_extra(fate: Literal["trained", "held out"]) -> ExtraView:
    picture = told_views().views[0].image
    from run_samples import sample_extra

    return sample_extra(picture, tags=("front view", "full body"), fate=fate, identity=0.9, threshold=0.8)


def test_a_dataset_without_more_views_has_the_digest_it_always_had() -> None:
    captions = tuple(CaptionRecord(view=view, text=f"zorgax, orc, {view} view") for view in VIEWS)
    always = "1edbf25d6e5dbd8dc6ba39bdd92af1aca84edf62bbbc27fd54edc477b43499c3"
    assert dataset_digest(told_views(), captions) == always
    more = (*captions, CaptionRecord(view="pose-1", text="zorgax, orc, walking"))
    others = {dataset_digest(told_views(), more, (told_extra(fate),)) for fate in ("trained", "held out")}
    assert len({always, *others}) == 3


def test_the_caption_stages_key_knows_each_further_view(views, store) -> None:
    from types import SimpleNamespace
    from typing import Any

    from charengine.run.keys import stage_key
    from charengine.stages.caption import CAPTION

    models: Any = SimpleNamespace(captioner=SimpleNamespace(fingerprint="witness"))
    kept = expand(views, store, shifted, count=2)[0].kept

    def key(*extras: Any) -> str:
        return stage_key(CAPTION, GRISHA, load_profile("embedded"), models, [views, *extras])

    assert len({key(), key(*kept), key(*kept[:1])}) == 3


def test_the_report_shows_every_picture_with_its_identity_and_fate_and_nothing_when_it_is_off(views, store) -> None:
    from run_samples import sample_run

    from charengine.stages.report.page import render

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

    from charengine.stages.report.parts import validation_charts

    training = sample_run(store).training
    more = {"pose-1": 0.2, "pose-2": 0.4, "held out pose-3": 0.5, "held out pose-4": 0.7}
    points = tuple(point.model_copy(update={"by_view": point.by_view | more}) for point in training.validation)
    chart = validation_charts(training.model_copy(update={"validation": points}))[0]
    assert chart.count(">more views<") == chart.count(">held out<") == 1
    assert "pose-" not in chart
