"""What comes next is got ready on a thread while a GPU draws; where the cores draw, when it is asked for.

The card draws for seconds in which Python has little to do; an adapter is read from its file, checked and packed in about one,
and the base's weights are kept in host memory in another. On cores, threads would only take turns.
"""

from __future__ import annotations

from collections.abc import Callable
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Generic, TypeVar

import torch

Key = TypeVar("Key")
Value = TypeVar("Value")


class Ahead(Generic[Key, Value]):
    """`work` of one thing at a time, begun before it is needed; a context manager, which waits on leaving.

    Args:
        work: gives what is needed of a key; never called twice at once.
        device: that draws.
    """

    def __init__(self, work: Callable[[Key], Value], device: torch.device | str) -> None:
        self._work = work
        self._pool = ThreadPoolExecutor(1, thread_name_prefix="ahead")  # starts no thread before it has work
        self._aside = torch.device(device).type != "cpu"
        self._coming: tuple[Key, Future[Value]] | None = None

    def __enter__(self) -> Ahead[Key, Value]:
        return self

    def __exit__(self, *_: object) -> None:
        self._pool.shutdown(cancel_futures=True)

    def begin(self, key: Key) -> None:
        """Get this ready meanwhile, where that is of use; an error is kept for `get`."""
        if self._aside:
            self._coming = key, self._pool.submit(self._work, key)

    def get(self, key: Key) -> Value:
        """What was begun, or made now; what failed is raised here."""
        coming, self._coming = self._coming, None
        if coming:
            found = coming[1].result()
            if coming[0] == key:
                return found
        return self._work(key)
