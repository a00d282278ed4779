"""A no-op character: the real flow, run, store, keys, locks, Prefect and MLflow, whose stages draw and train nothing.

Each stage but the report gives again what one real character made (`prepare`), as this character's own: its name in every picture
and adapter, its trigger in every text, and every number, picture and run that the real stage told MLflow told again. Laid into the
processes that `charengine up` starts by a `sitecustomize.py` (`lay`), so that the product has no hook for it.

    python benchmarks/load_noop.py PREPARED HOME CAST     # every character of a cast here, one after the other, without servers
"""

from __future__ import annotations

import base64
import importlib.util
import io
import json
import os
import struct
import sys
import time
import zlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from importlib.abc import MetaPathFinder
from importlib.machinery import ModuleSpec
from pathlib import Path
from typing import Any

PREPARED = "LOAD_NOOP_PREPARED"  # the folder of `prepare`, in the environment of the processes
HOOKED = "charengine.run.running"
PLACEHOLDER = "Zzyzx"  # the character that is given again
REAL = ("report",)  # reads what the others made and writes one page: it is the store's and the page's load
PNG = b"\x89PNG\r\n\x1a\n"
IHDR_ENDS = 33  # bytes
DONE = "told.json"  # how many calls each stage made to MLflow; written last


# --- laid into the processes ------------------------------------------------------------------------------------------


def lay(folder: Path, prepared: Path) -> dict[str, str]:
    """A folder with the `sitecustomize.py`, and the environment in which Python finds it."""
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "sitecustomize.py").write_text("import load_noop\n\nload_noop.hook()\n")
    here = Path(__file__).resolve().parent
    return {"PYTHONPATH": os.pathsep.join(map(str, (folder, here.parent, here))), PREPARED: str(prepared)}


class _Finder(MetaPathFinder):
    """Gives the module its no-op stages once it has been loaded."""

    def find_spec(self, fullname: str, path: Sequence[str] | None, target: Any = None) -> ModuleSpec | None:
        """The module's own, whose loader changes it afterwards."""
        if fullname != HOOKED:
            return None
        sys.meta_path.remove(self)
        spec = importlib.util.find_spec(fullname)
        assert spec and spec.loader
        load = spec.loader.exec_module

        def loaded(module: Any) -> None:
            load(module)
            install(module, lambda stage: replace(stage, work=given_again(stage)))

        spec.loader.exec_module = loaded  # type: ignore[method-assign]  # of this one loader
        return spec


def hook() -> None:
    """Change the module when it is imported; costs a process that does not import it nothing."""
    if os.environ.get(PREPARED):
        sys.meta_path.insert(0, _Finder())


def install(running: Any, changed: Callable[[Any], Any]) -> None:
    """Have the one function that runs stages run changed ones; keys come from what is declared, so they stay."""
    real = running.run

    def run(stage: Any, workspace: Any, *inputs: Any) -> Any:
        return real(stage if stage.name in REAL else changed(stage), workspace, *inputs)

    running.run = run


# --- given again ------------------------------------------------------------------------------------------------------


def given_again(stage: Any) -> Callable[..., Any]:
    """The work of a stage: its prepared result as this character's, and all that was told told again."""

    def work(given: Any, *inputs: Any) -> Any:
        from charengine.store import Store

        folder = Path(os.environ[PREPARED])
        kept = json.loads((folder / f"{stage.name}.json").read_text())
        dataset = next((one for one in inputs if hasattr(one, "trigger")), None)
        ids = _tell_again(given.tracker, kept["told"])
        own = _Own(given, Store(folder / "home" / "store"), ids, kept["trigger"], dataset)
        return stage.makes.model_validate(own.of(kept["record"]))

    return work


class _Own:
    """A prepared record as a character's own.

    Args:
        given: to the stage.
        prepared: the store of the prepared character.
        ids: of runs of MLflow, prepared → own.
        trigger: of the prepared character.
        dataset: a record with this character's trigger; None: the stage knows it, or none is needed.
    """

    def __init__(self, given: Any, prepared: Any, ids: dict[str, str | None], trigger: str, dataset: Any) -> None:
        self._given, self._prepared, self._ids, self._trigger = given, prepared, ids, trigger
        self._own = dataset.trigger if dataset else getattr(given.character, "trigger", trigger)

    def of(self, value: Any) -> Any:
        """Files, texts and runs replaced, all the way down."""
        if isinstance(value, dict):
            if value.keys() >= {"sha256", "size", "media_type"}:
                return self._file(value)
            return {key: self.of(one) for key, one in value.items()}
        if isinstance(value, list):
            return [self.of(one) for one in value]
        if isinstance(value, str):
            return self._ids.get(value, value) if value in self._ids else value.replace(self._trigger, self._own)
        return value

    def _file(self, ref: dict[str, Any]) -> Any:
        from charengine.records import Ref

        data = self._prepared.get(Ref.model_validate(ref))
        name = ref["name"].replace(self._trigger, self._own)
        return self._given.store.put(signed(data, self._given.key), name, ref["media_type"]).model_dump()


def signed(data: bytes, by: str) -> bytes:
    """The same picture or adapter with a word in its header, so that no two characters share a file; any other file as it is."""
    if data.startswith(PNG):
        body = b"tEXt" + b"Title\0" + by.encode()
        chunk = struct.pack(">I", len(body) - 4) + body + struct.pack(">I", zlib.crc32(body))
        return data[:IHDR_ENDS] + chunk + data[IHDR_ENDS:]
    if len(data) > 9 and data[8:9] == b"{":
        from charengine.adapter.header import with_metadata

        return with_metadata(data, {"noop": by})
    return data


def _tell_again(tracker: Any, told: list[dict[str, Any]]) -> dict[str, str | None]:
    """Say to a tracker and its children what was said; ids of the runs, recorded → own."""
    runs = {0: tracker}
    for one in told:
        values = {name: _decoded(value) for name, value in one["with"].items()}
        answer = getattr(runs[one["to"]], one["call"])(**values)
        if one["call"] == "child":
            runs[one["is"]] = answer
    return {_run_id(number): run.run_id for number, run in runs.items()}


# --- prepared ---------------------------------------------------------------------------------------------------------


class Recorder:
    """A tracker that writes down what it is told, and its children with it.

    Args:
        told: where it is written.
        number: of this one; a child's is new.
    """

    url = runs_url = strengths_url = adapter_url = ""

    def __init__(self, told: list[dict[str, Any]], number: int = 0) -> None:
        self._told, self._number = told, number
        self.run_id = _run_id(number)

    def __getattr__(self, call: str) -> Callable[..., Any]:
        import inspect

        from charengine.tracking.protocol import NullTracker

        signature = inspect.signature(getattr(NullTracker(), call))

        def tell(*values: Any, **named: Any) -> Any:
            if call in ("last_step", "sync", "picture_url"):
                return getattr(NullTracker(), call)(*values, **named)
            said = signature.bind(*values, **named).arguments
            number = 1 + sum(one["call"] == "child" for one in self._told)
            encoded = {name: _encoded(value) for name, value in said.items()}
            self._told.append({"to": self._number, "call": call, "with": encoded, "is": number})
            return Recorder(self._told, number) if call == "child" else None

        return tell


def _run_id(number: int) -> str:
    return f"{number:032x}".replace("0", "f", 1)


def _encoded(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": base64.b64encode(value).decode()}
    if hasattr(value, "save"):
        buffer = io.BytesIO()
        value.save(buffer, "PNG")
        return {"picture": base64.b64encode(buffer.getvalue()).decode()}
    return dict(value) if hasattr(value, "items") else value


def _decoded(value: Any) -> Any:
    if not isinstance(value, dict) or value.keys() not in ({"bytes"}, {"picture"}):
        return value
    ((kind, text),) = value.items()
    if kind == "bytes":
        return base64.b64decode(text)
    from PIL import Image

    return Image.open(io.BytesIO(base64.b64decode(text)))


def prepare(folder: Path, entry: dict[str, Any]) -> dict[str, int]:
    """Make the one real character that all others give again; calls told to MLflow by stage."""
    from charengine.machine.home import Home
    from charengine.run import running

    told: dict[str, list[dict[str, Any]]] = {}

    def recorded(stage: Any) -> Any:
        def work(given: Any, *inputs: Any) -> Any:
            told[stage.name] = []
            made = stage.work(replace(given, tracker=Recorder(told[stage.name])), *inputs)
            record = made.model_dump(mode="json")
            trigger = given.character.trigger if stage.name == "caption" else _trigger_of(inputs)
            kept = {"record": record, "told": told[stage.name], "trigger": trigger or "\0"}
            (folder / f"{stage.name}.json").write_text(json.dumps(kept))
            return made

        return replace(stage, work=work)

    real = running.run
    install(running, recorded)
    try:
        make_here(Home(folder / "home"), entry)
    finally:
        running.run = real
    calls = {name: len(calls) for name, calls in told.items()}
    (folder / DONE).write_text(json.dumps(calls))
    return calls


def _trigger_of(inputs: tuple[Any, ...]) -> str:
    return next((one.trigger for one in inputs if hasattr(one, "trigger")), "")


# --- without servers --------------------------------------------------------------------------------------------------


def make_here(home: Any, entry: dict[str, Any]) -> float:
    """A character as the flow makes it, in this process and told to nobody; seconds."""
    import flows.character as flow
    from charengine.run.claim import claimed
    from charengine.run.opening import open_workspace
    from charengine.run.request import RunRequest, check

    _without_prefect()
    began = time.monotonic()
    known = {name: tuple(value) if isinstance(value, list) else value for name, value in entry.items()}
    run = check(RunRequest(**known), home)
    workspace = open_workspace(run, home)
    with workspace.alone(), claimed(run) as own:
        flow.make_character(workspace, own.out)
    return time.monotonic() - began


def _without_prefect() -> None:
    """Tasks are plain functions, and nothing is shown on pages."""
    import tasks.artifacts as artifacts
    from charengine.run import running
    from tasks import live, stage

    stage.run = running.run  # imported by name, maybe before it was changed
    stage.StageTask.__call__ = lambda self, *given: _plain(self.fn(*given))  # type: ignore[method-assign]
    artifacts.create_table_artifact = lambda **shown: None  # type: ignore[assignment]
    live.LiveArtifact.write = lambda self, make, change: None  # type: ignore[method-assign]


def _plain(outcome: Any) -> Any:
    return outcome.data if type(outcome).__name__ == "State" else outcome


if __name__ == "__main__":
    os.environ[PREPARED], home_folder, cast = sys.argv[1:4]
    hook()
    from charengine.machine.home import Home

    entries = json.loads(Path(cast).read_text())
    took = []
    for one in entries:
        before = time.process_time()
        took.append((make_here(Home(Path(home_folder)), one), time.process_time() - before))
    print(json.dumps(took))
