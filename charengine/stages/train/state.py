"""Exact resume: everything training needs to go on bit for bit, in one safetensors file, replaced atomically."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from charengine.files import json_in
from charengine.host_memory import HostCopies
from charengine.machine.places import full_disk
from charengine.records import CheckpointRecord, LossPoint
from charengine.stages.train.machines import Machine
from charengine.store import Store

log = logging.getLogger(__name__)

FORMAT = 1
FILE = "state.safetensors"
LOOK_EVERY = 15.0  # seconds between looks whether the disk is full


@dataclass
class History:
    """What has happened so far; grows by one row a step."""

    step: int = 0
    losses: list[float] = field(default_factory=list)
    smoothed: list[float] = field(default_factory=list)
    rates: list[float] = field(default_factory=list)
    validation: list[LossPoint] = field(default_factory=list)
    base: LossPoint | None = None
    checkpoints: list[CheckpointRecord] = field(default_factory=list)
    seconds: float = 0.0
    plan: dict[str, Any] = field(default_factory=dict)
    machines: list[Machine] = field(default_factory=list)
    start: str = ""  # digest of the adapter before the first step, where its file alone does not tell whether it moved


class StateWriter:
    """Writes states while training goes on; a reader sees the old file or the new one, never half of it.

    Args:
        folder: of this training, made if missing.
        key: what the state belongs to (settings, dataset, seed, model); another key's state is never taken up.
        store: that gets a copy when it lies elsewhere, for other machines.
    """

    def __init__(self, folder: Path, key: str, store: Store) -> None:
        self.folder, self.key, self.store = folder, key, store
        self.thread = ThreadPoolExecutor(1, "training-state")
        self.pending: Future[None] | None = None
        self.copies: HostCopies | None = None  # what `pending` writes
        self.looked = time.monotonic()

    def is_out_of_room(self) -> bool:
        """Whether the disk is full, asked for now and then: a state that is tried at once says so now, and not after hours of steps in vain."""
        if time.monotonic() - self.looked < LOOK_EVERY:
            return False
        self.looked = time.monotonic()
        return bool(full_disk(self.folder))

    def save(self, history: History, tensors: dict[str, Tensor]) -> None:
        """Take a copy of the step just finished and write it in the background.

        Nothing is done while the state before is still being written: a slow disk costs states, never time on the device.
        """
        if self.pending and not self.pending.done():
            return
        self.wait()
        facts = {
            "format": FORMAT,
            "key": self.key,
            "step": history.step,
            "seconds": history.seconds,
            "plan": history.plan,
            "machines": history.machines,
            "start": history.start,
            "base": history.base.model_dump(mode="json") if history.base else None,
            "validation": [point.model_dump(mode="json") for point in history.validation],
            "checkpoints": [record.model_dump(mode="json") for record in history.checkpoints],
        }
        curve = torch.tensor([history.losses, history.smoothed, history.rates], dtype=torch.float64)
        copies = dict(zip(tensors, self._copied([tensor.detach() for tensor in tensors.values()]), strict=True))
        self.pending = self.thread.submit(self._write, {"curve": curve, **copies}, {"facts": json.dumps(facts)})

    def _copied(self, tensors: Sequence[Tensor]) -> list[Tensor]:
        """In host memory that is taken and locked once: a gigabyte of new memory costs a third of a second at every state."""
        if self.copies is None or not self.copies.fits(tensors):
            self.copies = HostCopies(tensors)
        else:
            self.copies.copy(tensors)
        return self.copies.copies

    def _write(self, tensors: dict[str, Tensor], metadata: dict[str, str]) -> None:
        from safetensors.torch import save

        self.store.write_state(self.folder, FILE, save(tensors, metadata))

    def wait(self) -> None:
        """Until the last state is on disk.

        Raises:
            BadInput: it could not be written.
        """
        if self.pending:
            self.pending.result()
            self.pending = None

    def close(self) -> None:
        """Finish writing, whatever happens to the training."""
        self.thread.shutdown(wait=True)


def load_state(folder: Path, key: str) -> tuple[History, dict[str, Tensor]] | None:
    """The saved state if there is one for this key; None to start afresh."""
    from safetensors import SafetensorError, safe_open

    path = folder / FILE
    if not path.is_file():
        return None
    try:
        with safe_open(path, "pt") as file:
            facts = _facts(file)
            tensors = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118 (not a dict)
    except (SafetensorError, OSError, ValueError) as error:
        log.warning("the saved state %s cannot be read (%s); training starts from the beginning", path, error)
        return None
    if facts.get("format") != FORMAT or facts.get("key") != key:
        log.warning("the saved state %s belongs to other settings or data; training starts from the beginning", path)
        return None
    try:
        return _history(facts, tensors.pop("curve")), tensors
    except (KeyError, TypeError, ValueError) as error:
        log.warning("the saved state %s is damaged (%s); training starts from the beginning", path, error)
        return None


def _history(facts: dict[str, Any], curve: Tensor) -> History:
    losses, smoothed, rates = curve.tolist()
    return History(
        step=facts["step"],
        losses=losses,
        smoothed=smoothed,
        rates=rates,
        validation=[LossPoint.model_validate(point) for point in facts["validation"]],
        base=LossPoint.model_validate(facts["base"]) if facts["base"] else None,
        checkpoints=[CheckpointRecord.model_validate(record) for record in facts["checkpoints"]],
        seconds=facts["seconds"],
        plan=facts["plan"],
        machines=facts.get("machines", []),
        start=facts.get("start", ""),
    )


def _facts(file: Any) -> dict[str, Any]:
    """What a state's metadata says; nothing where that is damaged."""
    facts = json_in((file.metadata() or {}).get("facts", "{}"))
    return facts if isinstance(facts, dict) else {}


def saved_machines(folder: Path, key: str) -> list[Machine]:
    """Where the saved training of this key ran so far; empty when there is none. No tensor is read."""
    from safetensors import SafetensorError, safe_open

    if not (folder / FILE).is_file():
        return []
    try:
        with safe_open(folder / FILE, "pt") as file:
            facts = _facts(file)
    except (SafetensorError, OSError):  # `load_state` says so
        return []
    same = facts.get("format") == FORMAT and facts.get("key") == key
    return list(facts.get("machines", [])) if same else []
