"""The start form filled in as a character was started, for another like it, and what of that could not be."""

from __future__ import annotations

import json
from typing import Any

from charengine.errors import EngineError
from charengine.profiles.loading import load_profile, profile_names
from charengine.records import Ref, RunRecord
from charengine.run.handing_over import LENT, keep_picture
from charengine.services.gallery.characters import Character
from charengine.services.gallery.served import given_file
from charengine.services.gallery.settings_form import SHOWN
from charengine.services.gallery.starting import TEXTS, StartForm
from charengine.store import Store

Json = dict[str, Any]


def form_like(character: Character, listed: set[str], store: Store) -> tuple[StartForm, list[str]]:
    """The form, and what is left out of it. A name makes a folder, so another one has its own.

    Args:
        character: as Prefect was asked for it; where that is forgotten, as its record says.
        listed: profiles that the form's list has.
        store: keeps its picture.
    """
    left = [f"the name, which is {character.name}'s own"]
    asked, run = character.parameters, character.folder.run if character.folder else None
    if not asked and run:
        asked = _recorded(run, left)
    values = {name: str(asked[name]) for name in TEXTS if name != "name" and asked.get(name) not in (None, "")}
    if values.get("profile", "embedded") not in listed:
        values["profile_file"] = values.pop("profile")
    named = {text.partition("=")[0].strip(): text.partition("=")[2] for text in asked.get("overrides") or []}
    values |= {name: value.strip("[] ") for name, value in named.items() if name in SHOWN}
    values["more_settings"] = "\n".join(f"{name}={value}" for name, value in named.items() if name not in SHOWN)
    form = StartForm(values)
    what, ref = _picture(character, run, store, left)
    if ref and what == "picture":
        form.kept_reference, values["reference_name"] = ref.sha256, ref.name
    elif ref:
        form.kept_picture = ref.sha256
    return form, left


def _recorded(run: RunRecord, left: list[str]) -> Json:
    """What a record says of how its run was asked for: settings are told from those of the profile."""
    left.append(f"trigger {run.trigger} and class noun {run.class_noun}, which may have been given or derived")
    profile = run.profile if run.profile in profile_names() else "embedded"
    if profile != run.profile:
        left.append(f"the file of profile {run.profile}, whose settings stand here over those of {profile}")
    flat, usual = _flat(run.config.get("profile", {})), _flat(load_profile(profile).model_dump(mode="json"))
    left += [f"{name}, which is no setting any more" for name in flat if name not in usual]
    more = [f"{name}={json.dumps(value)}" for name, value in flat.items() if name in usual and usual[name] != value]
    return {"prompt": run.prompt, "seed": run.seed, "profile": profile, "overrides": more}


def _flat(profile: Json) -> Json:
    sections = {name: values for name, values in profile.items() if isinstance(values, dict)}
    return {f"{name}.{key}": value for name, values in sections.items() for key, value in values.items()}


def _picture(character: Character, run: RunRecord | None, store: Store, left: list[str]) -> tuple[str, Ref | None]:
    """The picture or sheet that it was given, kept in the store; where its file is gone, as its record has it."""
    what, place = character.given
    ref = run.sheet.reference or (run.sheet.image if run.sheet.source == "given" else None) if run else None
    if character.parameters and not place:
        return "", None
    if run and ref:
        what = "picture" if run.sheet.reference else "sheet"
    try:
        if place.startswith(LENT):
            digest, _, name = place.removeprefix(LENT).partition("/")
            ref = Ref(sha256=digest, size=0, media_type="", name=name)
        elif path := given_file(character):
            return what, keep_picture(path.read_bytes(), path.name, store)
        if ref:
            store.get(ref)
    except (OSError, ValueError, EngineError):
        ref = None
    if what and ref is None:
        left.append(f"its {what}, which cannot be read any more{f' at {place}' if place else ''}: choose it again")
    return what, ref
