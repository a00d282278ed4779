"""Where model files lie: folders of the profile, ComfyUI's usual places, and Hugging Face caches."""

from __future__ import annotations

import importlib.util
import os
from collections.abc import Iterator
from pathlib import Path

from charengine.config import ModelSettings

COMFY_FOLDERS = ("diffusion_models", "unet", "text_encoders", "clip", "vae", "checkpoints", "loras")
USUAL = ("~/ComfyUI", "~/comfyui", "~/Documents/ComfyUI")  # the last is ComfyUI Desktop's: models without the source
SUFFIXES = (".safetensors", ".gguf")


def roots(settings: ModelSettings) -> list[Path]:
    """Folders looked in: the profile's, then ComfyUI's usual places; only those that exist, each once."""
    usual = [os.environ.get("COMFYUI_PATH", ""), *USUAL]
    given = [Path(folder).expanduser() for folder in settings.folders]
    places = given + [Path(folder).expanduser() / "models" for folder in usual if folder]
    return list(dict.fromkeys(place for place in places if place.is_dir()))


def missing_folders(settings: ModelSettings) -> list[Path]:
    """Folders the profile names that are not there."""
    return [path for path in (Path(folder).expanduser() for folder in settings.folders) if not path.is_dir()]


def model_files(settings: ModelSettings) -> Iterator[tuple[Path, Path]]:
    """Every model file in the folders looked in, with the folder it was found under; later shards are left out."""
    for root in roots(settings):
        inner = [root / name for name in COMFY_FOLDERS if (root / name).is_dir()]
        for folder in inner or [root]:
            for file in sorted(folder.rglob("*")):
                if file.suffix.lower() in SUFFIXES and file.is_file() and "-of-0" not in file.name:
                    yield root, file


def model_folders(root: Path) -> Iterator[Path]:
    """Folders that describe a model, at most two levels down."""
    for depth in ("*", "*/*"):
        for folder in sorted(root.glob(depth)):
            if folder.is_dir() and ((folder / "model_index.json").is_file() or (folder / "config.json").is_file()):
                yield folder


def hub_caches(settings: ModelSettings) -> list[Path]:
    """Hugging Face caches: the environment's, then folders of the profile that look like one."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    places = [Path(cache).expanduser(), *[Path(folder).expanduser() for folder in settings.folders]]
    return [place for place in places if place.is_dir() and any(place.glob("models--*"))]


def cached_snapshot(hub: str, settings: ModelSettings) -> Path | None:
    """The newest complete-looking snapshot of a hub repository in a cache, without asking the network."""
    for cache in hub_caches(settings):
        folder = cache / f"models--{hub.replace('/', '--')}"
        main = folder / "refs" / "main"
        named = folder / "snapshots" / main.read_text(encoding="utf-8").strip() if main.is_file() else None
        snapshots = [named] if named and named.is_dir() else sorted(folder.glob("snapshots/*"))
        for snapshot in snapshots:
            if (snapshot / "model_index.json").is_file() or (snapshot / "config.json").is_file():
                return snapshot
    return None


def comfy_sources(settings: ModelSettings) -> list[Path]:
    """Where ComfyUI's own source may be: above its models, in its usual folders, in the Desktop application, installed."""
    local, desktop = os.environ.get("LOCALAPPDATA", ""), "resources/ComfyUI"
    places = [root.parent for root in roots(settings)]
    places += [Path(folder).expanduser() for folder in (os.environ.get("COMFYUI_PATH", ""), *USUAL) if folder]
    if local:
        programs = Path(local) / "Programs"
        places += [programs / name / desktop for name in ("@comfyorgcomfyui-electron", "ComfyUI", "comfyui-electron")]
    places += [
        Path(base).expanduser() / "ComfyUI.app/Contents/Resources/ComfyUI"
        for base in ("/Applications", "~/Applications")
    ]
    spec = importlib.util.find_spec("comfy")
    places += [Path(place).parent for place in (spec.submodule_search_locations or [])] if spec else []
    return list(dict.fromkeys(place for place in places if (place / "comfy").is_dir()))
