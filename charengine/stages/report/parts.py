"""Small pieces of the report: pictures as data URIs, numbers in words, bars and tables."""

from __future__ import annotations

import base64
import csv
import html
import io
import re
from collections.abc import Sequence
from concurrent.futures import Future, ThreadPoolExecutor

from charengine.charts.canvas import SvgCanvas, series_colour
from charengine.charts.plots import Band, Series, line_chart
from charengine.machine.threads import cores
from charengine.records import HELD_OUT, VIEWS, AdapterRecord, CellMetrics, LossPoint, Ref
from charengine.store import Store

# The origin's README (EazyEzar/ComfyUI-Qwen-SDXL-Character-Engine), measured as a running average with min-SNR 5.
LOSS_ZONES = (
    Band(0.15, float("inf"), "underfit above 0.15"),
    Band(0.08, 0.12, "healthy 0.08 to 0.12", "s2"),
    Band(0.0, 0.06, "overfit below 0.06"),
)
MAX_CURVE_POINTS = 500
CHART_SIZE = (520, 300)  # pixels at full width, two charts side by side
THIRDS = {"low": "low", "mid": "middle", "high": "high"}

text = html.escape


class Pictures:
    """Stored pictures as data URIs, shrunk and re-encoded so that the page stays small and self-contained.

    They are encoded side by side, which for a page of sixty full-size pictures takes seconds, while the page is written with
    `src="picture:N"`; `filled` puts the data in.
    """

    def __init__(self, store: Store) -> None:
        self.store = store
        self._places: dict[tuple[str, int, int], int] = {}  # of what was asked for, by digest, width and quality
        self._encoded: list[Future[str]] = []
        self._pool = ThreadPoolExecutor(cores(), "report-pictures")

    def image(
        self, ref: Ref, alt: str, *, width: int = 900, quality: int = 82, natural: bool = False, about: str = ""
    ) -> str:
        """An <img>; `width` bounds the encoded pixels, `natural` also shows it at that width; with `about` a click enlarges it."""
        size = ' width="{}" height="{}"'.format(*_shrunk(self._size(ref), width)) if natural else ""
        told = f' data-about="{text(about, quote=True)}"' if about else ""
        return f'<img alt="{text(alt, quote=True)}"{told}{size} src="picture:{self._place(ref, width, quality)}">'

    def shape(self, ref: Ref) -> float:
        """Width / height."""
        width, height = self._size(ref)
        return float(width / height)

    def filled(self, page: str) -> str:
        """The page with the data of every picture in it; ends what encodes.

        Raises:
            StoreCorrupt: one of them is gone.
        """
        with self._pool:
            return re.sub(r'src="picture:(\d+)"', lambda found: f'src="{self._encoded[int(found[1])].result()}"', page)

    def _size(self, ref: Ref) -> tuple[int, int]:
        from PIL import Image as pil

        return pil.open(io.BytesIO(self.store.get(ref))).size

    def _place(self, ref: Ref, width: int, quality: int) -> int:
        asked = (ref.sha256, width, quality)
        if asked not in self._places:
            self._places[asked] = len(self._encoded)
            self._encoded.append(self._pool.submit(self._encode, ref, width, quality))
        return self._places[asked]

    def _encode(self, ref: Ref, width: int, quality: int) -> str:
        from PIL import Image as pil

        image = pil.open(io.BytesIO(self.store.get(ref))).convert("RGB")
        if image.width > width:
            image = image.resize(_shrunk(image.size, width), pil.Resampling.LANCZOS)
        buffer = io.BytesIO()
        image.save(buffer, "WEBP", quality=quality, method=4)
        return "data:image/webp;base64," + base64.b64encode(buffer.getvalue()).decode()


def _shrunk(size: tuple[int, int], width: int) -> tuple[int, int]:
    return size if size[0] <= width else (width, round(width * size[1] / size[0]))


def figure(picture: str, caption: str = "") -> str:
    """A picture with a line below."""
    return f"<figure>{picture}{f'<figcaption>{caption}</figcaption>' if caption else ''}</figure>"


def wide(label: str, inside: str) -> str:
    """Something that is scrolled sideways where it does not fit, by the keyboard too."""
    return f'<div class="wide" tabindex="0" role="region" aria-label="{text(label)}">{inside}</div>'


def section(title: str, lead: str, *parts: str) -> str:
    """A titled section."""
    return f'<section><h2>{text(title)}</h2><p class="lead">{lead}</p>{"".join(parts)}</section>'


def number(value: str, label: str, share: float | None = None) -> str:
    """A large number with its meaning, and a bar when it is a share of something."""
    bar = "" if share is None else f'<div class="bar"><i style="width:{min(max(share, 0), 1) * 100:.0f}%"></i></div>'
    return f'<div class="number"><b>{text(value)}</b>{bar}<span>{label}</span></div>'


def items(lines: Sequence[str], kind: str = "notes") -> str:
    """A list of plain sentences."""
    return f'<ul class="{kind}">' + "".join(f"<li>{text(line)}</li>" for line in lines) + "</ul>" if lines else ""


def code(words: str) -> str:
    """A block of code."""
    return f"<pre><code>{text(words)}</code></pre>"


def fold(title: str, inside: str) -> str:
    """Something most readers skip."""
    return f"<details><summary>{text(title)}</summary>{inside}</details>"


def duration(seconds: float) -> str:
    """ "4.2 s", "3 min 20 s" or "1 h 5 min"."""
    if seconds < 60:
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60} min"


def read_curve(ref: Ref | None, store: Store) -> dict[str, list[tuple[float, float]]]:
    """The training curve as (step, value) by column, thinned to MAX_CURVE_POINTS; empty columns when none was kept."""
    rows = list(csv.DictReader(io.StringIO(store.get(ref).decode()))) if ref else []
    rows = rows[:: max(1, len(rows) // MAX_CURVE_POINTS)]
    names = ("loss", "smoothed", "learning_rate")
    return {name: [(float(row["step"]), float(row[name])) for row in rows if row.get(name)] for name in names}


def variety_text(cell: CellMetrics) -> str:
    """Variety between seeds as a share of strength 0's; a diversity of 0 is that of a single seed, so of none."""
    return f"{cell.diversity_kept:.0%}" if cell.diversity else "not measured"


def loss_text(loss: float | None) -> str:
    """A loss, or that nobody recorded it."""
    return "not recorded" if loss is None else f"{loss:.4f}"


def loss_charts(training: AdapterRecord, store: Store) -> list[str]:
    """Training loss with the origin's zones, and the learning rate; nothing when no curve was kept."""
    curve = read_curve(training.curve, store)
    if not curve["loss"]:
        return []
    loss = SvgCanvas(*CHART_SIZE, "training loss by step")
    lines = [Series("each step", curve["loss"], "faint", 1.0), Series("smoothed", curve["smoothed"], "s0", 2.2)]
    line_chart(loss, lines, x_label="step", y_label="training loss", bands=LOSS_ZONES, zero_based=True)
    rate = SvgCanvas(*CHART_SIZE, "learning rate by step")
    rates = [Series("learning rate", curve["learning_rate"], "s1")]
    line_chart(rate, rates, x_label="step", y_label="", zero_based=True, show="{:.0e}".format)
    return [loss.to_svg(), rate.to_svg()]


def validation_charts(training: AdapterRecord) -> list[str]:
    """Fixed-noise validation loss by view and by timestep third; dashed lines are the base model on the same noise.

    More views are one line, their mean, and those held out another: what lies between is remembered rather than learnt.
    """
    charts = []
    for words, key, names in (
        ("validation loss by view", "by_view", {}),
        ("validation loss by noise level", "by_third", THIRDS),
    ):
        lines = _validation_lines(training.validation, training.base_validation, key, names)
        if lines:
            canvas = SvgCanvas(*CHART_SIZE, words)
            line_chart(canvas, lines, x_label="step", y_label=words)
            charts.append(canvas.to_svg())
    return charts


def _validation_lines(
    points: Sequence[LossPoint], base: LossPoint | None, key: str, names: dict[str, str]
) -> list[Series]:
    found = list(dict.fromkeys(name for point in points for name in _losses(point, key)))
    lines = []
    for index, name in enumerate(found):
        own = [(float(p.step), _losses(p, key)[name]) for p in points if name in _losses(p, key)]
        level = _losses(base, key).get(name) if base else None
        if level is not None:
            own = [(0.0, level), *own] if own[0][0] > 0 else own
            lines.append(Series("", [(own[0][0], level), (own[-1][0], level)], series_colour(index), 1.0, dashed=True))
        lines.append(Series(names.get(name, name), own, series_colour(index)))
    return lines


def _losses(point: LossPoint, key: str) -> dict[str, float]:
    """A point's losses by line of the chart."""
    lines: dict[str, list[float]] = {}
    for name, loss in getattr(point, key).items():
        extra = key == "by_view" and name not in VIEWS
        line = name if not extra else HELD_OUT.strip() if name.startswith(HELD_OUT) else "more views"
        lines.setdefault(line, []).append(loss)
    return {line: sum(values) / len(values) for line, values in lines.items()}
