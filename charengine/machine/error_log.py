"""The whole traceback of an error, in a file of its own: a page or a terminal says one sentence and where the rest stands."""

from __future__ import annotations

import logging
import re
import time
import traceback
from pathlib import Path

from charengine.machine.full_disks import warn
from charengine.machine.home import Home
from charengine.machine.logs import forget_old_tracebacks

log = logging.getLogger(__name__)

_KEPT = "kept_traceback"  # of an error: its file, so that one error has one


def keep_traceback(error: BaseException, home: Home, about: str = "") -> Path | None:
    """The file with the error's traceback and those of its causes, in the home's logs; None when it cannot be written.

    Args:
        error: as it was caught.
        home: whose logs.
        about: of the file's name: whose run it was.
    """
    if kept := getattr(error, _KEPT, None):
        return Path(kept)
    name = "-".join(
        filter(None, ("error", time.strftime("%Y%m%d-%H%M%S"), re.sub(r"[^\w-]+", "-", about)[:60].strip("-")))
    )
    path = home.logs / f"{name}.log"
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = "".join(traceback.format_exception(error))
        path.write_text(text, encoding="utf-8", errors="backslashreplace")
        forget_old_tracebacks(path.parent)
    except OSError as problem:
        warn(log, path, "the traceback cannot be written to %s (%s)", path, problem.strerror)
        return None
    setattr(error, _KEPT, str(path))
    return path
