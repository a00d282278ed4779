"""The views that MLflow's page of the experiment opens with: charts that need no set-up, kept as tags of the experiment.

The form is that of MLflow 3.17's own "Save view": an envelope of JSON whose state is deflated JSON in base64.
"""

from __future__ import annotations

import base64
import json
import zlib
from collections.abc import Mapping
from typing import Any
from urllib.parse import quote

INHERITED = ("character", "trigger", "profile")  # tags that a child has of its parent: a search finds both
NOTE_TAG = "mlflow.note.content"  # what MLflow shows as the description, which its page can change
KIND_TAG = "charengine.kind"  # of a run: character, train, sweep or cell; cells are filtered by it
KIND = {"mlflow.experimentKind": "custom_model_development"}  # MLflow's page opens on training runs, not on chat traces
SHARED_VIEW = "mlflow.sharedViewState."
STRENGTH, LOSSES = "charengine-strength", "charengine-losses"
MADE = 1_764_374_400_000  # milliseconds; a fixed time, so that the same view is the same tag
MOST_RUNS = 100  # in one chart


def inherited(tags: Mapping[str, str]) -> dict[str, str]:
    """The tags of a run that its children have too."""
    return {name: tags[name] for name in INHERITED if name in tags}


def child_name(name: str, above: str, is_deeper: bool) -> str:
    """What a child run is called: "Grisha train"; of a sweep's children "300 × 0.6 Grisha sweep", for MLflow cuts long names at their end."""
    return f"{name} {above}" if is_deeper else f"{above} {name}"


def view_tags() -> dict[str, str]:
    """The experiment's tags, one a view."""
    return {
        f"{SHARED_VIEW}{STRENGTH}": _envelope("Strength against identity and adherence", strength_view()),
        f"{SHARED_VIEW}{LOSSES}": _envelope("Training losses", losses_view()),
    }


def views_to_seed(there: Mapping[str, str]) -> dict[str, str]:
    """The views that an experiment with these tags lacks, or has as an earlier version made them; one that the user changed stays."""
    wanted = view_tags().items()
    return {name: value for name, value in wanted if there.get(name) != value and _is_as_made(there.get(name))}


def _is_as_made(view: str | None) -> bool:
    try:
        return view is None or json.loads(view)["updatedAt"] == MADE
    except (ValueError, KeyError, TypeError):
        return False


def view_page(experiment_id: str, view: str = STRENGTH) -> str:
    """The page, below MLflow's address, that opens with a view: runs as charts."""
    return f"{runs_page(experiment_id)}&compareRunsMode=CHART&viewStateShareKey={view}"


def losses_page(experiment_id: str) -> str:
    """The page, below MLflow's address, that opens with the loss curves of all trainings."""
    return view_page(experiment_id, LOSSES)


def run_page(experiment_id: str, run_id: str) -> str:
    """A run's own page; without the workflow MLflow shows it among evaluations of chats, with no way back to the runs."""
    return f"/#/experiments/{experiment_id}/runs/{run_id}?workflowType=machine_learning"


def compare_page(experiment_id: str, run_ids: list[str]) -> str:
    """The page that puts runs side by side."""
    return f"/#/compare-runs?runs={quote(json.dumps(run_ids))}&experiments={quote(json.dumps([experiment_id]))}"


def runs_page(experiment_id: str) -> str:
    """The page of the experiment's runs; without the workflow MLflow opens the one for chat traces."""
    return f"/#/experiments/{experiment_id}/runs?workflowType=machine_learning"


def strength_view() -> dict[str, Any]:
    """All cells of all sweeps side by side, the strength on the horizontal axis, and their pictures."""
    section = "charengine-cells"
    charts = [
        *(_scatter(f"charengine-{name}", section, "strength", name) for name in ("identity", "adherence", "score")),
        _scatter("charengine-trade-off", section, "adherence", "identity"),
        _chart("charengine-pictures", "IMAGE", section, imageKeys=["cell"], step=0, showRunParams=True),
    ]
    # ordered by a number, cells stand in one flat list; by time, MLflow folds them below their sweep
    return _state("cell", "metrics.`strength`", section, "Cells", charts)


def losses_view() -> dict[str, Any]:
    """The loss curves of all trainings, the settings in which they differ, and the samples over their steps."""
    section = "charengine-training"
    names = ("train/smoothed_loss", "validation/loss", "train/loss", "train/lesson_loss")
    charts = [
        *(_line(f"charengine-{name.replace('/', '-')}", section, name) for name in names),
        _differences("charengine-settings", section, "settings"),
        _chart("charengine-samples", "IMAGE", section, imageKeys=["samples"], step=0, showRunParams=False),
    ]
    return _state("train", "metrics.`train/smoothed_loss`", section, "Training", charts)


def _state(kind: str, order: str, section: str, title: str, charts: list[dict[str, Any]]) -> dict[str, Any]:
    return {
        "searchFilter": f"tags.`{KIND_TAG}` = '{kind}'",
        "orderByKey": order,
        "orderByAsc": True,
        "runsHiddenMode": "SHOW_ALL",
        "hideEmptyCharts": False,
        "isAccordionReordered": True,  # else MLflow sorts its own sections, one a kind of metric, before this one
        "compareRunCharts": charts,
        "compareRunSections": [
            {
                "uuid": section,
                "name": title,
                "display": True,
                "isReordered": False,
                "deleted": False,
                "isGenerated": False,
                "columns": 2,  # of three, MLflow cuts the charts' names after four letters
            }
        ],
    }


def _chart(name: str, kind: str, section: str, **more: Any) -> dict[str, Any]:
    shared = {"uuid": name, "type": kind, "metricSectionId": section, "deleted": False, "isGenerated": False}
    return {**shared, "runsCountToCompare": MOST_RUNS, **more}


def _scatter(name: str, section: str, across: str, up: str) -> dict[str, Any]:
    axes = {"xaxis": {"key": across, "type": "METRIC"}, "yaxis": {"key": up, "type": "METRIC"}}
    return _chart(name, "SCATTER", section, displayName=f"{up} over {across}", **axes)


def _differences(name: str, section: str, title: str) -> dict[str, Any]:
    """A table of the parameters that are not the same in all runs."""
    shown = {"compareGroups": ["Parameters"], "showDifferencesOnly": True, "showChangeFromBaseline": False}
    return _chart(name, "DIFFERENCE", section, chartName=title, baselineColumnUuid="", **shown)


def _line(name: str, section: str, metric: str) -> dict[str, Any]:
    return _chart(
        name,
        "LINE",
        section,
        displayName=metric,
        metricKey=metric,
        selectedMetricKeys=[metric],
        xAxisKey="step",
        lineSmoothness=0,
        scaleType="linear",
        xAxisScaleType="linear",
        range={},
        yAxisKey="metric",
        yAxisExpressions=[],
        useGlobalXaxisKey=True,
        useGlobalLineSmoothing=True,
    )


def _envelope(name: str, state: dict[str, Any]) -> str:
    packed = base64.b64encode(zlib.compress(json.dumps(state).encode())).decode()
    return json.dumps({"name": name, "createdAt": MADE, "updatedAt": MADE, "state": f"deflate;{packed}"})
