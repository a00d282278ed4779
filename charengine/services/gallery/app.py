"""The gallery's application: its pages by address, and what stands between them and the browser."""

from __future__ import annotations

import logging
from collections.abc import Callable

from starlette.applications import Starlette
from starlette.exceptions import HTTPException
from starlette.middleware import Middleware
from starlette.requests import Request
from starlette.responses import PlainTextResponse, Response
from starlette.routing import Mount, Route
from starlette.staticfiles import StaticFiles

from charengine.errors import EngineError
from charengine.services.gallery import changes, comparing, pages
from charengine.services.gallery.parts import AWAY, HERE, NOT_FOUND, Gallery
from charengine.services.gallery.prefect import PrefectAway
from charengine.services.gallery.uploads import BodyLimit
from charengine.services.local_only import App, LocalOnly, Message, Receive, Scope, Send

log = logging.getLogger(__name__)

ORIGINS = "CHARENGINE_GALLERY_ORIGINS"  # more pages that may call, with commas: https://studio.example
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


def create_app(gallery: Gallery, origins: tuple[str, ...] = ()) -> App:
    """The application with everything that protects it.

    Args:
        gallery: its parts.
        origins: pages that may call it besides its own; `*` switches that check off.
    """
    inner = Starlette(
        routes=[
            *pages.routes(gallery),
            *changes.routes(gallery),
            Route("/compare", lambda request: comparing.compare(gallery, request)),
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
            return gallery.message("Nothing here", "There is no page at this address.", NOT_FOUND, request)
        return gallery.message("That did not work", error.detail, error.status_code, request)

    return handle


def _engine_error(gallery: Gallery) -> Handler:
    def handle(request: Request, error: Exception) -> Response:
        status = AWAY if isinstance(error, PrefectAway) else 422
        return gallery.message("That did not work", str(error), status, request)

    return handle


def _defect(gallery: Gallery) -> Handler:
    def handle(request: Request, error: Exception) -> Response:
        log.error("a page could not be made", exc_info=error)
        text = (
            f"{type(error).__name__}. This is a defect of Character Engine; the log of the gallery has the traceback."
        )
        return gallery.message("That did not work", text, 500, request)

    return handle
