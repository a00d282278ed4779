"""Profiles by name or file, with `section.key=value` overrides; every mistake in one line."""

from __future__ import annotations

import difflib
from importlib import resources
from pathlib import Path
from typing import Any

import yaml
from pydantic import (
    ValidationError,
)

from charengine.config import Profile, Settings
from charengine.errors import ConfigError


def profile_names() -> list[str]:
    """Names of the profiles that ship with the package."""
    return sorted(
        p.name.removesuffix(".yaml")
        for p in resources.files("charengine.profiles").iterdir()
        if p.name.endswith(".yaml")
    )


def load_profile(name: str = "embedded", overrides: list[str] | tuple[str, ...] = ()) -> Profile:
    """A shipped profile by name, or a YAML file's, with `section.key=value` overrides applied.

    Raises:
        ConfigError: unknown profile or key, value out of range; every problem at once.
    """
    data = _read_profile(name)
    problems = [problem for text in overrides if (problem := _apply(data, text))]
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        problems += explain(error)
    if problems:
        raise ConfigError(problems)
    return profile


def explain(error: ValidationError, prefix: str = "") -> list[str]:
    """One line per mistake: field, what is wrong, the value received."""
    return [_explain_one(item, prefix) for item in error.errors(include_url=False)]


def _explain_one(item: Any, prefix: str) -> str:
    place = prefix + ".".join(str(part) for part in item["loc"])
    if item["type"] == "extra_forbidden":
        return f"{place}: no such setting{_did_you_mean(place)}"
    if item["type"] == "value_error":
        return f"{place}: {item['ctx']['error']}" if place else str(item["ctx"]["error"])
    value = repr(item["input"])
    return f"{place}: {item['msg']}; got {value if len(value) < 100 else value[:97] + '...'}"


def setting_names() -> list[str]:
    """Every `section.key` a profile has."""
    names = []
    for section, field in Profile.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, Settings):
            names += [f"{section}.{key}" for key in inner.model_fields]
        else:
            names.append(section)
    return names


def _did_you_mean(place: str) -> str:
    close = difflib.get_close_matches(place, setting_names(), n=1, cutoff=0.5)
    if close:
        return f"; did you mean {close[0]}?"
    return f"; settings are: {', '.join(setting_names()[:6])}, … (all of them: docs/reference/settings.md)"


def _read_profile(name: str) -> dict[str, Any]:
    path = Path(name)
    if path.suffix in (".yaml", ".yml"):
        if not path.is_file():
            raise ConfigError(f"profile file {name!r} does not exist")
        text = path.read_text()
    elif name in profile_names():
        text = (resources.files("charengine.profiles") / f"{name}.yaml").read_text()
    else:
        close = difflib.get_close_matches(name, profile_names(), n=1)
        hint = f"; did you mean {close[0]}?" if close else ""
        raise ConfigError(
            f"unknown profile {name!r}; shipped profiles are {', '.join(profile_names())}, or give a .yaml file{hint}"
        )
    try:
        data = yaml.safe_load(text)
    except yaml.YAMLError as error:
        raise ConfigError(f"profile {name!r} is not valid YAML: {error}") from error
    if not isinstance(data, dict):
        raise ConfigError(f"profile {name!r} must be a mapping of sections, got {type(data).__name__}")
    base = data.pop("extends", None)
    return _merge(_read_profile(_beside(path, str(base))), data) if base else data


def _beside(path: Path, base: str) -> str:
    """A profile's file that stands beside the one that extends it; any other name as it is."""
    place = path.parent / base
    return str(place) if place.suffix in (".yaml", ".yml") and place.is_file() else base


def _merge(base: dict[str, Any], top: dict[str, Any]) -> dict[str, Any]:
    merged = dict(base)
    for key, value in top.items():
        merged[key] = _merge(base[key], value) if isinstance(value, dict) and isinstance(base.get(key), dict) else value
    return merged


def _apply(data: dict[str, Any], text: str) -> str | None:
    """Apply one `section.key=value` in place; the problem in words, or None."""
    place, found, value = text.partition("=")
    place = place.strip()
    if not found:
        return f"--set {text!r}: write section.key=value, e.g. train.steps=800"
    if place not in setting_names():
        return f"{place}: no such setting{_did_you_mean(place)}"
    try:
        parsed = yaml.safe_load(value)
    except yaml.YAMLError:
        return f"--set {place}: {value!r} is not a YAML value"
    section, _, key = place.partition(".")
    if key:
        data[section] = {**data.get(section, {}), key: "" if parsed is None else parsed}
    else:
        data[section] = parsed
    return None
