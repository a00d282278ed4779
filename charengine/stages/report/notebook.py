"""A stage's record as a notebook shows it: its facts as tables, its pictures small, and still the record for code."""

from __future__ import annotations

import base64
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import singledispatch
from html import escape
from typing import TYPE_CHECKING, Any, Generic, TypeVar

from charengine.pictures import open_image, png
from charengine.records import (
    AdapterRecord,
    CellMetrics,
    DatasetRecord,
    ExpansionRecord,
    Record,
    Ref,
    ReportRecord,
    SheetRecord,
    SweepRecord,
    ViewRecord,
    ViewsRecord,
    Words,
)

if TYPE_CHECKING:
    from charengine.store import Store

R = TypeVar("R", bound=Record)
Row = dict[str, object]

SHEET, VIEW, CELLS = 480, 160, 900  # pixels: the longer side of a picture in the notebook


@dataclass(frozen=True)
class Picture:
    """A stored picture, and how large it is shown."""

    ref: Ref
    caption: str
    side: int = VIEW


@dataclass(frozen=True)
class Page:
    """What is shown of a record.

    Args:
        facts: name and value, one row each.
        rows: a table with a heading: equal names in every row.
        pictures: beside each other, below the tables.
        html: a whole page of its own, shown in a frame.
    """

    facts: Row
    rows: Sequence[Mapping[str, object]] = ()
    pictures: tuple[Picture, ...] = ()
    html: Ref | None = None


class Shown(Generic[R]):
    """A record that a notebook shows with its pictures; attributes and equality are the record's.

    Args:
        record: what a stage made.
        store: where its pictures are.
    """

    def __init__(self, record: R, store: Store) -> None:
        self.record = record
        self._store = store

    def __getattr__(self, name: str) -> Any:
        if name.startswith("_"):  # what notebooks and copy ask for
            raise AttributeError(name)
        return getattr(self.record, name)

    def __eq__(self, other: object) -> bool:
        return bool(self.record == (other.record if isinstance(other, Shown) else other))

    def __hash__(self) -> int:
        return hash(self.record)

    def __repr__(self) -> str:
        page = page_of(self.record)
        lines = [f"{name}: {value}" for name, value in page.facts.items()]
        lines += [", ".join(f"{name} {value}" for name, value in row.items()) for row in page.rows]
        return "\n  ".join([type(self.record).__name__, *lines])

    def _repr_html_(self) -> str:
        page = page_of(self.record)
        figures = "".join(_figure(picture, self._store) for picture in page.pictures)
        frame = _frame(self._store.get(page.html).decode()) if page.html else ""
        return f"<div>{_facts(page.facts)}{_table(page.rows)}<div>{figures}</div>{frame}</div>"


@singledispatch
def page_of(record: Record) -> Page:
    """What is shown of a record; of an unknown one, its plain fields."""
    return Page({name: value for name, value in record if isinstance(value, str | int | float)})


@page_of.register
def _(sheet: SheetRecord) -> Page:
    facts: Row = {"sheet": sheet.source, "size": f"{sheet.width} × {sheet.height}"}
    if sheet.source == "drawn":
        facts |= {"prompt": sheet.prompt, "seed": sheet.seed, "candidates drawn": sheet.candidates}
    given = (Picture(sheet.reference, "the reference"),) if sheet.reference else ()
    return Page(facts | _warnings(sheet.warnings), pictures=(*given, Picture(sheet.image, "", SHEET)))


@page_of.register
def _(views: ViewsRecord) -> Page:
    boxes = (Picture(views.overlay, "boxes on the sheet", SHEET),) if views.overlay else ()
    facts: Row = {"background": f"RGB {', '.join(map(str, views.background))}"}
    rows = tuple({"view": view.view, "size": f"{view.width} × {view.height}"} for view in views.views)
    return Page(facts | _warnings(views.warnings), rows, (*_views(views.views), *boxes))


@page_of.register
def _(expansion: ExpansionRecord) -> Page:
    rows = tuple(
        {"view": one.view, "fate": one.fate, "identity": f"{one.identity:.3f}", "at least": f"{one.threshold:.3f}"}
        for one in expansion.views
    )
    facts: Row = {"kept": f"{len(expansion.kept)} of {len(expansion.views)}"}
    pictures = tuple(Picture(one.image, f"{one.view}: {one.fate}") for one in expansion.views)
    return Page(facts | _warnings(expansion.warnings), rows, pictures)


@page_of.register
def _(dataset: DatasetRecord) -> Page:
    facts: Row = {"trigger": dataset.trigger, "class noun": dataset.class_noun}
    rows = tuple(
        {"view": one.view, "caption": one.text, "bound to the trigger": ", ".join(one.pruned)}
        for one in dataset.captions
    )
    extras = tuple(Picture(one.image, one.view) for one in dataset.extras)
    return Page(facts | _warnings(dataset.warnings), rows, (*_views(dataset.views.views), *extras))


@page_of.register
def _(training: AdapterRecord) -> Page:
    facts: Row = {"trigger": training.trigger, "class noun": training.class_noun, "steps": training.steps}
    if "step_ms" in training.facts:
        facts["a step took"] = f"{training.facts['step_ms']:.0f} ms"
    rows = tuple(
        {"step": one.step, "loss": _number(one.loss, 4), "validation loss": _number(one.validation_loss, 4)}
        for one in training.checkpoints
    )
    pictures = tuple(Picture(ref, f"step {one.step}") for one in training.checkpoints for ref in one.samples)
    return Page(facts | _warnings(training.warnings), rows, pictures)


@page_of.register
def _(sweep: SweepRecord) -> Page:
    pick = sweep.pick
    facts: Row = {"pick": f"step {pick.checkpoint_step} at strength {pick.strength:g}", "why": "; ".join(pick.reasons)}
    if sweep.words:
        facts |= _words(sweep.words)
    pictures = [Picture(sweep.contact_sheet, "every checkpoint at every strength", CELLS)]
    if sweep.plot and sweep.plot.media_type != "image/svg+xml":
        pictures.append(Picture(sweep.plot, "identity and adherence", SHEET))
    if sweep.words:
        pictures += [Picture(ref, "the recommended prompt") for ref in sweep.words.drawn]
    return Page(facts | _warnings(sweep.warnings), tuple(map(_cell, sweep.cells)), tuple(pictures))


@page_of.register
def _(report: ReportRecord) -> Page:
    return Page({"report": f"{report.html.size / 1024:.0f} KiB, one page without other files"}, html=report.html)


def _cell(cell: CellMetrics) -> Row:
    scores = {name: _number(getattr(cell, name)) for name in ("identity", "adherence", "diversity", "copying", "score")}
    return {"step": cell.checkpoint_step, "strength": f"{cell.strength:g}", **scores}


def _words(words: Words) -> Row:
    shares = ", ".join(f"{trait} {share:.0%}" for trait, share in words.shares.items())
    return {"say": words.recommended_prompt, **({"shown by the trigger alone": shares} if shares else {})}


def _views(views: Iterable[ViewRecord]) -> Iterator[Picture]:
    return (Picture(view.image, view.view) for view in views)


def _warnings(warnings: tuple[str, ...]) -> Row:
    return {"warnings": "; ".join(warnings)} if warnings else {}


def _number(value: float | None, digits: int = 3) -> str:
    return "not recorded" if value is None else f"{value:.{digits}f}"


def _facts(facts: Row) -> str:
    rows = (f"<tr><th>{escape(name)}</th><td>{escape(str(value))}</td></tr>" for name, value in facts.items())
    return f"<table>{''.join(rows)}</table>"


def _table(rows: Sequence[Mapping[str, object]]) -> str:
    if not rows:
        return ""
    head = "".join(f"<th>{escape(name)}</th>" for name in rows[0])
    body = ("".join(f"<td>{escape(str(value))}</td>" for value in row.values()) for row in rows)
    return f"<table><tr>{head}</tr>{''.join(f'<tr>{cells}</tr>' for cells in body)}</table>"


def _figure(picture: Picture, store: Store) -> str:
    """The picture as a data URI, shrunk so that the notebook stays small."""
    image = open_image(store.get(picture.ref))
    image.thumbnail((picture.side, picture.side))
    data = base64.b64encode(png(image)).decode()
    words = escape(picture.caption)
    return (
        '<figure style="display:inline-block;margin:4px">'
        f'<img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'
    )


def _frame(page: str) -> str:
    """A whole page in a frame of its own: its style reaches nothing else, and no script runs."""
    return f'<iframe sandbox srcdoc="{escape(page)}" style="width:100%;height:600px;border:0"></iframe>'
