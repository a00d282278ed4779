"""Profiles by name or file, with `section.key=value` overrides; every mistake in one line."""

from __future__ import annotations

import json
import re
import shlex
from importlib import resources
from pathlib import Path
from typing import Any, get_args

from pydantic import ValidationError

from charengine import files
from charengine.config import Character, Profile, Settings
from charengine.documents import is_nothing, read_value, read_yaml
from charengine.errors import BadInput, ConfigError
from charengine.misspelt import did_you_mean, nearest, no_such, shown_value
from charengine.mistakes import allowed_words, explain, field_at, model_at
from charengine.profiles.listing import sections, settings_in
from charengine.together import is_prodigy

LARGEST = 200_000  # bytes of a profile
LONGEST_NAMED = 300  # letters of an unknown name in a message
LONGEST_CHAIN = 20  # profiles that extend one another
SECOND = re.compile(r"[\s,;|](\w+\.\w+)=")  # another setting, in the value of one
OF_ITSELF = re.compile(r"--set |\S+: got ")  # not of settings that do not go together
EXTENDS = "; a profile without it needs the line `extends: NAME`, with one of the shipped profiles"


def profile_names() -> list[str]:
    """Names of the profiles that ship with the package."""
    return sorted(
        p.name.removesuffix(".yaml")
        for p in resources.files("charengine.profiles").iterdir()
        if p.name.endswith(".yaml")
    )


def is_profile_file(path: Path) -> bool:
    """Whether a profile's name is that of a file, by its ending."""
    return path.suffix.lower() in (".yaml", ".yml")


def load_profile(name: str = "embedded", overrides: list[str] | tuple[str, ...] = ()) -> Profile:
    """A shipped profile by name, or a YAML file's, with `section.key=value` overrides applied.

    Raises:
        ConfigError: unknown profile or key, value out of range; every problem at once.
    """
    try:
        data = _read_profile(name)
    except BadInput as error:
        found = error.problems if isinstance(error, ConfigError) else [str(error)]
        raise ConfigError([*found, *_wrong_everywhere(overrides)]) from error
    below = dict(_train_of(data))
    problems = [problem for text in overrides if (problem := _apply(data, text))]
    named = {text.partition("=")[0].strip() for text in overrides}
    if "train.learning_rate" not in named and "train" not in named:
        _take_the_optimizers_own_rate(below, data)
    try:
        profile = Profile.model_validate(data)
    except ValidationError as error:
        found = explain(error, Profile, what="setting", meant=_meant)
        problems += [f"{line}{EXTENDS}" if line == "name is missing" else line for line in found]
    if problems:
        raise ConfigError(problems)
    return profile


def _wrong_everywhere(overrides: list[str] | tuple[str, ...]) -> list[str]:
    """What is wrong with settings whatever the profile."""
    try:
        load_profile("embedded", overrides)
    except ConfigError as error:
        return [problem for problem in error.problems if OF_ITSELF.match(problem)]
    return []


def setting_names() -> list[str]:
    """Every `section.key` a profile has."""
    groups: dict[str, type[Settings]] = {"": Profile, **sections()}
    return [setting.name for section, model in groups.items() for setting in settings_in(section, model)]


def _meant(place: str) -> str:
    """What a name that does not exist was to be, what that may hold, and the command that lists all there are."""
    *above, key = place.split(".")
    if place in setting_names():  # its section's name is part of its own
        return f"; in a file a setting stands in its section: write {above[0]}: {{{key}: ...}}"
    if place in sections():
        first = settings_in(place, sections()[place])[0].name
        return f"; it is a section: name one of its settings, e.g. {first}. {_listed(place)}"
    if not above and key in Character.model_fields:
        return f"; it is said of the character, beside the settings: --{key.replace('_', '-')}, or {key} in a cast, a form or Python"
    if len(above) > 1 and (inside := model_at(Profile, above)):
        whole = ".".join(above[:2])
        if key in inside.model_fields:
            return f"; {whole} is set as a whole: {_allowed(whole)}. {_listed(above[0])}"
        told = did_you_mean(key, inside.model_fields) or "."
        return f"; {whole} has {', '.join(inside.model_fields)} in each entry{told} {_listed(above[0])}"
    found = _alike(above[0] if above else "", key)
    if len(found) != 1:
        told = f"; did you mean {', '.join(found[:-1])} or {found[-1]}? " if found else "; "
        return told + _listed(above[0] if above and above[0] in sections() and not found else "")
    allowed = _allowed(found[0])
    return f"; did you mean {found[0]}{f' ({allowed})' if allowed else ''}? {_listed(found[0].partition('.')[0])}"


def _listed(section: str) -> str:
    """The command that lists all settings, or those of a section."""
    command = f"charengine settings {section}" if section in sections() else "charengine settings"
    return f"`{command}` lists all of them"


def _alike(section: str, key: str) -> list[str]:
    """The settings, or the one section, that a name was to be; its own section's first, then the same key elsewhere."""
    section, key, names = section.lower(), key.lower(), setting_names()
    near = section if section in sections() else nearest(section, sections())
    inside = [name.partition(".")[2] for name in names if near and name.startswith(f"{near}.")]
    if key in inside:
        return [f"{near}.{key}"]
    same = [name for name in names if name.rpartition(".")[2] == key]
    if same:
        return same
    if section:
        return [f"{near}.{close}"] if (close := nearest(key, inside)) else []
    return [close] if (close := nearest(key, [*sections(), *names])) else []


def _allowed(name: str) -> str:
    """What a setting may hold; "" for a section, or several."""
    field = field_at(Profile, tuple(name.split("."))) if name in setting_names() else None
    return allowed_words(field) if field else ""


def _read_profile(name: str, extending: tuple[str, ...] = ()) -> dict[str, Any]:
    """A profile's sections as text, those of the profile it extends under its own.

    Args:
        name: of a shipped profile, or a file.
        extending: the profiles on the way here.
    """
    path = files.expanded(name)
    if is_profile_file(path):
        identity = str(path.absolute())
        if not files.exists(path):
            raise ConfigError(
                f"profile file {name!r} does not exist; give one that does, or a shipped one: {', '.join(profile_names())}"
            )
        text = files.read_text(path, "profile", LARGEST)
    elif name in profile_names():
        identity = name
        text = (resources.files("charengine.profiles") / f"{name}.yaml").read_text(encoding="utf-8")
    else:
        named = name if len(name) <= LONGEST_NAMED else f"{name[: LONGEST_NAMED - 3]}..."  # a path may be long
        raise ConfigError(
            f"unknown profile {named!r}; shipped profiles are {', '.join(profile_names())}, or give a .yaml file"
            + did_you_mean(name, profile_names())
        )
    if identity in extending or len(extending) > LONGEST_CHAIN:
        chain = " → ".join(Path(one).name for one in (*extending, identity))
        raise ConfigError(f"profile {name!r} extends itself ({chain[:300]}): let `extends` name another profile")
    data = read_yaml(text, f"profile {name!r}")
    if not isinstance(data, dict):
        raise ConfigError(
            f"profile {name!r} must be a mapping of sections, got {_kind(data)}; write e.g. train: {{steps: 800}}"
        )
    base = data.pop("extends", None)
    if is_nothing(base):
        return _without_empty(data)
    if not isinstance(base, str):
        raise ConfigError(f"profile {name!r}: extends is {_kind(base)}; give the name of one profile, or its file")
    below, data = _read_profile(_beside(path, base), (*extending, identity)), _without_empty(data)
    merged = _merge(below, data)
    if "learning_rate" not in _train_of(data):
        _take_the_optimizers_own_rate(_train_of(below), merged)
    return merged


def _train_of(data: dict[str, Any]) -> dict[str, Any]:
    train = data.get("train")
    return train if isinstance(train, dict) else {}


def _kind(value: Any) -> str:
    return next(
        (name for kind, name in ((dict, "a mapping"), (list, "a list"), (str, "a text")) if isinstance(value, kind)),
        "nothing",
    )


def _without_empty(data: dict[str, Any]) -> dict[str, Any]:
    """The sections without what has no value: an empty section or setting is as if its line were not there."""
    return {
        key: _without_empty(value) if isinstance(value, dict) else value
        for key, value in data.items()
        if not is_nothing(value)
    }


def _beside(path: Path, base: str) -> str:
    """A profile's file that stands beside the one that extends it; any other name as it is."""
    place = path.parent / base
    return str(place) if is_profile_file(place) and files.exists(place) else base


def _take_the_optimizers_own_rate(below: dict[str, Any], data: dict[str, Any]) -> None:
    """Where a layer changes to or from a Prodigy and names no rate, the rate of the layer below it is no use (1.0 against 3e-4)."""
    train = data.get("train")
    if isinstance(train, dict) and _is_prodigy(below) != _is_prodigy(train):
        train.pop("learning_rate", None)


def _is_prodigy(train: dict[str, Any]) -> bool:
    return is_prodigy(train.get("optimizer", ""))


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
        known = f"; {place} takes {_allowed(place)}" if place in setting_names() else ""
        return f"--set {text[:80]!r}: write section.key=value, e.g. train.steps=800{known}"
    if place not in setting_names():
        return no_such(place, shown_value(value), "setting", _meant(place))
    try:
        parsed = read_value(value, f"--set {place}")
    except ConfigError as error:
        return f"{error}; got {value[:80]!r}{_in_quotes(place, value)}"
    if (second := SECOND.search(value)) and second[1] in setting_names():
        return (
            f"{place}: got {value[:80]!r}, which holds {second[1]} too; give each setting a --set of its own, in a cast an item of the "
            "list, in a CSV field a ';' before it"
        )
    if any(isinstance(one, dict) for one in (parsed if isinstance(parsed, list) else [parsed])) and (
        quoted := _in_quotes(place, value)
    ):
        return f"{place}: got {value[:80]!r}{quoted}"
    section, _, key = place.partition(".")
    if isinstance(parsed, list):
        parsed = [None if is_nothing(one) else one for one in parsed]
    chosen = _emptied(place, value) if is_nothing(parsed) else parsed
    if not key:
        data[section] = chosen
    elif isinstance(data.setdefault(section, {}), dict):
        data[section] = {**data[section], key: chosen}
    return None  # a section that is no mapping is refused with the profile


def _in_quotes(name: str, value: str) -> str:
    """How a text is written that YAML takes for something else; "" for a setting that takes none."""
    allowed = _allowed(name)
    if "text" not in allowed:
        return ""
    texts = re.split(r",\s*(?=\{)", value.strip(" []"))
    written = json.dumps(texts if allowed.startswith("list") else value.strip(), ensure_ascii=False)
    return f"; give a text with braces in quotes: --set {shlex.quote(f'{name}={written}')}"


def _emptied(name: str, value: str) -> str | None:
    """A setting without a value: None where it may be empty, no text where it is one, else what was written, which is refused."""
    kind = getattr(field_at(Profile, tuple(name.split("."))), "annotation", None)
    return None if type(None) in get_args(kind) else "" if kind is str else value
