"""Forms that are sent: a character or a cast is started, cancelled, resumed, or drawn again at other strengths."""

from __future__ import annotations

import hashlib
import json
import re
import time
from collections.abc import Awaitable, Callable
from typing import Any

from starlette.concurrency import run_in_threadpool
from starlette.datastructures import UploadFile
from starlette.requests import Request
from starlette.responses import RedirectResponse, Response
from starlette.routing import Route

from charengine.errors import BadInput, ConfigError, StageFailed
from charengine.services.gallery.cast_upload import check_cast_upload, kept_cast
from charengine.services.gallery.characters import Character
from charengine.services.gallery.pages import cast_form, one_character, start_form
from charengine.services.gallery.parts import AWAY, TOKEN, Gallery
from charengine.services.gallery.prefect import PrefectAway
from charengine.services.gallery.starting import StartForm, check_start, parameters_of, resume_parameters
from charengine.services.gallery.trying import sweep_parameters
from charengine.services.gallery.uploads import Upload
from charengine.wording import slug

WRONG = 422  # the form is shown again with what is wrong
SEE_OTHER = 303
MOST_FIELDS, LONGEST_FIELD = 80, 100_000
ONCE = re.compile(r"[0-9a-f]{1,32}")
BATCH_QUEUE = "batch"  # casts wait behind single characters

Sent = dict[str, str | Upload]
Change = Callable[[Gallery, Request, Sent], Response]


def routes(gallery: Gallery) -> list[Route]:
    """Addresses that change something."""
    changes: dict[str, Change] = {
        "/start": start,
        "/cast": show_cast,
        "/cast/start": start_cast,
        "/character/{id}/cancel": cancel,
        "/character/{id}/resume": resume,
        "/character/{id}/sweep": sweep,
    }
    return [Route(path, _bound(change, gallery), methods=["POST"]) for path, change in changes.items()]


def _bound(change: Change, gallery: Gallery) -> Callable[[Request], Awaitable[Response]]:
    async def endpoint(request: Request) -> Response:
        async with request.form(max_files=2, max_fields=MOST_FIELDS, max_part_size=LONGEST_FIELD) as form:
            sent: Sent = {}
            for name, value in form.multi_items():
                sent[name] = (
                    Upload(value.filename or "", await value.read()) if isinstance(value, UploadFile) else value
                )
        gallery.check_token(sent.get(TOKEN))
        try:
            return await run_in_threadpool(change, gallery, request, sent)
        except PrefectAway as error:
            told = f"{error}. Whether it was heard is not known: try again, nothing is done twice."
            return await run_in_threadpool(
                gallery.message, "Prefect did not answer in time", told, AWAY, request, _text(sent, "once") or "0"
            )
        finally:
            gallery.forget()

    return endpoint


def _text(sent: Sent, name: str) -> str:
    value = sent.get(name, "")
    return value if isinstance(value, str) else ""


def _upload(sent: Sent, name: str) -> Upload | None:
    """The file of a field; None where none was chosen, which browsers send as an empty one."""
    value = sent.get(name)
    return value if isinstance(value, Upload) and (value.data or value.name) else None


def _once(sent: Sent) -> str:
    """The word that makes a form start its run once, however often it is sent."""
    word = _text(sent, "once")
    if not ONCE.fullmatch(word):
        raise BadInput("this form is not whole: go back, reload the page, and try again")
    return f"gallery-{word}"


def _once_for(sent: Sent, parameters: dict[str, Any]) -> str:
    """The same of a form that whoever goes back in the browser may fill in anew: then it is another run.

    Where it will lie does not count: once it was started, that is taken.
    """
    asked = json.dumps({**parameters, "out": ""}, sort_keys=True)
    return f"{_once(sent)}-{hashlib.sha256(asked.encode()).hexdigest()[:16]}"


def _to(character: Character) -> Response:
    return RedirectResponse(f"/character/{character.id}", SEE_OTHER)


# --- start ------------------------------------------------------------------------------------------------------------


def start(gallery: Gallery, request: Request, sent: Sent) -> Response:
    """Start a character, or show the form again with what is wrong with it."""
    values = {name: value for name, value in sent.items() if isinstance(value, str)}
    form = StartForm(
        values,
        _upload(sent, "picture"),
        _text(sent, "kept_picture"),
        _upload(sent, "reference"),
        _text(sent, "kept_reference"),
    )
    everybody, _ = gallery.characters()
    others = [one for one in everybody if not _sent_before(one, _once(sent))]
    checked, more = check_start(form, gallery.home, gallery.store, others), {}
    if checked.run:
        once = _once_for(sent, parameters_of(checked.run, gallery.store))
        if same := next((one for one in everybody if _key(one) == once), None):
            return _to(same)
        if len(others) < len(everybody):  # what the form started before it was filled in anew keeps its folder
            checked = check_start(form, gallery.home, gallery.store, everybody)
    if checked.run:
        character = checked.run.character
        try:
            gallery.prefect.start("character", parameters_of(checked.run, gallery.store), character.name, once=once)
        except PrefectAway as error:
            checked.add(
                "", f"{error}. Whether it was started is not known: press Start again, nothing is started twice"
            )
            more = {"unsure": True, "once": _text(sent, "once")}
        except BadInput as error:
            checked.add("", str(error))
        else:
            return _to(Character(character.name, character.prompt, "waits", checked.run.out))
    kept = {name: getattr(checked, name) for name in ("kept_picture", "kept_reference", "reference_name", "same")}
    shown = start_form(gallery, form, problems=checked.problems, shown=checked.shown, **kept, **more)
    return gallery.render("start.html", WRONG, **shown)


def show_cast(gallery: Gallery, request: Request, sent: Sent) -> Response:
    """Show the rows of a cast with what is wrong with each; nothing is started."""
    profile = _text(sent, "profile_file").strip() or _text(sent, "profile").strip() or "embedded"
    upload = _upload(sent, "cast")
    if upload is None:
        return gallery.render(
            "cast.html", WRONG, **cast_form(gallery, profile=profile, problems=["choose a CSV or YAML file"])
        )
    everybody, _ = gallery.characters()
    cast = check_cast_upload(upload, profile, gallery.home, gallery.store, everybody)
    shown = cast_form(gallery, cast=cast, profile=profile, problems=cast.problems)
    return gallery.render("cast.html", 200 if cast.can_start else WRONG, **shown)


def start_cast(gallery: Gallery, request: Request, sent: Sent) -> Response:
    """Start every row of a cast that was shown; they wait behind single characters."""
    once, profile = _once(sent), _text(sent, "profile") or "embedded"
    upload = kept_cast(_text(sent, "digest"), _text(sent, "file_name"), gallery.store)
    everybody, _ = gallery.characters()
    cast = check_cast_upload(
        upload, profile, gallery.home, gallery.store, [one for one in everybody if not _sent_before(one, once)]
    )
    if not cast.can_start:
        return gallery.render(
            "cast.html", WRONG, **cast_form(gallery, cast=cast, profile=profile, problems=cast.problems)
        )
    started = 0
    try:
        for row in cast.rows:
            assert row.run
            name = row.run.character.name
            gallery.prefect.start(
                "character", parameters_of(row.run, gallery.store), name, once=f"{once}-{slug(name)}", queue=BATCH_QUEUE
            )
            started += 1
    except (PrefectAway, BadInput) as error:
        said = f"{started} of {len(cast.rows)} were started, then: {error} Start again: what was started is not started twice."
        return gallery.render(
            "cast.html",
            WRONG,
            **cast_form(gallery, cast=cast, profile=profile, problems=[said], once=once.removeprefix("gallery-")),
        )
    return RedirectResponse("/", SEE_OTHER)


def _sent_before(character: Character, once: str) -> bool:
    """Whether this very form started it: sent again, it is no mistake."""
    return _key(character).startswith(f"{once}-")


def _key(character: Character) -> str:
    return str((character.flow_run or {}).get("idempotency_key") or "")


# --- a character ------------------------------------------------------------------------------------------------------


def cancel(gallery: Gallery, request: Request, sent: Sent) -> Response:
    """Stop a character that waits or is being made; it saves its state and can be resumed."""
    character = gallery.character(request)
    if character.state in ("waits", "being made") and character.flow_run:
        gallery.prefect.cancel(character.run_id, force="unheard" in character.flow_run)
    return _to(character)


def resume(gallery: Gallery, request: Request, sent: Sent) -> Response:
    """Start a character again that failed or was stopped: what is done is taken, training goes on from its last state."""
    character = gallery.character(request)
    if not character.flow_run and (notice := gallery.characters(fresh=False)[1]):
        raise PrefectAway(notice)
    if not character.active:
        gallery.prefect.start(
            "character", resume_parameters(character, gallery.store), character.name, once=_once(sent)
        )
    return _to(character)


def sweep(gallery: Gallery, request: Request, sent: Sent) -> Response:
    """Draw a finished character at other strengths, checkpoints, or with another prompt."""
    character = gallery.character(request)
    if not character.folder or not character.folder.record:
        raise BadInput(f"{character.name} is not made yet: there is nothing to draw with")
    form = {name: value for name, value in sent.items() if isinstance(value, str)}
    try:
        parameters = sweep_parameters(character.folder, form, time.strftime("%Y%m%d-%H%M%S"))
        gallery.prefect.start("sweep", parameters, f"{character.name} again", once=_once_for(sent, parameters))
    except ConfigError as error:
        return _tried(gallery, character, request, form, _by_field(error.problems))
    except PrefectAway as error:
        unsure = {"unsure": True, "once": form["once"]}
        return _tried(gallery, character, request, form, {"": [str(error)]}, **unsure)
    except StageFailed as error:
        return _tried(gallery, character, request, form, {"": [str(error)]})
    return RedirectResponse(f"/character/{character.id}#try", SEE_OTHER)


def _tried(
    gallery: Gallery,
    character: Character,
    request: Request,
    form: dict[str, str],
    problems: dict[str, list[str]],
    **more: Any,
) -> Response:
    shown: dict[str, Any] = one_character(gallery, character, request, form=form, problems=problems, **more)
    return gallery.render("character.html", WRONG, **shown)


def _by_field(problems: list[str]) -> dict[str, list[str]]:
    """`strengths: …` and `sweep.strengths.0: …` both belong to the field `strengths`."""
    found: dict[str, list[str]] = {}
    for problem in problems:
        head, _, rest = problem.partition(": ")
        name = head.removeprefix("sweep.").split(".")[0]
        name = "prompt" if name == "prompts" else name
        known = name in ("strengths", "checkpoints", "prompt", "seeds")
        found.setdefault(name if known else "", []).append(rest if known else problem)
    return found
