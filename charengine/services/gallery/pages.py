"""Pages and pictures: everything that only looks."""

from __future__ import annotations

import re
import secrets
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import FileResponse, Response, StreamingResponse
from starlette.routing import Route

from charengine.errors import BadInput, ConfigError, EngineError
from charengine.profiles.loading import load_profile
from charengine.records import Ref, RunRecord
from charengine.run.paths import absolute_profile
from charengine.services.gallery.characters import LONGEST_SEARCH, Character
from charengine.services.gallery.download import zipped
from charengine.services.gallery.parts import NOT_FOUND, Gallery
from charengine.services.gallery.prefect import PrefectAway
from charengine.services.gallery.progress import Progress, progress_of
from charengine.services.gallery.reduced import WIDTHS
from charengine.services.gallery.settings_form import LABELS, SHOWN, profile_choices, setting_fields
from charengine.services.gallery.starting import StartForm
from charengine.services.gallery.times import expected, in_words
from charengine.services.gallery.trying import pictures_of
from charengine.wording import slug

FOR_EVER = {"Cache-Control": "private, max-age=31536000, immutable"}  # a digest's content never changes
FOREIGN = "sandbox allow-scripts allow-downloads allow-popups; default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'; img-src data: blob:; font-src data:"
KINDS = {b"\x89PNG": "image/png", b"\xff\xd8\xff": "image/jpeg", b"RIFF": "image/webp"}
TRACKED_PATH = re.compile(r"images/[A-Za-z0-9._%+-]{1,200}")
SHEET_PICTURE = "images/sheet.png"  # of a character's run in MLflow
VIEW_FILES = ("front", "side", "back")
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
        "/character/{id}/adapter.zip": adapter_zip,
        "/character/{id}/report": report,
        "/character/{id}/adapters/{file}": adapter_file,
        "/character/{id}/file/{what}": run_file,
        "/picture/{digest}": picture,
        "/tracked/{run}/{path:path}": tracked_picture,
        "/start": start_page,
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
    sample = None
    if character.active and character.run_id:
        sample = gallery.tracked.latest_sample(gallery.tracked.run_of(character.run_id))
    pictures = pictures_of(run, folder.sweeps) if run and folder else None
    return {
        "card": card_of(gallery, character, _stages_of(gallery, [character]), alone=True),
        "character": character,
        "run": run,
        "folder": folder,
        "sample": sample,
        "sweeps": _later_sweeps(gallery, character),
        "pictures": pictures,
        "shown": _chosen(pictures, run, request) if pictures and run else None,
        "base": _chosen(pictures, run, request, strength=0.0) if pictures and run else None,
        "subject": f"{run.trigger} {run.class_noun}" if run else "",  # as the sweep says it
        "minutes": _minutes(run),
        "before": any(one.active and one.id != character.id for one in gallery.characters(fresh=False)[0]),
        "form": {},
        "problems": {},
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
        return f"/picture/{run.sheet.image.sha256}"
    if folder and folder.sheet:
        return f"/character/{character.id}/file/sheet"
    there = bool(mlflow_id) and (not character.active or gallery.tracked.holds(mlflow_id, SHEET_PICTURE))
    return f"/tracked/{mlflow_id}/{SHEET_PICTURE}" if there else ""


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
        runs = gallery.prefect.sweep_runs() if character.folder and character.folder.record else []
    except (PrefectAway, BadInput):
        return []
    mine = [run for run in runs if (run.get("parameters") or {}).get("source") == str(character.path)]
    words = {
        "RUNNING": "are being drawn",
        "CANCELLING": "are being stopped",
        "FAILED": "failed",
        "CRASHED": "were stopped",
        "CANCELLED": "were stopped",
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


# --- files and pictures -----------------------------------------------------------------------------------------------


def adapter_zip(gallery: Gallery, request: Request) -> Response:
    """The adapters with everything that lies beside them."""
    character = gallery.character(request)
    if not character.folder or not character.folder.downloads:
        raise HTTPException(NOT_FOUND, "There is no adapter of this character on this machine yet.")
    name = slug(character.name)
    headers = {"Content-Disposition": f'attachment; filename="{name}.zip"', "Cache-Control": "no-store"}
    return StreamingResponse(zipped(character.folder, name), media_type="application/zip", headers=headers)


def adapter_file(gallery: Gallery, request: Request) -> Response:
    """One file of those beside the adapter: the report links to them."""
    folder, wanted = gallery.character(request).folder, request.path_params["file"]
    path = next((one for one in (folder.downloads if folder else []) if one.name == wanted), None)
    if not path:
        raise HTTPException(NOT_FOUND, "There is no such file beside the adapter of this character.")
    return FileResponse(path, filename=path.name, headers={"Cache-Control": "no-cache"})


def report(gallery: Gallery, request: Request) -> Response:
    """The report; it is a page of its own, which may not do anything here."""
    character = gallery.character(request)
    path = character.folder.report if character.folder else None
    if not path:
        raise HTTPException(NOT_FOUND, "There is no report of this character on this machine yet.")
    return FileResponse(
        path, media_type="text/html", headers={"Content-Security-Policy": FOREIGN, "Cache-Control": "no-cache"}
    )


def run_file(gallery: Gallery, request: Request) -> Response:
    """The sheet, the picture it is drawn from, or a view, from the moment that it is written."""
    folder, what = gallery.character(request).folder, request.path_params["what"]
    path: Path | None = None
    if folder and what in ("sheet", "reference"):
        path = folder.sheet if what == "sheet" else folder.reference
    elif folder and what in VIEW_FILES:
        path = next((view for view in folder.views if view.stem == what), None)
    if not path:
        raise HTTPException(NOT_FOUND, "There is no such picture of this character.")
    return _picture(gallery, path.read_bytes(), request, {"Cache-Control": "no-cache"})


def picture(gallery: Gallery, request: Request) -> Response:
    """A picture of the store, by its digest."""
    try:
        ref = Ref(sha256=request.path_params["digest"], size=0, media_type="", name="picture")
        data = gallery.store.get(ref)
    except (ValueError, EngineError) as error:
        raise HTTPException(NOT_FOUND, "There is no such picture here.") from error
    return _picture(gallery, data, request, FOR_EVER)


def tracked_picture(gallery: Gallery, request: Request) -> Response:
    """A picture that MLflow keeps: of a character that is made elsewhere, or a sample while it trains."""
    path = request.path_params["path"]
    data = gallery.tracked.picture(request.path_params["run"], path) if TRACKED_PATH.fullmatch(path) else None
    if data is None:
        raise HTTPException(NOT_FOUND, "MLflow has no such picture.")
    return _picture(gallery, data, request, {"Cache-Control": "private, max-age=30"})


def _picture(gallery: Gallery, data: bytes, request: Request, headers: dict[str, str]) -> Response:
    kind = next((media for start, media in KINDS.items() if data.startswith(start)), None)
    if kind is None:
        raise HTTPException(NOT_FOUND, "That is no picture.")
    wanted = request.query_params.get("w", "")
    if wanted.isdigit() and int(wanted) in WIDTHS:
        data, kind = gallery.reduced(data, int(wanted)), "image/webp"
    return Response(data, media_type=kind, headers=headers)


# --- forms ------------------------------------------------------------------------------------------------------------


def start_page(gallery: Gallery, request: Request) -> Response:
    """The form that starts a character; what the address names is filled in."""
    values = {name: value[:2000] for name, value in request.query_params.items()}
    return gallery.render("start.html", **start_form(gallery, StartForm(values)))


def start_form(gallery: Gallery, form: StartForm, **more: Any) -> dict[str, Any]:
    """What the start page shows; `more` wins."""
    return {
        "form": form.values,
        "fields": setting_fields(),
        "labels": {**SHOWN, **LABELS},
        "profiles": profile_choices(gallery.home),
        "estimate": _estimate(gallery, form),
        "problems": {},
        "shown": None,
        "kept_picture": "",
        "kept_reference": "",
        "reference_name": "",
        "once": secrets.token_hex(8),
        "title": "Start a character",
        **more,
    }


def estimate_part(gallery: Gallery, request: Request) -> Response:
    """How long what is filled in will take."""
    return gallery.render("_estimate.html", estimate=_estimate(gallery, StartForm(dict(request.query_params))))


def _estimate(gallery: Gallery, form: StartForm) -> str:
    try:
        profile = load_profile(absolute_profile(form.profile), form.overrides)
    except (ConfigError, BadInput):
        return ""
    everybody, _ = gallery.characters()
    alike = (
        one.folder
        for one in everybody
        if one.folder and one.folder.record and one.folder.record.profile == profile.name
    )
    found = expected(profile, (run for folder in alike if (run := folder.run)))
    if found is None:
        return "How long it takes is not known yet: no character was made with this profile on this machine."
    waiting = sum(one.active for one in everybody)
    before = f"; {waiting} more {'is' if waiting == 1 else 'are'} made or waiting before it" if waiting else ""
    return f"It will take {found.words}{before}."


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
    }
    return {**shown, "once": secrets.token_hex(8), "title": "Start a cast", **more}
