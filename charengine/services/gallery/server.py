"""The gallery as a server of this machine."""

from __future__ import annotations

import os

from charengine.machine.addresses import own_origins, tracking_uri, use_services
from charengine.machine.collection import before_serving
from charengine.machine.environment import apply_defaults
from charengine.machine.home import Home, find_home
from charengine.machine.processes import HOST
from charengine.services.gallery.app import ORIGINS, create_app
from charengine.services.gallery.parts import Gallery
from charengine.services.gallery.prefect import Prefect
from charengine.services.gallery.tracked import Tracked

API, PAGE = "PREFECT_API_URL", "PREFECT_UI_URL"
END_SECONDS = 3  # for requests that go on when it is ended
USUAL_API = "http://127.0.0.1:4200/api"


def serve(port: int) -> None:
    """Run the server until it is terminated."""
    import uvicorn

    home = find_home().create()
    apply_defaults(home)
    app = create_app(open_gallery(home), allowed_origins(port))
    before_serving()
    uvicorn.run(app, host=HOST, port=port, log_level="warning", access_log=False, timeout_graceful_shutdown=END_SECONDS)


def open_gallery(home: Home) -> Gallery:
    """The gallery of the servers that the environment names, else of those of `charengine up`."""
    use_services(home)
    api = os.environ.get(API) or USUAL_API
    page = os.environ.get(PAGE) or api.rstrip("/").removesuffix("/api")
    return Gallery(home, Prefect(api), Tracked(tracking_uri(home)), page.rstrip("/"))


def allowed_origins(port: int) -> tuple[str, ...]:
    """The gallery's own pages, and what the user allows besides in `CHARENGINE_GALLERY_ORIGINS`."""
    given = (part.strip() for part in os.environ.get(ORIGINS, "").split(","))
    return tuple(dict.fromkeys([*own_origins(port), *filter(None, given)]))
