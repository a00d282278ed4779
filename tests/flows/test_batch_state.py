"""A batch in Prefect: not green when a character failed, its page saying how each one is as it goes."""

from __future__ import annotations

import hashlib
from datetime import UTC, datetime, timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import httpx
import pytest
from prefect.client.orchestration import get_client
from prefect.exceptions import PrefectHTTPStatusError
from prefect.states import Completed, Failed
from sheet_samples import Sheet, paint

from charengine.errors import BadInput, ConfigError
from charengine.machine.home import Home
from charengine.records import RunResult
from charengine.run.budget import Budget
from charengine.run.cast import read_cast
from flows import batch as module
from flows import pool
from flows.pool import Ended

CAST = [{"name": "Aya", "prompt": "an orc"}, {"name": "Nix", "prompt": "a robot"}]


def result(name: str, *warnings: str) -> RunResult:
    paths = dict.fromkeys(("sheet", "adapter", "recommended_adapter", "report"), Path("x"))
    more = {"views": (), "captions": (), "cached_stages": (), "warnings": warnings, "seconds": {"sheet": 1.0}}
    numbers = {"checkpoint_step": 3, "strength": 0.5, "mlflow_run_id": None, "prefect_flow_run_id": None}
    return RunResult(name=name, trigger="ohw", recommended_prompt="ohw orc", **paths, **more, **numbers)


@pytest.fixture
def fails(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> set[str]:
    """Names of characters that cannot be made; the others are, at once."""
    failing: set[str] = set()

    def character(name: str, **_: Any) -> Any:
        error = BadInput("no such setting")
        return Failed(message="no", data=error) if name in failing else Completed(data=result(name))

    monkeypatch.setattr(module, "character", character)
    monkeypatch.setattr(module, "gallery_page", lambda outcomes, path, note: tmp_path / "batch.html")
    return failing


@pytest.mark.parametrize(
    ("parameters", "name"),
    [
        ({"file": "casts/night.yaml"}, "batch: night"),
        ({"characters": CAST, "file": ""}, "batch: 2 characters"),
        ({"file": "night.csv", "batch_id": "20261129"}, "batch: night 20261129"),
    ],
)
def test_a_batch_is_named_after_its_cast(
    monkeypatch: pytest.MonkeyPatch, parameters: dict[str, Any], name: str
) -> None:
    monkeypatch.setattr(module, "runtime", SimpleNamespace(flow_run=SimpleNamespace(parameters=parameters)))
    assert module.run_name() == name


@pytest.mark.parametrize(
    ("source", "name"),
    [("runs/aya", "sweep: aya"), ("/a/aya/run.json", "sweep: aya"), ("x/ohwaya.safetensors", "sweep: ohwaya")],
)
def test_a_sweep_is_named_after_what_it_sweeps(monkeypatch: pytest.MonkeyPatch, source: str, name: str) -> None:
    from flows import sweep

    given = SimpleNamespace(flow_run=SimpleNamespace(parameters={"source": source}))
    monkeypatch.setattr(sweep, "runtime", given)
    assert sweep.run_name() == name


def newest_page(key: str) -> str:
    with get_client(sync_client=True) as client:
        [found] = [one for one in client.read_latest_artifacts() if one.key == key]
        return str(found.data)


def test_a_batch_with_a_failure_ends_failed_with_the_table_and_its_caller_has_the_outcomes(
    prefect: str, fails: set[str]
) -> None:
    fails.add("Nix")
    state = module.batch(characters=CAST, return_state=True)
    assert state.is_failed()
    assert state.message.startswith("1 of 2 characters could not be made") and "| Nix |" in state.message
    outcomes = module.batch(characters=CAST)
    assert outcomes["failed"] == ["Nix"] and outcomes["characters"][0]["result"]["trigger"] == "ohw"


def test_a_profile_that_was_edited_while_the_first_character_was_made_is_said_when_the_next_is_made_with_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    (mine := tmp_path / "my.yaml").write_text("extends: embedded\n")

    def made(entry: dict[str, Any], *_: object) -> dict[str, Any]:
        mine.write_text("extends: embedded\ntrain: {steps: 14}\n")
        return entry

    monkeypatch.setattr(module, "_here", made)
    cast = [{**one, "profile": str(mine)} for one in CAST]
    told: Any = None
    assert [*module._one_by_one(cast, told, Budget()).values()] == cast
    said = f"--profile {mine} changed after the cast was checked: Nix is made with it as it is now"
    assert [record.getMessage() for record in caplog.records if record.name == "charengine.flows"] == [said]


def test_with_workers_too_it_is_said_whose_profile_changed_while_they_waited(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    mine = tmp_path / "mine.yaml"
    mine.write_text("extends: embedded\n")
    run = SimpleNamespace(id="a-run", state=Failed())

    def made_on_pool(*_: Any) -> Any:
        yield Ended(0, run)
        mine.write_text("extends: embedded\ntrain: {steps: 9}\n")
        yield Ended(1, run)

    monkeypatch.setattr(module, "made_on_pool", made_on_pool)
    told: Any = SimpleNamespace(ended=lambda *_: None)
    module._on_pool(
        [{**one, "profile": str(mine), "out": str(tmp_path)} for one in CAST], "id", told, Budget(), "batch"
    )
    said = f"--profile {mine} changed after the cast was checked: Nix may be made with either"
    assert [record.getMessage() for record in caplog.records if record.name == "charengine.flows"] == [said]


def busy(*_: Any, **__: Any) -> Any:
    request = httpx.Request("POST", "http://127.0.0.1:4200/api/task_runs/")
    raise PrefectHTTPStatusError("Service Unavailable", request=request, response=httpx.Response(503))


def test_a_character_waits_while_prefect_is_busy_and_costs_the_others_nothing_when_that_is_for_too_long(
    prefect: str, fails: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    made, tries = module.character, iter([True, True])

    def sometimes(name: str, **more: Any) -> Any:
        return busy() if name == "Aya" and next(tries, False) else made(name=name, **more)

    monkeypatch.setattr(module, "character", sometimes)
    monkeypatch.setattr(pool, "FIRST_PAUSE", 0.01)
    assert module.batch(characters=CAST)["failed"] == []
    monkeypatch.setattr(pool, "PATIENCE", 0.0)
    monkeypatch.setattr(module, "character", lambda name, **more: busy() if name == "Aya" else made(name=name, **more))
    outcomes = module.batch(characters=CAST)
    assert outcomes["failed"] == ["Aya"] and "Aya could not be made: " in outcomes["characters"][0]["error"]
    assert outcomes["characters"][1]["result"]


@pytest.mark.parametrize("workers", [False, True])
def test_a_mistake_of_one_character_is_told_before_the_first_is_made(
    prefect: str, home: Home, fails: set[str], monkeypatch: pytest.MonkeyPatch, workers: bool
) -> None:
    """As the command does: a batch that a page or a schedule starts reads the same cast."""
    begun: list[str] = []
    monkeypatch.setattr(module, "character", lambda **entry: begun.append(entry["name"]))
    monkeypatch.setattr(module, "made_on_pool", lambda cast, *_: begun.extend(entry["name"] for entry in cast))
    wrong = {"name": "Zoe", "prompt": "a knight", "overrides": ["train.rank=0"], "sheet": "nowhere.png"}
    state = module.batch(characters=[*CAST, wrong], workers=workers, return_state=True)
    assert state.is_failed() and begun == []
    with pytest.raises(ConfigError) as caught:
        state.result()
    rank, sheet = sorted(caught.value.problems, reverse=True)
    assert rank.startswith(f"cast, entry {len(CAST) + 1} (Zoe): train.rank: got 0;")
    assert sheet.startswith(f"cast, entry {len(CAST) + 1} (Zoe): --sheet ") and "nowhere.png" in sheet


def test_a_batch_without_a_failure_is_green_and_its_page_says_how_each_is(prefect: str, fails: set[str]) -> None:
    state = module.batch(characters=CAST, return_state=True)
    assert state.is_completed() and state.result()["failed"] == [] and state.message == "2 characters are made"
    page = newest_page("batch-summary")
    assert "Aya" in page and page.count("| made |") == 2


def test_warnings_of_a_character_are_counted_wherever_a_batch_says_that_it_is_made(
    prefect: str, fails: set[str], monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setattr(
        module, "character", lambda name, **_: Completed(data=result(name, *"ab"[: name == "Aya" and 2]))
    )
    with caplog.at_level("INFO", "charengine.flows"):
        state = module.batch(characters=CAST, return_state=True)
    assert state.message == "2 characters are made, 1 with warnings"
    assert (
        "| Aya | made, 2 warnings: see its report |" in (page := newest_page("batch-summary"))
        and "| Nix | made |" in page
    )
    assert "Aya: made, 2 warnings: see its report (1 of 2 have ended)" in caplog.text
    assert "2 warnings: x |" in state.result()["table"]


def test_the_page_of_a_batch_says_who_is_being_made_while_the_others_wait(
    prefect: str, fails: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    seen: list[str] = []
    make = module.character

    def watched(**entry: Any) -> Any:
        seen.append(newest_page("batch-summary"))
        return make(**entry)

    monkeypatch.setattr(module, "character", watched)
    module.batch(characters=CAST)
    assert "| Aya | is being made |" in seen[0] and "| Nix | waits |" in seen[0]
    assert "made |" in seen[1] and "| Nix | is being made |" in seen[1]


def test_a_cast_that_cannot_be_read_is_one_sentence_and_its_traceback_a_file(prefect: str, tmp_path: Path) -> None:
    file = tmp_path / "none.yaml"
    state = module.batch(file=str(file), return_state=True)
    assert state.is_failed() and str(file) in state.message
    kept = Path(state.message.rpartition("(the whole traceback: ")[2].rstrip(")"))
    assert kept.read_text(encoding="utf-8").startswith("Traceback")
    with pytest.raises(BadInput):
        module.batch(file=str(file))


def test_on_machines_that_share_a_store_each_takes_a_folder_of_its_own_and_what_it_made_comes_here(
    prefect: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    run = SimpleNamespace(id="the-run", state=Completed())
    asked: list[dict[str, Any]] = []

    def made_on_pool(cast: list[dict[str, Any]], *_: Any) -> list[Any]:
        asked.extend(cast)
        return [Ended(0, run), Ended(1, run)]

    def fetch(flow_run: str, out: Path, store: Any) -> RunResult:
        if out.name == "nix":
            raise BadInput("the store holds no folder of run the-run")
        return result(out.name)

    sheet = tmp_path / "my sheet.png"
    paint(Sheet()).save(sheet)
    monkeypatch.setenv("CHARENGINE_WORK_FOLDER", str(tmp_path))
    monkeypatch.setenv("CHARENGINE_STORE", "memory://studio/store")
    monkeypatch.setattr(module, "made_on_pool", made_on_pool)
    monkeypatch.setattr(module, "fetch", fetch)
    monkeypatch.setattr(module, "gallery_page", lambda outcomes, path, note: path)
    outcomes = module.batch(characters=[CAST[0], {**CAST[1], "sheet": "my sheet.png"}], workers=True)
    assert [one["out"] for one in asked] == ["", ""]
    assert [one["sheet"] for one in asked] == [
        "",
        f"store:{hashlib.sha256(sheet.read_bytes()).hexdigest()}/my sheet.png",
    ]
    assert [bool(one["result"]) for one in outcomes["characters"]] == [True, False]
    assert "holds no folder" in outcomes["characters"][1]["error"]
    assert outcomes["summary"] == str(tmp_path / "runs" / "batch.html")


def test_the_page_of_thousands_shows_what_one_looks_for_and_counts_the_rest(monkeypatch: pytest.MonkeyPatch) -> None:
    shown: list[str] = []
    monkeypatch.setattr(module.LiveText, "show", lambda _, text: shown.append(text))
    names = [f"C{number}" for number in range(10_000)]
    told = module._Told([{"name": name} for name in names])
    for name in names[:500]:
        told.ended({"name": name, "error": "", "result": None})
    told.ended({"name": "C9000", "error": "no such setting", "result": None})
    told.began("C9001")
    lines = shown[-1].splitlines()
    assert len(lines) == 2 + module.MOST_ROWS + 1
    assert "C9000" in lines[2] and "no such setting" in lines[2] and "C9001" in lines[3]
    assert lines[-1] == "| and 9800 more | 501 of 10000 have ended |"


def test_a_cast_of_ten_thousand_is_taken_and_one_more_is_not(tmp_path: Path) -> None:
    cast = tmp_path / "cast.csv"
    rows = [f"C{number},an orc with red hair,{number}" for number in range(10_001)]
    cast.write_text("\n".join(["name,prompt,seed", *rows[:-1]]))
    assert len(read_cast(cast)) == 10_000
    cast.write_text("\n".join(["name,prompt,seed", *rows]))
    with pytest.raises(BadInput, match="10001 characters; 1 to 10000"):
        read_cast(cast)


def test_a_spent_budget_begins_no_more_and_the_page_says_who_is_left_and_how_to_go_on(
    prefect: str, fails: set[str]
) -> None:
    cast = [*CAST, {"name": "Zoe", "prompt": "a knight"}]
    state = module.batch(characters=cast, max_characters=2, return_state=True)
    made = state.result()
    assert state.is_completed() and [one["name"] for one in made["characters"]] == ["Aya", "Nix"]
    assert made["not_begun"] == ["Zoe"] and made["failed"] == []
    assert state.message.startswith("2 characters (max_characters) are made: 1 not begun (Zoe). Ask for the same cast")
    page = newest_page("batch-summary")
    assert "| Zoe | not begun |" in page and "Ask for the same cast again" in page


def test_hours_that_are_over_begin_nobody_also_when_the_batch_is_tried_again(
    prefect: str, fails: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    """Prefect keeps when a run first began."""
    long_ago = datetime.now(UTC) - timedelta(hours=3)
    context = SimpleNamespace(get=lambda: SimpleNamespace(flow_run=SimpleNamespace(start_time=long_ago)))
    monkeypatch.setattr(module, "FlowRunContext", context)
    made = module.batch(characters=CAST, max_hours=2.5)
    assert made["not_begun"] == ["Aya", "Nix"] and "2.5 hours" in made["table"]
    assert module.batch(characters=CAST, max_hours=3.5)["not_begun"] == []


def test_a_budget_that_cannot_be_is_refused_before_anything(prefect: str, fails: set[str]) -> None:
    state = module.batch(characters=CAST, max_hours=-1.0, return_state=True)
    assert state.is_failed() and "max_hours: got -1; allowed is 0 (no limit) to 8760" in state.message


def test_a_batch_of_the_inbox_makes_what_lies_there_and_fails_for_a_file_that_it_cannot_read(
    prefect: str, home: Home, fails: set[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("charengine.run.inbox.QUIET", 0.0)
    empty = module.batch(inbox=True, return_state=True)
    assert empty.is_completed() and empty.message == "the inbox was empty"
    (home.inbox / "cast.yaml").write_text("- {name: Aya, prompt: an orc}\n- {name: Nix, prompt: a robot}\n")
    (home.inbox / "cast.docx").write_text("")
    made = module.batch(inbox=True, max_characters=1)
    assert made["failed"] == ["cast_docx"] and made["not_begun"] == ["Nix"]
    again = module.batch(inbox=True)
    assert [one["name"] for one in again["characters"]] == ["Aya", "Nix"] and again["failed"] == []
    named = module.batch(inbox=True, characters=CAST)  # what is named goes before the inbox
    assert len(named["characters"]) == len(CAST)
    assert sorted(path.name for path in home.inbox.glob("*/*/*")) == ["cast.docx", "cast.docx.txt", "cast.yaml"]
