"""The sheet: drawn by the edit model into the template and checked by the gate, or taken from a file."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple

import numpy as np
from PIL import Image, ImageOps, UnidentifiedImageError

from charengine.caption import derive_class_noun
from charengine.config import Character, SheetSettings
from charengine.crop import keep_picture, png
from charengine.errors import BadInput, SheetRejected
from charengine.gate import Verdict, judge
from charengine.models import Captioner, Questioner, SheetEditor
from charengine.records import SheetRecord
from charengine.sheet_prompt import (
    SideItem,
    find_side_items,
    side_bound_items,
    without_scene,
    write_sheet_prompt,
)
from charengine.store import Store
from charengine.template import boxes, template

STAGE_VERSION = 1

GOOD_ENOUGH = 0.75  # gate score at which no further candidate is drawn
LONGEST_REWRITE = 1200  # characters
REWRITE = (
    "Do not describe the picture. Enrich this description of a character for a picture generator: {prompt}\n"
    "Keep every fact, every colour and every left and right exactly as given; add materials, cut and small details that fit "
    "and that can be seen; no pose, no place, no story. At most 90 words, one paragraph, the description only."
)
READABLE = ("PNG", "JPEG", "WEBP")
SMALLEST_SIDE = 96
LARGEST_SIDE = 2048  # larger sheets are reduced: three views of one megapixel need no more
MOST_PIXELS = 100_000_000
MOST_BYTES = 200_000_000
NARROWEST, WIDEST = 0.5, 6.0  # width / height of a sheet

log = logging.getLogger(__name__)


class _Drawn(NamedTuple):
    """A sheet as it came from the editor."""

    seed: int
    steps: int
    image: Image.Image


@dataclass(frozen=True)
class _Candidate:
    """A drawn sheet and what the gate thinks of it."""

    seed: int
    steps: int
    image: Image.Image
    verdict: Verdict
    repaired: int | None = None


# --- drawn ------------------------------------------------------------------------------------------------------------


def draw_sheet(
    character: Character,
    settings: SheetSettings,
    editor: SheetEditor,
    store: Store,
    *,
    captioner: Captioner | None = None,
) -> SheetRecord:
    """Draw a character's sheet, keep the best of several candidates, and store it.

    Raises:
        SheetRejected: no candidate shows one front, one side and one back figure; carries a picture of them all.
    """
    warnings = []
    description = character.prompt
    if settings.rewrite:
        plain = _reads_plain_words(editor)
        description, said = _completed(character) if plain else _rewritten(description, captioner)
        warnings += said
    class_noun = character.class_noun or derive_class_noun(character.prompt)
    unknown = editor.unknown_words(f"{character.prompt}, {class_noun}")
    if unknown:
        warnings.append(f"the model was never taught these words and ignores them: {', '.join(unknown)}")
    prompt = full_prompt(description, class_noun, editor)
    asked = captioner if settings.ask_model else None
    easel = _Easel(prompt, settings, editor, asked, class_noun, find_side_items(description))
    best, tried = _draw_best(easel, character.seed)
    if settings.gate and not best.verdict.accepted:
        raise SheetRejected(_why_rejected(tried), keep_picture(_side_by_side(tried), store), best.verdict.box)
    warnings += best.verdict.warnings if settings.gate else ()
    if best.steps < settings.steps:
        warnings.append(f"the sheet is a draft of {best.steps} steps: drawn in full it did not pass the gate")
    return SheetRecord(
        image=store.put(png(best.image), "sheet.png"),
        width=best.image.width,
        height=best.image.height,
        prompt=prompt,
        source="drawn",
        seed=best.seed,
        candidates=len(tried),
        gate=_gate_facts(best, tried) if settings.gate else {},
        warnings=tuple(warnings),
    )


def full_prompt(description: str, class_noun: str, editor: SheetEditor) -> str:
    """The prompt in the style the editor was trained for: "plain" for the embedded family, else "rich"."""
    if _reads_plain_words(editor):
        return _plain_prompt(description, class_noun)
    return write_sheet_prompt(description, class_noun, find_side_items(description))


def _reads_plain_words(editor: SheetEditor) -> bool:
    return getattr(editor, "prompt_style", "rich") == "plain"


def _plain_prompt(description: str, class_noun: str) -> str:
    """The embedded family's own wording, from the grammar that it was trained on; a sheet has no pose and no place."""
    from charengine.embedded import grammar
    from charengine.embedded.lexicon import BACKGROUND_PHRASES, POSE_PHRASES

    scenes = [
        phrase for table in (BACKGROUND_PHRASES, POSE_PHRASES) for phrases in table.values() for phrase in phrases
    ]
    text = without_scene(description.lower().strip(" ."), scenes)
    traits = grammar.parse_prompt(text)
    items = {side: traits[f"{side}_item"] for side in grammar.SIDES if f"{side}_item" in traits}
    return grammar.sheet_prompt(text, traits.get("species", class_noun), items)


def candidate_seed(seed: int, k: int) -> int:
    """Seed of the k-th candidate: the character's own for the first, hashed from it for the others."""
    if k == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"sheet {seed} {k}".encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class _Easel:
    """Everything but the seed that a candidate is drawn with."""

    prompt: str
    settings: SheetSettings
    editor: SheetEditor
    captioner: Captioner | None
    class_noun: str
    items: tuple[SideItem, ...]

    def draw(self, seed: int, steps: int, ask: bool = True) -> _Candidate:
        """A whole sheet; a draft need not be shown to the captioner."""
        blank = template(self.settings.width, self.settings.height)
        return self._judged(_Drawn(seed, steps, self._paint(blank, seed, steps, None)), ask)

    def show(self, candidate: _Candidate) -> _Candidate:
        """A draft judged with the captioner too."""
        return self._judged(_Drawn(candidate.seed, candidate.steps, candidate.image), ask=True)

    def repair(self, candidate: _Candidate) -> _Candidate:
        """The same sheet with the box that the gate blames drawn anew."""
        k = candidate.verdict.box
        if k is None:
            return candidate
        seed = candidate_seed(candidate.seed, 100 + k)
        area = boxes(self.settings.width, self.settings.height)[k]
        image = self._paint(candidate.image, seed, self.settings.steps, area)
        return replace(self._judged(_Drawn(candidate.seed, self.settings.steps, image), ask=True), repaired=k)

    def _paint(self, base: Image.Image, seed: int, steps: int, redraw: tuple[int, int, int, int] | None) -> Image.Image:
        return self.editor.draw(
            base,
            self.prompt,
            negative_prompt=self.settings.negative_prompt,
            seed=seed,
            steps=steps,
            guidance=self.settings.guidance,
            conditioning=self.settings.conditioning,
            redraw=redraw,
        )

    def _judged(self, drawn: _Drawn, ask: bool) -> _Candidate:
        captioner = self.captioner if ask else None
        verdict = judge(drawn.image, captioner=captioner, class_noun=self.class_noun, items=self.items)
        log.info("sheet candidate, seed %d: score %.2f %s", drawn.seed, verdict.score, "; ".join(verdict.reasons))
        return _Candidate(drawn.seed, drawn.steps, drawn.image, verdict)


def _draw_best(easel: _Easel, seed: int) -> tuple[_Candidate, list[_Candidate]]:
    """The best candidate, finished, and all that were drawn on the way to it."""
    settings = easel.settings
    if not settings.gate:
        only = easel.draw(seed, settings.steps)
        return only, [only]
    draft = settings.draft_steps or settings.steps
    tried: list[_Candidate] = []
    for k in range(settings.candidates):
        tried.append(easel.draw(candidate_seed(seed, k), draft, ask=draft == settings.steps))
        if tried[-1].verdict.accepted and tried[-1].verdict.score >= GOOD_ENOUGH:
            break
    best = max(tried, key=_rank)
    if draft != settings.steps:
        best = _finished(easel, tried)
    if settings.repair and not best.verdict.accepted and best.verdict.box is not None:
        tried.append(easel.repair(best))
        best = max((best, tried[-1]), key=_rank)
    return best, tried


def _finished(easel: _Easel, tried: list[_Candidate]) -> _Candidate:
    """The best draft drawn again at full steps with its seed; the next one where that fails the gate."""
    drafts = sorted(tried, key=_rank, reverse=True)[:2]
    for draft in drafts:
        tried.append(easel.draw(draft.seed, easel.settings.steps))
        if tried[-1].verdict.accepted:
            return tried[-1]
    return max([*tried[-len(drafts) :], *map(easel.show, drafts)], key=_rank)


def _rank(candidate: _Candidate) -> tuple[bool, float]:
    return candidate.verdict.accepted, candidate.verdict.score


def _completed(character: Character) -> tuple[str, list[str]]:
    """The embedded family's prompt with what it leaves out made up, and a note of what that is."""
    from charengine.embedded.completion import complete

    found = complete(character.prompt, character.seed)
    if not found.made_up:
        return found.text, []
    made_up = ", ".join(found.made_up)
    return found.text, [f"the prompt does not say it, so it was made up: {made_up} (say it, or change the seed)"]


def _rewritten(description: str, captioner: Captioner | None) -> tuple[str, list[str]]:
    """The prompt enriched by the captioner, or as it is with a warning when that cannot be trusted."""
    kept = "the prompt was used as written"
    if not isinstance(captioner, Questioner):
        return description, [f"the captioner in use cannot rewrite prompts: {kept}"]
    answer = captioner.ask(template(384, 384), REWRITE.format(prompt=description), max_tokens=200)
    text = " ".join(answer.strip(' "').split())
    if not text or len(text) > LONGEST_REWRITE:
        return description, [f"the captioner's rewriting of the prompt was empty or too long: {kept}"]
    if side_bound_items(text).keys() != side_bound_items(description).keys():
        return description, [f"the captioner's rewriting of the prompt changed what is bound to a side: {kept}"]
    return text, []


def _gate_facts(best: _Candidate, tried: list[_Candidate]) -> dict[str, object]:
    facts: dict[str, object] = {**best.verdict.summary()}
    facts["repaired_box"] = best.repaired
    facts["candidates"] = [
        {"seed": one.seed, "score": round(one.verdict.score, 4), "reasons": list(one.verdict.reasons)} for one in tried
    ]
    return facts


def _why_rejected(tried: list[_Candidate]) -> str:
    reasons = list(dict.fromkeys(reason for one in tried for reason in one.verdict.reasons))
    return (
        f"none of {len(tried)} sheets passed the gate: {'; '.join(reasons)}. Try another --seed, a simpler prompt, "
        "more sheet.candidates, or give a sheet of your own with --sheet"
    )


def _side_by_side(tried: list[_Candidate]) -> Image.Image:
    """All candidates with what the gate found drawn on them, in rows of at most four."""
    columns = min(4, len(tried))
    width, height = tried[0].verdict.picture.size
    page = Image.new("RGB", (columns * width, -(-len(tried) // columns) * height), "white")
    for k, one in enumerate(tried):
        page.paste(one.verdict.picture, ((k % columns) * width, (k // columns) * height))
    return page


# --- given ------------------------------------------------------------------------------------------------------------


def take_sheet(path: Path, store: Store) -> SheetRecord:
    """Store a sheet that somebody already has, as upright 8-bit RGB (RGBA when its background is transparent).

    Raises:
        BadInput: the file is missing, unreadable, not an image of a known kind, or of an impossible size.
    """
    warnings: list[str] = []
    image = _opened(Path(path), warnings)
    _check_shape(image, path)
    image = _eight_bit(image)
    if max(image.size) > LARGEST_SIDE:
        before = image.size
        image.thumbnail((LARGEST_SIDE, LARGEST_SIDE), Image.Resampling.LANCZOS)
        warnings.append(f"the sheet was reduced from {before[0]}×{before[1]} to {image.width}×{image.height}")
    return SheetRecord(
        image=store.put(png(image), "sheet.png"),
        width=image.width,
        height=image.height,
        prompt="",
        source="given",
        seed=0,
        warnings=tuple(warnings),
    )


def _opened(path: Path, warnings: list[str]) -> Image.Image:
    """The first picture of the file, decoded whole and turned upright."""
    if not path.is_file():
        raise BadInput(f"sheet {str(path)!r} is not a file: give a PNG, JPEG or WebP image")
    if path.stat().st_size > MOST_BYTES:
        raise BadInput(
            f"sheet {path.name!r} has {path.stat().st_size / 1e6:.0f} MB; at most {MOST_BYTES / 1e6:.0f} are read"
        )
    try:
        with Image.open(path, formats=READABLE) as image:
            if image.width * image.height > MOST_PIXELS:
                raise BadInput(
                    f"sheet {path.name!r} is {image.width}×{image.height}; at most {MOST_PIXELS / 1e6:.0f} megapixels are "
                    "read: reduce it first"
                )
            if getattr(image, "n_frames", 1) > 1:
                warnings.append(f"{path.name} is animated: only its first frame is used")
            image.load()
            return ImageOps.exif_transpose(image)
    except UnidentifiedImageError as error:
        raise BadInput(f"sheet {path.name!r} is not a PNG, JPEG or WebP image: convert it to PNG") from error
    except Image.DecompressionBombError as error:
        raise BadInput(f"sheet {path.name!r} has far too many pixels: reduce it first") from error
    except (OSError, SyntaxError, ValueError) as error:
        raise BadInput(
            f"sheet {path.name!r} cannot be read ({error}): it is damaged; save or download it again"
        ) from error


def _check_shape(image: Image.Image, path: Path) -> None:
    if min(image.size) < SMALLEST_SIDE:
        raise BadInput(
            f"sheet {Path(path).name!r} is {image.width}×{image.height}; both sides must be at least {SMALLEST_SIDE} "
            "pixels (1024×1024 or more is best)"
        )
    if not NARROWEST <= image.width / image.height <= WIDEST:
        raise BadInput(
            f"sheet {Path(path).name!r} is {image.width}×{image.height}; three figures side by side need a picture "
            f"between half as wide as tall and {WIDEST:.0f} times as wide as tall"
        )


def _eight_bit(image: Image.Image) -> Image.Image:
    """RGB; RGBA with its colours on white when the picture has a transparent border."""
    if image.mode.startswith(("I", "F")):  # 16-bit grey
        values = np.asarray(image).astype(np.float64)
        image = Image.fromarray((values / max(255.0, 65535.0 if values.max() > 255 else 255.0) * 255).astype(np.uint8))
    if image.mode in ("LA", "PA", "RGBA", "RGBa", "La") or "transparency" in image.info:
        layered = image.convert("RGBA")
        flat = Image.new("RGBA", layered.size, "white")
        flat.alpha_composite(layered)
        alpha = layered.getchannel("A")
        if _outlines_figures(alpha):
            flat.putalpha(alpha)
            return flat
        return flat.convert("RGB")
    return image.convert("RGB")


def _outlines_figures(alpha: Image.Image) -> bool:
    """Whether the alpha channel cuts figures out: most of the border transparent, something inside opaque."""
    values = np.asarray(alpha)
    border = np.concatenate([values[0], values[-1], values[:, 0], values[:, -1]])
    return float((border < 16).mean()) > 0.7 and float((values > 239).mean()) > 0.02
