"""Whether a character of a cast, whose turn comes hours after all were checked, is still made from what was checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from functools import cache
from pathlib import Path
from typing import Any

from charengine.config import Profile
from charengine.errors import EngineError
from charengine.run.keys import digest, path_digest
from charengine.run.paths import TRAIN, profile_as_named


class AsChecked:
    """What the entries of a cast name, as it is when this is made.

    Args:
        cast: parameters of the character flow, paths absolute.
    """

    def __init__(self, cast: Sequence[Mapping[str, Any]]) -> None:
        profile, held = cache(profile_as_named), cache(path_digest)  # thousands of characters name a few
        self._cast = [*cast]
        self._then = [_named(entry, profile, held) for entry in cast]

    def changed(self, index: int) -> list[str]:
        """What the entry at this place names, and is not as it was; of what is gone its own run complains."""
        then, now = self._then[index], _named(self._cast[index], profile_as_named, path_digest)
        return [name for name in then if name in now and now[name] != then[name]]


def _named(
    entry: Mapping[str, Any], profile: Callable[[str, tuple[str, ...]], Profile], held: Callable[[Path], str]
) -> dict[str, str]:
    """What an entry names, with a digest of it; nothing of what cannot be read."""
    found = {}
    paths = {f"--{name} {entry[name]}": str(entry[name]) for name in ("sheet", "reference") if entry.get(name)}
    try:
        settings = profile(str(entry.get("profile") or "embedded"), tuple(entry.get("overrides") or ()))
        found[f"--profile {entry.get('profile')}"] = digest(settings.model_dump(mode="json"))
        named = {name: getattr(settings.train, name) for name in TRAIN}
        paths |= {f"train.{name}={path}": path for name, path in named.items() if path}
    except EngineError:
        pass
    for name, path in paths.items():
        try:
            found[name] = held(Path(path))
        except EngineError:
            continue
    return found
