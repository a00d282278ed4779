"""Characters side by side: the tables and charts of `charengine compare`, below the gallery's cards."""

from __future__ import annotations

from typing import Any

from starlette.requests import Request
from starlette.responses import Response

from charengine.errors import StoreCorrupt
from charengine.services.gallery.characters import Character
from charengine.services.gallery.pages import MOST_SHOWN, card_of
from charengine.services.gallery.parts import Gallery
from charengine.stages.report.compare import charts, differences, names_of, results

MOST = 6  # side by side on a page; `charengine compare` takes any number
LEGEND = 48  # letters of all names, above a chart


def _why(character: Character | None) -> str:
    """Why a character cannot be compared."""
    if character is None:
        return "What is not here (any more) is left out."
    why = character.message if character.state == "elsewhere" else "it is not finished."
    return f"{character.name} is left out: {why[:1].lower()}{why[1:]}"


def compare(gallery: Gallery, request: Request) -> Response:
    """Two finished characters or more, as the address names them: `?id=…&id=…`."""
    wanted = list(dict.fromkeys(request.query_params.getlist("id")))
    everybody = {one.id: one for one in gallery.characters()[0]}
    finished = {one.id: one for one in everybody.values() if one.finished}
    several = [finished[one] for one in wanted if one in finished]
    chosen, rest = several[:MOST], [one.name for one in several[MOST:]]
    runs = [run for one in chosen if one.folder and (run := one.folder.run)]
    notices = [_why(everybody.get(one)) for one in wanted if one not in finished]
    notices += [f"{' and '.join(rest)} left out: {MOST} at most stand side by side."] if rest else []
    shown: dict[str, Any] = {
        "cards": [card_of(gallery, one, {}) for one in chosen],
        "chosen": chosen,
        "others": [one for one in finished.values() if one not in chosen][:MOST_SHOWN] if len(chosen) < MOST else [],
        "notice": " ".join(dict.fromkeys(notices)),
        "tables": [],
    }
    if len(runs) > 1:
        names, room = names_of(runs), LEGEND // len(runs)
        try:
            drawn = charts(
                runs, [name if len(name) <= room else f"{name[: room - 1]}…" for name in names], gallery.store
            )
        except StoreCorrupt:  # the store was tidied; the tables have the curves' ends
            drawn = []
        shown |= {
            "names": names,
            "tables": [("Results", results(runs)), ("Settings that differ", differences(runs))],
            "charts": drawn,
            "mlflow": {
                "runs": gallery.tracked.compare_page(run.mlflow_run_id for run in runs),
                "trainings": gallery.tracked.compare_page(run.training.mlflow_run_id for run in runs),
            },
        }
    return gallery.render("compare.html", **shown, tickable=False, title="Compare characters")
