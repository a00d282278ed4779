"""Characters side by side: chosen on their cards, with everything in which they differ."""

from __future__ import annotations

import html
import re
from pathlib import Path
from urllib.parse import unquote

import pytest
from gallery_samples import Visit, made, running

from charengine.records import RunRecord
from charengine.stages.report.compare import differences, results


@pytest.fixture
def runs(visit: Visit, sample: tuple[RunRecord, Path]) -> list[RunRecord]:
    """Two finished characters that were trained at other learning rates."""
    run, profile = sample[0], sample[0].config["profile"]
    trained = run.training.model_copy(update={"mlflow_run_id": "ab" * 16})
    other = {"profile": {**profile, "train": {**profile.get("train", {}), "learning_rate": 0.0123}}}
    both = [
        run.model_copy(update={"name": "Zorga", "mlflow_run_id": "12" * 16, "training": trained}),
        run.model_copy(update={"name": "Vex <b>", "mlflow_run_id": "34" * 16, "config": other, "trigger": "vexivo"}),
    ]
    for one in both:
        made(visit, one, one.name)
    return both


def ids(visit: Visit) -> list[str]:
    """As the cards' boxes name them, the newest first."""
    boxes = '<input type="checkbox" name="id" value="([^"]+)" form="compare">'
    return re.findall(boxes, visit.get("/"))


def test_two_that_are_ticked_stand_side_by_side_with_all_that_was_measured(visit: Visit, runs: list[RunRecord]) -> None:
    marked = visit.get("/compare?id={}&id={}".format(*reversed(ids(visit))))
    page = html.unescape(marked)
    for run in runs:
        assert f'data-copy="{run.trigger}"' in page and f'href="{visit.address(run.name)}/report"' in page
    assert page.count(f"/picture/{runs[0].sheet.image.sha256}/") == 2
    rows = [*results(runs), *differences(runs)]
    assert "0.0123" in str(rows) and "identity of the pick" in str(rows)
    for label, (one, other) in rows:
        cells = f'<td data-label="Zorga">{one}</td><td data-label="Vex <b>">{other}</td>'
        assert f'<th scope="row">{label}</th>{cells}' in page
    for chart in ("likeness against adherence", "smoothed training loss", "validation loss"):
        assert f'aria-label="{chart}"' in page
    assert "<b>" not in marked
    [link] = re.findall(r'href="([^"]+compare-runs[^"]+)"', page)
    there = f'/#/compare-runs?runs=["{"12" * 16}", "{"34" * 16}"]&experiments=["7"]'
    assert unquote(link) == f"http://127.0.0.1:5000{there}"


def test_another_is_chosen_on_a_characters_page_and_what_cannot_be_compared_is_said(
    visit: Visit, runs: list[RunRecord]
) -> None:
    other, one = ids(visit)
    form = re.findall(r'action="/compare".*?</form>', visit.get(f"/character/{one}"), re.DOTALL)[0]
    assert re.findall('value="([^"]+)"', form) == [one, other]
    for asked in ("", f"?id={one}", f"?id={one}&id={one}"):
        assert "Choose two" in visit.get(f"/compare{asked}")
    visit.prefect.runs = [running("Now"), running("Far", "COMPLETED", out="/far")]
    ids_of = {one.name: one.id for one in visit.gallery.characters()[0]}
    page = visit.get(f"/compare?id={one}&id={other}&id=nobody&id={ids_of['Now']}&id={ids_of['Far']}")
    assert "What is not here (any more) is left out." in page and "Now is left out: it is not finished." in page
    assert "Far is left out: its folder is not at /far" in page and "6 at most" not in page


def test_what_the_store_has_no_more_leaves_the_tables(visit: Visit, runs: list[RunRecord]) -> None:
    curve = runs[0].training.curve and visit.gallery.store.path(runs[0].training.curve)
    assert curve
    curve.unlink()
    page = visit.get("/compare?id={}&id={}".format(*ids(visit)))
    assert "not in the store any more" in page and "training loss, smoothed" in page
