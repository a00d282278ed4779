"""Log files that do not grow for ever: a large one is copied aside and begun anew, old ones go."""

from __future__ import annotations

import logging
import os
import shutil
from pathlib import Path

log = logging.getLogger(__name__)

LARGEST = 20_000_000  # bytes of a log file
KEPT = 3  # earlier parts of each: NAME.log.1 is the newest
TRACEBACKS_KEPT = 50  # files of unexpected errors


def rotate(path: Path, largest: int = LARGEST) -> bool:
    """Begin a log anew when it is large; says whether it was.

    The process that writes it keeps its file open, so the content is copied and the file cut, as logrotate's copytruncate does:
    what is written between the two is lost. The file must be open for appending, or it would keep its length.
    """
    try:
        if path.stat().st_size < largest:
            return False
        for number in range(KEPT, 1, -1):
            earlier = _part(path, number - 1)
            if earlier.exists():
                os.replace(earlier, _part(path, number))
        shutil.copyfile(path, _part(path, 1))
        os.truncate(path, 0)
    except OSError as error:
        log.warning("%s is not rotated: %s", path, error.strerror or error)
        return False
    return True


def forget_old_tracebacks(folder: Path) -> None:
    """Keep the newest files of unexpected errors."""
    found = sorted(folder.glob("error-*.log"))  # their names are their times
    for path in found[:-TRACEBACKS_KEPT]:
        path.unlink(missing_ok=True)


def _part(path: Path, number: int) -> Path:
    return path.with_name(f"{path.name}.{number}")
