"""Stage keys: what decides whether a stage has to run again (docs/design.md, rule 2), and nothing else."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from charengine import files
from charengine.adapter.peft_config import settings_beside
from charengine.config import Character, Profile
from charengine.errors import BadInput
from charengine.models import Models
from charengine.records import Record
from charengine.stage import Stage
from charengine.version import __version__

Input = Record | Path
"""What a stage takes from the one before: a record, or a file that somebody has."""


def stage_key(
    stage: Stage[Any], character: Character, profile: Profile, models: Models, inputs: Iterable[Input] = ()
) -> str:
    """Key of one stage's result; equal on every machine and in every process for equal work.

    It holds the stage's name, version, what it reads by its declaration, and the content of its inputs.
    """
    body = {
        "stage": stage.name,
        "version": stage.version,
        **_read(stage, character, profile, models),
        "inputs": [content_digest(item, shown=stage.shows_provenance) for item in inputs],
    }
    return f"{stage.name}-{digest(body)[:40]}"


def stage_recipe(stage: Stage[Any], character: Character, profile: Profile, models: Models) -> dict[str, Any]:
    """How a stage's work was asked for, as the files it writes say it: what its key is made from, so that equal keys make equal files.

    Of the other sections of the profile there is nothing in it, nor where a file lies: both may differ where the key does not.
    """
    read = _read(stage, character, profile, models)
    return {
        "character": read["character"],
        "profile": {
            "models": {"family": profile.models.family},
            **({stage.settings: read["settings"]} if stage.settings else {}),
        },
        "models": {stage.name: read["models"]},
        "seeds": {stage.name: read["seed"]},
        "engine_version": __version__,
    }


def _read(stage: Stage[Any], character: Character, profile: Profile, models: Models) -> dict[str, Any]:
    """What a stage reads beside its inputs: its fields of the character, its settings (files that these name by their content),
    the fingerprints of its models, and the seed if it has one."""
    settings = getattr(profile, stage.settings) if stage.settings else None
    drawn = stage.draws_with(settings)
    return {
        "character": {name: getattr(character, name) for name in stage.character},
        "settings": _settings(settings.model_dump(mode="json"), stage.files) if settings else {},
        "models": {name: _fingerprint(models, name, drawn) for name in stage.models_for(settings)},
        "seed": character.seed if stage.seeded else None,
    }


def _fingerprint(models: Models, name: str, drawn: bool) -> str:
    """Of a model's weights; of the diffusion model that draws, of its prefix, negative prompt and steps too."""
    if drawn and name == "diffusion":
        return models.diffusion.sampling_fingerprint
    fingerprint: str = getattr(models, name).fingerprint
    return fingerprint


def content_digest(item: Input, *, shown: bool = False) -> str:
    """SHA-256 of what an input is: of a file's bytes, or of a record without its provenance.

    Args:
        item: the input.
        shown: the provenance of the records inside it counts too, as for a page that shows it.
    """
    if isinstance(item, Path):
        return path_digest(item)
    if shown:
        return digest(item.model_dump(mode="json", exclude=set(item.provenance)))
    return digest(_content(item))


def digest(value: Any) -> str:
    """SHA-256 of a value's canonical JSON; the order of dict keys does not matter."""
    if isinstance(value, Record):
        value = value.model_dump(mode="json")
    text = json.dumps(value, sort_keys=True, separators=(",", ":"), ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def path_digest(path: Path) -> str:
    """SHA-256 of a file's content, or over the names and contents of a folder's files.

    Raises:
        BadInput: it cannot be read.
    """
    if not files.is_dir(path):
        if files.exists(path) and not files.is_file(path):  # a pipe would be waited for, a device never ends
            raise BadInput(f"{path} cannot be read (it is no plain file); name a file that is there")
        try:
            with path.open("rb") as file:
                return hashlib.file_digest(file, "sha256").hexdigest()
        except OSError as error:
            raise BadInput(f"{path} cannot be read ({error.strerror}); name a file that is there") from error
    found = sorted(files.below(path))
    return digest(
        [[inside.relative_to(path).as_posix(), path_digest(inside)] for inside in found if files.is_file(inside)]
    )


def _settings(values: dict[str, Any], named: tuple[str, ...]) -> dict[str, Any]:
    """The settings with each file by its content."""
    return {
        name: _file_digest(files.expanded(value)) if name in named and value else value
        for name, value in values.items()
    }


def _file_digest(path: Path) -> str:
    """A file or folder that a setting names, with what belongs to it."""
    told = settings_beside(path) if path.suffix == ".safetensors" and files.is_file(path) else ""
    return digest([path_digest(path), told]) if told else path_digest(path)


def _content(value: Any) -> Any:
    if isinstance(value, Record):
        found = {name: getattr(value, name) for name in type(value).model_fields if name not in value.provenance}
        return {name: _content(item) for name, item in found.items() if item or name not in value.optional}
    if isinstance(value, dict):
        return {key: _content(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_content(item) for item in value]
    return value
