"""On which machines an adapter was trained: their kind and their threads, on which its bytes depend.

A training's state and the recipe in its files say it. A training that continues works with the threads it began with, so that
its bytes are those of one that was never stopped; where there are too few cores it goes on with fewer, and the recipe says so.
"""

from __future__ import annotations

import logging
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any

import torch

from charengine.machine.threads import cores, processor, working_threads

log = logging.getLogger(__name__)

Machine = dict[str, Any]
"""`from_step`, `device` (name of the card or processor), `torch` (its build), and on a processor `threads`."""


def this_machine(device: torch.device, step: int) -> Machine:
    """The one that trains from a step on."""
    told: Machine = {"from_step": step, "device": _name(device), "torch": torch.__version__}
    return told | ({"threads": torch.get_num_threads()} if device.type == "cpu" else {})


def with_this(before: Sequence[Machine], device: torch.device, step: int) -> list[Machine]:
    """The machines of a training that goes on here from a step: one more when this is another kind than the last."""
    here = this_machine(device, step)
    return [*before] if before and _kind(before[-1]) == _kind(here) else [*before, here]


@contextmanager
def threads_of(before: Sequence[Machine], device: torch.device) -> Iterator[None]:
    """Work with the threads that a training began with, or as many of them as there are cores; on a GPU they do not count."""
    wanted = int(before[0].get("threads", 0)) if before and device.type == "cpu" else 0
    if not wanted:
        yield
        return
    there = min(wanted, max(cores(), torch.get_num_threads()))
    if there < wanted:
        log.warning(
            "this training began with %d threads and this machine has %d cores: it goes on with %d, and its recipe says so",
            wanted,
            cores(),
            there,
        )
    with working_threads(there):
        yield


def moved(machines: Sequence[Machine]) -> tuple[str, ...]:
    """A warning when an adapter was trained on several kinds of machine."""
    if len(machines) < 2:
        return ()
    places = "; ".join(f"from step {one['from_step']}: {_told(one)}" for one in machines)
    return (f"trained on machines of different kinds, so the same request elsewhere gives other bytes ({places})",)


def _told(machine: Machine) -> str:
    threads = f", {machine['threads']} threads" if "threads" in machine else ""
    return f"{machine['device']}, torch {machine['torch']}{threads}"


def _kind(machine: Machine) -> Machine:
    return {name: value for name, value in machine.items() if name != "from_step"}


def _name(device: torch.device) -> str:
    return torch.cuda.get_device_name(device) if device.type == "cuda" else processor()
