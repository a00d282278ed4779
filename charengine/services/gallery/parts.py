"""What every page of the gallery is made from: home, servers, characters, templates, and the token of its forms."""

from __future__ import annotations

import hmac
import secrets
import time
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from starlette.exceptions import HTTPException
from starlette.requests import Request
from starlette.responses import HTMLResponse

from charengine.errors import BadInput
from charengine.machine.home import Home
from charengine.machine.shared import open_store
from charengine.services.gallery.characters import Character, given_folder, join
from charengine.services.gallery.folders import Folders
from charengine.services.gallery.prefect import AGE, Prefect, PrefectAway
from charengine.services.gallery.reduced import Reduced
from charengine.services.gallery.tracked import Tracked
from charengine.services.living import as_it_is
from charengine.store import Store

HERE = Path(__file__).parent
FORBIDDEN, NOT_FOUND, AWAY = 403, 404, 503
TOKEN = "token"  # the field of every form that changes something


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
        self.store = open_store(self.home)
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
            runs = [as_it_is(run) for run in self.prefect.character_runs()]
        except (PrefectAway, BadInput) as error:
            runs, notice = [], f"{error}. What is being made now is not shown."
        outs = [out for run in runs if (out := given_folder(run))]
        places = self.folders.places
        found = join(self.folders.find(outs), runs, places), notice
        self._kept = (time.monotonic(), found)
        return found

    def forget(self) -> None:
        """What was found a moment ago is out of date: somebody changed something."""
        self._kept = (-1e9, ([], ""))

    def character(self, request: Request) -> Character:
        """The one that the address names.

        Raises:
            HTTPException: there is none.
            PrefectAway: there is none without Prefect, which does not answer.
        """
        wanted = request.path_params["id"]
        found = next((one for fresh in (False, True) for one in self.characters(fresh)[0] if one.id == wanted), None)
        if found is None and (notice := self.characters(fresh=False)[1]):
            raise PrefectAway(notice)
        if found is None:
            raise HTTPException(NOT_FOUND, "There is no such character here (any more).")
        return found

    def render(self, template: str, status: int = 200, **values: Any) -> HTMLResponse:
        """A page."""
        return HTMLResponse(self.text(template, **values), status, headers={"Cache-Control": "no-store"})

    def text(self, template: str, **values: Any) -> str:
        """A page's markup, or a piece's."""
        links = {
            "prefect": self.prefect_page,
            "mlflow": self.tracked.runs_page,
            "strengths": self.tracked.strengths_page,
            "losses": self.tracked.losses_page,
        }
        return self._templates.get_template(template).render(token=self.token, links=links, **values)

    def message(self, title: str, text: str, status: int, request: Request, once: str = "") -> HTMLResponse:
        """A page that says one thing, and leads back; with `once` the form that was sent can be sent again."""
        again = (request.url.path, once) if once else None
        back = request.path_params.get("id", "") if status != NOT_FOUND else ""
        return self.render("message.html", status, title=title, text=text, again=again, back=back)

    def check_token(self, given: object) -> None:
        """Refuse a form that did not come from a page of this server.

        Raises:
            HTTPException: it did not.
        """
        if not isinstance(given, str) or not hmac.compare_digest(given.encode(), self.token.encode()):
            raise HTTPException(
                FORBIDDEN, "This page is from before the gallery was started anew. Go back, reload it, and try again."
            )
