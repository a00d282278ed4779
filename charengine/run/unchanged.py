"""Files that count by content, while a stage works with them: what was made of other bytes than those of its key is never kept.

The key is made first; then another process, or the GPU, may be waited for, and lessons may be drawn for minutes before a file is
opened. Kept under that key, what is made of a file replaced meanwhile would be taken for what the first file makes, ever after.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import Any

from charengine.errors import BadInput
from charengine.run.keys import Input, stage_key
from charengine.run.workspace import Workspace
from charengine.stage import Stage


class Unchanged:
    """Called: whether the files of a stage's work are still those that its key was made from.

    Args:
        stage: its declaration.
        workspace: whose character, settings and models.
        inputs: of the stage.
        key: made from them before.
    """

    def __init__(self, stage: Stage[Any], workspace: Workspace, inputs: Iterable[Input], key: str) -> None:
        self._stage, self._workspace, self._inputs, self._key = stage, workspace, (*inputs,), key
        self._asked = False
        settings = getattr(workspace.profile, stage.settings) if stage.settings else None
        self._named = [str(item) for item in self._inputs if isinstance(item, Path)] + [
            f"{stage.settings}.{name}={value}" for name in stage.files if (value := getattr(settings, name))
        ]

    def __call__(self) -> None:
        """Once all of them are read; what happens to them afterwards does not matter.

        Raises:
            BadInput: one was changed or removed.
        """
        self._asked = True
        if self._named and not self._is_same():
            raise changed(" or ".join(self._named))

    def before(self) -> None:
        """Before anything is loaded; raises likewise."""
        self()
        self._asked = False

    def at_last(self) -> None:
        """The same of work that did not say when it had read them, before what it made is kept."""
        if not self._asked:
            self()

    def _is_same(self) -> bool:
        work = self._workspace
        try:
            return stage_key(self._stage, work.character, work.profile, work.models, self._inputs) == self._key
        except BadInput:  # it is gone
            return False


def changed(what: str) -> BadInput:
    """That a file is no longer what was checked."""
    return BadInput(
        f"{what} was changed or removed after this command had begun with it, so nothing was made of it: put it back, or let it be, "
        "and give the same command again"
    )
