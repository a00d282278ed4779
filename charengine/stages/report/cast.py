"""The summary of a batch: a table for Prefect and a page with pictures for the disk."""

from __future__ import annotations

import base64
import html
import io
import re
from pathlib import Path
from typing import Any

from charengine.machine.ledger import foreign, write_own

MARKUP = re.compile(r"([\\`*\[\]<>|!])")
MOST_PAGES = 1000  # beside each other
THUMB = 320  # pixels, longer side

PAGE = """<!doctype html><html lang="en"><head><meta charset="utf-8"><title>Cast</title><style>
body{{font:15px/1.5 system-ui,sans-serif;margin:2rem auto;max-width:72rem;padding:0 1rem;color:#222;background:#fafafa}}
section{{display:flex;gap:1.5rem;background:#fff;border:1px solid #ddd;border-radius:8px;padding:1rem;margin:1rem 0}}
img{{max-width:{thumb}px;height:auto;border-radius:4px}}.failed{{border-color:#c33}}.why{{color:#a22;white-space:pre-wrap}}
@media(max-width:48rem){{section{{display:block}}}}
</style></head><body><h1>Cast</h1><p>{count} characters, {failed} failed{warned}.</p>{note}{sections}</body></html>"""


def table(outcomes: list[dict[str, Any]]) -> str:
    """The cast as a Markdown table; what users wrote stands in it as text."""
    lines = ["| character | trigger | pick | result |", "| --- | --- | --- | --- |"]
    for outcome in outcomes:
        result = outcome["result"]
        if result:
            pick = f"step {result['checkpoint_step']} at {result['strength']:g}"
            report = ": ".join(filter(None, (warnings_of(outcome), as_text(result["report"]))))
            lines.append(f"| {as_text(outcome['name'])} | {as_text(result['trigger'])} | {pick} | {report} |")
        else:
            lines.append(f"| {as_text(outcome['name'])} | | | failed: {as_text(outcome['error'])[:400]} |")
    return "\n".join(lines)


def warnings_of(outcome: dict[str, Any]) -> str:
    """How many a character was made with, in words; empty for none."""
    count = len(outcome["result"]["warnings"]) if outcome["result"] else 0
    return f"{count} warning{'s' * (count != 1)}" if count else ""


def with_warnings(outcomes: list[dict[str, Any]]) -> str:
    """Behind how many were made: how many of them with warnings; empty for none."""
    count = sum(bool(warnings_of(outcome)) for outcome in outcomes)
    return f", {count} with warnings" if count else ""


def as_text(text: str) -> str:
    """Somebody's words as Markdown shows them as they are: in one line, no links, pictures, HTML or columns of their own."""
    return MARKUP.sub(r"\\\1", " ".join(text.split()))


def gallery_page(outcomes: list[dict[str, Any]], path: Path, note: str = "") -> Path:
    """A self-contained page with every character's sheet, pick and report, or why it failed; `note` stands above them."""
    sections = "".join(_section(outcome, path.parent) for outcome in outcomes)
    failed = sum(bool(outcome["error"]) for outcome in outcomes)
    above = f"<p>{html.escape(note)}</p>" if note else ""
    warned = with_warnings(outcomes)
    page = PAGE.format(thumb=THUMB, count=len(outcomes), failed=failed, warned=warned, note=above, sections=sections)
    return write_own(path.parent, {_free(path): page.encode()})[0]


def _free(path: Path) -> Path:
    """The path, or the first beside it where nothing of somebody's lies: a cast that made its characters does not fail for its page."""
    beside = (path, *(path.with_stem(f"{path.stem}-{number}") for number in range(2, MOST_PAGES)))
    return next((place for place in beside if not foreign([place], {})), path)


def _section(outcome: dict[str, Any], folder: Path) -> str:
    name, prompt, result = html.escape(outcome["name"]), html.escape(outcome["prompt"]), outcome["result"]
    if not result:
        why = html.escape(outcome["error"])
        return f'<section class="failed"><div><h2>{name}</h2><p>{prompt}</p><p class="why">{why}</p></div></section>'
    warned = "".join(f"<li>{html.escape(warning)}</li>" for warning in result["warnings"])
    link = html.escape(_relative(Path(result["report"]), folder))
    return (
        f'<section><img alt="sheet of {name}" src="{_thumbnail(Path(result["sheet"]))}"><div><h2>{name}</h2><p>{prompt}</p>'
        f"<p>Trigger <b>{result['trigger']}</b>; step {result['checkpoint_step']} at strength {result['strength']:g}.</p>"
        f'<p><a href="{link}">Report</a></p>'
        + (f"<p>{warnings_of(outcome)}:</p><ul>{warned}</ul>" if warned else "")
        + "</div></section>"
    )


def _relative(path: Path, folder: Path) -> str:
    return str(path.relative_to(folder)) if path.is_relative_to(folder) else path.as_uri()


def _thumbnail(path: Path) -> str:
    from PIL import Image

    with Image.open(path) as image:
        small = image.convert("RGB")
    small.thumbnail((THUMB, THUMB))
    buffer = io.BytesIO()
    small.save(buffer, "JPEG", quality=85)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode()}"
