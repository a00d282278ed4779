"""The top of the report: four scenes beside the base model, the recommended prompt, and what the trigger brings."""

from __future__ import annotations

import re

import pytest
from run_samples import sample_run, with_words

from charengine.records import RunRecord
from charengine.stages.report.notebook import Shown
from charengine.stages.report.page import render
from charengine.stages.report.parts import Pictures
from charengine.stages.report.words import scenes
from charengine.store import Store

SAID = "zorgax orc, black boots, hook for a right hand"


@pytest.fixture
def run(store: Store) -> RunRecord:
    return with_words(sample_run(store), store)


def test_each_scene_is_shown_with_the_adapter_above_and_without_below(run: RunRecord, store: Store) -> None:
    shown = Pictures(store)
    page = shown.filled(scenes(run, shown))
    assert re.findall(r'alt="([^"]*)"', page) == [
        "with the adapter: facing the viewer, meadow",
        "with the adapter: facing the viewer, desert",
        "without: facing the viewer, meadow",
        "without: facing the viewer, desert",
    ]
    pictures = re.findall(r'src="([^"]*)"', page)
    assert run.sweep.words is not None
    wanted = [*run.sweep.words.drawn, *run.sweep.words.base]
    alone = [Pictures(store) for _ in wanted]
    assert [f'<img alt="" src="{data}">' for data in pictures] == [
        one.filled(one.image(ref, "")) for one, ref in zip(alone, wanted, strict=True)
    ]
    assert all(data.startswith("data:image/webp;base64,") for data in pictures)
    assert len(set(pictures)) == 4


def test_traits_stand_from_the_least_shown_on_and_those_to_say_are_marked(run: RunRecord, store: Store) -> None:
    rows = re.findall(r"<tr><td>(.*?)</td><td>(.*?)</td><td>(.*?)</td></tr>", scenes(run, Pictures(store)))
    assert rows == [
        ("black boots", "0%", "say it"),
        ("hook for a right hand", "33%", "say it"),
        ("blue coat", "100%", ""),
    ]


def test_both_shares_of_the_scenes_are_told(run: RunRecord, store: Store) -> None:
    page = scenes(run, Pictures(store))
    assert re.findall(r"<b>(\d+%)</b>.*?<span>(.*?)</span>", page) == [
        ("83%", "of the traits are seen in the four scenes with the adapter"),
        ("50%", "in those of the base model told the same"),
    ]


def test_it_is_the_first_thing_on_the_page_and_its_prompt_is_the_one_to_copy(run: RunRecord, store: Store) -> None:
    page = render(run, store)
    assert page.index(SAID) < page.index("Use strength") < page.index("Using it")
    assert f"&lt;lora:zorgax_recommended:1&gt; {SAID}" in page


def test_a_run_of_an_earlier_version_has_no_such_section(store: Store) -> None:
    assert scenes(sample_run(store), Pictures(store)) == ""


def test_a_notebook_shows_the_prompt_the_shares_and_the_scenes(run: RunRecord, store: Store) -> None:
    shown = Shown(run.sweep, store)
    assert f"say: {SAID}" in repr(shown)
    assert "blue coat 100%, black boots 0%, hook for a right hand 33%" in repr(shown)
    before = Shown(sample_run(store).sweep, store)._repr_html_().count("<img")
    assert shown._repr_html_().count("<img") == before + 2
