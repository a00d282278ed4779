"""The report is one page that opens from disk and shows what the records say."""

from __future__ import annotations

import base64
import hashlib
import html
import io
import json
import re
import shlex
import xml.etree.ElementTree as ElementTree
from html.parser import HTMLParser
from pathlib import Path
from typing import Any

import pytest
from PIL import Image
from run_samples import doll, png, sample_run, with_words

from charengine.errors import StoreCorrupt
from charengine.profiles.loading import load_profile
from charengine.records import Ref, RunRecord, picture_name
from charengine.stages.report import cells, take
from charengine.stages.report import words as trigger_words
from charengine.stages.report.page import render, write_report
from charengine.stages.report.parts import Pictures
from charengine.stages.report.sections import sheet_and_views, towards_full_strength
from charengine.store import Store

VOID = {"meta", "img", "br", "hr"}
ASKS = ("fetch(", "XMLHttpRequest", "WebSocket", "EventSource", "import(", "sendBeacon", "http:", "https:")


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
    """Open tags, in order of nesting, every attribute that could load something, and where the reader is led."""

    def __init__(self) -> None:
        super().__init__()
        self.stack: list[str] = []
        self.links: list[str] = []
        self.ways: list[str] = []

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        if tag not in VOID:
            self.stack.append(tag)
        if tag == "a":
            self.ways += [value or "" for name, value in attrs if name == "href"]
        else:
            self.links += [value or "" for name, value in attrs if name in ("src", "href", "data", "action")]

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.links += [value or "" for name, value in attrs if name in ("src", "href")]

    def handle_endtag(self, tag: str) -> None:
        assert self.stack.pop() == tag


class Named:
    """Instead of pictures, the names of their files and the seed they are said to be of."""

    def image(self, ref: Ref, *_: Any, about: str = "", **__: Any) -> Any:
        seed = re.search(r"Seed \d+", about)
        return f"[{ref.name} {seed[0] if seed else ''}]"


NAMED: Any = Named()


def test_every_tag_is_closed_and_nothing_is_loaded_from_elsewhere(page: str) -> None:
    tags = Tags()
    tags.feed(page)
    assert tags.stack == []
    assert len(tags.links) > 10
    assert all(link.startswith("data:image/webp;base64,") for link in tags.links)
    assert tags.ways == ["adapters/zorgax_recommended.safetensors"]  # beside the page, in the run's folder
    assert "@import" not in page and "url(" not in page
    [script] = re.findall(r"<script[^>]*>(.*?)</script>", page, re.S)
    assert "<script>" in page and not [word for word in ASKS if word in script]


def test_the_browser_itself_forbids_the_page_to_ask_anybody(page: str) -> None:
    """The page's own policy: no server, pictures of its own, and this one script, named by its SHA-256."""
    [policy] = re.findall(r'<meta http-equiv="Content-Security-Policy" content="([^"]*)">', page)
    [script] = re.findall(r"<script>(.*?)</script>", page, re.S)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    rules = dict(rule.strip().split(" ", 1) for rule in policy.split(";"))
    assert rules["default-src"] == "'none'" and rules["img-src"] == "data:"
    assert rules["script-src"] == f"'sha256-{digest}'"
    assert "connect-src" not in rules and "font-src" not in rules


def test_the_file_and_the_words_to_write_stand_at_the_top(page: str, run: RunRecord) -> None:
    top = page[: page.index("Look at these first")]
    assert '<a class="button" download href="adapters/zorgax_recommended.safetensors">' in top
    assert '<code id="say">zorgax orc</code>' in top and '<code id="trigger">zorgax</code>' in top
    copies = re.findall(r'class="copy script-only" data-copies="([^"]+)"', page)
    assert len(copies) == len(set(copies)) == 6 and all(page.count(f'id="{place}"') == 1 for place in copies)


def test_a_picture_says_with_which_prompt_seed_and_settings_it_was_drawn(run: RunRecord, store: Store) -> None:
    sweep = {**run.config["profile"]["sweep"], "steps": 12, "guidance": 4.0}
    config = {**run.config, "profile": {**run.config["profile"], "sweep": sweep}}
    table = cells.every_cell(run.model_copy(update={"config": config}), Pictures(store))
    told = re.findall(r"<td([^>]*)><img alt=\"([^\"]*)\" data-about=\"([^\"]*)\"", table)
    assert len(told) == len(run.sweep.cells) * len(run.sweep.prompts)
    place, alt, about = told[1 + len(run.sweep.cells)]
    assert place == " data-step='100' data-strength='0.4' data-prompt='1'"
    assert alt == "step 100 at 0.4: zorgax orc, running, desert"
    assert about == (
        "zorgax orc, running, desert. Seed 42, checkpoint step 100, strength 0.4, denoising steps 12, guidance 4."
    )


def test_a_scene_says_what_it_was_told_the_base_model_without_the_trigger(run: RunRecord, store: Store) -> None:
    told = with_words(run, store)
    said = told.sweep.words.said if told.sweep.words else ()
    top = trigger_words.scenes(told, Pictures(store))
    found = re.findall(r'<img alt="(with the adapter|without): [^"]*" data-about="([^"]*)"', top)
    with_it, without = ([about for how, about in found if how == one] for one in ("with the adapter", "without"))
    assert len(with_it) == len(without) > 0
    assert all(html.unescape(about).startswith(told.recommended_prompt) for about in with_it)
    assert all(html.unescape(about).startswith(", ".join(("orc", *said))) for about in without)
    assert all("base model, strength 0" in about for about in without)
    assert all("checkpoint step 300, strength 0.6" in about for about in with_it)


def test_the_table_shows_each_cells_own_picture_and_says_where_none_was_drawn(run: RunRecord) -> None:
    keys = {picture_name(cell.checkpoint_step, cell.strength, p, 43): run.sheet.image.model_copy(update={"name": f"{cell.checkpoint_step}/{cell.strength:g}/{p}"}) for cell in run.sweep.cells for p in range(3)}  # fmt: skip
    keys.pop("200/0.6/1/43")
    only_second_seed = run.model_copy(update={"sweep": run.sweep.model_copy(update={"images": keys})})
    table = cells.every_cell(only_second_seed, NAMED)
    found = re.findall(r"data-step='(\d+)' data-strength='([\d.]+)' data-prompt='(\d)'>(.*?)</td>", table)
    assert len(found) == 39
    for step, strength, prompt, shown in found:
        wanted = f"[{step}/{strength}/{prompt} Seed 43]"
        assert shown == ("<span class='none'>not drawn</span>" if wanted == "[200/0.6/1 Seed 43]" else wanted)


def test_the_picked_column_is_the_only_one_that_stays_in_view(page: str, run: RunRecord) -> None:
    pick, table = run.sweep.pick, page[page.index("<table class='cells'>") :]
    picked = re.findall(r"<t[hd][^>]* class=pinned data-step='(\d+)' data-strength='([\d.]+)'", table)
    assert set(picked) == {(str(pick.checkpoint_step), f"{pick.strength:g}")}
    assert len(picked) == 1 + len(run.sweep.prompts)
    assert re.search(r"\.cells \.pinned\{position:sticky;left:0;right:0", page)


def test_the_command_for_another_strength_repeats_the_sweep_with_untried_ones(run: RunRecord, page: str) -> None:
    [command] = re.findall(r'<code id="another">(.*?)</code>', page)
    words = shlex.split(re.sub(r"<[^>]+>", "", html.unescape(command)))
    assert words[:7] == ["charengine", "sweep", ".", "--profile", "embedded", "--seed", "42"]
    settings = dict(word.split("=", 1) for word in words[7:] if word != "--set")
    tried = {cell.strength for cell in run.sweep.cells}
    assert settings.keys() == {"sweep.strengths"}  # the rest is as it is by itself
    strengths = json.loads(settings["sweep.strengths"])
    assert strengths == [0.5, 0.7, 0.9] and not tried & set(strengths)
    sweep = {**run.config["profile"]["sweep"], "width": 512, "prompts": ["{subject} by the sea"]}
    config = {**run.config, "profile": {**run.config["profile"], "sweep": sweep}}
    [command] = re.findall(
        r'<code id="another">(.*?)</code>', take.another_strength(run.model_copy(update={"config": config}))
    )
    words = shlex.split(re.sub(r"<[^>]+>", "", html.unescape(command)))
    settings = [word for word in words[7:] if word != "--set"]
    profile = load_profile("embedded", settings)
    assert (profile.sweep.width, profile.sweep.prompts) == (512, ("{subject} by the sea",))


def test_samples_stand_over_the_steps_they_were_drawn_at(run: RunRecord) -> None:
    assert cells.over_training(run, NAMED) == ""
    points = [
        point.model_copy(update={"samples": (run.sheet.image.model_copy(update={"name": f"at-{point.step}"}),)})
        for point in run.training.checkpoints
    ]
    told = cells.over_training(
        run.model_copy(update={"training": run.training.model_copy(update={"checkpoints": tuple(points)})}), NAMED
    )
    assert re.findall(r"\[at-(\d+) Seed 42\]<figcaption>step (\d+)", told) == [(str(s),) * 2 for s in (100, 200, 300)]


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
        "likeness against adherence",
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


def test_the_reference_is_shown_beside_the_sheet_that_was_drawn_from_it(run: RunRecord, store: Store) -> None:
    given = store.put(png(doll((64, 192), coat=(200, 10, 10))), "reference.png")
    drawn_from = run.model_copy(update={"sheet": run.sheet.model_copy(update={"reference": given})})
    pictures = Pictures(store)
    page = sheet_and_views(drawn_from, pictures)
    assert page.index('alt="the reference"') < page.index('alt="the sheet"')
    assert "drawn by the edit model from the reference" in page and "max-width:33%" in page
    assert 'alt="the reference"' not in sheet_and_views(run, pictures)
