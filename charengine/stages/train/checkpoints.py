"""Checkpoints of a training: hashed, written and logged, on a GPU while it trains on."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor

from torch import Tensor

from charengine.adapter.files import save_adapter
from charengine.config import TrainSettings
from charengine.records import CheckpointRecord, Ref
from charengine.store import Store
from charengine.tracking.protocol import Tracker

Kept = tuple[bytes, Ref]


class CheckpointKeeper:
    """Makes files of adapters, one at a time.

    SDXL's takes a second, in which a GPU makes fifteen steps; a CPU needs its cores for the steps.

    Args:
        store: where the files go.
        tracker: told of each, by the thread that takes it.
        aside: on a thread of its own; else at once.
    """

    def __init__(self, store: Store, tracker: Tracker, *, aside: bool) -> None:
        self.store, self.tracker, self.aside = store, tracker, aside
        self.thread = ThreadPoolExecutor(1, "checkpoint")
        self._pending: tuple[Future[Kept], Callable[[Ref], CheckpointRecord]] | None = None

    def begin(
        self,
        tensors: Mapping[str, Tensor],
        metadata: Mapping[str, str],
        name: str,
        record: Callable[[Ref], CheckpointRecord],
    ) -> None:
        """Keep an adapter; the one before was taken.

        Args:
            tensors: nobody changes them any more.
            metadata: of the file.
            name: of the file.
            record: of it, once it is stored.
        """
        assert self._pending is None, "the checkpoint before was not taken"
        self._pending = self.thread.submit(self._keep, tensors, metadata, name), record
        if not self.aside:
            self._pending[0].result()

    def _keep(self, tensors: Mapping[str, Tensor], metadata: Mapping[str, str], name: str) -> Kept:
        data = save_adapter(tensors, metadata)
        return data, self.store.put(data, name)

    @property
    def is_busy(self) -> bool:
        """Whether a checkpoint is not taken yet."""
        return self._pending is not None

    @property
    def is_ready(self) -> bool:
        """Whether one can be taken without waiting."""
        return self._pending is not None and self._pending[0].done()

    def take(self) -> list[CheckpointRecord]:
        """The checkpoint that was begun, waited for and logged; none where there is none.

        Raises:
            BadInput: it could not be written.
        """
        if self._pending is None:
            return []
        (future, record), self._pending = self._pending, None
        data, ref = future.result()
        made, model_id = record(ref), None
        if made.step > self.tracker.last_step("checkpoint/loss"):
            known = {"checkpoint/loss": made.loss, "checkpoint/validation_loss": made.validation_loss}
            metrics = {name: value for name, value in known.items() if value is not None}
            model_id = self.tracker.log_checkpoint(data, made.step, metrics)
            self.tracker.log_metrics(metrics, made.step)
        return [made.model_copy(update={"logged_model_id": model_id})]

    def close(self) -> None:
        """Finish writing, whatever happens to the training."""
        self.thread.shutdown(wait=True)


def checkpoint_steps(settings: TrainSettings) -> set[int]:
    """Steps after which an adapter is kept: evenly spread, the last included."""
    count = min(settings.checkpoints, settings.steps)
    return {round(settings.steps * (i + 1) / count) for i in range(count)}
