"""A file system of fsspec on another machine, which may be away for a while: every call is repeated until it answers.

What the server says of a file (there is none, it may not be read) is no outage and is raised at once.
"""

from __future__ import annotations

import logging
import time
from collections.abc import Callable
from typing import Any

log = logging.getLogger(__name__)

PATIENCE = 900.0  # seconds that the server may be away, as long as Prefect may (flows/pool.py)
FIRST_PAUSE, LONGEST_PAUSE = 0.5, 10.0
ANSWERS = (FileNotFoundError, FileExistsError, PermissionError, IsADirectoryError, NotADirectoryError)
NO_CREDENTIALS = ("NoCredentialsError", "PartialCredentialsError")  # of S3's own library, which are none of Python's
REFUSED = ("PreconditionFailed", "412", "ConditionalRequestConflict")  # of a file that is there already


class Elsewhere:
    """The file system with patience.

    Args:
        fs: of fsspec; its calls are this one's.
        url: of the store, for messages.
    """

    def __init__(self, fs: Any, url: str) -> None:
        self._fs, self._url = fs, url

    def __getattr__(self, name: str) -> Any:
        found = getattr(self._fs, name)
        if not callable(found):
            return found
        return lambda *args, **kwargs: self._patiently(lambda: found(*args, **kwargs))

    def create(self, path: str, data: bytes) -> None:
        """Write a file unless there is one, which one of all machines can do.

        A call that is repeated may find what it wrote itself: whoever must know reads the file.

        Raises:
            FileExistsError: there is one.
        """
        self._patiently(lambda: self._fs.pipe_file(path, data, mode="create"))

    def _patiently(self, call: Callable[[], Any]) -> Any:
        deadline, pause = time.monotonic() + PATIENCE, FIRST_PAUSE
        while True:
            try:
                return call()
            except Exception as error:
                if _is_refusal(error):
                    raise FileExistsError(str(error)) from error
                if type(error).__name__ in NO_CREDENTIALS:
                    raise PermissionError(str(error)) from error
                if not _is_outage(error) or time.monotonic() + pause > deadline:
                    raise
                log.warning(
                    "the store %s does not answer (%s); trying again in %.1f s",
                    self._url,
                    (str(error).splitlines() or [type(error).__name__])[0][:200],
                    pause,
                )
            time.sleep(pause)
            pause = min(LONGEST_PAUSE, pause * 2)


def _is_refusal(error: Exception) -> bool:
    """Whether a file was there already: fsspec says so in its own words for few servers."""
    response = getattr(error.__cause__, "response", None) or getattr(error, "response", None) or {}
    return not isinstance(error, FileExistsError) and response.get("Error", {}).get("Code") in REFUSED


def _is_outage(error: Exception) -> bool:
    """Whether nobody answered, or the server could not: S3's own library has errors that are none of Python's."""
    if isinstance(error, ANSWERS):
        return False
    if isinstance(error, OSError):
        return True
    try:
        from botocore.exceptions import ConnectionError as NoConnection
        from botocore.exceptions import HTTPClientError
    except ImportError:
        return False
    return isinstance(error, NoConnection | HTTPClientError)
