"""Report and comparison show each number under its own name, and each picture beside its own words."""

from __future__ import annotations

import html
import re
from typing import Any

import pytest
from run_samples import sample_run, told_apart

from charengine.records import LossPoint, Ref, RunRecord
from charengine.stages.report import compare, parts, sections
from charengine.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def run(store: Store) -> RunRecord:
    return told_apart(sample_run(store)).model_copy(update={"seed": 7, "mlflow_run_id": "run", "name": "Zorga"})


class Names:
    """Instead of pictures, the names of their files."""

    def image(self, ref: Ref, *_: Any, **__: Any) -> str:
        return f"[{ref.name}]"


PICTURES: Any = Names()


def named(run: RunRecord) -> RunRecord:
    """The run with pictures named after the cells that drew them."""
    ref = run.sheet.image
    names = [
        f"{cell}/{prompt}/{seed}" for cell in ("0/0", "200/0.6", "300/1") for prompt in range(3) for seed in (42, 43)
    ]
    images = {name: ref.model_copy(update={"name": name}) for name in names}
    return run.model_copy(update={"sweep": run.sweep.model_copy(update={"images": images})})


def test_the_head_says_who_it_is(run: RunRecord) -> None:
    facts = dict(re.findall(r"<li><b>(.*?)</b>(.*?)</li>", sections.heading(run)))
    assert facts == {
        "trigger": "zorgax",
        "class noun": "orc",
        "profile": "embedded",
        "seed": "7",
        "run time": "3 min 26 s",
    }


def test_the_picks_large_numbers_are_its_gain_what_it_kept_and_its_variety(run: RunRecord) -> None:
    card = sections.pick(named(run), PICTURES)
    numbers = re.findall(r'<div class="number"><b>(.*?)</b>.*?width:(\d+)%.*?<span>(.*?)</span>', card)
    assert numbers == [
        ("26%", "26", "likeness: identity from the base model (0.11) towards the sheet's own views; this is 0.21"),
        ("27%", "27", "prompt adherence kept of the base model's"),
        ("28%", "28", "variety between seeds kept"),
    ]
    assert "Use strength 0.6 of step 200" in card
    assert re.findall(r"\[(.*?)\]", card) == ["200/0.6/0/42", "200/0.6/1/42", "200/0.6/2/42"]


def test_the_table_of_cells_has_each_number_in_its_column(run: RunRecord) -> None:
    table = sections.cell_table(run.sweep)
    heads = re.findall(r"<th>(.*?)</th>", table)
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in table.split("<tr")[2:]]
    assert dict(zip(heads, rows[1], strict=True)) == {
        "checkpoint": "step 200",
        "strength": "0.6",
        "identity": "0.210",
        "traits seen": "",
        "gained": "0.26",
        "adherence": "0.220",
        "kept": "27%",
        "variety kept": "28%",
        "copying": "0.24",
        "white leak": "+0.29",
        "score": "0.25",
        "90 % bounds": "0.20 to 0.30",
    }
    assert rows[0][:3] == ["base model", "0", "0.110"] and rows[2][:3] == ["step 300", "1", "0.310"]


def test_what_was_read_of_the_traits_stands_in_the_card_and_the_table(run: RunRecord) -> None:
    pick = run.sweep.pick
    read = pick.metrics.model_copy(update={"shown": 0.41})
    base = pick.baseline.model_copy(update={"shown": 0.42, "sheet_shown": 0.43})
    cells = (base, read, *run.sweep.cells[2:])
    sweep = run.sweep.model_copy(
        update={"cells": cells, "pick": pick.model_copy(update={"metrics": read, "baseline": base})}
    )
    card = sections.pick(run.model_copy(update={"sweep": sweep}), PICTURES)
    assert "described traits seen: 41% (base model 42%, the sheet's own views 43%)" in html.unescape(card)
    rows = [re.findall(r"<td>(.*?)</td>", row) for row in sections.cell_table(sweep).split("<tr")[2:]]
    assert [row[3] for row in rows[:3]] == ["42%", "41%", ""]


def test_the_way_to_full_strength_is_told_with_the_numbers_of_base_pick_and_full_strength(run: RunRecord) -> None:
    assert sections.towards_full_strength(run.sweep) == (
        "Measured, not smoothed as above: from strength 0 to the pick, identity goes from 0.110 to 0.210 (+0.100) while adherence goes from 0.120 to 0.220. "
        "At strength 1 of the last checkpoint (step 300) identity is 0.310 and adherence rises to 37% of the base model's "
        "by how much better the own prompt fits (pick: 27%); variety between seeds is 38% (pick: 28%)."
    )


def test_variety_that_was_not_measured_is_nowhere_a_hundred_percent(run: RunRecord) -> None:
    one_seed = run.sweep.pick.metrics.model_copy(update={"diversity": 0.0, "diversity_kept": 1.0})
    pick = run.sweep.pick.model_copy(update={"metrics": one_seed})
    sweep = run.sweep.model_copy(update={"cells": (run.sweep.cells[0], one_seed), "pick": pick})
    assert "(pick: not measured)" in sections.towards_full_strength(sweep)
    assert "<td>not measured</td>" in sections.cell_table(sweep).split("<tr")[3]
    shown = {label: values[0] for label, values in compare.results([run.model_copy(update={"sweep": sweep})])}
    assert shown["variety kept"] == "not measured"


def test_base_pick_and_full_strength_stand_side_by_side_each_with_its_own_pictures(run: RunRecord) -> None:
    table = sections._side_by_side(named(run), PICTURES)
    heads = re.findall(r"<th style[^>]*>(.*?)</th>", table)
    assert heads == ["base model", "pick: strength 0.6, step 200", "strength 1, step 300"]
    rows = [re.findall(r"\[(.*?)\]", row) for row in table.split("<tr>")[2:]]
    assert rows == [[f"0/0/{prompt}/42", f"200/0.6/{prompt}/42", f"300/1/{prompt}/42"] for prompt in range(3)]


def test_each_view_stands_beside_its_own_caption(run: RunRecord) -> None:
    found = sections.sheet_and_views(run, PICTURES)
    views = re.findall(r"\[(\w+)\.png\]<figcaption>(\w+), 96×192</figcaption>.*?zorgax, orc, (\w+) view", found)
    assert views == [("front", "front", "front"), ("side", "side", "side"), ("back", "back", "back")]


def test_each_file_and_run_is_named_by_its_own_identifier(run: RunRecord) -> None:
    training = run.training.model_copy(update={"mlflow_run_id": "training"})
    sweep = run.sweep.model_copy(update={"mlflow_run_id": "sweep"})
    found = sections.appendix(
        run.model_copy(update={"training": training, "sweep": sweep, "prefect_flow_run_id": "flow"})
    )
    listed = dict(re.findall(r"^(?:.*<code>)?([\w() ]+): ([\w-]+)", found[found.index("Identifiers") :], re.M))
    assert listed == {
        "dataset": run.dataset.digest,
        "adapter as trained (sha256)": run.sweep.adapter.sha256,
        "recommended adapter (sha256)": run.sweep.recommended_adapter.sha256,
        "MLflow run": "run",
        "MLflow training run": "training",
        "MLflow sweep run": "sweep",
        "Prefect flow run": "flow",
    }


def test_loss_charts_draw_the_columns_they_name(run: RunRecord, store: Store, monkeypatch: pytest.MonkeyPatch) -> None:
    drawn: list[dict[str, list[tuple[float, float]]]] = []
    monkeypatch.setattr(
        parts, "line_chart", lambda canvas, lines, **_: drawn.append({line.label: line.points for line in lines})
    )
    curve = store.put(b"step,loss,smoothed,learning_rate\n1,0.5,0.4,0.001\n2,0.3,0.2,0.002\n", "loss.csv")
    training = run.training.model_copy(update={"curve": curve})
    parts.loss_charts(training, store)
    assert drawn == [
        {"each step": [(1, 0.5), (2, 0.3)], "smoothed": [(1, 0.4), (2, 0.2)]},
        {"learning rate": [(1, 0.001), (2, 0.002)]},
    ]
    assert "smoothed loss at the end 0.080" in sections.training(run, store)
    assert "300 steps on 3 views" in sections.training(run, store)


def test_validation_charts_draw_each_view_from_the_base_model_on(
    run: RunRecord, monkeypatch: pytest.MonkeyPatch
) -> None:
    drawn: list[list[tuple[str, bool, list[tuple[float, float]]]]] = []
    monkeypatch.setattr(
        parts,
        "line_chart",
        lambda canvas, lines, **_: drawn.append([(line.label, line.dashed, line.points) for line in lines]),
    )
    point = LossPoint(step=50, loss=9, by_view={"front": 0.1, "side": 0.2}, by_third={"low": 0.3, "high": 0.5})
    base = LossPoint(step=0, loss=9, by_view={"front": 0.6, "side": 0.7}, by_third={"low": 0.8, "high": 0.9})
    parts.validation_charts(run.training.model_copy(update={"validation": (point,), "base_validation": base}))
    assert drawn == [
        [
            ("", True, [(0, 0.6), (50, 0.6)]),
            ("front", False, [(0, 0.6), (50, 0.1)]),
            ("", True, [(0, 0.7), (50, 0.7)]),
            ("side", False, [(0, 0.7), (50, 0.2)]),
        ],
        [
            ("", True, [(0, 0.8), (50, 0.8)]),
            ("low", False, [(0, 0.8), (50, 0.3)]),
            ("", True, [(0, 0.9), (50, 0.9)]),
            ("high", False, [(0, 0.9), (50, 0.5)]),
        ],
    ]


def test_a_comparison_reads_each_number_from_its_own_place(run: RunRecord) -> None:
    assert compare.comparison([run])[0] == {
        "name": "Zorga",
        "profile": "embedded",
        "steps": 300,
        "final_loss": 0.08,
        "pick_step": 200,
        "pick_strength": 0.6,
        "identity": 0.21,
        "identity_rise": 0.1,
        "adherence": 0.22,
        "diversity": 0.23,
        "copying": 0.24,
    }
    shown = {label: values[0] for label, values in compare.results([run])}
    assert shown == {
        "picked checkpoint": "step 200",
        "picked strength": "0.6",
        "identity at strength 0": "0.110",
        "identity of the pick": "0.210",
        "likeness gained": "0.26",
        "adherence of the pick": "0.220",
        "adherence kept": "27%",
        "variety kept": "28%",
        "score": "0.250",
        "adherence kept, last checkpoint at full strength": "37%",
        "training loss, smoothed": "0.0800",
        "validation loss": "0.0268",
        "training time": "1 min 32 s",
        "whole run": "3 min 26 s",
    }
