"""Another strength, checkpoint or prompt for a finished character: among pictures that exist, and new ones asked for."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from charengine.config import Profile
from charengine.errors import BadInput, ConfigError
from charengine.profiles.loading import load_profile, profile_names
from charengine.records import CellMetrics, RunRecord, SweepRecord
from charengine.services.gallery.folders import SWEEPS, RunFolder

FALLBACK = {"embedded": "embedded", "sdxl": "sdxl-12gb"}  # by family, for a run whose profile is a file we may not have
MOST_STRENGTHS, MOST_SEEDS = 12, 8
Json = dict[str, Any]


@dataclass(frozen=True)
class Shown:
    """One picture: where it stands, its digest, and what was measured of its cell."""

    prompt: str
    step: int
    strength: float
    seed: int
    digest: str
    cell: CellMetrics | None


@dataclass(frozen=True)
class Pictures:
    """Every picture that sweeps drew of a character; strength 0, the base model, belongs to every step."""

    all: tuple[Shown, ...]

    @property
    def prompts(self) -> list[str]:
        """In the order drawn."""
        return list(dict.fromkeys(one.prompt for one in self.all))

    @property
    def steps(self) -> list[int]:
        """Checkpoints, from the first to the last."""
        return sorted({one.step for one in self.all if one.strength})

    @property
    def strengths(self) -> list[float]:
        """From 0 on."""
        return sorted({one.strength for one in self.all})

    @property
    def seeds(self) -> list[int]:
        """In order."""
        return sorted({one.seed for one in self.all})

    def nearest(self, prompt: str, step: int, strength: float, seed: int) -> Shown | None:
        """The picture that is closest to what is asked for: of its prompt and seed if there is one, then step, then strength."""
        return min(
            self.all,
            key=lambda one: (
                one.prompt != prompt,
                abs(one.strength - strength) > 1e-9,
                one.step != step and one.strength > 0,
                one.seed != seed,
                abs(one.strength - strength),
                abs(one.step - step),
            ),
            default=None,
        )

    def as_json(self) -> str:
        """For the page's script: prompt, step, strength, seed, digest, identity, adherence of each."""
        rows = [
            [
                self.prompts.index(one.prompt),
                one.step,
                one.strength,
                one.seed,
                one.digest,
                round(one.cell.identity, 3) if one.cell else None,
                round(one.cell.adherence, 3) if one.cell else None,
            ]
            for one in self.all
        ]
        return json.dumps(rows)


def pictures_of(run: RunRecord, later: list[SweepRecord]) -> Pictures:
    """The pictures of the run's own sweep and of those drawn later; the later one wins where two are the same cell."""
    found: dict[tuple[str, int, float, int], Shown] = {}
    for sweep in [run.sweep, *later]:
        cells = {(cell.checkpoint_step if cell.strength else 0, cell.strength): cell for cell in sweep.cells}
        for name, ref in sweep.images.items():
            step, strength, prompt, seed = _read_name(name)
            text = sweep.prompts[prompt] if prompt < len(sweep.prompts) else f"prompt {prompt + 1}"
            at = step if strength else 0
            found[text, at, strength, seed] = Shown(text, at, strength, seed, ref.sha256, cells.get((at, strength)))
    return Pictures(tuple(found.values()))


def sweep_parameters(folder: RunFolder, form: Mapping[str, str], number: str) -> Json:
    """The `sweep` flow's parameters that draw what a form asks for, with the models and settings that the run had.

    Args:
        folder: of the finished run.
        form: `strengths` (with commas), `checkpoints`, `prompt`, `seeds`; empty ones as the run had them.
        number: names the folder in `sweeps/`.

    Raises:
        ConfigError: everything that is wrong with it, each with its field before it.
    """
    run = folder.run
    if run is None:
        raise BadInput(f"{folder.path} holds no finished run")
    base, overrides = settings_of(run)
    wanted, problems = _wanted(form, run)
    try:
        load_profile(base, [*overrides, *wanted])
    except ConfigError as error:
        problems += error.problems
    if problems:
        raise ConfigError(problems)
    return {
        "source": str(folder.path),
        "seed": run.seed,
        "profile": base,
        "overrides": [*overrides, *wanted],
        "out": str(folder.path / SWEEPS / number),
    }


def settings_of(run: RunRecord) -> tuple[str, list[str]]:
    """A shipped profile, and what to change in it to have the settings of the run again.

    The run's own profile may be a file that was changed or lost since; its record has every setting.
    """
    had = run.config.get("profile", {})
    family = str(had.get("models", {}).get("family", "embedded"))
    base = run.profile if run.profile in profile_names() else FALLBACK.get(family, "embedded")
    now = load_profile(base).model_dump(mode="json")
    overrides = []
    for section in ("models", "crop", "sweep"):  # what a sweep reads
        for key, value in had.get(section, {}).items():
            if key in Profile.model_fields[section].annotation.model_fields and value != now[section].get(key):  # type: ignore[union-attr]
                overrides.append(f"{section}.{key}={'' if value is None else json.dumps(value)}")
    return base, overrides


def _wanted(form: Mapping[str, str], run: RunRecord) -> tuple[list[str], list[str]]:
    """Overrides, and problems."""
    problems: list[str] = []
    strengths = _strengths(form.get("strengths", ""), problems)
    checkpoints = _count(form, "checkpoints", len(run.training.checkpoints), problems)
    seeds = _count(form, "seeds", MOST_SEEDS, problems)
    prompt = " ".join(form.get("prompt", "").split())
    wanted = ["sweep.design=grid"]  # every picture that is asked for is drawn
    if strengths:
        wanted.append(f"sweep.strengths={json.dumps(strengths)}")
    if checkpoints:
        wanted.append(f"sweep.checkpoints={checkpoints}")
    if seeds:
        wanted.append(f"sweep.seeds={seeds}")
    if prompt and "{subject}" not in prompt:
        prompt = f"{{subject}}, {prompt}"
    if prompt:
        wanted.append(f"sweep.prompts={json.dumps([prompt])}")
    return wanted, problems


def _strengths(text: str, problems: list[str]) -> list[float]:
    try:
        found = sorted({float(part) for part in text.replace(";", ",").split(",") if part.strip()})
    except ValueError:
        problems.append(f"strengths: write numbers with commas between them, e.g. 0.5, 0.7; got {text[:80]!r}")
        return []
    if not found:
        problems.append("strengths: write at least one, e.g. 0.5, 0.7")
    elif len(found) > MOST_STRENGTHS:
        problems.append(f"strengths: {len(found)} are too many at once; write at most {MOST_STRENGTHS}")
    elif not all(0 <= strength <= 2 for strength in found):
        problems.append(f"strengths: only 0 to 2 can be drawn; got {text[:80]!r}")
    elif not any(found):
        problems.append("strengths: 0 is the base model, which is always drawn; write one above it")
    return found


def _count(form: Mapping[str, str], name: str, most: int, problems: list[str]) -> int:
    """0 where nothing is written."""
    text = form.get(name, "").strip()
    if not text:
        return 0
    if not text.isascii() or not text.isdigit() or not 1 <= int(text[:6]) <= most:
        problems.append(f"{name}: write a whole number from 1 to {most}; got {text[:80]!r}")
        return 0
    return int(text)


def _read_name(name: str) -> tuple[int, float, int, int]:
    step, strength, prompt, seed = name.split("/")
    return int(step), float(strength), int(prompt), int(seed)
