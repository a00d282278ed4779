"""The embedded family as `Models`: tiny models of the real classes, from the package or from folders a profile names."""

from __future__ import annotations

import hashlib
import os
from functools import lru_cache
from pathlib import Path

import torch

from charengine import files
from charengine.config import ModelSettings, Profile
from charengine.embedded.grammar import parse_tags, unknown_words
from charengine.embedded.nearest import READING
from charengine.embedded.shape import EMBEDDED_CONDITION_AREA, EMBEDDED_VAE_AREA
from charengine.errors import ConfigError
from charengine.models.captioners import EmbeddedCaptioner
from charengine.models.embedded_folders import folder_of
from charengine.models.embedders import ClipEmbedder
from charengine.models.loading import Loaded, resolve_device
from charengine.models.onlookers import EmbeddedOnlooker
from charengine.models.prediction import prediction_of
from charengine.models.protocols import Captioner, Models
from charengine.models.qwen_edit import PARTS, QwenEdit
from charengine.models.qwen_parts import QwenEditFolder
from charengine.models.readers import ProbeReader
from charengine.models.sdxl import SDXL
from charengine.models.sdxl_parts import SDXLFolder
from charengine.models.tagger import WD14Captioner
from charengine.models.usage import Usage

NATIVE_AREA = 128 * 384  # pixels of the pictures the family's SDXL was trained on, and upwards
DTYPE = torch.float32  # the weights are fp16 files; so small, they are computed in full precision everywhere
OTHER_FAMILY = ("edit_config", "vl", "vae", "lightning", "edit_loras", "sdxl_config", "sdxl_vae", "dino")


def load(profile: Profile) -> Models:
    """The embedded family; `models.edit`, `.sdxl` and `.clip` name other folders of the same kind.

    Raises:
        MissingDependency: a folder lacks a part.
        ConfigError: a setting that only the full-size family has.
    """
    settings = profile.models
    _refuse_other_family(settings)
    device = resolve_device(settings.device)
    edit, sdxl, clip = (folder_of(name, settings) for name in ("edit", "sdxl", "clip"))
    parts, shared = QwenEditFolder(edit, device, DTYPE), Loaded()
    editor = QwenEdit(
        parts,
        device,
        f"{fingerprint(edit)}|{READING}",
        vae_area=EMBEDDED_VAE_AREA,
        enlarges=False,
        condition_area=EMBEDDED_CONDITION_AREA,
        keep=PARTS,
        unknown_words=unknown_words,
        prompt_style="plain",
        loaded=shared,
    )
    captioner = EmbeddedCaptioner(parts, device, fingerprint(edit), parse=parse_tags, loaded=shared)
    return Models(
        editor=editor,
        captioner=_tagger(profile) if profile.caption.captioner == "wd14" else captioner,
        diffusion=SDXL(
            SDXLFolder(sdxl, device, DTYPE),
            device,
            DTYPE,
            NATIVE_AREA,
            fingerprint(sdxl),
            prediction=prediction_of(sdxl, settings),
            usage=Usage(
                prompt_prefix=settings.prompt_prefix or "",
                negative_prompt=settings.negative_prompt or "",
                few_words=READING,
            ),
            recorded=settings.cuda_graphs == "auto",
        ),
        embedder=ClipEmbedder(clip, device, DTYPE, fingerprint(clip)),
        reader=ProbeReader(device),
        onlooker=EmbeddedOnlooker(captioner, device),
    )


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files; computed once a process while they stay the same."""
    found = sorted(files.below(folder))
    stats = [files.asked(path, lambda path=path: os.stat(path)) for path in found]  # type: ignore[misc]
    stamps = tuple(
        (str(path.relative_to(folder)), s.st_size, s.st_mtime_ns) for path, s in zip(found, stats, strict=True)
    )
    return _digest(folder, stamps)


@lru_cache(maxsize=32)
def _digest(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, size, _ in stamps:
        digest.update(f"{Path(name).as_posix()}\0{size}\0".encode())
        with open(folder / name, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def _refuse_other_family(settings: ModelSettings) -> None:
    wrong = [name for name in OTHER_FAMILY if getattr(settings, name)]
    if wrong:
        raise ConfigError(
            [f"models.{name}: {getattr(settings, name)!r} needs models.family=sdxl; remove it" for name in wrong]
        )


def _tagger(profile: Profile) -> Captioner:
    if not profile.models.tagger:
        raise ConfigError(
            "caption.captioner is 'wd14' but models.tagger is empty: name the folder with model.onnx and "
            "selected_tags.csv, or set caption.captioner=vl"
        )
    folder = files.expanded(profile.models.tagger)
    tagger = WD14Captioner(folder, "", threshold=profile.caption.threshold)
    tagger.fingerprint = fingerprint(folder)
    return tagger
