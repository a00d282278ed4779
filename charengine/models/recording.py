"""Work on a GPU recorded once as a CUDA graph and replayed, so that Python need not launch its kernels one by one."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Callable
from typing import Any

import torch

from charengine.errors import ran_out_of_memory

log = logging.getLogger(__name__)


def record(step: Callable[[], None], what: str, pool: Any = None) -> Callable[[], None]:
    """The same work as one CUDA graph; `step` itself, with a line in the log, where it cannot be recorded.

    Args:
        step: works on the same memory every time, and was done before.
        what: is done with it, for the log: "answers are made".
        pool: memory shared with other recordings, of which no two are replayed at once.

    Raises:
        torch.cuda.OutOfMemoryError: there is no room for it.
    """
    graph = torch.cuda.CUDAGraph()
    torch.cuda.empty_cache()  # a recording has memory of its own
    try:
        # another thread may ask for memory meanwhile
        with torch.cuda.graph(graph, pool=pool, capture_error_mode="thread_local"):
            step()
    except RuntimeError as error:
        _forget_recording()
        if ran_out_of_memory(error):
            raise
        log.warning("%s without a CUDA graph: %s", what, error)
        return step
    return graph.replay


def _forget_recording() -> None:
    """After one that failed, torch's own random generator believes that a recording is under way until the next that succeeds."""
    with contextlib.suppress(RuntimeError), torch.cuda.graph(torch.cuda.CUDAGraph()):
        torch.zeros(1, device="cuda")
