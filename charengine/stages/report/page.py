"""One self-contained HTML page for a run, rebuilt from its record and the store alone."""

from __future__ import annotations

from charengine.records import ReportRecord, RunRecord
from charengine.stage import Given, Stage
from charengine.stages.report import cells, take, words
from charengine.stages.report import sections as report_sections
from charengine.stages.report.parts import Pictures, text
from charengine.stages.report.script import POLICY, SCRIPT
from charengine.stages.report.style import CSS
from charengine.store import Store
from charengine.version import __version__

LARGE = '<dialog id="large" aria-label="the picture, large"><img alt=""><p></p><button type="button" class="button">Close</button></dialog>'


def write_report(run: RunRecord, store: Store) -> ReportRecord:
    """Write the page of a run into the store.

    Args:
        run: everything the stages recorded.
        store: where its pictures and curve are.

    Raises:
        StoreCorrupt: a picture of the run is gone.
    """
    page = render(run, store)
    return ReportRecord(html=store.put(page.encode(), "report.html", "text/html"))


def render(run: RunRecord, store: Store) -> str:
    """The page: nothing in it is loaded from elsewhere, which its own policy forbids; opens from disk, in light, in dark and on paper.

    Its one link is to the adapter's file, which lies beside it in the run's folder; its script copies, enlarges and slides.
    """
    pictures = Pictures(store)
    parts = [
        report_sections.heading(run),
        take.take(run),
        report_sections.warnings(run),
        words.scenes(run, pictures),
        report_sections.pick(run, pictures),
        report_sections.usage(run),
        report_sections.sheet_and_views(run, pictures),
        report_sections.more_views(run, pictures),
        report_sections.training(run, store),
        cells.over_training(run, pictures),
        report_sections.sweep(run, pictures),
        take.another_strength(run),
        report_sections.appendix(run),
        f"<footer>Character Engine {__version__}. Every number on this page was measured in this run.</footer>",
    ]
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        f'<meta http-equiv="Content-Security-Policy" content="{POLICY}">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>{text(run.name)}: Character Engine</title><style>{CSS}</style></head>"
        f"<body><main>{pictures.filled(''.join(parts))}</main>{LARGE}<script>{SCRIPT}</script></body></html>"
    )


def _work(given: Given, run: RunRecord) -> ReportRecord:
    return write_report(run, given.store)


REPORT = Stage(name="report", version=3, makes=ReportRecord, work=_work, shows_provenance=True)
