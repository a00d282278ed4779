"""The gallery's application: its parts, its pages by address, and what stands between them and the browser."""

from __future__ import annotations

import hmac
import logging
import secrets
import time
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import HTMLResponse, PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from charengine.errors import BadInput, EngineError
from charengine.machine.home import Home
from charengine.services.gallery.characters import Character, given_folder, join
from charengine.services.gallery.folders import Folders
from charengine.services.gallery.prefect import AGE, Prefect, PrefectAway
from charengine.services.gallery.reduced import Reduced
from charengine.services.gallery.tracked import Tracked
from charengine.services.gallery.uploads import BodyLimit
from charengine.services.local_only import App, LocalOnly, Message, Receive, Scope, Send
from charengine.store import Store

log = logging.getLogger(__name__)

HERE = Path(__file__).parent
ORIGINS = "CHARENGINE_GALLERY_ORIGINS"  # more pages that may call, with commas: https://studio.example
FORBIDDEN, NOT_FOUND, AWAY = 403, 404, 503
TOKEN = "token"  # the field of every form that changes something
POLICY = (
    "default-src 'none'; img-src 'self' data:; style-src 'self'; script-src 'self'; connect-src 'self'; form-action 'self'; "
    "base-uri 'none'; frame-ancestors 'none'"
)
HEADERS = (
    (b"x-content-type-options", b"nosniff"),
    (b"referrer-policy", b"same-origin"),
    (b"cross-origin-resource-policy", b"same-origin"),
    (b"cross-origin-opener-policy", b"same-origin"),
)


@dataclass
class Gallery:
    """What the pages are made from.

    Args:
        home: of the runs.
        prefect: who runs them.
        tracked: who keeps their numbers and pictures.
        prefect_page: address of Prefect's own page; empty without one.
    """

    home: Home
    prefect: Prefect
    tracked: Tracked
    prefect_page: str = ""
    token: str = field(default_factory=lambda: secrets.token_urlsafe(24), repr=False)
    store: Store = field(init=False)
    folders: Folders = field(init=False)
    _kept: tuple[float, tuple[list[Character], str]] = field(default=(-1e9, ([], "")), repr=False)
    reduced: Reduced = field(default_factory=Reduced)

    def __post_init__(self) -> None:
        self.store = Store(self.home.store)
        self.folders = Folders(self.home)
        self._templates = Environment(
            loader=FileSystemLoader(HERE / "templates"),
            autoescape=True,
            undefined=StrictUndefined,
            trim_blocks=True,
            lstrip_blocks=True,
        )

    def characters(self, fresh: bool = True) -> tuple[list[Character], str]:
        """All of them; and, when Prefect does not answer, why those that are being made are missing.

        Args:
            fresh: False takes what was found a moment ago: one page asks for many pictures.
        """
        when, kept = self._kept
        if not fresh and time.monotonic() - when < AGE:
            return kept
        notice = ""
        try:
            runs = self.prefect.character_runs()
        except (PrefectAway, BadInput) as error:
            runs, notice = [], f"{error}. What is being made now is not shown."
        outs = [out for run in runs if (out := given_folder(run))]
        places = self.folders.places
        found = join(self.folders.find(outs), runs, places), notice
        self._kept = (time.monotonic(), found)
        return found

    def character(self, request: Request) -> Character:
        """The one that the address names.

        Raises:
            HTTPException: there is none.
        """
        wanted = request.path_params["id"]
        found = next((one for fresh in (False, True) for one in self.characters(fresh)[0] if one.id == wanted), None)
        if found is None:
            raise HTTPException(NOT_FOUND, "There is no such character here (any more).")
        return found

    def render(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page."""
        links = {
            "prefect": self.prefect_page,
            "mlflow": self.tracked.runs_page,
            "strengths": self.tracked.strengths_page,
        }
        text = self._templates.get_template(template).render(token=self.token, links=links, **values)
        return HTMLResponse(text, status, headers={"Cache-Control": "no-store"})

    def message(self, title: str, text: str, status: int) -> HTMLResponse:
        """A page that says one thing."""
        return self.render("message.html", status, title=title, text=text)

    def check_token(self, given: object) -> None:
        """Refuse a form that did not come from a page of this server.

        Raises:
            HTTPException: it did not.
        """
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), self.token.encode()):
            raise HTTPException(
                FORBIDDEN, "This page is from before the gallery was started anew. Go back, reload it, and try again."
            )


def create_app(gallery: Gallery, origins: tuple[str, ...] = ()) -> App:
    """The application with everything that protects it.

    Args:
        gallery: its parts.
        origins: pages that may call it besides its own; `*` switches that check off.
    """
    from charengine.services.gallery import changes, pages

    inner = Starlette(
        routes=[
            *pages.routes(gallery),
            *changes.routes(gallery),
            Route("/health", lambda request: PlainTextResponse("ok")),
            Mount("/static", StaticFiles(directory=HERE / "static")),
        ],
        middleware=[Middleware(Guarded), Middleware(BodyLimit)],
        exception_handlers={
            HTTPException: _http_error(gallery),
            EngineError: _engine_error(gallery),
            Exception: _defect(gallery),
        },
    )
    return inner if "*" in origins else LocalOnly(inner, origins, ORIGINS)


class Guarded:
    """Sets the headers that keep a page from being framed, sniffed, or from loading anything from elsewhere."""

    def __init__(self, app: App) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """One request, as ASGI has it."""

        async def with_headers(message: Message) -> None:
            if message["type"] == "http.response.start":
                there = {name.lower() for name, _ in message["headers"]}
                own = [] if b"content-security-policy" in there else [(b"content-security-policy", POLICY.encode())]
                message = {**message, "headers": [*message["headers"], *HEADERS, *own]}
            await send(message)

        await self._app(scope, receive, with_headers)


Handler = Callable[[Request, Exception], Response]


def _http_error(gallery: Gallery) -> Handler:
    def handle(request: Request, error: Exception) -> Response:
        assert isinstance(error, HTTPException)
        if error.status_code == NOT_FOUND and error.detail == "Not Found":
            return gallery.message("Nothing here", "There is no page at this address.", NOT_FOUND)
        return gallery.message("That did not work", error.detail, error.status_code)

    return handle


def _engine_error(gallery: Gallery) -> Handler:
    def handle(request: Request, error: Exception) -> Response:
        return gallery.message("That did not work", str(error), AWAY if isinstance(error, PrefectAway) else 422)

    return handle


def _defect(gallery: Gallery) -> Handler:
    def handle(request: Request, error: Exception) -> Response:
        log.error("a page could not be made", exc_info=error)
        text = (
            f"{type(error).__name__}. This is a defect of Character Engine; the log of the gallery has the traceback."
        )
        return gallery.message("That did not work", text, 500)

    return handle
