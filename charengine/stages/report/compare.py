"""Several runs side by side: what was set differently, what came out, and their curves; as text and as one HTML page."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

from charengine.charts.canvas import SvgCanvas, series_colour
from charengine.charts.plots import Series, line_chart
from charengine.errors import BadInput
from charengine.records import CellMetrics, RunRecord
from charengine.stages.report.parts import (
    CHART_SIZE,
    Pictures,
    duration,
    loss_text,
    read_curve,
    section,
    text,
    variety_text,
    wide,
)
from charengine.stages.report.style import CSS
from charengine.store import Store

Row = tuple[str, list[str]]

RESULTS: tuple[tuple[str, Callable[[RunRecord], str]], ...] = (
    ("picked checkpoint", lambda run: f"step {run.sweep.pick.checkpoint_step}"),
    ("picked strength", lambda run: f"{run.sweep.pick.strength:g}"),
    ("identity at strength 0", lambda run: f"{run.sweep.pick.baseline.identity:.3f}"),
    ("identity of the pick", lambda run: f"{run.sweep.pick.metrics.identity:.3f}"),
    ("likeness gained", lambda run: f"{run.sweep.pick.metrics.known.gain:.2f}"),
    ("adherence of the pick", lambda run: f"{run.sweep.pick.metrics.adherence:.3f}"),
    ("adherence kept", lambda run: f"{run.sweep.pick.metrics.known.kept:.0%}"),
    ("variety kept", lambda run: variety_text(run.sweep.pick.metrics)),
    ("score", lambda run: f"{run.sweep.pick.metrics.known.score:.3f}"),
    ("adherence kept, last checkpoint at full strength", lambda run: f"{run.sweep.pick.overbaked.known.kept:.0%}"),
    ("training loss, smoothed", lambda run: loss_text(run.training.final_loss)),
    ("validation loss", lambda run: f"{run.training.validation[-1].loss:.4f}" if run.training.validation else ""),
    ("training time", lambda run: _stage_time(run, "train")),
    ("whole run", lambda run: duration(sum(stage.seconds for stage in run.stages))),
)


def compare_text(runs: Sequence[RunRecord]) -> str:
    """A plain table: settings that differ, then results; one column a run."""
    names = names_of(runs)
    told = [(label, [_short(value) for value in values]) for label, values in differences(runs)]
    rows: list[Row] = [("", names), *told, *results(runs)]
    first = max(len(label) for label, _ in rows)
    widths = [max(len(values[i]) for _, values in rows) for i in range(len(runs))]
    lines = [
        "  ".join([label.ljust(first), *(value.rjust(width) for value, width in zip(values, widths, strict=True))])
        for label, values in rows
    ]
    return "\n".join([lines[0], "-" * len(lines[0]), *lines[1:]])


def compare_html(runs: Sequence[RunRecord], store: Store) -> str:
    """A self-contained page: the tables, all runs' curves in one chart each, and what their picks draw."""
    names = names_of(runs)
    pictures = Pictures(store)
    changed = differences(runs)
    settings = _table(names, changed) if changed else "<p>All settings are equal.</p>"
    drawn = "".join(f"<figure>{chart}</figure>" for chart in charts(runs, names, store))
    parts = [
        f'<div class="eyebrow">Character Engine</div><h1>{len(runs)} runs compared</h1>',
        section("Results", "Every number is the run's own measurement; runs that draw other prompts or were scored by "
                "another embedder are not on one scale.", _table(names, results(runs))),
        section("Trade-off and curves", "The trade-off shows each run's picked checkpoint from strength 0 up, its pick as a ring.",
                f'<div class="charts">{drawn}</div>'),
        section("Settings that differ", "Everything else is the same in all runs.", settings),
        section("What the picks draw", "The first seed of each prompt at the pick.", _drawings(runs, names, pictures)),
    ]  # fmt: skip
    return (
        '<!doctype html><html lang="en"><head><meta charset="utf-8">'
        '<meta name="viewport" content="width=device-width,initial-scale=1">'
        f"<title>Runs compared</title><style>{CSS}</style></head><body><main>{pictures.filled(''.join(parts))}</main></body></html>"
    )


def comparison(runs: Sequence[RunRecord]) -> list[dict[str, Any]]:
    """The main numbers of each run, for programs."""
    return [_numbers(run) for run in runs]


def differences(runs: Sequence[RunRecord]) -> list[Row]:
    """Settings and inputs that are not the same in all runs."""
    flat = [{**_inputs(run), **_flatten(run.config["profile"])} for run in runs]
    keys = list(dict.fromkeys(key for settings in flat for key in settings))
    rows = [(key, [_words(settings.get(key, "")) for settings in flat]) for key in keys]
    return [(key, values) for key, values in rows if len(set(values)) > 1]


def results(runs: Sequence[RunRecord]) -> list[Row]:
    """What came out, run by run."""
    return [(label, [read(run) for run in runs]) for label, read in RESULTS]


def _numbers(run: RunRecord) -> dict[str, Any]:
    pick = run.sweep.pick
    return {
        "name": run.name,
        "profile": run.profile,
        "steps": run.training.steps,
        "final_loss": None if run.training.final_loss is None else round(run.training.final_loss, 4),
        "pick_step": pick.checkpoint_step,
        "pick_strength": pick.strength,
        "identity": round(pick.metrics.identity, 3),
        "identity_rise": round(pick.metrics.identity - pick.baseline.identity, 3),
        "adherence": round(pick.metrics.adherence, 3),
        "diversity": round(pick.metrics.diversity, 3),
        "copying": round(pick.metrics.copying, 3),
    }


def names_of(runs: Sequence[RunRecord]) -> list[str]:
    """One distinct name a run: its own, numbered where two share it."""
    if len(runs) < 2:
        raise BadInput(f"comparing needs at least two runs; got {len(runs)}")
    names = [run.name for run in runs]
    return [name if names.count(name) == 1 else f"{name} #{i + 1}" for i, name in enumerate(names)]


def _inputs(run: RunRecord) -> dict[str, Any]:
    return {
        "prompt": run.prompt,
        "trigger": run.trigger,
        "class noun": run.class_noun,
        "seed": run.seed,
        "profile": run.profile,
    }


def _flatten(config: dict[str, Any], prefix: str = "") -> dict[str, Any]:
    flat: dict[str, Any] = {}
    for key, value in config.items():
        flat |= _flatten(value, f"{prefix}{key}.") if isinstance(value, dict) else {f"{prefix}{key}": value}
    return flat


def _words(value: Any) -> str:
    return ", ".join(map(str, value)) if isinstance(value, list | tuple) else str(value)


def _short(words: str) -> str:
    """For a terminal."""
    return words if len(words) <= 40 else words[:37] + "..."


def _stage_time(run: RunRecord, name: str) -> str:
    stage = next((stage for stage in run.stages if stage.stage == name), None)
    return "" if stage is None else "from cache" if stage.cached else duration(stage.seconds)


def charts(runs: Sequence[RunRecord], names: list[str], store: Store) -> list[str]:
    """Trade-off, smoothed training loss and validation loss; a chart with nothing to show is left out."""
    curves = [read_curve(run.training.curve, store)["smoothed"] for run in runs]
    validation = [[(float(point.step), point.loss) for point in run.training.validation] for run in runs]
    drawn = [_trade_offs(runs, names)]
    for title, lines in (("smoothed training loss", curves), ("validation loss", validation)):
        if any(lines):
            canvas = SvgCanvas(*CHART_SIZE, title)
            series = [
                Series(name, line, series_colour(i)) for i, (name, line) in enumerate(zip(names, lines, strict=True))
            ]
            line_chart(canvas, series, x_label="step", y_label=title, zero_based=True)
            drawn.append(canvas.to_svg())
    return drawn


def _trade_offs(runs: Sequence[RunRecord], names: list[str]) -> str:
    canvas = SvgCanvas(*CHART_SIZE, "likeness against adherence")
    lines, rings = [], []
    for index, (run, name) in enumerate(zip(runs, names, strict=True)):
        own = [
            cell for cell in run.sweep.cells if cell.checkpoint_step == run.sweep.pick.checkpoint_step and cell.strength
        ]
        points = [(0.0, 1.0), *(_place(cell) for cell in sorted(own, key=lambda cell: cell.strength))]
        lines.append(Series(name, points, series_colour(index)))
        rings.append(_place(run.sweep.pick.metrics))
    line_chart(
        canvas, lines, x_label="likeness gained", y_label="adherence kept", show="{:.0%}".format, rings=rings
    )  # fmt: skip
    return canvas.to_svg()


def _place(cell: CellMetrics) -> tuple[float, float]:
    return cell.known.gain, cell.known.kept  # as tables and reasons say


def _table(names: list[str], rows: list[Row]) -> str:
    head = "".join(f"<th>{text(name)}</th>" for name in names)
    body = "".join(
        f"<tr><td>{text(label)}</td>{''.join(f'<td>{text(value)}</td>' for value in values)}</tr>"
        for label, values in rows
    )
    return wide("the runs' numbers", f"<table><tr><td></td>{head}</tr>{body}</table>")


def _drawings(runs: Sequence[RunRecord], names: list[str], pictures: Pictures) -> str:
    blocks = []
    for run, name in zip(runs, names, strict=True):
        pick = run.sweep.pick
        found = [run.sweep.picture(pick.metrics, prompt) for prompt in range(len(run.sweep.prompts))]
        shown = "".join(pictures.image(ref, name, width=300) for ref in found if ref)
        blocks.append(f'<h3>{text(name)}</h3><div class="strip">{shown}</div>')
    return "".join(blocks)
