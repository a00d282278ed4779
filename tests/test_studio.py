"""The Python face: nothing until asked, the same files as the command, and records that a notebook can show."""

from __future__ import annotations

import logging
import shutil
import subprocess
import sys
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
from command_line import child_environment, last_line, python
from quick_settings import by_section

import charengine as ce
from charengine.errors import BadInput, ConfigError
from charengine.machine.home import Home
from charengine.records import Ref, ReportRecord, SheetRecord, SweepRecord
from charengine.stages.report.notebook import Shown, page_of
from charengine.store import Store

PROMPT = "an orc woman with red hair and a blue coat"


def test_importing_the_package_imports_nothing_else_of_it(tmp_path: Path) -> None:
    code = (
        "import sys, charengine\n"
        "assert [name for name in sys.modules if name.startswith('charengine')] == ['charengine']\n"
        "assert 'Studio' in dir(charengine) and 'pydantic' not in sys.modules\n"
        "try: charengine.Studoi\n"
        "except AttributeError as error: assert 'Studoi' in str(error)\n"
        "else: raise AssertionError\n"
    )
    python(code, tmp_path)


def test_every_error_is_caught_by_the_name_that_the_package_gives(tmp_path: Path) -> None:
    code = (
        "import sys, charengine as ce\n"
        "assert 'EngineError' in dir(ce)\n"
        "try: ce.Studio('no-such-profile')\n"
        "except ce.EngineError as error: assert error.exit_status == 2 and 'no-such-profile' in str(error)\n"
        "else: raise AssertionError\n"
        "assert 'torch' not in sys.modules\n"
    )
    python(code, tmp_path)


@pytest.mark.parametrize("text", ["", "null", "~", "yes", "a: b", "a #b", " a ", "{b}", "it's"])
def test_a_text_given_in_python_is_that_text(text: str) -> None:
    assert ce.Studio(models={"negative_prompt": text}).profile.models.negative_prompt == text
    assert ce.Studio(caption={"keep": [text]}).profile.caption.keep == (text,)


@pytest.mark.parametrize("name", ["my lora #2.safetensors", "a: b.safetensors", "yes", "[x].safetensors"])
def test_any_file_name_can_be_given_in_python(tmp_path: Path, name: str) -> None:
    path = tmp_path / name
    assert ce.Studio(train={"continue_from": path}).profile.train.continue_from == str(path)


def test_a_studio_sets_the_defaults_before_torch_reads_them_and_writes_nothing(tmp_path: Path) -> None:
    code = (
        "import os, sys, charengine as ce\n"
        f"ce.Studio().character({PROMPT!r})\n"
        "assert not {'torch', 'prefect', 'mlflow', 'diffusers', 'transformers'} & set(sys.modules)\n"
        "assert os.environ['OMP_WAIT_POLICY'] == 'PASSIVE' and os.environ['MLFLOW_DISABLE_TELEMETRY'] == 'true'\n"
        "assert os.environ['GOMP_SPINCOUNT'] == '7', 'what the user set is kept'\n"
    )
    assert python(code, tmp_path, GOMP_SPINCOUNT="7").stderr == ""
    assert list(tmp_path.iterdir()) == []


def test_a_studio_made_after_torch_was_imported_says_once_what_is_lost(
    monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    import torch  # noqa: F401 - read what it reads already

    monkeypatch.delenv("OMP_WAIT_POLICY")
    with caplog.at_level(logging.WARNING, logger="charengine"):
        ce.Studio()
        ce.Studio()
    [said] = [record.getMessage() for record in caplog.records]
    assert "torch: training is slower" in said and "Make the studio first" in said


def test_libraries_speak_as_loudly_as_the_user_said_and_else_of_errors_alone(monkeypatch: pytest.MonkeyPatch) -> None:
    quiet, loud = logging.getLogger("bitsandbytes"), logging.getLogger("httpx")
    monkeypatch.setattr(quiet, "level", logging.NOTSET)
    monkeypatch.setattr(loud, "level", logging.DEBUG)
    ce.Studio()
    assert (quiet.level, loud.level) == (logging.ERROR, logging.DEBUG)


@pytest.mark.parametrize(
    ("settings", "told"),
    [
        (
            {"train": {"stepz": 3}},
            ["train.stepz: got 3, but there is no such setting; did you mean train.steps (whole number, 1"],
        ),
        ({"trian": {"steps": 3}}, ["trian.steps: got 3", "did you mean train.steps ("]),
        ({"budget_gb": 8}, ["budget_gb: got 8", "did you mean budget_gib ("]),
        (
            {"train": 100},
            [
                "train: a section, got 100",
                "as a dict, e.g. train={'algorithm': 'locon'}",
                "`charengine settings train`",
            ],
        ),
        ({"train": {"rank": 0}, "sweep": {"seeds": 0}}, ["train.rank", "sweep.seeds"]),
    ],
)
def test_settings_that_do_not_exist_or_fit_are_refused_in_words(settings: dict[str, Any], told: list[str]) -> None:
    with pytest.raises(ConfigError) as caught:
        ce.Studio(**settings)
    assert all(words in str(caught.value) for words in told)
    assert "--set" not in str(caught.value)


def test_settings_arrive_as_they_were_given(tmp_path: Path) -> None:
    (tmp_path / "clip").mkdir()
    studio = ce.Studio(
        "sdxl-12gb",
        budget_gib=8,
        models={"clip": tmp_path / "clip", "folders": [str(tmp_path)]},
        sheet={"negative_prompt": " "},
        train={"learning_rate": 1e-5, "masked_loss": 0.5, "cuda_graph": "off", "regularisation": ""},
        sweep={"strengths": (0.5, 1), "prompts": ["{subject}: on a beach # at night"]},
    )
    profile = studio.profile
    assert (profile.budget_gib, profile.train.budget_gib) == (8, 8)
    assert (profile.models.clip, profile.models.folders) == (str(tmp_path / "clip"), (str(tmp_path),))
    assert (profile.train.learning_rate, profile.train.cuda_graph, profile.train.regularisation) == (1e-5, "off", "")
    assert profile.sheet.negative_prompt == " "
    assert (profile.sweep.strengths, profile.sweep.prompts) == ((0.5, 1.0), ("{subject}: on a beach # at night",))


def test_all_mistakes_of_a_character_are_told_together() -> None:
    with pytest.raises(ConfigError) as caught:
        ce.Studio().character("", name="a/b", sheet="nowhere.png", refresh=("trian",))
    assert len(caught.value.problems) == 4


def test_what_is_none_is_left_out_and_what_is_no_text_is_refused_in_words(home: Home) -> None:
    studio = ce.Studio("embedded")
    who = studio.character("an orc", name="Grisha", sheet=None, out=None, refresh="train")
    assert who._checked.out.parts[-2:] == ("runs", "grisha")
    assert who._checked.sheet is None and sorted(who._checked.refresh) == ["train"]
    with pytest.raises(ConfigError, match="prompt: got 5; give text"):
        studio.character(5)  # type: ignore[arg-type]


def test_more_views_that_nobody_asked_for_are_refused_with_the_remedy(home: Home) -> None:
    with pytest.raises(BadInput, match='expand={"count": 5}'):
        ce.Studio().character(PROMPT).expand()


@dataclass
class Made:
    """The same character, step by step in Python and by the command, in two homes."""

    who: Any
    steps: dict[str, Any]
    saved: dict[str, Any]
    command: dict[str, Any]


@pytest.fixture(scope="module")
def made(
    prefect_api: str,
    empty_mlflow: Path,
    tiny_settings: tuple[str, ...],
    drawn_sheet: Path,
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Made]:
    folder = tmp_path_factory.mktemp("face")
    ours, theirs = Home(folder / "python").create(), Home(folder / "command").create()
    for home in (ours, theirs):
        shutil.copytree(empty_mlflow, home.mlflow, dirs_exist_ok=True)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CHARENGINE_HOME", str(ours.root))
        patch.setenv("PREFECT_API_URL", prefect_api)
        patch.setenv("OMP_NUM_THREADS", "1")  # as the command below
        who = ce.Studio(**by_section(tiny_settings)).character(
            PROMPT, "Aya", sheet=drawn_sheet, out=folder / "python-out"
        )
        import torch

        threads = torch.get_num_threads()
        torch.set_num_threads(1)
        sweep = who.sweep()  # first of all: the steps before it are run by themselves
        steps = {
            "sweep": sweep,
            "sheet": who.sheet(),
            "views": who.crop(),
            "dataset": who.caption(),
            "adapter": who.train(),
        }
        saved = who.save().model_dump(mode="json")
        sets = [part for setting in tiny_settings for part in ("--set", setting)]
        command = [sys.executable, "-m", "charengine.cli", "run", PROMPT, "--name", "Aya", "--sheet", str(drawn_sheet)]
        done = subprocess.run(
            [*command, "--out", str(folder / "command-out"), "--json", *sets],
            capture_output=True,
            text=True,
            env=child_environment(theirs, prefect_api),
            cwd=folder,
        )
        assert done.returncode == 0, done.stderr
        yield Made(who, steps, saved, last_line(done))
        torch.set_num_threads(threads)


def test_python_and_the_command_make_the_same_bytes_and_the_same_trigger(made: Made) -> None:
    assert made.saved["trigger"] == made.command["trigger"] == made.who.trigger
    for name in ("adapter", "recommended_adapter", "sheet"):
        assert Path(made.saved[name]).read_bytes() == Path(made.command[name]).read_bytes(), name
    for name in ("views", "captions"):
        for ours, theirs in zip(made.saved[name], made.command[name], strict=True):
            assert Path(ours).read_bytes() == Path(theirs).read_bytes(), name


def test_save_writes_the_files_that_the_command_writes(made: Made) -> None:
    def files(result: dict[str, Any]) -> set[str]:
        folder = Path(result["report"]).parent
        return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}

    assert files(made.saved) == files(made.command)
    alike = {"name", "trigger", "recommended_prompt", "checkpoint_step", "strength", "warnings", "cached_stages"}
    assert {name: made.saved[name] for name in alike} == {name: made.command[name] for name in alike}
    assert list(made.saved["seconds"]) == list(made.command["seconds"])
    assert made.saved["mlflow_run_id"]


def test_a_step_is_remembered_and_is_the_record_for_code(made: Made) -> None:
    sweep = made.steps["sweep"]
    assert made.who.sweep() == sweep and made.who.sweep().record is sweep.record
    assert isinstance(sweep.record, SweepRecord) and sweep.record == sweep
    assert sweep.pick.strength == made.command["strength"]
    facts = [fact.stage for fact in made.who.workspace.facts]
    assert sorted(facts) == sorted(made.command["seconds"])
    with pytest.raises(AttributeError, match="pikc"):
        _ = sweep.pikc


def test_the_steps_show_their_pictures_small_and_their_facts(made: Made) -> None:
    wanted = {"sheet": 1, "views": 4, "dataset": 3, "adapter": 0, "sweep": 1}
    for name, pictures in wanted.items():
        shown = made.steps[name]
        html = shown._repr_html_()
        assert html.count("data:image/png;base64,") == html.count("<img") >= pictures, name
        assert len(html) < 2_000_000 and "<table>" in html
        assert "sha256" not in repr(shown) and len(repr(shown)) < 3000
    assert made.who.trigger in made.steps["dataset"]._repr_html_()
    assert "<iframe sandbox" in made.who.report()._repr_html_()


def test_the_whole_run_takes_what_the_steps_made(made: Made) -> None:
    result = made.who.run()
    assert list(result.cached_stages) == list(made.command["seconds"])
    assert str(result.adapter) == made.saved["adapter"]
    assert result.prefect_flow_run_id


def test_what_a_record_says_is_text_and_never_html(tmp_path: Path) -> None:
    from PIL import Image

    from charengine.pictures import png

    store = Store(tmp_path)
    image = store.put(png(Image.new("RGB", (2000, 1000))), "sheet.png")
    prompt = "<script>alert('an orc')</script>"
    sheet = Shown(SheetRecord(image=image, width=2000, height=1000, prompt=prompt, source="drawn", seed=1), store)
    html = sheet._repr_html_()
    assert "<script>" not in html and "&lt;script&gt;" in html
    assert "2000 × 1000" in html and prompt in repr(sheet)
    page = Shown(ReportRecord(html=store.put(b'<p title="a">x</p>', "report.html")), store)._repr_html_()
    assert 'srcdoc="&lt;p title=&quot;a&quot;&gt;x&lt;/p&gt;"' in page


def test_a_record_without_a_page_of_its_own_shows_its_plain_fields() -> None:
    assert page_of(Ref(sha256="a" * 64, size=1, media_type="x", name="a.bin")).facts["name"] == "a.bin"


def test_one_picture_becomes_a_sheet_that_a_notebook_shows_beside_it(home: Home, tmp_path: Path) -> None:
    import torch

    from charengine.embedded.probe import to_images
    from charengine.embedded.traits import sample_indices
    from charengine.embedded.world import render

    row = sample_indices(1, torch.Generator().manual_seed(4), "heldout")
    zero = torch.zeros(1, dtype=torch.long)
    drawn = render(row, yaw=torch.zeros(1), pose=zero, background=zero, size=(128, 384), framing=0.9)
    picture = tmp_path / "Tavern keeper.png"
    to_images(drawn.image)[0].save(picture)
    quick = {"steps": 1, "gate": False, "candidates": 1}
    who = ce.Studio("embedded", sheet=quick).character(reference=picture)
    shown = who.sheet()
    assert shown.record.source == "drawn" and shown.record.reference is not None
    character = who.workspace.character
    assert character.name == "tavern-keeper" and who.trigger.startswith("tav")
    assert character.class_noun in character.prompt and character.class_noun != "character"
    assert len(page_of(shown.record).pictures) == 2 and shown._repr_html_().count("<img") == 2
    assert ce.Studio("embedded", sheet=quick).character(reference=picture)._checked == who._checked
    assert [fact.stage for fact in who.workspace.facts] == ["reference", "sheet"]
