"""How many threads torch works with on a CPU: tried once a machine and remembered.

A second core is not always a help: on a virtual machine a training step took 323 ms with two threads and 230 with one
(lab notes). The number changes the last bits of a sum, so it is not tried anew at every start: what it was the
first time is kept in the home folder for as long as processor and cores stay the same.
"""

from __future__ import annotations

import ctypes
import json
import logging
import os
import platform
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING

from charengine.machine.home import Home
from charengine.store import write_atomically

if TYPE_CHECKING:
    from charengine.models import Diffusion

log = logging.getLogger(__name__)

SOFT_PAUSE = 1  # omp_pause_soft: what the program set is kept
ROUNDS, PATIENCE = 20, 2.0  # rounds of the trial, and the seconds after which no more are begun
WORTH_IT = 0.9  # fewer threads are taken when they need at most this share of the time
USER_CHOICE = "OMP_NUM_THREADS"


@contextmanager
def fastest_threads(diffusion: Diffusion, home: Home) -> Iterator[None]:
    """Work with the fastest number of threads meanwhile, unless a GPU does the work or the user chose.

    Training and the sweep are worth it; by then, the servers that a run starts have settled, which would spoil a trial.

    Args:
        diffusion: its U-Net is loaded and tried the first time.
        home: where the number is kept.
    """
    import torch

    cores = torch.get_num_threads()
    if torch.device(diffusion.device).type != "cpu" or USER_CHOICE in os.environ or cores == 1:
        yield
        return
    machine = {"processor": processor(), "cores": cores}
    known = _recall(home, machine)
    if known is None:
        known = fastest(cores, training_round(diffusion))
        write_atomically(_file(home), json.dumps({**machine, "threads": known}).encode())
        log.info("%d of %d threads are fastest here; remembered in %s", known, cores, _file(home))
    torch.set_num_threads(known)
    try:
        yield
    finally:
        torch.set_num_threads(cores)


def release_team() -> None:
    """End the threads that GNU's OpenMP keeps for the calling thread.

    Work that goes on in another thread gets a team of its own. Once there are more such threads than cores they sleep at
    every barrier instead of spinning first, and a training step takes twice as long. Other OpenMPs are left alone.
    """
    if sys.platform != "linux":
        return
    pause = getattr(ctypes.CDLL(None), "omp_pause_resource_all", None)
    if pause is not None:
        pause(SOFT_PAUSE)


def fastest(cores: int, seconds: Callable[[int], float]) -> int:
    """All cores, or half of them or one where that is clearly faster.

    Args:
        cores: threads torch would use.
        seconds: time of one round of work with a number of threads.
    """
    counts = sorted({cores, max(1, cores // 2), 1}, reverse=True)
    times: dict[int, list[float]] = {count: [] for count in counts}
    started = time.perf_counter()
    for turn in range(ROUNDS):  # in turn, so that what else the machine does meets all alike
        if turn > 2 and time.perf_counter() - started > PATIENCE:
            break
        for count in counts:
            times[count].append(seconds(count))
    quickest = {count: min(found) for count, found in times.items()}  # the rounds that nothing else disturbed
    best = min(counts, key=lambda count: quickest[count])
    return best if quickest[best] <= WORTH_IT * quickest[cores] else cores


def processor() -> str:
    """The processor's name."""
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        lines = []
    names = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return names[0] if names else platform.processor() or platform.machine()


def training_round(diffusion: Diffusion) -> Callable[[int], float]:
    """Forward and backward of three views through the U-Net: a convolution alone does not tell (lab notes)."""
    import torch

    unet = diffusion.unet()
    config = unet.config
    pooled = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    generator = torch.Generator().manual_seed(0)  # nobody else's random numbers move on
    noisy = torch.randn(3, config.in_channels, 48, 16, generator=generator).requires_grad_(True)
    text = torch.randn(3, 77, config.cross_attention_dim, generator=generator)
    added = {"text_embeds": torch.randn(3, pooled, generator=generator), "time_ids": torch.zeros(3, 6)}

    def seconds(threads: int) -> float:
        torch.set_num_threads(threads)
        started = time.perf_counter()
        unet(noisy, torch.tensor([10, 500, 900]), text, added_cond_kwargs=added).sample.square().mean().backward()
        return time.perf_counter() - started

    return seconds


def _file(home: Home) -> Path:
    return home.root / "threads.json"


def _recall(home: Home, machine: dict[str, object]) -> int | None:
    """The number found on this machine; None when there is none, or it was another machine."""
    try:
        found = json.loads(_file(home).read_text(encoding="utf-8"))
        threads = int(found.pop("threads"))
    except (OSError, ValueError, KeyError, AttributeError):
        return None
    return threads if found == machine and threads >= 1 else None
