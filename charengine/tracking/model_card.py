"""What a logged model says about itself, in MLflow's description and beside the file."""

from __future__ import annotations

from collections.abc import Mapping

LABELS = {
    "character": "Character",
    "prompt": "Made from",
    "trigger": "Trigger",
    "recommended_prompt": "Say in a prompt",
    "checkpoint_step": "Checkpoint, steps",
    "recommended_strength": "Strength to load this file at",
    "picked_strength": "Strength that was picked for the adapter as trained",
    "dataset": "Data set",
    "base_model": "Base model",
}


def model_card(facts: Mapping[str, str]) -> str:
    """The facts as a list in Markdown; what is not known is left out.

    A checkpoint has no recommended strength: that is the sweep's to find.
    """
    lines = [f"- {label}: {_plain(facts[name])}" for name, label in LABELS.items() if facts.get(name)]
    if "recommended_strength" not in facts:
        lines.append("- Strength: the sweep tries several; the registered pick says the one to use")
    return "\n".join(lines)


def _plain(text: str) -> str:
    return " ".join(text.split())


def is_better(champion: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether the registered champion beats another pick of the same character; one of another prompt or trigger never does."""
    same = all(champion.get(name) == other.get(name) for name in ("prompt", "trigger"))
    return same and "score" in champion and "score" in other and float(champion["score"]) > float(other["score"])
