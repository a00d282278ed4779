"""What a reader takes from the report: the file, the words to write, the command for another strength."""

from __future__ import annotations

import itertools
import shlex
from urllib.parse import quote

from charengine.config import SweepSettings
from charengine.records import RunRecord
from charengine.stages.report.parts import section, text

TRY = 3  # strengths that the command suggests
DEFAULTS = SweepSettings().model_dump(mode="json")


def take(run: RunRecord) -> str:
    """Download and copy, at the top. The file lies beside the page, in the run's folder."""
    name = run.sweep.recommended_adapter.name
    return (
        '<div class="take">'
        f'<a class="button" download href="adapters/{quote(name)}">Download the adapter (.safetensors)</a>'
        f"{_copied('trigger', 'Trigger', run.trigger)}{_copied('say', 'Say in a prompt', run.recommended_prompt)}"
        f'</div><p class="view-words"><code>{text(name)}</code> lies beside this page, in <code>adapters/</code>; load it at 1.0.</p>'
    )


def another_strength(run: RunRecord) -> str:
    """The command that draws and measures other strengths of the same checkpoints."""
    lead = (
        "The sliders show what was drawn. For other strengths, write yours between the brackets; the checkpoints are kept, nothing is "
        "trained again, and what comes out is written to the folder <code>sweep</code>."
    )
    return section("Trying another strength", lead, copied_block("another", _sweep_command(run)))


def copied_block(place: str, html: str) -> str:
    """A block of code (already HTML) with a button that copies it."""
    return f'<div class="block"><pre><code id="{place}">{html}</code></pre>{_button(place, "Copy this block")}</div>'


def _copied(place: str, label: str, words: str) -> str:
    return f'<div class="copied"><p>{label} <code id="{place}">{text(words)}</code></p>{_button(place, f"Copy: {label}")}</div>'


def _button(place: str, label: str) -> str:
    return f'<button type="button" class="copy script-only" data-copies="{place}" title="{text(label)}">Copy</button>'


def _sweep_command(run: RunRecord) -> str:
    """As HTML: the folder is filled in by the page's script where it can be known."""
    given = run.config["profile"].get("sweep", {})
    kept = {name: value for name, value in given.items() if name != "strengths" and value != DEFAULTS.get(name)}
    wanted = [f"sweep.{name}={value}" for name, value in {"strengths": _between(run), **kept}.items()]
    words = ["--profile", run.profile, "--seed", str(run.seed), *(word for one in wanted for word in ("--set", one))]
    return f'charengine sweep <span class="here">.</span> {text(shlex.join(words))}'


def _between(run: RunRecord) -> list[float]:
    """Strengths around the pick that were not tried."""
    tried = sorted({cell.strength for cell in run.sweep.cells})
    around = sorted(itertools.pairwise(tried), key=lambda pair: abs(sum(pair) / 2 - run.sweep.pick.strength))
    return sorted(round((low + high) / 2, 3) for low, high in around[:TRY])
