"""Settings with which a whole run takes seconds."""

from __future__ import annotations

from typing import Any

import yaml

# the whole pipeline in seconds: nothing it draws means anything, everything it does is real
QUICK = (
    "train.steps=6",
    "train.checkpoints=2",
    "train.save_state_every=2",
    "train.validate_every=0",
    "train.distill=1",
    "train.distill_size=64",
    "sweep.seeds=1",
    "sweep.checkpoints=1",
    "sweep.strengths=[0.5, 1.0]",
    "sweep.prompts=['{subject} on a beach']",
    "sweep.width=128",
    "sweep.height=128",
    "sweep.steps=1",
)


def by_section(settings: tuple[str, ...]) -> dict[str, dict[str, Any]]:
    """`section.key=value` as the dicts that Python takes."""
    found: dict[str, dict[str, Any]] = {}
    for setting in settings:
        place, _, value = setting.partition("=")
        section, _, key = place.partition(".")
        found.setdefault(section, {})[key] = yaml.safe_load(value)
    return found
