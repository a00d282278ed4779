"""A small character, made by the real engine: three stages with bytes that follow from their inputs, in a claimed folder, told to MLflow.

The order of what they do is that of the real stages: blobs before the record that names them; a step's loss before its state.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from dataclasses import dataclass, fields
from functools import cache
from pathlib import Path
from types import SimpleNamespace
from typing import Any, ClassVar

import torch

from charengine.config import Character, Profile
from charengine.errors import Interrupted
from charengine.machine.home import Home
from charengine.models import Models
from charengine.profiles.loading import load_profile
from charengine.records import Record, Ref
from charengine.run import folder
from charengine.run.claim import claimed
from charengine.run.request import CheckedRun
from charengine.run.running import run
from charengine.run.workspace import Workspace
from charengine.stage import Given, Stage
from charengine.stages.train.state import History, StateWriter, load_state
from charengine.tracking.protocol import closing
from charengine.writing import write_atomically

STEPS, SAVE_EVERY = 6, 2
LOSS = "train/loss"
NAMES = ("Aya", "Bo", "Cleo")
HOME = Home(Path("/night/home"))
RUNS = Path("/night/studio/runs")


class Drawn(Record):
    """A sheet and its mask."""

    image: Ref
    mask: Ref


class Trained(Record):
    """Checkpoints."""

    provenance: ClassVar[frozenset[str]] = frozenset({"mlflow_run_id"})

    checkpoints: tuple[Ref, ...]
    mlflow_run_id: str | None = None


class Picked(Record):
    """The chosen one."""

    adapter: Ref


@dataclass
class Watch:
    """What the night sees of the work, beside the product.

    Args:
        begins: told the key of each piece of work, and by whom it is done; the answer is called when that ends.
        works: time goes by.
        stopped: asked between two steps.
    """

    begins: Callable[[str], Callable[[], None]]
    works: Callable[[float], None]
    stopped: Callable[[], bool] = lambda: False


watch = Watch(lambda key: lambda: None, lambda seconds: None)


def _draw(given: Given) -> Drawn:
    ended = watch.begins(f"sheet {given.character.name}")
    image = _bytes(given.character.prompt, given.seed)
    watch.works(3.0)
    made = Drawn(
        image=given.store.put(image, "sheet.png"), mask=given.store.put(_bytes("mask", given.seed), "mask.png")
    )
    ended()
    return made


def _train(given: Given, drawn: Drawn) -> Trained:
    ended = watch.begins(f"train {given.character.name}")
    assert given.state is not None
    key = drawn.image.sha256
    given.store.get(drawn.mask)
    seed = int.from_bytes(given.store.get(drawn.image)[:4], "big")
    writer = StateWriter(given.state, key, given.store)
    found = load_state(given.state, key)
    history, tensors = found or (History(), {"weights": torch.tensor([seed], dtype=torch.int64)})
    weights, last_logged = int(tensors["weights"][0]), given.tracker.last_step(LOSS)
    checkpoints = [
        given.store.put(_bytes(weights_at, step), "step.safetensors")
        for step, weights_at in history.plan.get("kept", [])
    ]
    for step in range(max(last_logged, 0) + 1, history.step + 1):
        given.tracker.log_metrics({LOSS: history.losses[step - 1]}, step)
    for step in range(history.step + 1, STEPS + 1):
        watch.works(1.0)
        weights = (weights * 6_364_136_223_846_793_005 + step) % 2**62
        loss = weights % 1000 / 1000
        history.step, history.losses, history.smoothed, history.rates = (
            step,
            [*history.losses, loss],
            [*history.smoothed, loss],
            [*history.rates, 0.1],
        )
        if step > last_logged:
            given.tracker.log_metrics({LOSS: loss}, step)
        if step % SAVE_EVERY == 0:
            checkpoints.append(given.store.put(_bytes(weights, step), "step.safetensors"))
            history.plan.setdefault("kept", []).append([step, weights])
            writer.save(history, {"weights": torch.tensor([weights], dtype=torch.int64)})
        if watch.stopped():
            raise Interrupted(f"stopped at step {step}")
    writer.wait()
    writer.close()
    ended()
    return Trained(checkpoints=tuple(checkpoints), mlflow_run_id=given.tracker.run_id)


def _pick(given: Given, trained: Trained) -> Picked:
    ended = watch.begins(f"sweep {given.character.name}")
    adapter = given.store.get(trained.checkpoints[1])
    watch.works(2.0)
    given.tracker.log_metrics({"best": 0.5}, 0)
    given.tracker.register_pick(given.character.name, adapter, 4, 0.8, {"score": 0.5})
    made = Picked(adapter=given.store.put(adapter, "pick.safetensors"))
    ended()
    return made


SHEET = Stage(
    name="sheet", version=1, makes=Drawn, work=_draw, settings="sheet", character=("name", "prompt"), seeded=True
)
TRAIN = Stage(
    name="train",
    version=1,
    makes=Trained,
    work=_train,
    settings="train",
    character=("name",),
    models=("diffusion",),
    seeded=True,
    long=True,
)
SWEEP = Stage(
    name="sweep",
    version=1,
    makes=Picked,
    work=_pick,
    settings="sweep",
    character=("name",),
    models=("diffusion",),
    long=True,
)


def entry(name: str) -> dict[str, Any]:
    """What the pool is asked for."""
    return {"name": name, "prompt": f"a robot called {name}"}


def make(name: str, attempts: Callable[..., Any]) -> None:
    """What the flow does for a character; `attempts` runs a stage as a task does."""
    character, profile = _character(name), _profile()
    workspace = Workspace(character, profile, HOME.create())
    workspace.__dict__["models"] = _MODELS
    checked = CheckedRun(character, profile, None, RUNS / name.lower(), "embedded")
    with workspace.alone():
        _made(workspace, checked, attempts)


def _made(workspace: Workspace, checked: CheckedRun, attempts: Callable[..., Any]) -> None:
    name = workspace.character.name
    workspace.track()
    with closing(workspace.tracker), claimed(checked) as own:
        out, store = own.out, workspace.store
        drawn = attempts(run, SHEET, workspace)
        store.export(drawn.image, out / "sheet.png")
        trained = attempts(run, TRAIN, workspace, drawn)
        picked = attempts(run, SWEEP, workspace, trained)
        store.export(picked.adapter, out / "adapters" / "pick.safetensors")
        told = {"character": name, "pick": picked.adapter.sha256}
        workspace.tracker.log_metrics({"outcome": 1.0}, 0)
        write_atomically(out / folder.RESULT, json.dumps(told).encode())
        workspace.keep_whole()


def _bytes(*parts: object) -> bytes:
    return hashlib.sha512(repr(parts).encode()).digest() * 40


@cache
def _character(name: str) -> Character:
    return Character(name=name, prompt=entry(name)["prompt"], class_noun="robot", trigger=f"trg{name.lower()}", seed=7)


@cache
def _profile() -> Profile:
    return load_profile("embedded")


class _Model:
    fingerprint = sampling_fingerprint = "m" * 64
    device = torch.device("cpu")

    def unload(self, *parts: str) -> None:
        """Nothing is held."""


_MODELS: Any = SimpleNamespace(**{field.name: _Model() for field in fields(Models)})
