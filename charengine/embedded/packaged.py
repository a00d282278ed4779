"""The small nets that come with the embedded family: where they lie, and their digests. Nothing is loaded here, torch neither."""

from __future__ import annotations

import hashlib
from functools import lru_cache
from pathlib import Path

from charengine.errors import MissingDependency

WEIGHTS = Path(__file__).parent / "weights"
PROBE = WEIGHTS / "probe.safetensors"  # reads which traits a picture shows
ONLOOKER = WEIGHTS / "onlooker.safetensors"  # sees whether a picture shows one character


def packaged_digest(what: str, weights: Path) -> str:
    """The digest of a file that comes with the package, read once as long as it does not change.

    Raises:
        MissingDependency: it is not there.
    """
    if not weights.is_file():
        raise MissingDependency(f"no {what} weights at {weights}: reinstall the package")
    return _digest(weights, weights.stat().st_mtime_ns)


@lru_cache(maxsize=4)
def _digest(path: Path, _stamp: int) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()
