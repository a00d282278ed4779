"""Where machines share a store and no folder: the pictures that a run is given go to who makes it, its folder to who asked for it."""

from __future__ import annotations

import logging
import re
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from charengine import files
from charengine.errors import BadInput, StoreCorrupt
from charengine.machine.ledger import LEDGER, own
from charengine.records import Record, Ref, RunResult
from charengine.run.folder import RESULT, edited_captions, read_result, write_result
from charengine.store import Store
from charengine.writing import write_atomically

LENT = "store:"  # begins a picture's place in the store
DIGEST = re.compile(r"[0-9a-f]{64}")

log = logging.getLogger(__name__)


class HandedOver(Record):
    """All files of a run's folder, by their path in it, and the folder's path on the machine where it was made."""

    folder: str
    files: dict[str, Ref]


def lent(picture: str, store: Store) -> str:
    """A picture's file of this machine, as any machine finds it: `store:SHA256/NAME`; empty for none."""
    if not picture:
        return ""
    return lent_as(keep_picture(Path(picture).read_bytes(), Path(picture).name, store))


def lent_as(ref: Ref) -> str:
    """A picture of the store, as any machine finds it."""
    return f"{LENT}{ref.sha256}/{ref.name}"


def keep_picture(data: bytes, name: str, store: Store) -> Ref:
    """Keep a picture that a run will be given: it may wait for days, and until then only its parameters name it, which `prune` does not read."""
    ref = store.put(data, name)
    store.put_result(f"picture-{ref.sha256[:40]}", ref)
    return ref


def for_any_machine(parameters: dict[str, Any], store: Store) -> dict[str, Any]:
    """A character's parameters as any machine can make it: its pictures from the store, and its folder one of that machine's."""
    pictures = {name: lent(parameters[name], store) for name in ("sheet", "reference")}
    return {**parameters, **pictures, "out": ""}


def found(picture: str, store: Store) -> str:
    """The file of this machine for a picture that another one lent; any other path as it is.

    It lies among the temporary files, which go with the worker.

    Raises:
        BadInput: the store does not hold it.
    """
    if not picture.startswith(LENT):
        return picture
    digest, _, name = picture.removeprefix(LENT).partition("/")
    if not DIGEST.fullmatch(digest) or name != Path(name).name or name in ("", ".", ".."):
        raise BadInput(f"{picture!r} names no picture of the store: store:SHA256/NAME is allowed")
    place = Path(tempfile.gettempdir()) / "charengine-lent" / digest / name
    try:
        write_atomically(place, store.get(Ref(sha256=digest, size=0, media_type="", name=name)))
    except StoreCorrupt as error:
        raise BadInput(f"{error}; or ask for the character again where the picture is") from error
    return str(place)


def hand_over(out: Path, flow_run: str, store: Store) -> None:
    """Keep a folder in the store under the flow run that made it; what the store holds already costs nothing."""
    there = {path.relative_to(out).as_posix(): path for path in _all_below(out)}
    kept = {name: store.put_file(path) for name, path in sorted(there.items())}
    store.put_result(_key(flow_run), HandedOver(folder=str(out), files=kept))


def fetch(flow_run: str, out: Path, store: Store) -> RunResult:
    """Write the folder that a flow run made, and give what it said, with the paths of this machine. Captions edited here stay.

    Raises:
        BadInput: nothing is kept of the flow run, or what it kept cannot be written here.
    """
    kept = store.result(_key(flow_run), HandedOver)
    if kept is None or RESULT not in kept.files:
        raise BadInput(f"the store {store.url} holds no folder of run {flow_run}; run the character again")
    edited = edited_captions(out)
    for name in kept.files:
        if not _is_below(out / name, out):
            raise BadInput(f"run {flow_run} names a file outside of its folder: {name!r}")
    here = {out / name: ref for name, ref in kept.files.items() if name != LEDGER and out / name not in edited}
    own(out, {path: ref.sha256 for path, ref in here.items() if not path.name.startswith(".")})
    try:
        for path in sorted(edited):
            log.warning("%s was edited here and stays; the run on another machine did not know of it", path)
        for path, ref in sorted(here.items(), key=lambda item: item[0] == out / RESULT):
            write_atomically(path, store.get(ref))
    except StoreCorrupt as error:
        raise BadInput(str(error)) from error
    result = _moved(read_result(out), Path(kept.folder), out)
    write_result(result, out)
    return result


def _all_below(folder: Path) -> Iterator[Path]:
    """Every file, our own hidden ones too; links are not followed, and what a killed process had begun to write stays."""
    for path in files.entries(folder):
        if files.is_link(path) or path.suffix == ".tmp":
            continue
        if files.is_dir(path):
            yield from _all_below(path)
        else:
            yield path


def _moved(result: RunResult, made: Path, out: Path) -> RunResult:
    """The result with paths below another folder."""

    def here(path: Path) -> Path:
        return out / path.relative_to(made) if path.is_relative_to(made) else path

    return result.model_copy(
        update={
            "sheet": here(result.sheet),
            "views": tuple(here(path) for path in result.views),
            "captions": tuple(here(path) for path in result.captions),
            "adapter": here(result.adapter),
            "recommended_adapter": here(result.recommended_adapter),
            "report": here(result.report),
        }
    )


def _is_below(path: Path, out: Path) -> bool:
    return path.resolve().is_relative_to(out.resolve())


def _key(flow_run: str) -> str:
    return f"folder-{flow_run}"
