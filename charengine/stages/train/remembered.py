"""The plan that fitted last time on the same card, for the same work.

Trying plans takes seconds, for every character of a cast anew. What fitted is remembered by everything that memory depends on;
it is only a first try: where it does not fit today, all plans are tried as if nothing were known.
"""

from __future__ import annotations

import hashlib
import json
import logging
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import torch

from charengine.config import TrainSettings
from charengine.machine.memories import recall, remember
from charengine.stages.train.plan import RESERVE_GIB, Plan

log = logging.getLogger(__name__)

PLANS = 200  # remembered at most
WITHOUT_MEMORY = {  # settings that no byte of the GPU depends on
    "caption_dropout", "checkpoints", "continue_from", "distill", "distill_emphasis", "early_stop", "flips", "learning_rate",
    "min_snr_gamma", "regularisation", "regularisation_weight", "sample_every", "save_state_every", "schedule", "steps",
    "validate_every", "warmup", "weight_decay",
}  # fmt: skip


@dataclass(frozen=True)
class PlanMemory:
    """Plans by what they fitted.

    Args:
        path: of the file; None: nothing is remembered.
        key: of this card and this work (`plan_key`).
    """

    path: Path | None
    key: str

    def find(self, possible: Sequence[Plan]) -> Plan | None:
        """What fitted last time, if it is still among the possible."""
        known = recall(self.path).get(self.key) if self.path else None
        if not isinstance(known, dict) or known.keys() != {field.name for field in fields(Plan)}:
            return None
        plan = replace(Plan(**known), peak_gib=0.0)
        return plan if plan in possible else None

    def keep(self, plan: Plan, device: torch.device) -> None:
        """Remember what fitted, unless others hold so much of the card that more might fit another time."""
        if self.path is None or device.type != "cuda":
            return
        free = torch.cuda.mem_get_info(device)[0] + torch.cuda.memory_reserved(device)
        if free / 2**30 < plan.budget_gib - RESERVE_GIB:
            return
        known = {key: value for key, value in recall(self.path).items() if key != self.key}
        kept = dict(list(known.items())[-PLANS + 1 :]) | {self.key: plan.facts()}
        remember(self.path, kept)


def plan_key(settings: TrainSettings, shapes: Any, model: dict[str, Any], device: torch.device) -> str:
    """What the memory of a training depends on: card, versions, settings, model and the shapes of its steps."""
    card: list[Any] = [device.type]
    if device.type == "cuda":
        properties = torch.cuda.get_device_properties(device)
        card += [properties.name, properties.total_memory, torch.version.cuda]
    values = {name: value for name, value in settings.model_dump(mode="json").items() if name not in WITHOUT_MEMORY}
    body = [card, torch.__version__, values, model, shapes]
    return hashlib.sha256(json.dumps(body, sort_keys=True).encode()).hexdigest()
