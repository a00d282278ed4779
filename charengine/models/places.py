"""Where model files lie: folders of the profile, ComfyUI's usual places, and Hugging Face caches.

A folder that the profile names and that cannot be asked is an error; elsewhere, what cannot be read is passed over.
"""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterable, Iterator
from contextlib import suppress
from pathlib import Path

from charengine import files
from charengine.config import ModelSettings
from charengine.errors import BadInput, ConfigError

COMFY_FOLDERS = ("diffusion_models", "unet", "text_encoders", "clip", "vae", "checkpoints", "loras")
USUAL = ("~/ComfyUI", "~/comfyui", "~/Documents/ComfyUI")  # the last is ComfyUI Desktop's: models without the source
SUFFIXES = (".safetensors", ".gguf")


def roots(settings: ModelSettings) -> list[Path]:
    """Folders looked in: the profile's, then ComfyUI's usual places; only those that exist, each once."""
    usual = [os.environ.get("COMFYUI_PATH", ""), *USUAL]
    given = [place for place in named_folders(settings) if files.is_dir(place)]
    return list(dict.fromkeys([*given, *_there([f"{folder}/models" for folder in usual if folder])]))


def named_folders(settings: ModelSettings) -> list[Path]:
    """The folders that the profile names.

    Raises:
        ConfigError: everything that cannot be asked about them.
    """
    found, problems = [], []
    for folder in settings.folders:
        try:
            place = files.expanded(folder)
            if files.is_dir(place):
                files.entries(place)
            found.append(place)
        except BadInput as error:
            problems.append(f"models.folders: {error}")
    if problems:
        raise ConfigError(problems)
    return found


def missing_folders(settings: ModelSettings) -> list[str]:
    """A line for each folder that the profile names and that is not there."""
    return [f"models.folders: {path} does not exist" for path in named_folders(settings) if not files.is_dir(path)]


def _there(places: Iterable[str | Path]) -> list[Path]:
    """Those that are folders; the others, and those that cannot be asked, are left out."""
    found = []
    for place in places:
        with suppress(BadInput):
            path = files.expanded(place)
            if files.is_dir(path):
                found.append(path)
    return found


def model_files(settings: ModelSettings) -> Iterator[tuple[Path, Path]]:
    """Every model file in the folders looked in, with the folder it was found under; later shards are left out."""
    for root in roots(settings):
        for folder in _there([root / name for name in COMFY_FOLDERS]) or [root]:
            for file in sorted(_weights_below(folder)):
                yield root, file


def _weights_below(folder: Path) -> Iterator[Path]:
    """Model files at any depth, through links to folders as ComfyUI follows them, each folder once."""
    seen: set[str] = set()
    for place, inner, names in os.walk(folder, followlinks=True):
        real = os.path.realpath(place)
        if real in seen:
            inner.clear()
            continue
        seen.add(real)
        for name in names:
            path = Path(place, name)
            if path.suffix.lower() in SUFFIXES and "-of-0" not in name and os.path.isfile(path):
                yield path


def model_folders(root: Path) -> Iterator[Path]:
    """Folders that describe a model, at most two levels down."""
    for depth in ("*", "*/*"):
        for folder in _there(sorted(root.glob(depth))):
            if _describes_a_model(folder):
                yield folder


def _describes_a_model(folder: Path) -> bool:
    return any(os.path.isfile(folder / name) for name in ("model_index.json", "config.json"))


def hub_caches(settings: ModelSettings) -> list[Path]:
    """Hugging Face caches: the environment's, then folders of the profile that look like one."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    places = [*_there([cache]), *_there(named_folders(settings))]
    return [place for place in places if any(place.glob("models--*"))]


def cached_snapshot(hub: str, settings: ModelSettings) -> Path | None:
    """The newest complete-looking snapshot of a hub repository in a cache, without asking the network."""
    for cache in hub_caches(settings):
        folder = cache / f"models--{hub.replace('/', '--')}"
        snapshots = _there([folder / "snapshots" / name for name in _newest(folder / "refs" / "main")])
        for snapshot in snapshots or _there(sorted(folder.glob("snapshots/*"))):
            if _describes_a_model(snapshot):
                return snapshot
    return None


def _newest(main: Path) -> list[str]:
    """The snapshot that a cache's own note names, if it can be read."""
    with suppress(BadInput):
        return [files.read_text(main).strip()] if files.is_file(main) else []
    return []


def comfy_sources(settings: ModelSettings) -> list[Path]:
    """Where ComfyUI's own source may be: above its models, in its usual folders, in the Desktop application, installed."""
    local, desktop = os.environ.get("LOCALAPPDATA", ""), "resources/ComfyUI"
    places = [root.parent for root in roots(settings)]
    places += _there([folder for folder in (os.environ.get("COMFYUI_PATH", ""), *USUAL) if folder])
    if local:
        programs = Path(local) / "Programs"
        places += [programs / name / desktop for name in ("@comfyorgcomfyui-electron", "ComfyUI", "comfyui-electron")]
    places += _there([f"{base}/ComfyUI.app/Contents/Resources/ComfyUI" for base in ("/Applications", "~/Applications")])
    spec = importlib.util.find_spec("comfy")
    places += [Path(place).parent for place in (spec.submodule_search_locations or [])] if spec else []
    return list(dict.fromkeys(place for place in places if os.path.isdir(place / "comfy")))
