"""Where the embedded family's models lie: the package's own, or folders a profile names. Nothing is loaded here, torch neither."""

from __future__ import annotations

from importlib import resources
from pathlib import Path

from charengine import files
from charengine.config import ModelSettings
from charengine.errors import MissingDependency

NEEDED = {
    "edit": ("model_index.json", "text_encoder", "processor", "transformer", "vae", "scheduler"),
    "sdxl": (
        "model_index.json",
        "text_encoder",
        "text_encoder_2",
        "tokenizer",
        "tokenizer_2",
        "unet",
        "vae",
        "scheduler",
    ),
    "clip": ("config.json", "model.safetensors", "preprocessor_config.json", "tokenizer_config.json"),
}
PACKAGED = {"edit": "qwen", "sdxl": "sdxl", "clip": "clip"}


def base_folder(settings: ModelSettings) -> Path:
    """The diffusers folder of the family's SDXL."""
    return folder_of("sdxl", settings)


def folder_of(name: str, settings: ModelSettings) -> Path:
    """The folder of "edit", "sdxl" or "clip": the one that is named, else the packaged one.

    Raises:
        MissingDependency: it lacks a part; says which and what to do.
    """
    given = getattr(settings, name)
    folder = files.expanded(given) if given else _packaged(PACKAGED[name])
    missing = [part for part in NEEDED[name] if not files.exists(folder / part)]
    if missing:
        cure = (
            f"set models.{name} to a diffusers folder of the embedded family, or leave it empty for the packaged one"
            if given
            else "reinstall the package; its model weights were not installed with it"
        )
        raise MissingDependency(f"models.{name}: {folder} has no {', '.join(missing)}: {cure}")
    return folder


def _packaged(name: str) -> Path:
    return Path(str(resources.files("charengine.embedded") / "weights" / name))
