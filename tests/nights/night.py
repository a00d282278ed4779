"""One night: the product over a world that fails, and what must be true in the morning.

python -m nights.night 4711        # in tests/: the night of this seed again, with everything that happened
"""

from __future__ import annotations

import json
import os
import random
import sys
import uuid
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from types import SimpleNamespace
from typing import Any
from unittest.mock import patch

from charengine.run.keys import content_digest
from charengine.run.workspace import Whole
from charengine.store import Store, refs_in
from flows import pool
from nights import character
from nights.calls import simulated_calls
from nights.character import HOME, LOSS, NAMES, RUNS, STEPS, Drawn, Picked, Trained
from nights.schedule import Clock, Stuck, Threading
from nights.world import Broken, Night, Plan

RECORDS = {"sheet": Drawn, "train": Trained, "sweep": Picked, "run": Whole}

# --- the product over the simulated world ---


class _InPlace:
    """Stands for the thread that writes a training's states."""

    def __init__(self, *_: Any) -> None:
        pass

    def submit(self, call: Callable[..., Any], *arguments: Any) -> Any:
        from concurrent.futures import Future

        done: Future[None] = Future()
        try:
            call(*arguments)
            done.set_result(None)
        except Exception as error:
            done.set_exception(error)
        return done

    def shutdown(self, wait: bool = True) -> None:
        """Nothing waits."""


class _SafeOpen:
    """`safetensors.safe_open` on bytes: the library itself opens files without Python."""

    def __init__(self, path: Any, framework: str) -> None:
        import safetensors
        import safetensors.torch

        with open(path, "rb") as file:
            data = file.read()
        if len(data) < 8 or 8 + int.from_bytes(data[:8], "little") > len(data):
            raise safetensors.SafetensorError("HeaderTooLarge")
        header = data[8 : 8 + int.from_bytes(data[:8], "little")]
        self._facts = json.loads(header).get("__metadata__")
        self._tensors = safetensors.torch.load(data)

    def __enter__(self) -> _SafeOpen:
        return self

    def __exit__(self, *_: Any) -> None:
        pass

    def metadata(self) -> Any:
        return self._facts

    def keys(self) -> list[str]:
        return list(self._tensors)

    def get_tensor(self, name: str) -> Any:
        return self._tensors[name]


@contextmanager
def simulated() -> Iterator[Callable[[Night], None]]:
    """The product's modules over whatever night is set."""
    import mlflow
    import prefect.client.orchestration
    import safetensors

    from charengine import writing
    from charengine.machine import processes
    from charengine.run import running
    from charengine.stages.train import state
    from charengine.tracking import attempts, catching_up, journal, registry, spool
    from charengine.tracking import mlflow as tracking

    places: dict[str, Any] = {}

    def use(night: Night) -> None:
        clock, threads = Clock(night.schedule), Threading(night.schedule)
        for module in (spool, journal, attempts, pool, registry, running):
            module.time = clock
        spool.threading = threads
        places["calls"].disk = night.disk
        places["night"], places["uuids"] = night, random.Random(f"uuid {night.seed}")
        character.watch = character.Watch(
            night.begins, lambda seconds: (night.schedule.step(), night.schedule.wait(seconds))[0]
        )

    def current() -> Night:
        night: Night = places["night"]
        return night

    def pid() -> int:
        process = current().schedule.current() if "night" in places else None
        return process.pid if process else os.getpid()

    os_here = SimpleNamespace(**{name: getattr(os, name) for name in dir(os)})
    with ExitStack() as stack:
        for module in (spool, journal, attempts, pool, registry, running):
            stack.callback(setattr, module, "time", module.time)
        stack.callback(setattr, spool, "threading", spool.threading)
        calls = places["calls"] = stack.enter_context(simulated_calls())
        for name in dir(os):
            setattr(os_here, name, getattr(os, name))
        os_here.getpid = pid
        client = lambda **_: current().client  # noqa: E731
        patches: list[tuple[Any, str, Any]] = [
            (mlflow, "MlflowClient", client),
            (prefect.client.orchestration, "get_client", lambda **_: current().prefect),
            (pool, "run_deployment", lambda *a, **k: current().prefect.run_deployment(*a, **k)),
            (running, "run_stoppable", lambda work: work(lambda: False)),
            (state, "ThreadPoolExecutor", _InPlace),
            (safetensors, "safe_open", _SafeOpen),
            (uuid, "uuid4", lambda: uuid.UUID(int=places["uuids"].getrandbits(128), version=4)),
            (tracking.MLflowTracker, "watch_machine", lambda self: None),
            (processes, "is_running", lambda process: current().schedule.is_running(process)),
            (catching_up, "is_running", lambda process: current().schedule.is_running(process)),
            (writing, "is_running", lambda process: current().schedule.is_running(process)),
            (journal, "begun", lambda process: ""),  # its numbers never come again
            (processes, "begun", lambda process: ""),
            (processes, "os", os_here),
            (writing, "os", os_here),
            (journal, "os", os_here),
        ]
        for place, name, value in patches:
            stack.enter_context(patch.object(place, name, value))
        stack.enter_context(
            patch.dict(os.environ, {"MLFLOW_TRACKING_URI": "http://mlflow.night", "CHARENGINE_HOME": str(HOME.root)})
        )
        yield use
    del calls


# --- the morning ---


def contents(night: Night) -> dict[str, str]:
    """Every file that a night makes, by path; records without where they came from."""
    night.schedule.tasks.clear()
    found = {}
    store = Store(HOME.store)
    for path in sorted(night.disk.files):
        data = night.disk.files[path].data
        if path.endswith(".tmp"):
            continue
        if path.startswith(f"{HOME.store}/results/"):
            key = os.path.basename(path).removesuffix(".json")
            record = store.result(key, RECORDS[key.split("-")[0]])
            whole = record is not None and all(store.has(ref) for ref in refs_in(record))
            found[path] = content_digest(record) if record is not None and whole else "lost or damaged"
        elif path.startswith((str(HOME.store), str(RUNS))):
            found[path] = data.hex()[:64]
    return found


def check(night: Night, expected: dict[str, str]) -> None:
    """What must be true in the morning.

    Args:
        night: that has been run.
        expected: contents of an undisturbed one.

    Raises:
        Broken: it is not.
    """
    found = contents(night)
    wrong = [
        f"{path}: {_difference(found.get(path), expected.get(path))}"
        for path in sorted(found.keys() | expected.keys())
        if found.get(path) != expected.get(path)
    ]
    files = night.disk.files
    wrong += [
        f"{path}: a temporary file is left"
        for path in files
        if path.endswith(".tmp") or ".charengine-run.json." in path
    ]
    wrong += [f"{path} is still locked" for path, node in files.items() if node.lock is not None]
    kept = (str(HOME.state), f"{HOME.mlflow}/journal", f"{HOME.mlflow}/spool")
    wrong += [f"{path} waits for ever" for path in files if path.startswith(kept)]
    wrong += [f"state folder {path} is left" for path in night.disk.folders if path.startswith(f"{HOME.state}/")]
    wrong += [
        f"Prefect: {run.name} is {run.state.type}" for run in night.prefect.runs.values() if not run.state.is_final()
    ]
    wrong += _wrong_completions(night) + _wrong_in_mlflow(night)
    if wrong:
        raise Broken("\n".join(wrong[:12]))


def _difference(found: str | None, expected: str | None) -> str:
    return "is missing" if found is None else "nobody else made it" if expected is None else "differs"


def _wrong_completions(night: Night) -> list[str]:
    """Within one batch, every character is completed once."""
    batches = {number: key.split(":")[0] for key, number in night.prefect.keys.items()}
    done = Counter((batches[run.id], run.name) for run in night.prefect.runs.values() if run.state.is_completed())
    wrong = [f"{name} was completed {count} times in {batch}" for (batch, name), count in done.items() if count > 1]
    made = {name for _, name in done}
    return wrong + [f"{name} was never completed" for name in NAMES if name not in made]


def _wrong_in_mlflow(night: Night) -> list[str]:
    runs = list(night.mlflow.runs.values())
    keys = Counter(run.tags["charengine.key"] for run in runs)
    wrong = [f"MLflow: {count} runs with the key {key}" for key, count in keys.items() if count > 1]
    for run in runs:
        if run.status != "FINISHED":
            wrong.append(f"MLflow: {run.name} is {run.status}")
    by_name = {run.name: run for run in runs}
    for name in NAMES:
        for child, metric, steps in (
            (" train", LOSS, [*range(1, STEPS + 1)]),
            (" sweep", "best", [0]),
            ("", "outcome", [0]),
        ):
            run = by_name.get(name + child)
            found = [step for step, _, _ in run.metrics.get(metric, [])] if run else None
            if found is None or sorted(found) != steps:
                wrong.append(f"MLflow: {metric} of {name}{child} at steps {found}, not {steps}")
        versions = night.mlflow.versions.get(name, [])
        if len(versions) != 1 or night.mlflow.aliases.get(name) != {"champion": "1"}:
            wrong.append(f"MLflow: {len(versions)} versions of {name}, aliases {night.mlflow.aliases.get(name)}")
    return wrong


def undisturbed(use: Callable[[Night], None]) -> dict[str, str]:
    """The contents of a night without faults."""
    night = Night(0, Plan())
    use(night)
    night.run()
    found = contents(night)
    check(night, found)
    return found


def nights(
    seeds: range, expected: dict[str, str], use: Callable[[Night], None]
) -> Iterator[tuple[Night, BaseException | None]]:
    """Each night with the reason why it failed, None when all was true."""
    for seed in seeds:
        night = Night(seed)
        use(night)
        try:
            night.run()
            check(night, expected)
        except (Broken, Stuck) as error:
            yield night, error
        else:
            yield night, None


def main() -> int:
    """Run nights again: all seeds on the command line."""
    with simulated() as use:
        expected = undisturbed(use)
        for seed in sys.argv[1:]:
            for night, error in nights(range(int(seed), int(seed) + 1), expected, use):
                print(
                    "\n".join([f"seed {seed}: {night.faults}", *night.told, f"seed {seed}: {error or 'all is well'}"])
                )
    return 0


if __name__ == "__main__":
    raise SystemExit(main())
