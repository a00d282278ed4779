"""What is known of the embedded family's models before any is made: where they lie, how they are used, their fingerprints.

Nothing is loaded here, torch neither: keys can be made from it, and so kept results found, in no time.
"""

from __future__ import annotations

import hashlib
import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import cast

from charengine import files
from charengine.config import ModelSettings, Profile
from charengine.embedded.nearest import READING
from charengine.embedded.packaged import ONLOOKER, PROBE, packaged_digest
from charengine.errors import BadInput, ConfigError
from charengine.models.embedded_folders import folder_of
from charengine.models.prediction import Prediction, prediction_of
from charengine.models.protocols import Models
from charengine.models.usage import Usage

OTHER_FAMILY = ("edit_config", "vl", "vae", "lightning", "edit_loras", "sdxl_config", "sdxl_vae", "dino")
TOKENIZER = "tokenizer/tokenizer.json"  # of the packaged SDXL; other folders may have it in other files


@dataclass(frozen=True)
class EmbeddedFamily:
    """The family as a profile names it.

    Args:
        edit: folder of the edit model with its Qwen2.5-VL.
        sdxl: of the diffusion model.
        clip: of the model that scores.
        tagger: of a WD14 tagger, where that captions.
        prediction: what the U-Net predicts.
        usage: how the diffusion model is prompted.
    """

    edit: Path
    sdxl: Path
    clip: Path
    tagger: Path | None
    prediction: Prediction | None
    usage: Usage

    @property
    def editor(self) -> str:
        """Fingerprint of the edit model, with how prompts are put into its words."""
        return f"{fingerprint(self.edit)}|{READING}"


@dataclass(frozen=True)
class Known:
    """A model as a key sees it: it cannot work."""

    fingerprint: str


@dataclass(frozen=True)
class KnownDiffusion(Known):
    """The diffusion model as keys, names and recipes see it."""

    sampling_fingerprint: str
    count_tokens: Callable[[str], int]
    base_names: Mapping[str, str] = field(default_factory=dict)


def family_of(profile: Profile) -> EmbeddedFamily:
    """The family; `models.edit`, `.sdxl` and `.clip` name other folders of the same kind.

    Raises:
        MissingDependency: a folder lacks a part.
        ConfigError: a setting that only the full-size family has.
    """
    settings = profile.models
    _refuse_other_family(settings)
    edit, sdxl, clip = (folder_of(name, settings) for name in ("edit", "sdxl", "clip"))
    usage = Usage(
        prompt_prefix=settings.prompt_prefix or "", negative_prompt=settings.negative_prompt or "", few_words=READING
    )
    return EmbeddedFamily(edit, sdxl, clip, _tagger(profile), prediction_of(sdxl, settings), usage)


def known_models(profile: Profile) -> Models | None:
    """The models' fingerprints, the diffusion model's tokenizer, and nothing that could work.

    None where the tokenizer would have to be made out of other files, which is the libraries' work.

    Raises:
        MissingDependency: a folder lacks a part.
        ConfigError: a setting that only the full-size family has.
    """
    family = family_of(profile)
    if not files.is_file(family.sdxl / TOKENIZER):
        return None
    captioner = fingerprint(family.edit)
    diffusion = (family.prediction or Prediction()).fingerprint_of(fingerprint(family.sdxl))
    known = {
        "editor": Known(family.editor),
        "captioner": Known(fingerprint(family.tagger) if family.tagger else captioner),
        "diffusion": KnownDiffusion(
            diffusion, family.usage.fingerprint_of(diffusion), _counter(family.sdxl / TOKENIZER)
        ),
        "embedder": Known(fingerprint(family.clip)),
        "reader": Known(packaged_digest("probe", PROBE)),
        "onlooker": Known(onlooker_fingerprint(captioner, packaged_digest("onlooker", ONLOOKER))),
    }
    return Models(**cast("dict[str, object]", known))  # type: ignore[arg-type]


def fingerprint(folder: Path) -> str:
    """SHA-256 over the names and contents of a folder's files; computed once a process while they stay the same."""
    found = sorted(files.below(folder))
    stats = [files.asked(path, lambda path=path: os.stat(path)) for path in found]  # type: ignore[misc]
    stamps = tuple(
        (str(path.relative_to(folder)), s.st_size, s.st_mtime_ns) for path, s in zip(found, stats, strict=True)
    )
    return _digest(folder, stamps)


def onlooker_fingerprint(captioner: str, net: str) -> str:
    """Of both models that look at a reference."""
    return hashlib.sha256(f"{captioner}|{net}".encode()).hexdigest()


@lru_cache(maxsize=32)
def _digest(folder: Path, stamps: tuple[tuple[str, int, int], ...]) -> str:
    digest = hashlib.sha256()
    for name, size, _ in stamps:
        digest.update(f"{Path(name).as_posix()}\0{size}\0".encode())
        with open(folder / name, "rb") as file:
            for block in iter(lambda: file.read(1 << 20), b""):
                digest.update(block)
    return digest.hexdigest()


def _counter(tokenizer: Path) -> Callable[[str], int]:
    """Counts tokens as `CLIPTokenizer` does, which reads the same file."""

    def count(text: str) -> int:
        from tokenizers import Tokenizer

        try:
            read = Tokenizer.from_file(str(tokenizer))
        except Exception as error:  # it raises nothing more telling
            raise BadInput(f"{tokenizer} is no tokenizer ({error}); name another folder") from error
        return len(read.encode(text, add_special_tokens=False).ids)

    return count


def _refuse_other_family(settings: ModelSettings) -> None:
    wrong = [name for name in OTHER_FAMILY if getattr(settings, name)]
    if wrong:
        raise ConfigError(
            [f"models.{name}: {getattr(settings, name)!r} needs models.family=sdxl; remove it" for name in wrong]
        )


def _tagger(profile: Profile) -> Path | None:
    if profile.caption.captioner != "wd14":
        return None
    if not profile.models.tagger:
        raise ConfigError(
            "caption.captioner is 'wd14' but models.tagger is empty: name the folder with model.onnx and "
            "selected_tags.csv, or set caption.captioner=vl"
        )
    return files.expanded(profile.models.tagger)
