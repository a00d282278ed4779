"""A cast: its rows are checked and shown first; then all of them start, once, behind single characters."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from gallery_samples import Visit, running

from charengine.errors import ConfigError
from charengine.run.cast import read_cast
from charengine.services.gallery.uploads import Upload

CSV = "name,prompt,overrides\nAnn,a knight,train.steps=10;train.checkpoints=1\nBen,a wizard,\n"
YAML = "defaults: {overrides: [train.steps=10]}\ncharacters:\n- {name: Ann, prompt: a knight}\n- {name: Ben, prompt: a wizard}\n"


def show(visit: Visit, text: str | bytes, name: str = "cast.csv", status: int = 200) -> str:
    data = text.encode() if isinstance(text, str) else text
    page: str = visit.post("/cast", {"profile": "embedded"}, {"cast": (name, data)}, status).text
    return page


def shown_fields(page: str) -> dict[str, str]:
    """What the page's own form sends to start the cast that it shows."""
    form = re.findall(r'<form method="post" action="/cast/start".*?</form>', page, re.DOTALL)[0]
    return dict(re.findall(r'name="(\w+)" value="([^"]*)"', form))


@pytest.mark.parametrize(
    ("text", "name"),
    [
        (CSV, "cast.csv"),
        (YAML, "my cast.yaml"),
        (YAML.replace("[train.steps=10]", "{train.steps: 10, caption.prune: false}"), "cast.yml"),
        (CSV.replace(",", "\t"), "cast.tsv"),
    ],
)
def test_rows_are_shown_and_nothing_starts_until_asked_then_all_do(visit: Visit, text: str, name: str) -> None:
    page = show(visit, text, name)
    assert "2 characters in" in page and "a knight" in page and "train.steps=10" in page
    assert visit.prefect.started == []
    for _ in range(2):  # a second click starts nothing twice
        visit.client.post("/cast/start", data=shown_fields(page), files={"nothing": ("", b"")})
    started = visit.prefect.started
    assert [one["name"] for one in started] == ["Ann", "Ben"] and {one["queue"] for one in started} == {"batch"}
    assert [one["parameters"]["out"] for one in started] == [str(visit.work / "runs" / name) for name in ("ann", "ben")]
    assert "train.steps=10" in started[0]["parameters"]["overrides"]


def test_a_wrong_row_is_shown_with_what_is_wrong_and_the_cast_cannot_start(visit: Visit) -> None:
    text = "name,prompt,overrides\nAnn,a knight,\nBob/..,a wizard,\nCid,a thief,train.stps=3\n"
    page = show(visit, text, status=422)
    assert (
        "2 of them cannot start as they are" in page and "did you mean train.steps" in page and "is not allowed" in page
    )
    assert 'action="/cast/start"' not in page


def test_a_row_that_cannot_be_read_hides_no_other_mistake_and_each_is_told_with_its_line(visit: Visit) -> None:
    text = "name,prompt,seed,overrides\nAnn,a knight\n\nBob,a wizard,many,train.stps=3\nCid,,,\nDot,a thief,,\ndot,an elf,,\n"
    page = html.unescape(show(visit, text, status=422))
    assert (
        "cast.csv, line 2: 2 fields, the header has 4" in page and "'dot' is used twice, in line 6 and line 7" in page
    )
    rows = {found[0]: found[1] for found in re.findall(r'<td class="place">(.*?)</td>(.*?)</tr>', page)}
    assert list(rows) == ["line 4", "line 5", "line 6", "line 7"]
    assert "seed must be a whole number" in rows["line 4"] and "did you mean train.steps" in rows["line 4"]
    assert rows["line 5"].count("<li>") == 1 and "prompt is missing" in rows["line 5"]
    assert all("is used twice, in line 6 and line 7" in rows[one] for one in ("line 6", "line 7"))
    assert "4 of them cannot start" in page
    path = visit.work / "cast.csv"
    path.write_text(text)
    with pytest.raises(ConfigError) as caught:  # as the command and Prefect's form do
        read_cast(path, home=visit.gallery.home)
    assert len(caught.value.problems) == 5
    assert "cast.csv, line 4 (Bob): train.stps" in str(caught.value)


@pytest.mark.parametrize(
    ("text", "name", "said"),
    [
        ("", "cast.csv", "is empty"),
        ("prompt\n", "cast.csv", "has 0 characters"),
        ("who,what\n1,2\n", "cast.csv", "no such field"),
        ('prompt\n"open', "cast.csv", "never closed"),
        ("- {prompt: x, prompt: y}", "cast.yaml", "stands twice"),
        ("!!python/object:os.system {}", "cast.yaml", "not valid YAML"),
        (b"\xff\xfe\x00", "cast.csv", "not UTF-8"),
        ("- {prompt: x, overrides: {train: {steps: 10}}}", "cast.yaml", "[train.steps=800] or {train.steps: 800}"),
        ("x", "cast.exe", "is a .csv, .tsv, .yaml or .yml file"),
        ("x", "../../etc/passwd", "is a .csv"),
        ("prompt\n" + "a knight\n" * 2, "cast.csv", "used twice"),
        ("name,prompt\n" + "".join(f"N{i},a knight {i}\n" for i in range(201)), "cast.csv", "at most 200"),
        (b"x" * 4_100_000, "cast.csv", "MB are read"),
    ],
)
def test_a_file_that_is_no_cast_is_refused_in_words(visit: Visit, text: Any, name: str, said: str) -> None:
    page = show(visit, text, name, 422)
    assert said in page and "/tmp" not in page.replace(str(visit.work), "")  # where pictures are looked for


def test_without_a_file_the_page_asks_for_one(visit: Visit) -> None:
    assert "choose a CSV or YAML file" in visit.post("/cast", {}, status=422).text


def test_a_character_that_is_being_made_is_no_second_time_in_a_cast(visit: Visit) -> None:
    visit.prefect.runs = [running("Ann", prompt="a knight")]
    assert "is being made already" in show(visit, CSV, status=422)


def test_an_example_can_be_taken_and_filled_in_and_where_pictures_are_looked_for_is_said(visit: Visit) -> None:
    page = visit.get("/cast")
    [example] = re.findall(r'href="([^"]+)" download', page)
    assert "can start" in show(visit, visit.get(example)).lower() and str(visit.work) in page


@pytest.mark.parametrize("digest", ["0" * 64, "../x", ""])
def test_only_a_cast_that_was_shown_can_be_started(visit: Visit, digest: str) -> None:
    visit.post("/cast/start", {"digest": digest, "file_name": "cast.csv", "profile": "embedded"}, status=422)
    assert visit.prefect.started == []


def test_when_prefect_goes_away_in_the_middle_the_rest_is_started_by_the_same_button(visit: Visit) -> None:
    page = show(visit, CSV)
    visit.prefect.most = 1
    answer = visit.client.post("/cast/start", data=shown_fields(page), files={"nothing": ("", b"")})
    assert answer.status_code == 422 and "1 of 2 were started" in answer.text
    started = visit.prefect.started[0]
    visit.prefect.runs = [
        running("Ann", "SCHEDULED", prompt="a knight", out=started["parameters"]["out"])
        | {"idempotency_key": started["once"]}
    ]
    visit.prefect.most = 10
    visit.client.post("/cast/start", data=shown_fields(answer.text), files={"nothing": ("", b"")})
    assert [one["name"] for one in visit.prefect.started] == ["Ann", "Ben"]


def test_a_long_name_keeps_its_ending() -> None:
    assert Upload(f"C:\\casts\\{'n' * 300}.CSV", b"").last_name == f"{'n' * 251}.CSV"
    assert Upload(f"{'n' * 300}.CSV", b"").plain_name == f"{'n' * 64}.csv"
