"""Relative paths in what a user asks for start in the work folder, wherever the process that makes it stands."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from charengine import files
from charengine.config import ModelSettings, Profile
from charengine.documents import as_value, is_nothing, read_value
from charengine.errors import BadInput, ConfigError
from charengine.machine.home import in_work_folder
from charengine.profiles.loading import is_profile_file, load_profile

# a string of `models` is a path or a hub id, so only one that is there is taken for a path
MODELS = tuple(name for name, field in ModelSettings.model_fields.items() if field.annotation is str)
TRAIN = ("regularisation", "continue_from")


def absolute_file(text: str, label: str = "") -> str:
    """A path, absolute; empty stays empty.

    Raises:
        ConfigError: `~` and the name of nobody begin it; `label` says what it is.
    """
    try:
        return str(in_work_folder(text)) if text else ""
    except BadInput as error:
        raise ConfigError(f"{label}{error}") from error


def absolute_profile(name: str) -> str:
    """A profile's file, absolute; the name of a shipped one as it is."""
    return absolute_file(name, "--profile ") if is_profile_file(Path(name)) else name


def profile_as_named(name: str, overrides: Sequence[str] = ()) -> Profile:
    """A profile as a user names it: its file, and every file that it or an override names, starts in the work folder.

    Raises:
        ConfigError: as `load_profile`.
    """
    return with_absolute_files(load_profile(absolute_profile(name), list(overrides)))


def absolute_override(text: str) -> str:
    """`section.key=value` with the path that it names absolute; any other as it is."""
    name, equals, value = text.partition("=")
    section, _, key = name.strip().partition(".")
    if section == "models" and key in MODELS:
        return f"{name}{equals}{_with_paths(value, lambda path: _absolute_model(path, key))}"
    if section == "train" and key in TRAIN:
        return f"{name}{equals}{_with_paths(value, lambda path: absolute_file(path, f'{section}.{key}='))}"
    if section == "models" and key == "folders":
        return f"{name}{equals}{_with_paths(value, lambda path: absolute_file(path, 'models.folders: '), of_list=True)}"
    return text


def with_absolute_files(profile: Profile) -> Profile:
    """The profile with every file that it names absolute."""
    models = profile.models.model_copy(
        update={
            **{name: _absolute_model(getattr(profile.models, name), name) for name in MODELS},
            "folders": tuple(absolute_file(folder, "models.folders: ") for folder in profile.models.folders),
            "edit_loras": tuple(
                lora.model_copy(update={"file": _absolute_model(lora.file, "edit_loras")})
                for lora in profile.models.edit_loras
            ),
        }
    )
    train = profile.train.model_copy(
        update={name: absolute_file(getattr(profile.train, name), f"train.{name}=") for name in TRAIN}
    )
    return profile.model_copy(update={"models": models, "train": train})


def _absolute_model(text: str, name: str) -> str:
    found = absolute_file(text, f"models.{name}=")
    return found if text and files.exists(Path(found)) else text


def _with_paths(value: str, absolute: Callable[[str], str], *, of_list: bool = False) -> str:
    """A setting's value, written again with its path, or the paths of its list, absolute; one that is none as it is: the loader refuses it."""
    try:
        found = read_value(value, "")
    except ConfigError:
        return value
    if not of_list:
        return as_value(absolute(found)) if isinstance(found, str) and not is_nothing(found) else value
    if isinstance(found, list) and all(isinstance(one, str) for one in found):
        return as_value([absolute(one) for one in found])
    return value
