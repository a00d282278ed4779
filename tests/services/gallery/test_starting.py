"""The start form: a mistake is said beside its field before anything starts; what is right starts once."""

from __future__ import annotations

import html
import io
import re
from pathlib import Path
from typing import Any

import pytest
from gallery_samples import Visit, claimed, made, running
from PIL import Image
from run_samples import doll, png
from sheet_samples import Sheet, paint

from charengine.config import Profile
from charengine.profiles.listing import groups
from charengine.profiles.loading import load_profile, profile_names
from charengine.services.gallery.prefect import PrefectAway
from charengine.services.gallery.settings_form import SHOWN

GOOD = {"prompt": "a knight in red armour", "name": "Ann"}


def picture(image: Image.Image, name: str = "mine.png") -> dict[str, Any]:
    return {"picture": (name, png(image), "image/png")}


def problem_of(page: str, field: str) -> str:
    """What stands beside a field."""
    found = re.search(rf'<ul class="errors" id="{field}-problem">(.*?)</ul>', page, re.DOTALL)
    return re.sub(r"<[^>]+>", " ", found[1]).strip() if found else ""


@pytest.mark.parametrize(
    ("field", "value", "said"),
    [
        ("prompt", "", "is empty: describe the character"),
        ("prompt", "x" * 2001, "at most 2000"),
        ("prompt", "a \x07 bell", "control character"),
        ("name", "../../etc", "is not allowed"),
        ("name", "a/b", "is not allowed"),
        ("name", "x" * 65, "is not allowed"),
        ("trigger", "UPPER", "is not allowed"),
        ("class_noun", "<b>", "is not allowed"),
        ("seed", "-1", "got -1; give a whole number"),
        ("seed", "seven", "must be a whole number"),
        ("seed", "99999999999", "got 99999999999"),
        ("train.steps", "0", "got 0; give a whole number, 1 to 100,000"),
        ("train.steps", "many", "give a whole number"),
        ("train.rank", "1000", "1 to 128"),
        ("sweep.strengths", "0.5, 3", "got 3"),
        ("sweep.strengths", "0", "none above 0"),
        ("sweep.pictures", "8", "is 8, but strength 0 and one cell take 12 with 4 prompts: set it to 12 or more"),
        ("sheet.candidates", "99", "1 to 16"),
        ("profile", "embeded", "did you mean embedded"),
        ("profile_file", "nowhere.yaml", "does not exist"),
        ("more_settings", "train.stps=3", "did you mean train.steps"),
        (
            "more_settings",
            "trian.steps=3",
            "trian.steps: got 3, but there is no such setting; did you mean train.steps",
        ),
        ("more_settings", "nonsense", "write section.key=value"),
        ("more_settings", "models.device=toaster", "models.device"),
        ("more_settings", "train.steps=0", "train.steps: got 0"),
        ("more_settings", "train.optimizer=prodigy\ntrain.learning_rate=1e-4", "learning_rate=0.0001 with"),
        ("more_settings", "\ntrain.batch=2\n\ntrain.batch = 3", "train.batch is given twice, in line 2 and line 4"),
        ("train.steps", "[1", "not valid YAML"),
        ("profile_file", "wrong.yaml", "train.steps: got 0"),
        ("profile_file", "nameless.yaml", "name is missing"),
    ],
)
def test_a_mistake_is_said_beside_its_field_and_nothing_starts(visit: Visit, field: str, value: str, said: str) -> None:
    (visit.work / "wrong.yaml").write_text("extends: embedded\nname: wrong\ntrain: {steps: 0}\n")
    (visit.work / "nameless.yaml").write_text("train: {steps: 9}\n")
    page = visit.post("/start", {**GOOD, field: value}, status=422).text
    assert said in problem_of(page, field.replace(".", "-")), page
    assert "--set" not in page and "One thing has to be mended; nothing was started" in page
    assert visit.prefect.started == []


def test_a_profile_that_cannot_be_read_hides_no_mistake_of_a_setting(visit: Visit) -> None:
    wrong = {
        "profile_file": "no.yaml",
        "train.steps": "0",
        "sweep.pictures": "8",
        "more_settings": "trian.x=3\nnonsense",
    }
    page = visit.post("/start", {**GOOD, **wrong}, status=422).text
    assert "4 things have to be mended" in page  # whether 8 pictures do, only the profile could say
    assert "does not exist" in problem_of(page, "profile_file") and "got 0" in problem_of(page, "train-steps")
    assert "nonsense" in problem_of(page, "more_settings")
    assert "at its foot" in page and "charengine settings" not in page


def test_a_setting_that_stands_in_its_field_and_below_is_refused_with_both_places(visit: Visit) -> None:
    page = visit.post("/start", {**GOOD, "train.steps": "10", "more_settings": "train.steps=20"}, status=422).text
    assert "train.steps is given twice, in “Training steps” above and line 1" in problem_of(page, "more_settings")


def test_one_like_it_is_asked_for_as_that_one_was_but_for_its_name(visit: Visit, sample: Any) -> None:
    fields = {**GOOD, "class_noun": "knight", "trigger": "sirred", "seed": "7", "train.steps": "10"}
    fields |= {"sweep.strengths": "0.4, 0.8", "more_settings": "train.batch=2", "profile_file": "other/mine.yaml"}
    (visit.work / "other").mkdir()
    (visit.work / "other" / "mine.yaml").write_text("extends: embedded\nname: mine\n")
    visit.post("/start", fields, reference(doll()))
    first = visit.prefect.started.pop()["parameters"]
    visit.prefect.runs = [{**running("Ann", "FAILED"), "parameters": first}]
    page = visit.get(re.findall(r'href="([^"]+)">Start one like it', visit.get(visit.address("Ann")))[0])
    form = page[page.index('id="start"') : page.index('id="manual"')]
    said = dict(re.findall(r'<input[^>]* name="([\w.]+)"[^>]*? value="([^"]*)"', form))
    said |= {name: text for name, text in re.findall(r'<textarea[^>]* name="(\w+)"[^>]*>([^<]*)<', form)}
    assert "the name, which is Ann" in page and said["name"] == ""
    visit.post("/start", {**said, "name": "Bea", "profile": "embedded", "once": "b"})
    changed = {"name": "Bea", "out": str(visit.work / "runs" / "bea")}
    assert visit.prefect.started[0]["parameters"] == {**first, **changed}


def test_one_like_it_is_never_called_by_the_letters_that_the_store_calls_its_picture(visit: Visit) -> None:
    stored = {"reference": (f"{'83662c73' * 8}.png", png(doll()), "image/png")}
    assert "is not known: write one" in problem_of(visit.post("/start", {}, stored, 422).text, "name")
    visit.post("/start", GOOD, stored)


def test_a_profile_whose_models_are_not_here_is_refused_beside_it_unless_other_machines_do_the_work(
    visit: Visit, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path))
    fields, lacks = {**GOOD, "profile": "sdxl-12gb"}, "lacks models here (models.edit, "
    assert lacks in problem_of(visit.post("/start", fields, status=422).text, "profile")
    assert lacks in visit.get("/part/estimate?profile=sdxl-12gb")  # said as soon as it is chosen
    monkeypatch.setattr("charengine.services.gallery.starting.shared_url", lambda: "s3://bucket")
    visit.post("/start", fields)


def test_one_like_a_character_that_prefect_forgot_has_what_its_record_says(visit: Visit, sample: Any) -> None:
    config = {"profile": load_profile("embedded", ["train.steps=11", "train.batch=2"]).model_dump(mode="json")}
    made(visit, sample[0].model_copy(update={"profile": "mine", "config": config, "seed": 9}))
    page = html.unescape(visit.get(f"{visit.address('Zorga')}/alike"))
    assert "the file of profile mine, whose settings stand here over those of embedded" in page
    assert 'name="train.steps" value="11"' in page and ">train.batch=2</textarea>" in page and 'value="9"' in page


def test_the_summary_calls_a_field_as_its_label_does(visit: Visit) -> None:
    broken = {"picture": ("sheet.png", b"no picture", "image/png")}
    page = visit.post("/start", {**GOOD, "train.steps": "0"}, files=broken, status=422).text
    summary = page[page.index('id="problems"') : page.index("<form")]
    assert re.findall(r'<a href="#[^"]+">([^<]+)</a>', summary) == ["Sheet", "Training steps"]


def test_several_mistakes_are_said_together_and_what_was_filled_in_is_still_there(visit: Visit) -> None:
    page = visit.post("/start", {**GOOD, "name": "a/b", "train.steps": "0", "seed": "x"}, status=422).text
    assert "3 things have to be mended" in page
    assert "a knight in red armour</textarea>" in page and 'value="a/b"' in page and 'value="0"' in page


@pytest.mark.parametrize(
    ("data", "said"),
    [
        (b"MZ not a picture", "is not a readable PNG, JPEG or WebP, whatever its name: choose"),
        (png(doll())[:200], "damaged"),
        (
            b"\x89PNG\r\n\x1a\n" + b"\x00\x00\x00\rIHDR\x00\x01\x00\x00\x00\x01\x00\x00\x08\x02\x00\x00\x00",
            "how it begins cannot be read",
        ),
        (png(Image.new("RGB", (20, 20))), "both sides must be at least 96"),
        (png(Image.new("RGB", (400, 400), "white")), "no figure"),
        (png(doll((300, 300))), "no sheet with three figures"),
    ],
)
def test_a_picture_that_is_no_sheet_is_said_beside_it_and_never_kept_as_one(
    visit: Visit, data: bytes, said: str
) -> None:
    answer = visit.post("/start", GOOD, {"picture": ("../../my <b>.png", data)}, status=422)
    beside = problem_of(answer.text, "picture")
    assert said in beside and "/tmp" not in beside and "kept_picture" not in answer.text
    assert visit.prefect.started == []


def test_what_was_found_on_a_refused_picture_is_shown(visit: Visit) -> None:
    page = visit.post("/start", GOOD, picture(doll((300, 300))), status=422).text
    shown = re.findall(r'<figure class="found"><img src="(/picture/[0-9a-f]{64})', page)
    assert visit.client.get(shown[0]).headers["content-type"] == "image/png"


def test_a_sheet_goes_into_the_store_and_the_run_is_asked_for_with_it(visit: Visit) -> None:
    sent = paint(Sheet())
    visit.post("/start", GOOD, picture(sent, r"C:\pictures\..\me.png"))
    path = visit.prefect.started[0]["parameters"]["sheet"]
    assert path.startswith(str(visit.gallery.home.store))
    assert Image.open(io.BytesIO(Path(path).read_bytes())).size == sent.size


def test_a_sheet_need_not_be_sent_again_when_something_else_was_wrong(visit: Visit) -> None:
    page = visit.post("/start", {**GOOD, "name": "a/b"}, picture(paint(Sheet())), status=422).text
    kept = re.findall(r'name="kept_picture" value="([0-9a-f]{64})"', page)
    visit.post("/start", {**GOOD, "kept_picture": kept[0]})
    assert kept[0] in visit.prefect.started[0]["parameters"]["sheet"]


@pytest.mark.parametrize("digest", ["0" * 64, "../../etc/passwd", "/etc/passwd", "x"])
def test_a_kept_picture_is_one_of_the_stores_or_none(visit: Visit, digest: str) -> None:
    page = visit.post("/start", {**GOOD, "kept_picture": digest}, status=422).text
    assert "choose it again" in problem_of(page, "picture")


def test_what_was_filled_in_is_what_the_run_is_asked_for(visit: Visit) -> None:
    fields = {
        "prompt": "a knight in red armour",
        "name": "Sir Red",
        "class_noun": "knight",
        "trigger": "sirred",
        "seed": "7",
        "train.steps": "10",
        "sweep.strengths": "0.4, 0.8",
        "more_settings": "train.batch=2\n\ntrain.checkpoints=1\n",
    }
    answer = visit.post("/start", fields)
    started = visit.prefect.started[0]
    assert started["flow"] == "character" and started["name"] == "Sir Red" and started["queue"] == ""
    assert started["parameters"] == {
        "prompt": "a knight in red armour",
        "name": "Sir Red",
        "class_noun": "knight",
        "trigger": "sirred",
        "seed": 7,
        "profile": "embedded",
        "overrides": ["train.steps=10", "sweep.strengths=[0.4, 0.8]", "train.batch=2", "train.checkpoints=1"],
        "sheet": "",
        "out": str(visit.work / "runs" / "sir-red"),
        "refresh": [],
        "reference": "",
    }
    visit.prefect.runs = [running("Sir Red", "SCHEDULED", out=started["parameters"]["out"])]
    assert "Sir Red" in visit.get(answer.headers["location"])  # the page it leads to is the character's, from now on


def test_the_same_form_sent_twice_starts_once(visit: Visit) -> None:
    for _ in range(2):
        visit.post("/start", {**GOOD, "once": "abc"})
    assert len(visit.prefect.started) == 1
    visit.post("/start", {**GOOD, "once": "abc", "name": "Zoe"})  # whoever went back, and filled it in anew
    assert [one["name"] for one in visit.prefect.started] == ["Ann", "Zoe"]
    visit.post("/start", {**GOOD, "once": "not hex!"}, status=422)


def test_where_prefect_may_have_started_it_before_it_fell_silent_the_same_button_starts_nothing_twice(
    visit: Visit, monkeypatch: pytest.MonkeyPatch
) -> None:
    start = visit.prefect.start

    def heard_too_late(*args: Any, **kwargs: Any) -> str:
        start(*args, **kwargs)
        raise PrefectAway("Prefect is too busy to answer (503)")

    monkeypatch.setattr(visit.prefect, "start", heard_too_late)
    page = visit.post("/start", GOOD, {"reference": ("me.png", png(doll()), "image/png")}, status=422).text
    assert "nothing was started" not in page and "press Start again" in page
    monkeypatch.setattr(visit.prefect, "start", start)
    kept = {
        name: re.findall(rf'name="{name}" value="([^"]+)"', page)[0]
        for name in ("once", "kept_reference", "reference_name")
    }
    [started] = visit.prefect.started
    visit.prefect.runs = [
        running("Ann", "SCHEDULED", prompt=GOOD["prompt"], out=started["parameters"]["out"])
        | {"idempotency_key": started["once"]}
    ]
    again = visit.post("/start", {**GOOD, **kept})
    assert len(visit.prefect.started) == 1 and again.headers["location"] == visit.address("Ann")
    visit.post("/start", {**GOOD, **kept, "prompt": "an elf in a red coat"})  # filled in anew, it is another
    assert [Path(one["parameters"]["out"]).name for one in visit.prefect.started] == ["ann", "ann-2"]


def test_a_character_that_is_being_made_is_not_started_again(visit: Visit) -> None:
    visit.prefect.runs = [running("Ann", prompt=GOOD["prompt"])]
    page = visit.post("/start", GOOD, status=422).text
    assert "is being made already" in problem_of(page, "name")
    assert f'<a href="{visit.address("Ann")}">Follow Ann</a>' in page


def test_a_folder_that_another_character_has_or_will_have_is_left_alone(visit: Visit) -> None:
    claimed(visit.work / "runs" / "ann", "Ann", "another sentence")
    visit.prefect.runs = [running("Ann", "SCHEDULED", prompt="a third", out=str(visit.work / "runs" / "ann-2"))]
    visit.post("/start", GOOD)
    assert visit.prefect.started[0]["parameters"]["out"] == str(visit.work / "runs" / "ann-3")


def test_when_prefect_takes_nothing_the_form_is_kept_and_says_why(visit: Visit) -> None:
    visit.prefect.most = 0
    page = visit.post("/start", GOOD, status=422).text
    assert "database is locked" in page and "a knight in red armour</textarea>" in page


def test_a_mistake_does_not_say_the_name_of_its_field_twice(visit: Visit) -> None:
    page = visit.post("/start", {"prompt": ""}, status=422).text
    assert problem_of(page, "prompt").startswith("is empty: describe the character")
    assert "prompt is empty" not in page


def test_before_the_first_character_the_page_says_in_a_sentence_that_no_time_is_known(visit: Visit) -> None:
    page = visit.get("/start")
    assert "How long it takes is not known yet: no character was made with this profile" in page
    assert "It will take" not in page


def test_settings_are_shown_with_description_limits_and_each_profiles_values(visit: Visit) -> None:
    page = visit.get("/start")
    field = Profile.model_fields["train"].annotation.model_fields["steps"]  # type: ignore[union-attr]
    assert f"{field.description}; 1 to 100000" in page
    assert "0 to 2" in page  # a strength's, inside a list
    for name in profile_names():
        assert f'<option value="{name}"' in page
    assert "&#34;train.steps&#34;: &#34;400&#34;" in page  # sdxl-12gb's


def test_each_settings_name_leads_to_what_the_manual_says_of_it(visit: Visit) -> None:
    page = html.unescape(visit.get("/start"))
    for name in SHOWN:
        assert f'<a href="#manual-{name.replace(".", "-")}"><code>{name}</code></a>' in page
    for one in (setting for group in groups()[:-1] for setting in group.settings):
        [row] = re.findall(rf'<tr id="manual-{one.name.replace(".", "-")}">(.*?)</tr>', page)
        assert one.about in row and one.allowed() in row
        if one.name == "train.distill":  # as the engine has it, and as the profile
            assert '"Default">' in row and f"embedded: {load_profile('embedded').train.distill}<" in row


def test_a_profile_of_ones_own_stands_in_the_list_and_can_be_chosen(visit: Visit) -> None:
    (visit.work / "mine.yaml").write_text("extends: embedded\nname: mine\ntrain: {steps: 12}\n")
    (visit.work / "cast.yaml").write_text("- prompt: a knight\n")  # no profile
    page = visit.get("/start")
    path = str(visit.work / "mine.yaml")
    assert f'<option value="{path}"' in page and "cast.yaml" not in page
    visit.post("/start", {**GOOD, "profile": path})
    visit.post("/start", {**GOOD, "name": "Ben", "profile_file": "mine.yaml"})
    assert [one["parameters"]["profile"] for one in visit.prefect.started] == [path, path]


# --- one picture of the character -------------------------------------------------------------------------------------


def reference(image: Image.Image, name: str = "Tavern keeper.png") -> dict[str, Any]:
    return {"reference": (name, png(image), "image/png")}


def test_a_picture_alone_starts_a_character_that_is_called_after_its_file(visit: Visit) -> None:
    visit.post("/start", {}, reference(doll()))
    [started] = visit.prefect.started
    told = started["parameters"]
    assert (told["prompt"], told["name"], told["sheet"]) == ("", "tavern-keeper", "")
    assert Path(told["reference"]).read_bytes() == png(doll())
    assert told["out"] == str(visit.work / "runs" / "tavern-keeper")


def test_a_pictures_name_keeps_its_letters_without_their_accents(visit: Visit) -> None:
    visit.post("/start", {}, reference(doll(), "C:\\Zoë Łuna.png"))
    assert visit.prefect.started[0]["parameters"]["name"] == "zoe-luna"


def test_a_picture_and_a_sentence_are_both_asked_for(visit: Visit) -> None:
    visit.post("/start", GOOD, reference(doll()))
    told = visit.prefect.started[0]["parameters"]
    assert (told["prompt"], told["name"]) == ("a knight in red armour", "Ann") and told["reference"]


@pytest.mark.parametrize(
    ("image", "said"),
    [
        (Image.new("RGB", (200, 200), "white"), "no figure stands out"),
        (paint(Sheet()), "3 figures"),
        (Image.new("RGB", (20, 20)), "at least 64 pixels"),
    ],
    ids=["nobody", "a sheet", "too small"],
)
def test_a_picture_from_which_nobody_can_be_made_is_refused_beside_its_field(
    visit: Visit, image: Image.Image, said: str
) -> None:
    page = visit.post("/start", GOOD, reference(image), status=422).text
    beside = problem_of(page, "reference")
    both = visit.post("/start", {}, reference(image), status=422).text
    assert problem_of(both, "reference") == beside and not problem_of(both, "prompt")  # mended with the picture
    assert said in beside and "Tavern_keeper.png" in beside and "--" not in beside and str(visit.work) not in beside
    assert visit.prefect.started == []


def test_a_picture_that_was_sent_is_kept_with_its_name_while_the_rest_is_mended(visit: Visit) -> None:
    page = visit.post("/start", {"seed": "x"}, reference(doll()), status=422).text
    [kept] = re.findall(r'name="kept_reference" value="([0-9a-f]{64})"', page)
    [name] = re.findall(r'name="reference_name" value="([^"]+)"', page)
    visit.post("/start", {"kept_reference": kept, "reference_name": name})
    told = visit.prefect.started[0]["parameters"]
    assert told["name"] == "tavern-keeper" and Path(told["reference"]).read_bytes() == png(doll())
    assert f'type="checkbox" name="kept_reference" value="{kept}" checked' in page
    visit.post("/start", {**GOOD, "reference_name": name})  # its tick taken away
    assert visit.prefect.started[1]["parameters"]["reference"] == ""


@pytest.mark.parametrize("digest", ["0" * 64, "../../etc/passwd"])
def test_a_kept_reference_is_one_of_the_stores_or_none(visit: Visit, digest: str) -> None:
    page = visit.post("/start", {**GOOD, "kept_reference": digest}, status=422).text
    assert "choose it again" in problem_of(page, "reference")
    assert visit.prefect.started == []


def test_the_form_offers_a_picture_beside_the_prompt(visit: Visit) -> None:
    page = visit.get("/start")
    assert 'id="reference" name="reference" type="file"' in page and "may be left out with a picture" in page
