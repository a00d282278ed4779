"""Other strengths, checkpoints and prompts, of pictures that exist and new ones; and runs stopped and continued."""

from __future__ import annotations

import html
import json
import re
from pathlib import Path
from typing import Any

import pytest
from gallery_samples import Visit, claimed, made, running
from run_samples import with_words

from charengine.profiles.loading import load_profile
from charengine.records import RunRecord
from charengine.services.gallery.prefect import PrefectAway
from charengine.services.gallery.trying import pictures_of, settings_of

Sample = tuple[RunRecord, Path]


def test_the_picture_that_the_address_asks_for_is_shown_with_its_own_numbers(visit: Visit, sample: Sample) -> None:
    run = sample[0]
    made(visit, run)
    for step, strength, prompt, seed in ((100, 0.4, 1, 42), (300, 1.0, 2, 43)):
        cell = next(one for one in run.sweep.cells if (one.checkpoint_step, one.strength) == (step, strength))
        page = visit.get(f"{visit.address('Zorga')}?step={step}&strength={strength}&prompt={prompt}&seed={seed}")
        shown = re.findall(r'data-shown src="/picture/([0-9a-f]+)/', page)[0]
        base = re.findall(r'data-base src="/picture/([0-9a-f]+)/', page)[0]
        assert shown == run.sweep.images[f"{step}/{strength:g}/{prompt}/{seed}"].sha256
        assert base == run.sweep.images[f"0/0/{prompt}/{seed}"].sha256
        assert f"identity {cell.identity:.3f}, adherence {cell.adherence:.3f}" in page
        assert f"step {step} at strength {strength:g}<" in page


def test_the_sweeps_pictures_say_the_words_that_they_were_drawn_from_and_the_others_the_recommended(
    visit: Visit, sample: Sample
) -> None:
    run = with_words(sample[0], visit.gallery.store)
    assert run.sweep.words
    made(visit, run)
    page = html.unescape(visit.get(visit.address("Zorga")))
    asked = re.findall(r"<option value=\"\d\"[^>]*>([^<]+, [^<]+)</option>", page)
    assert asked == [prompt.replace("{subject}", f"{run.trigger} {run.class_noun}") for prompt in run.sweep.prompts]
    for shown in (page, html.unescape(visit.get("/"))):
        for picture, scene in zip(run.sweep.words.drawn, run.sweep.words.scenes, strict=True):
            at = shown.index(f"/picture/{picture.sha256}/")
            assert scene.replace("{subject}", "Zorga") in shown[at : at + 300]


def test_every_picture_of_the_sweep_is_there_for_the_slider(visit: Visit, sample: Sample) -> None:
    run = sample[0]
    made(visit, run)
    data = re.findall(r'data-pictures="([^"]*)"', visit.get(visit.address("Zorga")))[0]
    rows = json.loads(html.unescape(data))
    assert {row[4] for row in rows} == {ref.sha256 for ref in run.sweep.images.values()}
    assert len(rows) == len(run.sweep.images)


@pytest.mark.parametrize("asked", ["strength=x", "step=9e99", "prompt=77", "seed=-1", "strength=nan", "step=inf"])
def test_nonsense_in_the_address_shows_some_picture(visit: Visit, sample: Sample, asked: str) -> None:
    made(visit, sample[0])
    assert "data-shown" in visit.get(f"{visit.address('Zorga')}?{asked}")


def test_pictures_drawn_later_join_those_of_the_run(visit: Visit, sample: Sample) -> None:
    run = sample[0]
    folder = made(visit, run)
    later = run.sweep.model_copy(
        update={"prompts": ("{subject}, asleep",), "images": {"300/0.7/0/42": run.sweep.contact_sheet}}
    )
    (folder / "sweeps" / "20261129-120000").mkdir(parents=True)
    (folder / "sweeps" / "20261129-120000" / "sweep.json").write_text(later.model_dump_json())
    (folder / "sweeps" / "begun").mkdir()  # nothing in it yet
    pictures = pictures_of(run, visit.gallery.characters()[0][0].folder.sweeps)  # type: ignore[union-attr]
    assert 0.7 in pictures.strengths and "{subject}, asleep" in pictures.prompts
    page = visit.get(f"{visit.address('Zorga')}?strength=0.7&prompt=3&step=300")
    assert re.findall(r'data-shown src="/picture/([0-9a-f]+)/', page)[0] == run.sweep.contact_sheet.sha256


def test_new_pictures_are_asked_for_with_the_models_and_settings_that_the_run_had(visit: Visit, sample: Sample) -> None:
    had = load_profile("embedded", ["sweep.width=128", "train.steps=300"]).model_copy(update={"name": "mine"})
    run = sample[0].model_copy(update={"profile": "mine", "config": {"profile": had.model_dump(mode="json")}})
    folder = made(visit, run)
    form = {"strengths": "0.7, 0.5;0.9", "checkpoints": "2", "seeds": "1", "prompt": "asleep, in a tent"}
    answer = visit.post(f"{visit.address('Zorga')}/sweep", form)
    assert answer.headers["location"].endswith("#try")
    started = visit.prefect.started[0]
    parameters = started["parameters"]
    assert started["flow"] == "sweep" and parameters["source"] == str(folder) and parameters["seed"] == run.seed
    assert Path(parameters["out"]).parent == folder / "sweeps"
    profile = load_profile(parameters["profile"], parameters["overrides"])
    assert profile.sweep.width == 128 and profile.sweep.design == "grid"
    assert profile.sweep.strengths == (0.5, 0.7, 0.9) and profile.sweep.prompts == ("{subject}, asleep, in a tent",)
    assert (profile.sweep.checkpoints, profile.sweep.seeds) == (2, 1)
    for again in (form, {**form, "seeds": "2"}):  # sent twice, then filled in anew by whoever went back
        visit.post(f"{visit.address('Zorga')}/sweep", {**again, "once": "1"})
    assert len(visit.prefect.started) == 2


def test_the_settings_of_a_run_made_again_are_the_settings_it_had() -> None:
    for name in ("embedded", "sdxl-12gb", "origin"):
        had = load_profile(name, ["sweep.steps=7", "crop.margin=0.1", "sweep.prompts=['{subject} in a \"tent\"']"])
        run = RunRecord.model_construct(profile=name, config={"profile": had.model_dump(mode="json")})
        again = load_profile(*settings_of(run))
        assert (again.models, again.crop, again.sweep) == (had.models, had.crop, had.sweep), name


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("strengths", "", "write at least one"),
        ("strengths", "a lot", "write numbers"),
        ("strengths", "0.5, 3", "only 0 to 2"),
        ("strengths", "nan", "only 0 to 2"),
        ("strengths", "0", "the base model"),
        ("strengths", ",".join(str(i / 10) for i in range(1, 15)), "at most 12"),
        ("checkpoints", "9", "from 1 to 3"),
        ("checkpoints", "٣", "from 1 to 3"),
        ("seeds", "0", "from 1 to 8"),
    ],
)
def test_what_cannot_be_drawn_is_said_beside_its_field(
    visit: Visit, sample: Sample, field: str, value: str, said: str
) -> None:
    made(visit, sample[0])
    page = visit.post(f"{visit.address('Zorga')}/sweep", {"strengths": "0.5", field: value}, status=422).text
    beside = re.search(rf'id="{field}-problem">(.*?)</ul>', page, re.DOTALL)
    assert beside and said in beside[1] and visit.prefect.started == []


def test_what_is_not_made_yet_cannot_be_drawn_again(visit: Visit) -> None:
    visit.prefect.runs = [running("Ann")]
    visit.post(f"{visit.address('Ann')}/sweep", {"strengths": "0.5"}, status=422)
    assert visit.prefect.started == []


def test_pictures_that_are_being_drawn_or_failed_are_told(visit: Visit, sample: Sample) -> None:
    folder = made(visit, sample[0])
    visit.prefect.sweeps = [
        running("again", "RUNNING", source=str(folder)),
        running("again", "FAILED", source=str(folder), message="no room on the disk"),
        running("again", "COMPLETED", source=str(folder)),
        running("again", "CRASHED", source=str(folder)),
        running("other", "RUNNING", source="/another"),
    ]
    part = visit.get(f"/part{visit.address('Zorga')}")
    assert part.count("New pictures") == 3 and "are being drawn" in part and "no room on the disk" in part
    assert "were stopped: ask for them again below" in part


def test_a_run_that_ended_early_goes_on_in_its_folder_with_what_it_was_asked_for(visit: Visit) -> None:
    visit.prefect.runs = [running("Ann", "CANCELLED", overrides=["train.steps=99"], refresh=["train"])]
    visit.post(f"{visit.address('Ann')}/resume")
    parameters = visit.prefect.started[0]["parameters"]
    assert parameters["overrides"] == ["train.steps=99"] and parameters["prompt"] == "a sentence about Ann"
    assert parameters["out"] == str(visit.work / "runs" / "ann") and parameters["refresh"] == []


def test_where_prefect_may_not_have_heard_a_change_it_is_sent_again_from_where_one_is(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    visit.prefect.runs = [running("Ann", "FAILED")]
    address, start = visit.address("Ann"), visit.prefect.start

    def heard_too_late(*args: Any, **kwargs: Any) -> str:
        start(*args, **kwargs)
        raise PrefectAway("Prefect is too busy to answer (503)")

    monkeypatch.setattr(visit.prefect, "start", heard_too_late)
    page = visit.post(f"{address}/resume", {"once": "abc"}, status=503).text
    assert f'href="{address}"' in page and "nothing is done twice" in page and f'action="{address}/resume"' in page
    monkeypatch.setattr(visit.prefect, "start", start)
    [once] = re.findall(r'name="once" value="(\w+)"', page)
    visit.post(f"{address}/resume", {"once": once})
    assert len(visit.prefect.started) == 1
    visit.prefect.away = "Prefect is too busy to answer (503)"  # then nobody knows who Ann is either
    visit.gallery.forget()
    assert f'href="{address}"' in visit.post(f"{address}/resume", status=503).text
    claimed(visit.work / "runs" / "ann", "Ann", "a sentence about Ann")
    assert "Prefect is too busy" in visit.post(f"{address}/resume", status=503).text


def test_cancel_reaches_the_run_and_only_one_that_goes_on(visit: Visit) -> None:
    visit.prefect.runs = [running("Ann"), running("Ben", "FAILED")]
    visit.post(f"{visit.address('Ann')}/cancel")
    visit.post(f"{visit.address('Ben')}/cancel")
    assert visit.prefect.cancelled == ["run-of-ann"]


@pytest.mark.parametrize(
    ("before", "change", "after"), [("RUNNING", "cancel", "CANCELLING"), ("FAILED", "resume", "SCHEDULED")]
)
def test_the_page_that_follows_a_change_shows_it(visit: Visit, before: str, change: str, after: str) -> None:
    visit.prefect.runs = [running("Ann", before)]
    address = visit.address("Ann")
    assert f'action="{address}/{change}"' in visit.get(address)
    visit.post(f"{address}/{change}")
    visit.prefect.runs = [running("Ann", after)]
    assert f'action="{address}/{change}"' not in visit.get(address)
