"""The report is one page that opens from disk and shows what the records say."""

from __future__ import annotations

import base64
import io
import re
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path

import pytest
from PIL import Image
from run_samples import sample_run

from charengine.errors import StoreCorrupt
from charengine.records import RunRecord
from charengine.stages.report.page import render, write_report
from charengine.stages.report.sections import towards_full_strength
from charengine.store import Store

VOID = {"meta", "img", "br", "hr"}


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def run(store: Store) -> RunRecord:
    return sample_run(store)


@pytest.fixture(scope="module")
def page(run: RunRecord, store: Store) -> str:
    return render(run, store)


class Tags(HTMLParser):
    """Open tags, in order of nesting, and every attribute that could load something."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.stack.append(tag)
        self.links += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


def test_every_tag_is_closed_and_nothing_is_loaded_from_elsewhere(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.stack == []
    assert len(tags.links) > 10
    assert all(link.startswith("data:image/webp;base64,") for link in tags.links)
    assert "<script" not in page and "@import" not in page and "url(" not in page


def test_every_picture_decodes(page: str) -> None:
    found = re.findall(r"data:image/webp;base64,([A-Za-z0-9+/=]+)", page)
    sizes = [Image.open(io.BytesIO(base64.b64decode(data))).size for data in found]
    assert (96, 192) in sizes  # the views are shown whole
    assert (64, 64) in sizes  # and what the sweep drew


def test_every_chart_is_well_formed(page: str) -> None:
    charts = re.findall(r"<svg.*?</svg>", page, re.S)
    titles = [ElementTree.fromstring(chart).findtext("title") for chart in charts]
    assert titles == [
        "training loss by step",
        "learning rate by step",
        "validation loss by view",
        "validation loss by noise level",
        "identity against adherence",
    ]


def test_the_page_says_what_the_records_say(page: str, run: RunRecord) -> None:
    pick = run.sweep.pick
    assert f"Use strength {pick.strength:g} of step {pick.checkpoint_step}" in page
    for words in ("zorgax", "unknown to the embedded family", "touches the edge", "blue coat, green skin", "abc123"):
        assert words in page
    assert page.count("class=picked") == 1
    assert len(re.findall(r"<tr[^>]*><td>(?:step|base)", page)) == len(run.sweep.cells)
    assert "from cache" in page and "1 min 32 s" in page


def test_a_prompt_cannot_inject_markup(page: str) -> None:
    assert "<b>boots</b>" not in page
    assert "&lt;b&gt;boots&lt;/b&gt;" in page and "&lt;an orc&gt;" in page


def test_the_fall_of_adherence_towards_strength_one_is_told_in_numbers(run: RunRecord) -> None:
    sentence = towards_full_strength(run.sweep)
    assert f"adherence falls to {run.sweep.pick.overbaked.kept:.0%}" in sentence
    pick, base = run.sweep.pick.metrics, run.sweep.pick.baseline
    assert f"({pick.identity - base.identity:+.3f})" in sentence


def test_a_rise_is_not_called_a_fall(run: RunRecord) -> None:
    pick = run.sweep.pick
    better = pick.overbaked.model_copy(update={"kept": 1.1})
    swapped = run.sweep.model_copy(update={"pick": pick.model_copy(update={"overbaked": better})})
    assert "adherence rises to 110%" in towards_full_strength(swapped)


def test_the_same_run_gives_the_same_page_and_it_stays_small(run: RunRecord, store: Store) -> None:
    first, second = write_report(run, store), write_report(run, store)
    assert first == second
    assert first.html.media_type == "text/html" and first.html.size < 5_000_000


def test_a_lost_picture_is_reported_and_not_left_out(run: RunRecord, tmp_path: Path) -> None:
    with pytest.raises(StoreCorrupt):
        write_report(run, Store(tmp_path))


def test_a_sheet_somebody_brought_and_a_run_without_curves_have_a_page_too(run: RunRecord, store: Store) -> None:
    empty = store.put(b"step,loss,smoothed,learning_rate\n", "loss.csv")
    training = run.training.model_copy(update={"curve": empty, "validation": (), "base_validation": None})
    sheet = run.sheet.model_copy(update={"prompt": "", "source": "given"})
    page = render(run.model_copy(update={"training": training, "sheet": sheet, "stages": ()}), store)
    assert "given by you" in page and "training loss by step" not in page


def test_an_adapter_of_the_toy_family_says_that_it_fits_only_that(run: RunRecord, store: Store, page: str) -> None:
    assert "fits only that" in page
    full_size = {**run.config, "profile": {**run.config["profile"], "models": {"family": "sdxl"}}}
    assert "fits only that" not in render(run.model_copy(update={"config": full_size}), store)
