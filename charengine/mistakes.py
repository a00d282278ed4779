"""What is wrong with a value, in words: where it stands, what was received, what is allowed, and an example.

Pydantic finds the mistakes; its own words ("Input should be a valid integer, unable to parse string as an integer") are a programmer's.
"""

from __future__ import annotations

import json
import types
from collections.abc import Callable, Iterable, Iterator
from typing import Any, Literal, Union, get_args, get_origin

from annotated_types import Ge, Gt, Le, Lt, MaxLen, MinLen, MultipleOf
from pydantic import BaseModel, ValidationError
from pydantic.fields import FieldInfo

from charengine.misspelt import LONGEST_VALUE, did_you_mean, no_such, shown_value

KINDS = {int: "whole number", float: "number", str: "text", bool: "true or false"}
SECTION = "a section with settings, e.g. train: {steps: 800}"
MOST = 30  # mistakes told of one thing: a list of thousands can be wrong in each
NEEDED = {  # by the start of pydantic's type of error, where the field itself is not found
    "string": "text",
    "int": "a whole number",
    "float": "a number",
    "bool": "true or false",
    "tuple": "a list in brackets, e.g. [a, b]",
    "list": "a list in brackets, e.g. [a, b]",
    "dict": "a section",
}


def explain(
    error: ValidationError,
    model: type[BaseModel] | None = None,
    *,
    what: str = "field",
    meant: Callable[[str], str] | None = None,
) -> list[str]:
    """One line per mistake: field, value received, what is allowed.

    Args:
        error: what pydantic found.
        model: what was validated; its fields' types, limits and defaults are what a line says is allowed.
        what: the model's fields are called: a field, a setting.
        meant: more about a name that does not exist: the one that was meant, and where all are listed.
    """
    items = error.errors(include_url=False)
    told = [_explain_one(item, model, what, meant) for item in items[:MOST]]
    return [*told, f"and {len(items) - MOST} mistakes more"] if len(items) > MOST else told


def _explain_one(item: Any, model: type[BaseModel] | None, what: str, meant: Callable[[str], str] | None) -> str:
    place = ".".join(str(part) for part in item["loc"] if isinstance(part, str))
    number = "".join(f" (item {part + 1})" for part in item["loc"] if isinstance(part, int))
    value, field = shown_value(item["input"]), field_at(model, item["loc"])
    if item["type"] == "extra_forbidden":
        more = meant(place) if meant else _known_beside(model, item["loc"])
        return no_such(place, value, what, more, number)
    if item["type"] == "value_error":
        return f"{place}: {item['ctx']['error']}" if place else str(item["ctx"]["error"])
    if item["type"] == "missing":  # what was received is all that is there, which says something inside of an entry
        needed = f"{number}: got {value}; {_needed(item, field)}" if len(item["loc"]) > 1 else ""
        return f"{place} is missing{needed}"
    if item["type"] == "json_invalid":
        return "it is no JSON, or is cut short"
    needed = _needed(item, field)
    return f"{place}: got {value}{number}; {needed}" if place else f"got {value}; {needed}"


def _known_beside(model: type[BaseModel] | None, place: tuple[int | str, ...]) -> str:
    """What may stand where an unknown name does."""
    owner = model_at(model, place[:-1])
    if owner is None:
        return ""
    return f"; known are {', '.join(owner.model_fields)}{did_you_mean(str(place[-1]), owner.model_fields)}"


def _needed(item: Any, field: FieldInfo | None) -> str:
    allowed = allowed_words(field) if field else ""
    if item["type"] == "model_type":
        return f"give {SECTION}"
    if allowed:
        return f"give {_with_article(allowed)}{_example(field, item['input'])}"
    start = str(item["type"]).split("_")[0]
    return f"give {NEEDED[start]}" if start in NEEDED else str(item["msg"])


def field_at(model: type[BaseModel] | None, place: tuple[int | str, ...]) -> FieldInfo | None:
    """The field at a place, e.g. ("train", "steps"); None where there is none that a line can speak of."""
    names = [part for part in place if isinstance(part, str)]  # of a list: what it may hold is said by its own field
    owner = model_at(model, names[:-1])
    return owner.model_fields.get(names[-1]) if owner and names else None


def model_at(model: type[BaseModel] | None, place: Iterable[int | str]) -> type[BaseModel] | None:
    """The model whose fields stand below a place; None where there is none."""
    for part in place:
        if isinstance(part, int):
            continue
        if model is None or part not in model.model_fields:
            return None
        kind = model.model_fields[part].annotation
        inner = [kind, *get_args(kind)]
        model = next((one for one in inner if isinstance(one, type) and issubclass(one, BaseModel)), None)
    return model


def _with_article(words: str) -> str:
    if words.startswith("list: "):
        return "a list in brackets: " + words.removeprefix("list: ")
    return f"a {words}" if words.startswith(("whole number", "number")) else words


def _example(field: FieldInfo | None, given: Any) -> str:
    """The default, where it says something; of a list, what was given as one."""
    default = field.default if field else None
    if isinstance(default, str) and default:
        return f", e.g. {default}" if field and get_origin(field.annotation) is not Literal else ""
    if default == () and isinstance(given, str) and 0 < len(given) < LONGEST_VALUE:
        return f", e.g. {json.dumps([given], ensure_ascii=False)}"
    if isinstance(default, tuple) and default and all(isinstance(one, str | int | float) for one in default):
        return f", e.g. {json.dumps(list(default[:3]))}"
    return f", e.g. {default:g}" if isinstance(default, int | float) and not isinstance(default, bool) else ""


# --- what a field may hold --------------------------------------------------------------------------------------------


def allowed_words(field: FieldInfo, show: Callable[[Any], str] = str) -> str:
    """What a field may hold, as a reader would say it: `whole number, 1 to 200`; "" for what there are no words for.

    Args:
        field: of a settings model.
        show: writes what is to be typed as it stands.
    """
    words = _kind_words(field.annotation, show)
    limits = _limits(field.metadata)
    return f"{words}, {limits}" if words and limits else words


def _kind_words(kind: Any, show: Callable[[Any], str]) -> str:
    if kind in KINDS:
        return KINDS[kind]
    origin, inner = get_origin(kind), get_args(kind)
    if origin is Literal:
        return " or ".join(show(value) for value in inner)
    if origin is tuple:
        base = getattr(inner[0], "__origin__", inner[0]) if hasattr(inner[0], "__metadata__") else inner[0]
        words, limits = _kind_words(base, show), _limits(getattr(inner[0], "__metadata__", ()))
        return f"list: {words}" + (f", {limits}" if limits else "") if words else ""
    if origin in (Union, types.UnionType):
        parts = [_kind_words(part, show) for part in inner if part is not type(None)]
        words = " or ".join(parts) if all(parts) else ""
        return f"{words}, or empty" if words and type(None) in inner else words
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        return show(f"{{{', '.join(kind.model_fields)}}}")
    return ""


def _limits(metadata: Any) -> str:
    """`1 to 200`, `above 0`, `a multiple of 16`."""
    flat = list(_flat(metadata))
    said = [f"at least {one.ge:,}" for one in flat if isinstance(one, Ge)]
    said += [f"above {one.gt:,}" for one in flat if isinstance(one, Gt)]
    said += [f"at most {one.le:,}" for one in flat if isinstance(one, Le)]
    said += [f"below {one.lt:,}" for one in flat if isinstance(one, Lt)]
    if len(said) == 2 and said[0].startswith("at least ") and said[1].startswith("at most "):
        said = [f"{said[0].removeprefix('at least ')} to {said[1].removeprefix('at most ')}"]
    said += [f"a multiple of {one.multiple_of}" for one in flat if isinstance(one, MultipleOf)]
    said += ["not empty" for one in flat if isinstance(one, MinLen) and one.min_length == 1]
    said += [f"at most {one.max_length:,} characters" for one in flat if isinstance(one, MaxLen)]
    return ", ".join(said)


def _flat(metadata: Any) -> Iterator[Any]:
    for item in metadata:
        yield from item.metadata if isinstance(item, FieldInfo) else [item]
