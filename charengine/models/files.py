"""Model files read without trusting them: headers, sizes, formats, fingerprints.

Only formats that cannot carry code are opened (safetensors, GGUF, ONNX); what a file holds is told from its header,
never from its name and before any tensor is read.
"""

from __future__ import annotations

import hashlib
import json
import logging
import os
import re
import struct
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from functools import lru_cache
from math import prod
from pathlib import Path
from typing import IO, Any

from charengine import files
from charengine.adapter.header import MAX_HEADER, tensors_of
from charengine.errors import BadInput, MissingDependency, UnsafeFile
from charengine.machine.memories import recall, remember

log = logging.getLogger(__name__)

UNSAFE_SUFFIXES = (".ckpt", ".pt", ".pth", ".bin", ".pkl", ".pickle")
GGUF_MAGIC = b"GGUF"


@dataclass(frozen=True)
class TensorInfo:
    """One tensor's entry in a header: element type by the file's own name, shape as torch has it, bytes on disk and where."""

    dtype: str
    shape: tuple[int, ...]
    nbytes: int
    start: int = 0  # bytes from the file's beginning


@dataclass(frozen=True)
class Header:
    """What a model file says about itself; `tensors` in file order."""

    path: Path
    format: str  # safetensors | gguf
    tensors: dict[str, TensorInfo]
    metadata: dict[str, str] = field(default_factory=dict)

    @property
    def nbytes(self) -> int:
        """Bytes of all tensors."""
        return sum(tensor.nbytes for tensor in self.tensors.values())

    def dtypes(self) -> dict[str, int]:
        """Elements per element type, the most frequent first."""
        counts: dict[str, int] = {}
        for tensor in self.tensors.values():
            counts[tensor.dtype] = counts.get(tensor.dtype, 0) + prod(tensor.shape)
        return dict(sorted(counts.items(), key=lambda item: -item[1]))


def shown(name: str) -> str:
    """A name out of a file as it may be printed: short, and without control characters."""
    return name if name.isprintable() and len(name) <= 120 else ascii(name[:120])[1:-1] + "…"


def refuse_unsafe(path: Path) -> None:
    """Refuse formats that may run code when opened.

    Raises:
        UnsafeFile: says how to convert the file.
    """
    if path.suffix.lower() in UNSAFE_SUFFIXES:
        raise UnsafeFile(
            f"{path} is a pickle ({path.suffix}), which can run code when opened; only .safetensors, .gguf and .onnx are read. "
            "Get the .safetensors release of the same model, or convert it once where nothing can be harmed: "
            "torch.load(FILE, weights_only=True), then safetensors.torch.save_file(state_dict, 'model.safetensors')"
        )


def read_header(path: Path) -> Header:
    """The header of a safetensors or GGUF file, checked against the file's real size.

    Raises:
        UnsafeFile: the format can carry code.
        BadInput: not such a file, or truncated; says what was found.
    """
    refuse_unsafe(path)
    if not files.is_file(path):
        raise BadInput(f"model file {path} does not exist or is not a file")
    stat = files.asked(path, lambda: os.stat(path))
    return _read_header(path, stat.st_size, stat.st_mtime_ns)


@lru_cache(maxsize=256)
def _read_header(path: Path, _size: int, _time: int) -> Header:
    """Once for each state of a file: a search looks at the same ones for several needs, and GGUF's take seconds."""
    with files.asked(path, lambda: path.open("rb")) as stream:
        start = files.asked(path, lambda: stream.read(8))
        if start[:4] == GGUF_MAGIC or path.suffix.lower() == ".gguf":
            return _gguf_header(path, start)
        return _safetensors_header(path, start, stream)


def read_header_of_folder(folder: Path) -> Header:
    """One header for all the safetensors shards of a model folder, each checked.

    Raises:
        BadInput: no weights, a shard missing or damaged, or two hold one tensor.
        UnsafeFile: the folder holds only pickles.
    """
    headers = [read_header(path) for path in shards(folder)]
    return Header(folder, "safetensors", tensors_together(headers), headers[0].metadata)


def tensors_together(headers: Iterable[Header], renamed: Callable[[str], str] = str) -> dict[str, TensorInfo]:
    """The tensors of files that make up one model, by the names they get.

    Raises:
        BadInput: two have one name: which one is meant, nothing says.
    """
    tensors: dict[str, TensorInfo] = {}
    for header in headers:
        for key, tensor in header.tensors.items():
            name = renamed(key)
            if name in tensors:
                raise BadInput(
                    f"{header.path}: {shown(key)} stands twice in this model's files; allowed is once: download them again"
                )
            tensors[name] = tensor
    return tensors


def shards(folder: Path) -> list[Path]:
    """The files one model's weights are in: those its index names, else the one without a variant ("fp16") in its name.

    Raises:
        BadInput: no weights, or a shard is missing.
        UnsafeFile: the folder holds only pickles.
    """
    found = files.entries(folder)
    indices = _named_like("*.safetensors.index*.json", found)  # .index.fp16.json too
    if indices:
        names = _names_of_shards(indices[0])
        missing = [name for name in names if not files.is_file(folder / name)]
        if missing:
            raise BadInput(f"{folder} lacks {len(missing)} of {len(names)} shards ({missing[0]}…): download it again")
        return [folder / name for name in names]
    weights = _named_like("*.safetensors", found)
    if not weights:
        for pickle in (path for path in found if path.suffix in UNSAFE_SUFFIXES):
            refuse_unsafe(pickle)
        raise BadInput(f"{folder} holds no .safetensors weights")
    return weights[:1]


def _named_like(pattern: str, found: list[Path]) -> list[Path]:
    """The files of a folder whose names match, the shortest name first."""
    return sorted((path for path in found if path.match(pattern)), key=lambda path: len(path.name))


def _names_of_shards(index: Path) -> list[str]:
    """The files that an index names, all in its own folder.

    Raises:
        BadInput: it is damaged, or names a file elsewhere.
    """
    shards_of = read_json(index).get("weight_map")
    names = sorted({str(name) for name in shards_of.values()}) if isinstance(shards_of, dict) else []
    if not names or any(Path(name).name != name or not name.endswith(".safetensors") for name in names):
        raise BadInput(f"{index} is damaged: its weight_map names no safetensors files beside it; download it again")
    return names


def read_json(path: Path) -> dict[str, Any]:
    """A configuration that lies beside weights.

    Raises:
        BadInput: it is missing, cannot be read, or holds anything but one JSON object.
    """
    text = files.read_text(path)
    try:
        config = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"{path} is damaged ({error}): download it again") from error
    if not isinstance(config, dict):
        raise BadInput(f"{path} is damaged (it holds no JSON object): download it again")
    return config


def weight_files(path: Path) -> list[Path]:
    """The files a model's bytes are in: the file itself, a model folder's shards, or those of a pipeline's parts."""
    if files.is_file(path):
        return [path]
    found = files.entries(path)
    inner = [folder for folder in found if files.is_dir(folder) and holds_weights(folder)]
    own = shards(path) if holds_weights(path) and files.is_file(path / "config.json") else []
    return own or [file for folder in inner for file in shards(folder)]


def holds_weights(folder: Path) -> bool:
    """Whether a folder is there and safetensors lie in it."""
    return files.is_dir(folder) and any(path.suffix == ".safetensors" for path in files.entries(folder))


def _safetensors_header(path: Path, start: bytes, stream: IO[bytes]) -> Header:
    size = files.size(path)
    length = struct.unpack("<Q", start)[0] if len(start) == 8 else 0
    if not 2 <= length <= MAX_HEADER:
        raise BadInput(
            f"{path} ({size:,} bytes) is not a safetensors file{_looks_like(start, stream)}: download it again"
        )
    if 8 + length > size:
        raise BadInput(f"{path} is truncated inside its header ({size:,} bytes): download it again")
    try:
        entries = json.loads(stream.read(length))
        metadata = {str(key): str(value) for key, value in (entries.pop("__metadata__", None) or {}).items()}
    except (ValueError, TypeError, AttributeError, RecursionError) as error:
        raise BadInput(f"{path} has a damaged safetensors header ({error}): download it again") from error
    tensors = {
        name: TensorInfo(entry.dtype, entry.shape, entry.place[1] - entry.place[0], 8 + length + entry.place[0])
        for name, entry in tensors_of(entries, str(path), 8 + length, size).items()
    }
    return Header(path, "safetensors", tensors, metadata)


def _looks_like(start: bytes, stream: IO[bytes]) -> str:
    if start[:2] == b"PK" or start[:1] == b"\x80":
        return " but a pickle under another name"
    text = (start + stream.read(200)).lstrip().lower()
    if text.startswith(b"version https://git-lfs"):
        return " but a git-LFS pointer (the weights were not fetched: git lfs pull)"
    return " but a web page" if text.startswith((b"<!doctype", b"<html")) else ""


def gguf_reader(path: Path) -> Any:
    """The gguf package's reader over a file, whose tensors lie behind one another, as the format has it.

    Raises:
        MissingDependency: the gguf package is not installed.
        BadInput: not a GGUF file, truncated, or tensors share bytes, lie in the header or behind the file's end.
    """
    try:
        import numpy as np
        from gguf import GGUFReader
    except ImportError as error:
        raise MissingDependency(f"{path} is a GGUF file; reading it needs: pip install 'gguf>=0.10'") from error

    class Whole(GGUFReader):
        def _get(self, offset: int, dtype: Any, count: int = 1, *more: Any, **named: Any) -> Any:
            """The package's own gives less where the file ends, and reads on for as long as a header says."""
            found = super()._get(offset, dtype, count, *more, **named)
            if len(found) < int(count):
                raise ValueError(
                    f"{int(count):,} values at byte {int(offset):,} end behind its {len(self.data):,} bytes"
                )
            return found

    try:
        with np.errstate(over="ignore"):  # what wraps round is refused below
            reader = Whole(path)
        _check_gguf(path, reader)
    except (ValueError, IndexError, KeyError, OverflowError, RecursionError, OSError) as error:
        raise BadInput(
            f"{path} is not a readable GGUF file ({error}); it may be truncated: download it again"
        ) from error
    return reader


def _check_gguf(path: Path, reader: Any) -> None:
    """Raises:
    BadInput: a tensor does not begin where the one before it ends, or the last does not end the file.
    """
    end = first = int(reader.data_offset)
    for tensor in sorted(reader.tensors, key=lambda tensor: int(tensor.field.parts[-1][0])):
        start, step = first + int(tensor.field.parts[-1][0]), int(reader.alignment)
        if start != (allowed := -(-end // step) * step):
            raise BadInput(
                f"{path} is damaged: {shown(tensor.name)} begins at byte {start:,}; allowed is {allowed:,}, where the header or "
                "the tensor before it ends: download it again"
            )
        end = start + int(tensor.n_bytes)
    if (size := files.size(path)) > (allowed := -(-end // int(reader.alignment)) * int(reader.alignment)):
        raise BadInput(f"{path} is damaged: {size - allowed:,} bytes lie behind its last tensor: download it again")


def _gguf_header(path: Path, start: bytes) -> Header:
    if start[:4] != GGUF_MAGIC:
        raise BadInput(f"{path} is named .gguf but does not start with 'GGUF': download it again")
    reader = gguf_reader(path)
    tensors = {
        tensor.name: TensorInfo(
            tensor.tensor_type.name, tuple(int(n) for n in reversed(tensor.shape)), int(tensor.n_bytes)
        )
        for tensor in reader.tensors
    }
    name = reader.get_field("general.architecture")
    architecture = bytes(name.parts[name.data[0]]).decode(errors="replace") if name is not None and name.data else ""
    return Header(path, "gguf", tensors, {"general.architecture": architecture})


# --- fingerprints ---------------------------------------------------------------------------------------------------

BLOB_NAME = re.compile(r"^[0-9a-f]{64}$")  # the Hugging Face cache names big files by their SHA-256


def fingerprint(paths: Iterable[Path], memory: Path) -> str:
    """SHA-256 over the contents of files, each hashed once and remembered by path, size and time in `memory` (JSON).

    Args:
        paths: weight files; their order and place do not matter, their contents do.
        memory: e.g. `<home>/fingerprints.json`; created when missing.
    """
    return hashlib.sha256("\n".join(sorted(_digests(paths, memory))).encode()).hexdigest()


def file_digest(path: Path, memory: Path) -> str:
    """SHA-256 of one file's contents, remembered as `fingerprint`'s are."""
    return _digests([path], memory)[0]


def _digests(paths: Iterable[Path], memory: Path) -> list[str]:
    known: dict[str, str] = recall(memory)
    digests, changed = [], False
    for path in paths:
        stat = files.asked(path, lambda path=path: os.stat(path))  # type: ignore[misc]
        key = f"{path.resolve()}|{stat.st_size}|{stat.st_mtime_ns}"
        if not BLOB_NAME.match(str(known.get(key))):
            known[key] = _digest(path)
            changed = True
        digests.append(known[key])
    if changed:
        remember(memory, known)
    return digests


def _digest(path: Path) -> str:
    if BLOB_NAME.match(path.resolve().name):
        return path.resolve().name
    log.info("fingerprinting %s (%.1f GiB), once", path, files.size(path) / 2**30)
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()
