"""Whether Triton is there and works: its launchers need a C compiler and Python's headers, which containers often lack."""

from __future__ import annotations

import importlib.util
import logging
from collections.abc import Callable

log = logging.getLogger(__name__)


def work(trial: Callable[[], object], what: str) -> bool:
    """Whether a small trial of kernels runs; if not, that is said once and plain torch does the same work.

    Args:
        trial: launches the kernels; may raise anything when they do not run, or are wrong.
        what: that is done by them, for the message.
    """
    if importlib.util.find_spec("triton") is None:
        return False
    try:
        trial()
    except Exception as error:  # whatever its compiler, its driver or its cache raises
        told = (str(error).splitlines() or [type(error).__name__])[0][:200]
        log.warning("Triton does not work here (%s): a slower way is taken for %s", told, what)
        return False
    return True
