"""Prefect's page shows each number under its own name."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from run_samples import sample_extra, sample_run, told_apart, with_words

from charengine.config import Profile
from charengine.records import ExpansionRecord, RunRecord
from charengine.store import Store
from tasks import artifacts
from tasks.summary import summary
from tasks.sweep import register_pick


@pytest.fixture
def run(tmp_path: Path) -> RunRecord:
    return told_apart(sample_run(Store(tmp_path)))


@pytest.fixture
def shown(monkeypatch: pytest.MonkeyPatch) -> dict[str, Any]:
    """Rows of the tables that are made, by key."""
    found: dict[str, Any] = {}
    monkeypatch.setattr(artifacts, "create_table_artifact", lambda table, key, **_: found.update({key: table}))
    monkeypatch.setattr(artifacts, "show_picture", lambda workspace, name, ref: found.update({name: ref}))
    return found


@pytest.fixture
def workspace() -> Any:
    files: dict[str, bytes] = {}
    return SimpleNamespace(
        slug="zorga", files=files, tracker=SimpleNamespace(log_bytes=lambda data, name: files.update({name: data}))
    )


def test_the_summary_has_the_base_model_the_pick_and_full_strength_each_with_its_own_numbers(run: RunRecord) -> None:
    lines = summary(run).splitlines()
    assert lines[0] == "# Zorga"
    [use] = [line for line in lines if line.startswith("Trigger **zorgax** (orc).")]
    assert (
        "at strength **1**: it is the pick, step 200 at strength 0.6" in use
    )  # the file that the page hands out is rescaled
    assert lines[lines.index("| | identity | adherence | diversity | copying |") + 2 :][:3] == [
        "| without the adapter | 0.110 | 0.120 | 0.130 | 0.140 |",
        "| the pick | 0.210 | 0.220 | 0.230 | 0.240 |",
        "| last checkpoint, strength 1 | 0.310 | 0.320 | 0.330 | 0.340 |",
    ]
    assert "- it keeps both" in lines
    assert "- Warning: the word 'cutlass' is unknown to the embedded family" in lines


def test_the_summary_says_how_to_prompt_and_how_often_the_trigger_alone_shows_each_trait(tmp_path: Path) -> None:
    store = Store(tmp_path)
    lines = summary(with_words(sample_run(store), store)).splitlines()
    assert "Begin a prompt with **zorgax orc, black boots, hook for a right hand**." in lines
    table = lines[lines.index("| trait | shown in 12 pictures by the trigger alone |") + 2 :][:3]
    assert table == ["| blue coat | 100% |", "| black boots | 0% |", "| hook for a right hand | 33% |"]


def test_the_sweeps_table_has_every_cell_with_its_own_numbers(run: RunRecord, shown: dict, workspace: Any) -> None:
    artifacts.show_sweep(workspace, run.sweep)
    assert shown["zorga-sweep"][1] == {
        "step": 200,
        "strength": 0.6,
        "identity": 0.21,
        "adherence": 0.22,
        "diversity": 0.23,
        "copying": 0.24,
        "score": 0.25,
    }
    assert len(shown["zorga-sweep"]) == 3
    assert (shown["contact-sheet"], shown["trade-off"]) == (run.sweep.contact_sheet, run.sweep.plot)


def test_the_checkpoints_table_has_training_and_validation_loss_apart(
    run: RunRecord, shown: dict, workspace: Any
) -> None:
    points = tuple(
        point.model_copy(update={"validation_loss": 0.5 + point.step / 1000}) for point in run.training.checkpoints
    )
    artifacts.show_training(workspace, run.training.model_copy(update={"checkpoints": points}))
    assert shown["zorga-checkpoints"] == [
        {"step": 100, "loss": 0.16, "validation loss": 0.6},
        {"step": 200, "loss": 0.12, "validation loss": 0.7},
        {"step": 300, "loss": 0.08, "validation loss": 0.8},
    ]


def test_the_captions_are_a_table_and_a_file_view_by_view(run: RunRecord, shown: dict, workspace: Any) -> None:
    artifacts.show_captions(workspace, run.dataset)
    assert shown["zorga-captions"][1] == {
        "view": "side",
        "caption": "zorgax, orc, side view, full body",
        "bound to the trigger": "blue coat, green skin",
    }
    assert workspace.files == {
        "captions.txt": b"front: zorgax, orc, front view, full body\n"
        b"side: zorgax, orc, side view, full body\n"
        b"back: zorgax, orc, back view, full body\n"
    }


def test_more_views_are_a_table_with_identity_and_threshold_apart(run: RunRecord, shown: dict, workspace: Any) -> None:
    extra = sample_extra(run.sheet.image)
    kept = extra.model_copy(update={"view": "pose-2", "fate": "trained", "image": run.views.views[0].image})
    artifacts.show_expansion(workspace, ExpansionRecord(views=(extra, kept)))
    assert shown["zorga-more-views"][0] == {
        "view": "pose-1",
        "seed": 9,
        "identity": 0.612,
        "at least": 0.7,
        "fate": "refused",
    }
    assert [row["fate"] for row in shown["zorga-more-views"]] == ["refused", "trained"]
    assert "pose-1" not in shown and shown["pose-2"] == kept.image


def test_the_pick_is_registered_with_its_own_numbers_and_its_own_file(tmp_path: Path) -> None:
    store = Store(tmp_path)
    run = told_apart(sample_run(store))
    told: list[Any] = []

    def register(*given: Any, **more: Any) -> None:
        told.append((given, more))

    workspace: Any = SimpleNamespace(
        slug="zorga",
        store=store,
        character=SimpleNamespace(name="Zorga", prompt="an orc"),
        profile=Profile(name="sample"),
        tracker=SimpleNamespace(register_pick=register),
    )
    register_pick(workspace, run.sweep, run.dataset)
    [((name, data, step, strength, metrics), more)] = told
    assert (name, data) == ("character-zorga", store.get(run.sweep.recommended_adapter))
    assert (step, strength) == (200, 0.6)
    picked = run.sweep.pick.metrics
    assert metrics == {"identity": picked.identity, "adherence": picked.adherence, "score": picked.score}
    assert len(set(metrics.values())) == 3 and metrics["score"] != run.sweep.pick.baseline.score
    assert (more["facts"]["character"], more["facts"]["prompt"]) == ("Zorga", "an orc")
