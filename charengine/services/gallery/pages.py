"""Pages and pictures: everything that only looks."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from starlette.requests import Request
from starlette.responses import Response
from starlette.routing import Route

from charengine.config import Profile
from charengine.errors import BadInput, ConfigError
from charengine.machine.home import work_folder
from charengine.profiles.listing import as_yaml, groups
from charengine.profiles.loading import load_profile
from charengine.records import Ref, RunRecord
from charengine.run.handing_over import LENT
from charengine.run.paths import absolute_profile
from charengine.services.gallery import served
from charengine.services.gallery.alike import form_like
from charengine.services.gallery.characters import LONGEST_SEARCH, Character
from charengine.services.gallery.parts import Gallery
from charengine.services.gallery.prefect import PrefectAway
from charengine.services.gallery.progress import Progress, progress_of
from charengine.services.gallery.settings_form import LABELS, SHOWN, profile_choices, setting_fields
from charengine.services.gallery.starting import StartForm, lacking_models
from charengine.services.gallery.times import expected, in_words
from charengine.services.gallery.trying import pictures_of

SHEET_PICTURE = "images/sheet.png"  # of a character's run in MLflow
AGAIN = "were stopped: ask for them again below"
MOST_SHOWN = 300  # cards on one page; the search finds the others


@dataclass(frozen=True)
class Card:
    """A character with what its card or page shows besides."""

    character: Character
    pictures: tuple[tuple[Ref, str], ...]  # at the pick, each with its prompt
    progress: Progress | None
    prefect: str
    mlflow: str
    sheet: str = ""  # address of its picture


def routes(gallery: Gallery) -> list[Route]:
    """Addresses that only look."""
    pages: dict[str, Callable[[Gallery, Request], Response]] = {
        "/": front,
        "/part/characters": characters_part,
        "/character/{id}": character_page,
        "/part/character/{id}": character_part,
        "/character/{id}/adapter.zip": served.adapter_zip,
        "/character/{id}/report": served.report,
        "/character/{id}/adapters/{file}": served.adapter_file,
        "/character/{id}/file/{what}": served.run_file,
        "/picture/{digest}": served.picture,
        "/picture/{digest}/{name}": served.picture,
        "/tracked/{run}/{path:path}": served.tracked_picture,
        "/start": start_page,
        "/character/{id}/alike": start_alike,
        "/part/estimate": estimate_part,
        "/cast": cast_page,
    }
    return [Route(path, _bound(page, gallery)) for path, page in pages.items()]


def _bound(page: Callable[[Gallery, Request], Response], gallery: Gallery) -> Callable[[Request], Response]:
    def endpoint(request: Request) -> Response:
        return page(gallery, request)

    return endpoint


# --- characters -------------------------------------------------------------------------------------------------------


def front(gallery: Gallery, request: Request) -> Response:
    """All characters."""
    return gallery.render("characters.html", **_list(gallery, request))


def characters_part(gallery: Gallery, request: Request) -> Response:
    """The cards alone, asked for again while the page is open."""
    return gallery.render("_characters.html", **_list(gallery, request))


def _list(gallery: Gallery, request: Request) -> dict[str, Any]:
    words = request.query_params.get("q", "")[:LONGEST_SEARCH]
    everybody, notice = gallery.characters()
    found = [one for one in everybody if one.matches(words)]
    shown = found[:MOST_SHOWN]
    stages = _stages_of(gallery, shown)
    cards = [card_of(gallery, one, stages) for one in shown]
    counts = {state: sum(one.state == state for one in everybody) for state in ("being made", "waits", "failed")}
    return {
        "cards": cards,
        "words": words,
        "everybody": len(everybody),
        "found": len(found),
        "left_out": len(found) - len(cards),
        "counts": counts,
        "tickable": sum(one.finished for one in found) > 1,
        "notice": notice,
        "title": "Gallery",
    }


def character_page(gallery: Gallery, request: Request) -> Response:
    """One character: followed while it is made, tried and taken away when it is."""
    return gallery.render("character.html", **one_character(gallery, gallery.character(request), request))


def character_part(gallery: Gallery, request: Request) -> Response:
    """What of it changes while it is made."""
    return gallery.render("_progress.html", **one_character(gallery, gallery.character(request), request))


def one_character(gallery: Gallery, character: Character, request: Request, **more: Any) -> dict[str, Any]:
    """Everything that its page shows; `more` wins."""
    folder, run = character.folder, character.folder.run if character.folder else None
    sample, everybody = None, gallery.characters(fresh=False)[0]
    if character.active and character.run_id:
        sample = gallery.tracked.latest_sample(gallery.tracked.run_of(character.run_id))
    pictures = pictures_of(run, folder.sweeps) if run and folder else None
    return {
        "card": card_of(gallery, character, _stages_of(gallery, [character]), alone=True),
        "character": character,
        "run": run,
        "folder": folder,
        "given": _given(character),
        "takes": _takes(gallery, character) if character.active else "",
        "sample": sample,
        "sweeps": _later_sweeps(gallery, character),
        "pictures": pictures,
        "shown": _chosen(pictures, run, request) if pictures and run else None,
        "base": _chosen(pictures, run, request, strength=0.0) if pictures and run else None,
        "subject": f"{run.trigger} {run.class_noun}" if run else "",  # as the sweep says it
        "minutes": _minutes(run),
        "others": [one for one in everybody if run and one.finished and one.id != character.id][:MOST_SHOWN],
        "before": next((place for place, one in enumerate(everybody) if one.id == character.id), 0),  # as they stand
        "form": {},
        "problems": {},
        "unsure": False,
        "once": secrets.token_hex(8),
        "title": character.name,
        **more,
    }


def card_of(
    gallery: Gallery, character: Character, stages: Mapping[str, list[dict[str, Any]]], *, alone: bool = False
) -> Card:
    """What the card needs from the two servers.

    Args:
        gallery: its parts.
        character: whose.
        stages: of the runs that have not come to their end, by run.
        alone: also what would be too slow to ask for of many.
    """
    run = character.folder.run if character.folder else None
    mlflow_id = run.mlflow_run_id or "" if run else ""
    if (
        not mlflow_id
        and character.run_id
        and character.state != "waits"
        and (alone or character.active or character.state == "elsewhere")
    ):
        mlflow_id = gallery.tracked.run_of(character.run_id)
    return Card(
        character,
        _pick_pictures(run) if run else (),
        _progress(gallery, character, stages.get(character.run_id)),
        f"{gallery.prefect_page}/runs/flow-run/{character.run_id}" if gallery.prefect_page and character.run_id else "",
        gallery.tracked.run_page(mlflow_id) if mlflow_id else "",
        _sheet(gallery, character, mlflow_id),
    )


def _sheet(gallery: Gallery, character: Character, mlflow_id: str) -> str:
    """The address of the sheet's picture: in the store, which browsers keep; else in the folder; else in MLflow."""
    folder, run = character.folder, character.folder.run if character.folder else None
    stored = gallery.store.path(run.sheet.image) if run and not character.active else None
    if run and stored and stored.is_file():
        return f"/picture/{run.sheet.image.sha256}/{character.slug}-sheet"
    if folder and folder.sheet:
        return f"/character/{character.id}/file/sheet"
    there = bool(mlflow_id) and (not character.active or gallery.tracked.holds(mlflow_id, SHEET_PICTURE))
    return f"/tracked/{mlflow_id}/{SHEET_PICTURE}" if there else ""


def _given(character: Character) -> tuple[str, str]:
    """The address of what it is made from, and whether that is a picture or a sheet; empty where it is shown already."""
    folder, (what, place) = character.folder, character.given
    if folder and folder.reference:
        return f"/character/{character.id}/file/reference", "picture"
    if not place or (what == "sheet" and folder and folder.sheet):
        return "", ""
    if place.startswith(LENT):
        return f"/picture/{place.removeprefix(LENT).partition('/')[0]}/{character.slug}-{what}", what
    return (f"/character/{character.id}/file/given", what) if served.given_file(character) else ("", "")


def _pick_pictures(run: RunRecord) -> tuple[tuple[Ref, str], ...]:
    """Told the recommended prompt, as whoever takes the adapter will; of earlier versions the sweep's, told the trigger alone."""
    sweep, words = run.sweep, run.sweep.words
    if words:
        return tuple(zip(words.drawn, words.scenes, strict=False))[:4]
    found = ((sweep.picture(sweep.pick.metrics, number), prompt) for number, prompt in enumerate(sweep.prompts))
    return tuple((ref, prompt) for ref, prompt in found if ref)[:4]


def _stages_of(gallery: Gallery, characters: list[Character]) -> dict[str, list[dict[str, Any]]]:
    """Prefect's task runs of those that are being made or ended early, by run; empty when Prefect does not answer."""
    told = ("made", "waits", "elsewhere")  # nothing is shown of the stages of these
    runs = [one.run_id for one in characters if one.flow_run and one.state not in told]
    try:
        return gallery.prefect.task_runs(runs)
    except (PrefectAway, BadInput):
        return {}


def _progress(gallery: Gallery, character: Character, stages: list[dict[str, Any]] | None) -> Progress | None:
    if stages is None:
        return None
    try:
        artifact = gallery.prefect.progress([character.run_id]).get(character.run_id) if character.active else None
    except (PrefectAway, BadInput):
        return None
    going_on = character.active and character.state != "stopping"
    return progress_of(stages, artifact, "" if going_on else character.state)


def _later_sweeps(gallery: Gallery, character: Character) -> list[dict[str, str]]:
    """Pictures asked for later that are not there yet, or failed."""
    try:
        runs = gallery.prefect.sweep_runs() if character.finished else []
    except (PrefectAway, BadInput):
        return []
    mine = [run for run in runs if (run.get("parameters") or {}).get("source") == str(character.path)]
    words = {
        "RUNNING": "are being drawn",
        "CANCELLING": "are being stopped",
        "FAILED": "failed",
        "CRASHED": AGAIN,
        "CANCELLED": AGAIN,
    }
    return [
        {
            "id": str(run["id"]),
            "state": str(run.get("state_type")),
            "said": words.get(str(run.get("state_type")), "wait to be drawn"),
            "why": str((run.get("state") or {}).get("message") or "") if run.get("state_type") == "FAILED" else "",
        }
        for run in mine
        if run.get("state_type") != "COMPLETED"
    ][:5]


def _chosen(pictures: Any, run: RunRecord, request: Request, strength: float | None = None) -> Any:
    """The picture that the address asks for; else the first prompt's at the pick."""
    asked, pick = request.query_params, run.sweep.pick
    wanted = _number(asked.get("strength"), pick.strength) if strength is None else strength
    prompts = pictures.prompts
    index = int(_number(asked.get("prompt"), 0))
    prompt = prompts[index] if 0 <= index < len(prompts) else (prompts[0] if prompts else "")
    step, seed = (
        int(_number(asked.get(name), usual))
        for name, usual in (("step", pick.checkpoint_step), ("seed", run.sweep.seeds[0]))
    )
    return pictures.nearest(prompt, step, wanted, seed)


def _number(text: str | None, usual: float) -> float:
    try:
        value = float(text) if text else usual
    except ValueError:
        return usual
    return value if abs(value) < 1e9 else usual


def _minutes(run: RunRecord | None) -> str:
    return in_words(sum(fact.seconds for fact in run.stages)) if run else ""


# --- forms ------------------------------------------------------------------------------------------------------------


def start_page(gallery: Gallery, request: Request) -> Response:
    """The form that starts a character; what the address names is filled in."""
    values = {name: value[:2000] for name, value in request.query_params.items()}
    return gallery.render("start.html", **start_form(gallery, StartForm(values)))


def start_alike(gallery: Gallery, request: Request) -> Response:
    """The form filled in as a character was started."""
    character = gallery.character(request)
    profiles = profile_choices(gallery.home)
    form, left = form_like(character, {choice.value for choice in profiles}, gallery.store)
    kept = {"kept_picture": form.kept_picture, "kept_reference": form.kept_reference, "profiles": profiles}
    more = {"reference_name": form.text("reference_name"), "like": character, "left": left}
    return gallery.render("start.html", **start_form(gallery, form, **kept, **more))


def start_form(gallery: Gallery, form: StartForm, **more: Any) -> dict[str, Any]:
    """What the start page shows; `more` wins."""
    return {
        "form": form.values,
        "fields": setting_fields(),
        "groups": groups()[:-1],  # a character's are fields
        "as_yaml": as_yaml,
        "labels": {**SHOWN, **LABELS},
        "profiles": more.get("profiles") or profile_choices(gallery.home),
        "like": None,
        "left": [],
        "estimate": _estimate(gallery, form),
        "problems": {},
        "shown": None,
        "kept_picture": "",
        "kept_reference": "",
        "reference_name": "",
        "same": None,
        "once": secrets.token_hex(8),
        "unsure": False,
        "title": "Start a character",
        **more,
    }


def estimate_part(gallery: Gallery, request: Request) -> Response:
    """How long what is filled in will take."""
    return gallery.render("_estimate.html", estimate=_estimate(gallery, StartForm(dict(request.query_params))))


def _estimate(gallery: Gallery, form: StartForm) -> str:
    waiting = sum(one.active for one in gallery.characters()[0])
    before = f"; {waiting} more {'is' if waiting == 1 else 'are'} made or waiting before it" if waiting else ""
    profile = _profile(form.profile, form.overrides)
    if profile is None:
        return ""
    lacking = lacking_models(profile)
    return f"{lacking}." if lacking else _told(gallery, profile, "It will take", before)


def _takes(gallery: Gallery, character: Character) -> str:
    """How long one that waits or is being made takes, and how much of that is over."""
    asked, gone = character.parameters, float((character.flow_run or {}).get("estimated_run_time") or 0.0)
    over = f"; {in_words(gone)} of it are over" if gone >= 1 else ""
    profile = _profile(str(asked.get("profile") or "embedded"), asked.get("overrides") or [])
    return _told(gallery, profile, "In all it takes", over) if profile else ""


def _profile(name: str, overrides: list[str]) -> Profile | None:
    """A profile with settings; None where they cannot be."""
    try:
        return load_profile(absolute_profile(name), overrides)
    except (ConfigError, BadInput):
        return None


def _told(gallery: Gallery, profile: Profile, begin: str, end: str) -> str:
    alike = (
        one.folder
        for one in gallery.characters(fresh=False)[0]
        if one.folder and one.folder.record and one.folder.record.profile == profile.name
    )
    found = expected(profile, (run for folder in alike if (run := folder.run)))
    if found is None:
        return "How long it takes is not known yet: no character was made with this profile on this machine."
    return f"{begin} {found.words}{end}."


def cast_page(gallery: Gallery, request: Request) -> Response:
    """The form that sends a cast."""
    return gallery.render("cast.html", **cast_form(gallery))


def cast_form(gallery: Gallery, **more: Any) -> dict[str, Any]:
    """What the cast page shows; `more` wins."""
    shown = {
        "cast": None,
        "profiles": profile_choices(gallery.home),
        "profile": "embedded",
        "problems": [],
        "started": [],
        "work_folder": work_folder(),
    }
    return {**shown, "once": secrets.token_hex(8), "title": "Start a cast", **more}
