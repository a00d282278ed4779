"""A short training, what it logs, and how it is stopped."""

from __future__ import annotations

from tiny_sdxl import FakeDiffusion, make_dataset

from charengine.config import TrainSettings
from charengine.stages.train.loop import train_adapter
from charengine.tracking.protocol import NullTracker

RECIPE = {
    "rank": 4,
    "alpha": 4,
    "conv_rank": 2,
    "conv_alpha": 2,
    "learning_rate": 1e-2,
    "steps": 12,
    "checkpoints": 3,
    "save_state_every": 2,
    "validate_every": 6,
}


def train(
    store,
    folder,
    should_stop=lambda: False,
    diffusion=None,
    dataset=None,
    tracker=None,
    on_step=None,
    description="",
    plans=None,
    files_read=lambda: None,
    **changes,
):
    return train_adapter(
        dataset or make_dataset(store),
        TrainSettings(**(RECIPE | changes)),
        diffusion or FakeDiffusion(),
        store,
        seed=3,
        state_dir=folder,
        tracker=tracker or NullTracker(),
        recipe={"profile": "test"},
        should_stop=should_stop,
        on_step=on_step,
        description=description,
        plans=plans,
        files_read=files_read,
    )


class Recorder(NullTracker):
    """Remembers what was logged, as MLflow would across processes."""

    def __init__(self):
        self.rows, self.checkpoints, self.params = [], [], {}

    def last_step(self, metric="train/loss"):
        return max((step for metrics, step in self.rows if metric in metrics), default=-1)

    def log_params(self, params):
        self.params |= params

    def log_metrics(self, metrics, step):
        self.rows.append((dict(metrics), step))

    def log_checkpoint(self, adapter, step, metrics):
        self.checkpoints.append(step)
        return f"model-{step}"

    def steps(self, metric):
        return [step for metrics, step in self.rows if metric in metrics]


def adapters(record):
    return [checkpoint.adapter for checkpoint in record.checkpoints]


def stop_after(count):
    calls = iter(range(1, 10_000))
    return lambda: next(calls) == count
