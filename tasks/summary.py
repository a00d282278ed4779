"""A finished run in Markdown, as the character's page in Prefect shows it."""

from __future__ import annotations

from charengine.records import RunRecord, Words
from charengine.stages.report.cast import as_text


def summary(run: RunRecord) -> str:
    """The run in Markdown, with the same numbers as the report."""
    pick = run.sweep.pick
    lines = [
        f"# {as_text(run.name)}",
        f"> {as_text(run.prompt)}",
        "",
        f"Begin a prompt with **{as_text(run.recommended_prompt)}**.",
        "",
        f"Trigger **{run.trigger}** ({as_text(run.class_noun)}). Load the recommended file at strength **1**: "
        f"it is the pick, step {pick.checkpoint_step} at strength {pick.strength:g} of the adapter as trained.",
        "",
        *(f"- {as_text(reason)}" for reason in pick.reasons),
        *([f"- **{as_text(run.sweep.verdict.line)}**"] if run.sweep.verdict else []),
        "",
        "| | identity | adherence | diversity | copying |",
        "| --- | --- | --- | --- | --- |",
        *(
            f"| {label} | {cell.identity:.3f} | {cell.adherence:.3f} | {cell.diversity:.3f} | {cell.copying:.3f} |"
            for label, cell in (
                ("without the adapter", pick.baseline),
                ("the pick", pick.metrics),
                ("last checkpoint, strength 1", pick.overbaked),
            )
        ),
        "",
        *_traits(run.sweep.words),
        *(f"- Warning: {as_text(warning)}" for warning in run.warnings),
    ]
    return "\n".join(lines)


def _traits(words: Words | None) -> list[str]:
    """How often the trigger alone shows each trait, as a table; nothing when there are none."""
    if words is None or not words.shares:
        return []
    rows = [f"| {as_text(trait)} | {share:.0%} |" for trait, share in words.shares.items()]
    return [f"| trait | shown in {words.pictures} pictures by the trigger alone |", "| --- | --- |", *rows, ""]
