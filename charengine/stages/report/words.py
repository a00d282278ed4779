"""The top of the report: the character in four scenes beside the base model told the same words, and what must be said."""

from __future__ import annotations

from charengine.records import CellMetrics, Ref, RunRecord, Words
from charengine.stages.report.cells import how_drawn
from charengine.stages.report.parts import Pictures, figure, number, section, text

SCENE_WIDTH = 420  # pixels of a scene in the page


def scenes(run: RunRecord, pictures: Pictures) -> str:
    """Four scenes by the pick and by the base model, the prompt that both were told, and each trait's share; nothing for a run
    of an earlier version."""
    words = run.sweep.words
    if words is None:
        return ""
    subject = f"{run.trigger} {run.class_noun}"
    lead = (
        f"Begin a prompt with <code>{text(words.recommended_prompt)}</code>. Above, what the recommended adapter draws of it; "
        "below, the same words, scenes and noise without an adapter."
    )
    pick, without_trigger = run.sweep.pick, words.recommended_prompt.removeprefix(f"{run.trigger} ")
    rows = _row(run, words.drawn, "with the adapter", words.recommended_prompt, pick.metrics, pictures)
    rows += _row(run, words.base, "without", without_trigger, pick.baseline, pictures)
    return section("What it draws", lead, f'<div class="scenes">{rows}</div>', _numbers(words), _table(words, subject))


def _row(run: RunRecord, refs: tuple[Ref, ...], how: str, subject: str, cell: CellMetrics, pictures: Pictures) -> str:
    shown = []
    for ref, template in zip(refs, run.sweep.words.scenes if run.sweep.words else (), strict=True):
        scene = template.replace("{subject}, ", "")
        told = how_drawn(run, template.replace("{subject}", subject), cell, run.sweep.seeds[0])
        shown.append(
            figure(pictures.image(ref, f"{how}: {scene}", width=SCENE_WIDTH, about=told), f"{how}: {text(scene)}")
        )
    return "".join(shown)


def _numbers(words: Words) -> str:
    found = [
        (words.shown, "of the traits are seen in the four scenes with the adapter"),
        (words.base_shown, "in those of the base model told the same"),
    ]
    shown = "".join(number(f"{share:.0%}", label, share) for share, label in found if share is not None)
    return f'<div class="numbers">{shown}</div>' if shown else ""


def _table(words: Words, subject: str) -> str:
    """A bar a trait; those to be said are marked."""
    if not words.shares:
        return ""
    rows = "".join(
        f"<tr><td>{text(trait)}</td><td>{share:.0%}</td><td>{'say it' if trait in words.said else ''}</td></tr>"
        for trait, share in sorted(words.shares.items(), key=lambda item: item[1])
    )
    lead = (
        f"What <code>{text(subject)}</code> alone brings: the share of {words.pictures} pictures at the pick that show a trait, "
        "of those in which it can be seen. What is shown too rarely is part of the recommended prompt."
    )
    return f"<h3>Trait by trait</h3><p>{lead}</p><table><tr><th>trait</th><th>shown</th><td></td></tr>{rows}</table>"
