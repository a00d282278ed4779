"""Where the two tokenizers come from: beside the models, in ComfyUI's source wherever it is installed, in caches, in installed
packages, and inside GGUF files, which carry their own.
"""

from __future__ import annotations

import gzip
import hashlib
import importlib.util
import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from charengine import files
from charengine.config import ModelSettings
from charengine.errors import BadInput
from charengine.models.files import gguf_reader
from charengine.models.places import comfy_sources, hub_caches, roots

QWEN_HUBS = (
    "Qwen/Qwen-Image-Edit-2511", "Qwen/Qwen-Image-Edit-2509", "Qwen/Qwen-Image-Edit", "Qwen/Qwen-Image", "Qwen/Qwen2.5-VL-7B-Instruct",
    "Qwen/Qwen2.5-VL-3B-Instruct", "Qwen/Qwen2.5-VL-32B-Instruct", "Qwen/Qwen2.5-VL-72B-Instruct",
)  # fmt: skip
CLIP_HUBS = (
    "stabilityai/stable-diffusion-xl-base-1.0", "openai/clip-vit-large-patch14", "openai/clip-vit-base-patch32", "openai/clip-vit-base-patch16",
    "stabilityai/sdxl-turbo", "OnomaAIResearch/Illustrious-xl-early-release-v0", "Laxhar/noobai-XL-1.1", "Laxhar/noobai-XL-Vpred-1.0",
)  # fmt: skip
CLIP_PACKAGES = ("open_clip", "clip")  # packages that ship OpenAI's merges, from which its vocabulary follows
CLIP_MERGES = "bpe_simple_vocab_16e6.txt.gz"
CLIP_MERGE_COUNT = 49152 - 256 - 2  # of the file's lines, as many as CLIP was trained with
CONTROL, UNUSED = 3, 5  # llama.cpp's token types


@dataclass(frozen=True)
class Tokenizers:
    """A folder, or a file that holds a tokenizer (GGUF, CLIP's merges), for each of the two; None = not found."""

    qwen: Path | None
    clip: Path | None


def find_tokenizers(
    settings: ModelSettings, edit: Path | None, vl: Path | None, sdxl: Path | None, clip: Path | None
) -> Tokenizers:
    """Both tokenizers, nothing written.

    Args:
        settings: `models` of a profile.
        edit, vl, sdxl, clip: the model files and folders that were found.

    Raises:
        BadInput: the one in a GGUF is needed, and damaged.
    """
    edit_config, sdxl_config = (files.expanded(t) if t else None for t in (settings.edit_config, settings.sdxl_config))
    qwen_folders = _inside([edit_config, edit, vl], ("tokenizer", "processor", "."))
    qwen_folders += [source / "comfy" / "text_encoders" / "qwen25_tokenizer" for source in comfy_sources(settings)]
    qwen_folders += _in_caches(settings, QWEN_HUBS, ("tokenizer", "processor", "."))
    clip_folders = _inside([sdxl_config, sdxl, clip], ("tokenizer", "."))
    clip_folders += [source / "comfy" / "sd1_tokenizer" for source in comfy_sources(settings)]
    clip_folders += [
        root.parent / "backend" / "huggingface" / "stabilityai" / "stable-diffusion-xl-base-1.0" / "tokenizer"  # Forge
        for root in roots(settings)
    ]
    clip_folders += _in_caches(settings, CLIP_HUBS, ("tokenizer", "."))
    qwen = next((folder for folder in qwen_folders if has_tokenizer(folder)), None)
    own = qwen is None and vl is not None and vl.suffix.lower() == ".gguf" and _holds_words(vl)
    return Tokenizers(
        vl if own else qwen,
        next((folder for folder in clip_folders if has_tokenizer(folder)), next(_installed_merges(), None)),
    )


def _inside(places: list[Path | None], inner: tuple[str, ...]) -> list[Path]:
    return [place / name for place in places if place is not None and files.is_dir(place) for name in inner]


def _in_caches(settings: ModelSettings, hubs: tuple[str, ...], inner: tuple[str, ...]) -> list[Path]:
    snapshots = [
        snapshot
        for hub in hubs
        for cache in hub_caches(settings)
        for snapshot in sorted((cache / f"models--{hub.replace('/', '--')}").glob("snapshots/*"))
    ]
    return [snapshot / name for snapshot in snapshots for name in inner]


def has_tokenizer(folder: Path) -> bool:
    """Whether a folder holds a BPE tokenizer's files."""
    pair = all(os.path.isfile(folder / name) for name in ("vocab.json", "merges.txt"))
    return pair or os.path.isfile(folder / "tokenizer.json")


def own_tokenizers(checkpoint: Path) -> bool:
    """Whether an SDXL folder has both its tokenizers."""
    return all(has_tokenizer(checkpoint / name) for name in ("tokenizer", "tokenizer_2"))


def _installed_merges() -> Iterator[Path]:
    for package in CLIP_PACKAGES:
        spec = importlib.util.find_spec(package)
        for place in (spec.submodule_search_locations or []) if spec else []:
            file = Path(place) / CLIP_MERGES
            if files.is_file(file):
                yield file


def _holds_words(path: Path) -> bool:
    """Whether a GGUF holds a tokenizer; a damaged one is said now, not after the models were loaded."""
    fields = gguf_reader(path).fields
    return "tokenizer.ggml.merges" in fields and bool(_gguf_words(path, fields))


# --- made from other files -------------------------------------------------------------------------------------------


def as_folder(source: Path, home: Path) -> Path:
    """A folder with a tokenizer's files: the source itself, or one written under `home` from what the file holds.

    Args:
        source: of `Tokenizers`.
        home: the engine's folder; what is made is kept there, by the file's path, size and time.
    """
    if files.is_dir(source):
        return source
    stat = files.asked(source, lambda: os.stat(source))
    stamp = hashlib.sha256(f"{source.resolve()}|{stat.st_size}|{stat.st_mtime_ns}".encode()).hexdigest()[:16]
    folder = home / "tokenizers" / f"{'qwen' if source.suffix.lower() == '.gguf' else 'clip'}-{stamp}"
    if not has_tokenizer(folder):
        partial = folder.with_name(f"{folder.name}.{os.getpid()}.tmp")
        (_write_from_gguf if source.suffix.lower() == ".gguf" else _write_from_merges)(source, partial)
        if not has_tokenizer(folder):
            partial.replace(folder)
    return folder


def _write_from_gguf(source: Path, folder: Path) -> None:
    """Qwen's tokenizer from what a GGUF holds."""
    from transformers import Qwen2Tokenizer

    vocabulary, pairs, special = _gguf_words(source, gguf_reader(source).fields)
    Qwen2Tokenizer(vocab=vocabulary, merges=pairs, additional_special_tokens=special).save_pretrained(folder)


def _gguf_words(source: Path, fields: Mapping[str, Any]) -> tuple[dict[str, int], list[tuple[str, str]], list[str]]:
    """Number by token, merges, and special tokens in a GGUF's fields.

    Raises:
        BadInput: they are damaged, or do not belong together.
    """
    try:
        tokens, kinds, merges = (fields[f"tokenizer.ggml.{name}"] for name in ("tokens", "token_type", "merges"))
        words = [str(tokens.parts[i], encoding="utf-8") for i in tokens.data]
        types = [int(kinds.parts[i][0]) for i in kinds.data]
        vocabulary = {word: i for i, (word, kind) in enumerate(zip(words, types, strict=True)) if kind != UNUSED}
        if len(vocabulary) + types.count(UNUSED) < len(words):
            raise ValueError("a token that stands twice")
        pairs = []
        for i in merges.data:
            first, second = str(merges.parts[i], encoding="utf-8").split(" ", 1)
            if not vocabulary.keys() >= {first, second, first + second}:
                raise ValueError(f"a merge of {first + second!a:.60}, which is no token")
            pairs.append((first, second))
    except (KeyError, ValueError, TypeError, IndexError) as error:
        raise BadInput(f"{source}: the tokenizer in it is damaged ({error}): download it again") from error
    return vocabulary, pairs, [word for word, kind in zip(words, types, strict=True) if kind == CONTROL]


def _write_from_merges(source: Path, folder: Path) -> None:
    """CLIP's vocabulary, which follows from its merges: bytes, bytes that end a word, merges in order, the two marks."""
    from transformers.convert_slow_tokenizer import bytes_to_unicode

    with gzip.open(source, "rt", encoding="utf-8") as stream:
        lines = stream.read().split("\n")[1 : 1 + CLIP_MERGE_COUNT]
    letters = list(bytes_to_unicode().values())
    words = [*letters, *(letter + "</w>" for letter in letters), *("".join(line.split()) for line in lines)]
    words += ["<|startoftext|>", "<|endoftext|>"]
    folder.mkdir(parents=True, exist_ok=True)
    vocabulary = {word: i for i, word in enumerate(words)}
    (folder / "vocab.json").write_text(json.dumps(vocabulary, ensure_ascii=False), encoding="utf-8")
    (folder / "merges.txt").write_text("\n".join(["#version: 0.2", *lines]) + "\n", encoding="utf-8")
