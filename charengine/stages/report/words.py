"""The top of the report: the character in four scenes beside the base model told the same words, and what must be said."""

from __future__ import annotations

from charengine.records import Ref, RunRecord, Words
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
    rows = _row(words, words.drawn, "with the adapter", pictures) + _row(words, words.base, "without", pictures)
    return section(
        "What it draws",
        lead,
        f'<div class="mosaic" style="grid-template-columns:repeat(4,1fr)">{rows}</div>',
        _numbers(words),
        _table(words, subject),
    )


def _row(words: Words, refs: tuple[Ref, ...], how: str, pictures: Pictures) -> str:
    scene = [template.replace("{subject}, ", "") for template in words.scenes]
    return "".join(
        figure(pictures.image(ref, f"{how}: {told}", width=SCENE_WIDTH), f"{how}: {text(told)}")
        for ref, told in zip(refs, scene, strict=True)
    )


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
    return f"<h3>Trait by trait</h3><p>{lead}</p><table><tr><th>trait</th><th>shown</th><th></th></tr>{rows}</table>"
