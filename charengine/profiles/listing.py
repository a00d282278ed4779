"""Every setting with what it may be, its default and what it does: what `charengine settings` and the manual's page show."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined

from charengine.config import Character, Profile, Settings
from charengine.errors import ConfigError
from charengine.misspelt import NO_SETTING, did_you_mean, shown_value
from charengine.mistakes import allowed_words


@dataclass(frozen=True)
class Setting:
    """One setting, by the name that `--set` takes."""

    name: str
    field: FieldInfo
    of_character: bool = False

    @property
    def must_be_given(self) -> bool:
        """Whether there is no default."""
        return self.field.default is PydanticUndefined

    @property
    def default(self) -> Any:
        """Its value where nobody gives one; None too where one must be given."""
        return None if self.must_be_given else self.field.default

    @property
    def about(self) -> str:
        """What it does; "" for what says nothing."""
        return str(self.field.description or "")

    def allowed(self, show: Callable[[Any], str] = str) -> str:
        """What it may be; `show` writes what is to be typed as it stands."""
        return allowed_words(self.field, show)

    def value_in(self, profile: Profile) -> Any:
        """What a profile sets it to; the default of what is said of a character."""
        if self.of_character:
            return self.default
        value: Any = profile
        for part in self.name.split("."):
            value = getattr(value, part)
        return value

    def lines(self, profile: Profile) -> list[str]:
        """For a terminal: the value that a profile sets, what is allowed, what it does."""
        value, usual = as_yaml(self.value_in(profile)), as_yaml(self.default)
        if self.must_be_given:
            first = f"{self.name}: must be given" + ("" if self.of_character else f"; here {value}")
        else:
            first = f"{self.name} = {value}" + (f" (default: {usual})" if value != usual else "")
        return [f"  {first}", self.allowed(), self.about]

    def as_dict(self, profile: Profile) -> dict[str, Any]:
        """The same for a program."""
        told = {
            "name": self.name,
            "value": self.value_in(profile),
            "default": self.default,
            "must_be_given": self.must_be_given,
        }
        return {**told, "allowed": self.allowed(), "about": self.about}


@dataclass(frozen=True)
class Group:
    """Settings that belong together: a section, what is the whole profile's, or a character's."""

    name: str
    title: str
    about: str
    settings: tuple[Setting, ...]


def sections() -> dict[str, type[Settings]]:
    """The sections of a profile, in the order of the pipeline."""
    return {name: field.annotation for name, field in Profile.model_fields.items() if _is_section(field)}  # type: ignore[misc]


def settings_in(section: str, model: type[Settings]) -> tuple[Setting, ...]:
    """The settings of a section; of the whole profile, or of a character, where `section` is empty."""
    return tuple(
        Setting(f"{section}.{name}".removeprefix("."), field, model is Character)
        for name, field in model.model_fields.items()
        if not _is_section(field)
    )


def groups() -> list[Group]:
    """All settings: the whole profile's, then section by section, then what is said of a character."""
    whole = Group("profile", "the whole profile", str(Profile.__doc__), settings_in("", Profile))
    inner = [Group(name, name, str(model.__doc__), settings_in(name, model)) for name, model in sections().items()]
    asked = f"{Character.__doc__} Options of `charengine run`, keys of a cast, arguments in Python; not for --set."
    return [whole, *inner, Group("character", "a character", asked, settings_in("", Character))]


def chosen_groups(wanted: str) -> list[Group]:
    """All groups, one of them, or one setting of it.

    Args:
        wanted: a section or the name of a setting; empty: all.

    Raises:
        ConfigError: there is none of that name.
    """
    everything = groups()
    known = [group.name for group in everything]
    if not wanted or wanted in known:
        return [group for group in everything if wanted in ("", group.name)]
    for group in everything:
        if one := tuple(setting for setting in group.settings if setting.name == wanted):
            return [replace(group, settings=one)]
    names = [*known, *(setting.name for group in everything for setting in group.settings)]
    raise ConfigError(
        f"settings: got {shown_value(wanted)}, but {NO_SETTING}; sections are {', '.join(known)}{did_you_mean(wanted, names)}"
    )


def as_yaml(value: Any) -> str:
    """A value as YAML takes it, which is how `--set` reads it; "empty" where there is none."""
    if value is None:
        return "empty"
    if isinstance(value, tuple):
        return f"[{', '.join(json.dumps(item, ensure_ascii=False) if isinstance(item, str) else as_yaml(item) for item in value)}]"
    if isinstance(value, str):
        return value if value.strip() else json.dumps(value)
    return json.dumps(value)


def _is_section(field: FieldInfo) -> bool:
    return isinstance(field.annotation, type) and issubclass(field.annotation, Settings)
