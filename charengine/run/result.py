"""What a whole run was: its record, and where its files lie."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from charengine.records import (
    AdapterRecord,
    DatasetRecord,
    ExpansionRecord,
    RunRecord,
    RunResult,
    SheetRecord,
    SweepRecord,
)
from charengine.run.workspace import Workspace


@dataclass(frozen=True)
class Written:
    """Files of a run's folder that its result names."""

    sheet: Path
    views: list[Path]
    captions: list[Path]
    adapter: Path
    recommended_adapter: Path
    report: Path


def run_record(
    workspace: Workspace,
    sheet: SheetRecord,
    expansion: ExpansionRecord | None,
    dataset: DatasetRecord,
    training: AdapterRecord,
    sweep: SweepRecord,
    *,
    flow_run_id: str | None = None,
) -> RunRecord:
    """The record of the run that made these, with every warning once.

    Args:
        workspace: whose run it was.
        sheet: and the other stages' records.
        expansion: None when no more views were asked for.
        dataset: with what the user edited.
        training: on this dataset.
        sweep: of this training.
        flow_run_id: Prefect's, when it was a flow.
    """
    records = (sheet, dataset.views, expansion, dataset, training, sweep)
    warnings = [warning for record in records if record for warning in record.warnings]
    return RunRecord(
        name=workspace.character.name,
        prompt=workspace.character.prompt,
        trigger=dataset.trigger,
        class_noun=dataset.class_noun,
        seed=workspace.character.seed,
        profile=workspace.profile.name,
        config=workspace.config,
        sheet=sheet,
        expansion=expansion,
        dataset=dataset,
        training=training,
        sweep=sweep,
        stages=tuple(workspace.facts),
        mlflow_run_id=workspace.tracker.run_id,
        prefect_flow_run_id=flow_run_id,
        warnings=tuple(dict.fromkeys(warnings)),
    )


def run_result(run: RunRecord, written: Written) -> RunResult:
    """What the flow, the command's `--json` and Python say about a run."""
    return RunResult(
        name=run.name,
        trigger=run.trigger,
        recommended_prompt=run.recommended_prompt,
        traits=run.sweep.words.shares if run.sweep.words else {},
        sheet=written.sheet,
        views=tuple(written.views),
        captions=tuple(written.captions),
        adapter=written.adapter,
        recommended_adapter=written.recommended_adapter,
        checkpoint_step=run.sweep.pick.checkpoint_step,
        strength=run.sweep.pick.strength,
        report=written.report,
        mlflow_run_id=run.mlflow_run_id,
        prefect_flow_run_id=run.prefect_flow_run_id,
        cached_stages=tuple(fact.stage for fact in run.stages if fact.cached),
        warnings=run.warnings,
        seconds={fact.stage: round(fact.seconds, 3) for fact in run.stages},
    )
