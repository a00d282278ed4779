"""The few settings that the start page shows, with their descriptions and limits as `charengine/config.py` has them."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Literal, get_args, get_origin

from pydantic.fields import FieldInfo

from charengine import files
from charengine.config import Profile, Settings
from charengine.errors import BadInput, ConfigError
from charengine.machine.home import Home, work_folder
from charengine.profiles.loading import is_profile_file, load_profile, profile_names

SHOWN = {
    "sheet.candidates": "Sheets to choose from",
    "expand.count": "More views",
    "train.steps": "Training steps",
    "train.rank": "Rank",
    "train.learning_rate": "Learning rate",
    "sweep.pictures": "Sweep pictures",
    "sweep.strengths": "Strengths to try",
}
LABELS = {  # of the start page's other fields: `reference` and `picture` are what a run calls them
    "prompt": "Prompt",
    "reference": "Picture",
    "picture": "Sheet",
    "name": "Name",
    "profile": "Profile",
    "class_noun": "Class noun",
    "trigger": "Trigger",
    "seed": "Seed",
    "profile_file": "Profile file",
    "more_settings": "More settings",
}
MOST_PROFILES = 100  # own files that are looked at


@dataclass(frozen=True)
class SettingField:
    """A setting as a form's field; `least` and `most` are limits, empty without one."""

    name: str
    label: str
    description: str
    kind: Literal["number", "choice", "list", "text"]
    least: str = ""
    most: str = ""
    choices: tuple[str, ...] = ()

    @property
    def limits(self) -> str:
        """The limits in words."""
        if self.least and self.most:
            return f"{self.least} to {self.most}"
        return f"at least {self.least}" if self.least else f"at most {self.most}" if self.most else ""


@dataclass(frozen=True)
class ProfileChoice:
    """A profile that can be chosen: what is sent, what is read, the values of the settings shown, and itself."""

    value: str
    label: str
    description: str
    values: Mapping[str, str]
    profile: Profile


def setting_fields(names: Mapping[str, str] | None = None) -> list[SettingField]:
    """The fields, from the settings' own declarations.

    Args:
        names: `section.key` to label.
    """
    return [_field(name, label) for name, label in (SHOWN if names is None else names).items()]


def profile_choices(home: Home) -> list[ProfileChoice]:
    """The shipped profiles, then the user's own files in the work folder and in the home's `profiles`."""
    shipped = [_choice(name, name) for name in sorted(profile_names(), key=lambda name: (name != "embedded", name))]
    own = [_choice(str(path), path.name) for path in own_profiles([work_folder(), home.root / "profiles"])]
    return [choice for choice in [*shipped, *own] if choice]


def own_profiles(folders: list[Path]) -> list[Path]:
    """YAML files that may be profiles."""
    found: list[Path] = []
    for folder in dict.fromkeys(folders):
        try:
            inside = files.entries(folder) if files.is_dir(folder) else []
            found += [path for path in inside if is_profile_file(path) and files.is_file(path)]
        except BadInput:
            continue
    return found[:MOST_PROFILES]


def overrides_from(values: Mapping[str, str], fields: list[SettingField]) -> list[str]:
    """What was filled in, as `section.key=value`; what was left empty is the profile's."""
    found = []
    for field in fields:
        value = values.get(field.name, "").strip()
        if value and field.kind == "list" and not value.startswith("["):
            value = f"[{value}]"
        if value:
            found.append(f"{field.name}={value}")
    return found


def _choice(value: str, label: str) -> ProfileChoice | None:
    """None for a file that is no profile."""
    try:
        profile = load_profile(value)
    except ConfigError:
        return None
    values = {name: shown_value(profile, name) for name in SHOWN}
    return ProfileChoice(value, label, profile.description, values, profile)


def shown_value(profile: Profile, name: str) -> str:
    """A setting's value as a person would write it."""
    section, _, key = name.partition(".")
    value: Any = getattr(getattr(profile, section), key)
    if isinstance(value, tuple):
        return ", ".join(f"{item:g}" if isinstance(item, float) else str(item) for item in value)
    if isinstance(value, bool):
        return json.dumps(value)
    return f"{value:g}" if isinstance(value, float) else str(value)


def _field(name: str, label: str) -> SettingField:
    section, _, key = name.partition(".")
    model = Profile.model_fields[section].annotation
    assert isinstance(model, type) and issubclass(model, Settings)
    field = model.model_fields[key]
    description = str(field.description or "")
    if get_origin(field.annotation) is tuple:
        inner = next((meta for meta in get_args(get_args(field.annotation)[0])[1:]), None)
        least, most = _limits(inner.metadata if isinstance(inner, FieldInfo) else [])
        return SettingField(name, label, description, "list", least, most)
    if get_origin(field.annotation) is Literal:
        return SettingField(name, label, description, "choice", choices=tuple(map(str, get_args(field.annotation))))
    least, most = _limits(field.metadata)
    return SettingField(name, label, description, "number" if field.annotation in (int, float) else "text", least, most)


def _limits(metadata: list[Any]) -> tuple[str, str]:
    least = next((f"{meta.ge:g}" for meta in metadata if getattr(meta, "ge", None) is not None), "")
    if not least:  # an open limit has no smallest value
        least = next((f"above {meta.gt:g}" for meta in metadata if getattr(meta, "gt", None) is not None), "")
    most = next((f"{meta.le:g}" for meta in metadata if getattr(meta, "le", None) is not None), "")
    return least, most if "e+" not in most else f"{float(most):.0f}"
