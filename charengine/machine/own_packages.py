"""`flows`, `tasks` and `deployments` are ours, also where the user's own files have these names.

They are top-level packages, and Python searches the folder where the user stands first (with `python -m`, in a notebook, and where
Prefect imports a flow). So they are imported by their place, beside `charengine`, and not by searching.
"""

from __future__ import annotations

import importlib.util
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

INSTALLED = Path(__file__).resolve().parents[2]
NAMES = ("deployments", "flows", "tasks")

_aside: dict[str, ModuleType] = {}  # ours, imported before and put aside, so that nothing is imported twice


def take_own_packages() -> None:
    """From now on the names mean ours: for programs of our own, in which nobody else's code runs."""
    _take(_hidden())


@contextmanager
def own_packages() -> Iterator[None]:
    """Inside, the names mean ours; afterwards they mean what they meant before: for a user's program."""
    hidden = _hidden()
    theirs = _take(hidden)
    try:
        yield
    finally:
        _aside.update(_remove(hidden))
        sys.modules.update(theirs)


def _hidden() -> list[str]:
    """The names that mean something else here, or would when imported."""
    return [name for name in NAMES if _start_of(name).is_file() and not _is_ours(name)]


def _is_ours(name: str) -> bool:
    try:
        spec = importlib.util.find_spec(name)
    except ValueError:  # a module that was made by hand
        return False
    return spec is not None and spec.origin is not None and Path(spec.origin).resolve() == _start_of(name)


def _start_of(name: str) -> Path:
    return INSTALLED / name / "__init__.py"


def _take(hidden: list[str]) -> dict[str, ModuleType]:
    """Import ours in place of what has the names; that is returned."""
    theirs = _remove(hidden)
    sys.modules.update({name: module for name, module in _aside.items() if name.partition(".")[0] in hidden})
    for name in hidden:
        if name not in sys.modules:
            _import(name)
    return theirs


def _import(name: str) -> None:
    start = _start_of(name)
    spec = importlib.util.spec_from_file_location(name, start, submodule_search_locations=[str(start.parent)])
    assert spec and spec.loader
    sys.modules[name] = module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)


def _remove(names: Iterable[str]) -> dict[str, ModuleType]:
    """Take packages and everything below them out of what is imported."""
    found = [name for name in sys.modules if name.partition(".")[0] in names]
    return {name: sys.modules.pop(name) for name in found}
