"""Comparing runs shows what differs, and only that."""

from __future__ import annotations

import re
import xml.etree.ElementTree as ElementTree

import pytest
from run_samples import sample_run

from charengine.errors import BadInput
from charengine.records import RunRecord
from charengine.stages.report.compare import compare_html, compare_text, comparison, differences
from charengine.store import Store


@pytest.fixture
def runs(store: Store) -> list[RunRecord]:
    first = sample_run(store, "Zorga")
    config = {**first.config, "profile": {**first.config["profile"], "train": {"steps": 800}}}
    return [first, first.model_copy(update={"config": config, "seed": 7})]


def test_prompts_that_differ_at_their_end_differ_and_are_shown_whole_on_the_page(
    runs: list[RunRecord], store: Store
) -> None:
    long = "an orc woman with red hair, a blue coat, black trousers and brown "
    told = [run.model_copy(update={"prompt": long + end}) for run, end in zip(runs, ("boots", "shoes"), strict=True)]
    assert ("prompt", [f"{long}boots", f"{long}shoes"]) in differences(told)
    assert f"{long}shoes" in compare_html(told, store) and "..." in compare_text(told)


def test_only_settings_that_differ_are_listed(runs: list[RunRecord]) -> None:
    assert differences(runs) == [("seed", ["42", "7"]), ("train.steps", ["300", "800"])]


def test_the_text_has_a_column_for_each_run_and_the_numbers_of_the_picks(runs: list[RunRecord]) -> None:
    lines = compare_text(runs).splitlines()
    assert lines[0].split() == ["Zorga", "#1", "Zorga", "#2"]
    assert len({len(line) for line in lines}) == 1
    kept = next(line for line in lines if line.startswith("adherence kept  "))
    assert kept.count(f"{runs[0].sweep.pick.metrics.kept:.0%}") == 2


def test_the_page_holds_all_curves_and_loads_nothing(runs: list[RunRecord], store: Store) -> None:
    page = compare_html(runs, store)
    charts = [ElementTree.fromstring(chart) for chart in re.findall(r"<svg.*?</svg>", page, re.S)]
    assert [chart.findtext("title") for chart in charts] == [
        "likeness against adherence",
        "smoothed training loss",
        "validation loss",
    ]
    assert all(len(chart.findall("polyline")) >= 2 for chart in charts)
    assert "train.steps" in page and "http" not in page and "<script" not in page


def test_a_single_run_cannot_be_compared(runs: list[RunRecord]) -> None:
    with pytest.raises(BadInput, match="at least two"):
        compare_text(runs[:1])


def test_programs_get_plain_numbers(runs: list[RunRecord]) -> None:
    rows = comparison(runs)
    assert [row["name"] for row in rows] == ["Zorga", "Zorga"]
    assert rows[0]["identity_rise"] == pytest.approx(runs[0].sweep.pick.metrics.identity - 0.42, abs=1e-3)
