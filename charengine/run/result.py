"""What a whole run was: its record, and where its files lie."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from charengine.records import (
    AdapterRecord,
    DatasetRecord,
    ExpansionRecord,
    RunRecord,
    RunResult,
    SheetRecord,
    StageFact,
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
) -> RunRecord:
    """The record of the run that made these, with every warning once.

    Args:
        workspace: whose run it was.
        sheet: and the other stages' records.
        expansion: None when no more views were asked for.
        dataset: with what the user edited.
        training: on this dataset.
        sweep: of this training.
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
        warnings=tuple(dict.fromkeys(warnings)),
    )


def seconds_of(facts: Sequence[StageFact]) -> dict[str, float]:
    """Seconds by stage, in the order of the stages; one that was made several times (a training tried again) has their sum."""
    return {
        stage: sum(fact.seconds for fact in facts if fact.stage == stage)
        for stage in dict.fromkeys(fact.stage for fact in facts)
    }


def run_result(run: RunRecord, written: Written) -> RunResult:
    """What the flow, the command's `--json` and Python say about a run."""
    made = {fact.stage for fact in run.stages if not fact.cached}
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
        cached_stages=tuple(stage for stage in seconds_of(run.stages) if stage not in made),
        warnings=run.warnings,
        seconds={stage: round(seconds, 3) for stage, seconds in seconds_of(run.stages).items()},
    )
