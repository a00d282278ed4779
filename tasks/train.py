"""The adapter: trained on the dataset, in its own MLflow run, resumable under its stage key."""

from __future__ import annotations

from charengine.records import AdapterRecord, DatasetRecord
from charengine.run.workspace import Workspace
from charengine.stages.train.stage import TRAIN
from tasks.artifacts import show_training
from tasks.stage import stage_task

train = stage_task(TRAIN)


def train_adapter(workspace: Workspace, dataset: DatasetRecord) -> AdapterRecord:
    """Checkpoints and curves."""
    training = train(workspace, dataset)
    show_training(workspace, training)
    return training
