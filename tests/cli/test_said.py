"""What `run` and `batch` say at the end: each number and path under its own name, in words and as JSON."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
import typer
from PIL import Image
from typer.testing import CliRunner

from charengine.cli import main
from charengine.cli.command import KEPT, Command, Commands
from charengine.cli.main import app
from charengine.cli.run import say_result
from charengine.records import RunResult
from charengine.stages.report.cast import gallery_page, table

RESULT = RunResult(
    name="Zorga",
    trigger="zorgax",
    recommended_prompt="zorgax orc, green skin",
    sheet=Path("/out/sheet.png"),
    views=(Path("/out/views/front.png"),),
    captions=(Path("/out/dataset/front.txt"),),
    adapter=Path("/out/adapters/trained.safetensors"),
    recommended_adapter=Path("/out/adapters/recommended.safetensors"),
    checkpoint_step=200,
    strength=0.6,
    report=Path("/out/report.html"),
    mlflow_run_id="run",
    prefect_flow_run_id="flow",
    cached_stages=("sheet", "crop"),
    warnings=("the side figure touches the edge",),
    seconds={"sheet": 0.4, "train": 92.0},
)


def test_a_person_reads_the_prompt_the_pick_and_both_files(capsys: pytest.CaptureFixture[str]) -> None:
    say_result(RESULT, as_json=False)
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "warning: the side figure touches the edge"
    told = "\n".join(lines)
    assert "say 'zorgax orc, green skin' in a prompt" in told
    assert "pick: step 200 at strength 0.6" in told
    assert re.search(r"recommended adapter .*: */out/adapters/recommended\.safetensors$", told, re.M)
    assert re.search(r"adapter as trained: */out/adapters/trained\.safetensors$", told, re.M)
    assert "report: /out/report.html" in told
    assert "took sheet 0 s, train 92 s; unchanged: sheet, crop" in told


def test_a_program_reads_the_same_as_one_line_of_json(capsys: pytest.CaptureFixture[str]) -> None:
    say_result(RESULT, as_json=True)
    [line] = capsys.readouterr().out.splitlines()
    assert RunResult.model_validate(json.loads(line)) == RESULT
    assert json.loads(line)["recommended_adapter"] == "/out/adapters/recommended.safetensors"
    assert json.loads(line)["adapter"] == "/out/adapters/trained.safetensors"


def test_a_cast_is_told_character_by_character_and_why_one_failed(tmp_path: Path) -> None:
    sheet = tmp_path / "zorga/sheet.png"
    sheet.parent.mkdir()
    Image.new("RGB", (64, 64), "red").save(sheet)
    made = RESULT.model_copy(update={"sheet": sheet, "report": tmp_path / "zorga/report.html"})
    outcomes = [
        {"name": "Zorga", "prompt": "an orc", "error": "", "result": made.model_dump(mode="json")},
        {"name": "Bea", "prompt": "a <bee>", "error": "the GPU\nis gone", "result": None},
    ]
    assert table(outcomes).splitlines()[2:] == [
        f"| Zorga | zorgax | step 200 at 0.6 | 1 warning: {tmp_path}/zorga/report.html |",
        "| Bea | | | failed: the GPU is gone |",
    ]
    page = gallery_page(outcomes, tmp_path / "cast.html").read_text()
    assert "2 characters, 1 failed, 1 with warnings." in page
    assert "<p>1 warning:</p><ul><li>the side figure touches the edge</li></ul>" in page
    assert "Trigger <b>zorgax</b>; step 200 at strength 0.6." in page and 'href="zorga/report.html"' in page
    assert "<h2>Bea</h2><p>a &lt;bee&gt;</p>" in page and "the GPU\nis gone" in page


def test_auto_retrain_is_a_setting_like_any_other(monkeypatch: pytest.MonkeyPatch) -> None:
    from charengine.cli import run as command

    asked: list[tuple[str, ...]] = []
    monkeypatch.setattr(command, "start", lambda request, _: asked.append(request.overrides))
    for more in ([], ["--auto-retrain", "2"]):
        app(["run", "an orc", "--set", "train.steps=5", *more], standalone_mode=False)
    assert asked == [("train.steps=5",), ("train.steps=5", "retrain=2")]


@pytest.mark.parametrize("name", sorted(typer.main.get_command(app).commands))  # type: ignore[attr-defined]
def test_ctrl_c_ends_every_command_with_one_line(
    name: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(self: object, ctx: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Command.__base__, "invoke", interrupted)
    arguments = {"crop": ["a.png"], "caption": [".", "--name=A", "--prompt=an orc"], "expand": [".", "--prompt=an orc"]}
    arguments |= {"inspect": ["a"], "train": ["."], "sweep": ["a"], "report": ["a"], "compare": ["a"], "export": ["a"]}
    monkeypatch.setattr("sys.argv", ["charengine", name, *arguments.get(name, [])])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (130, "")
    [line] = said.err.splitlines()
    assert line.startswith(f"error: {name} was stopped; ") and ("what is done is kept" in line) == (name in KEPT)


def test_ctrl_c_before_a_command_began_is_told_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def interrupted(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(Commands, "make_context", interrupted)
    monkeypatch.setattr("sys.argv", ["charengine", "profiles"])
    with pytest.raises(SystemExit) as ended:
        main()
    said = capsys.readouterr()
    assert (ended.value.code, said.out) == (130, "")
    assert said.err == "error: stopped before anything was begun; the same command begins again\n"


@pytest.mark.parametrize("command", ["up", "gallery"])
def test_what_is_refused_was_not_said_to_start(command: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CHARENGINE_HOME", str(tmp_path / "file"))
    (tmp_path / "file").write_text("", encoding="utf-8")
    told = CliRunner().invoke(app, [command])
    assert told.exit_code != 0 and told.stdout == ""
