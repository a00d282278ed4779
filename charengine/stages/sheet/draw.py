"""The sheet: drawn by the edit model into the template and checked by the gate, or taken from a file."""

from __future__ import annotations

import hashlib
import logging
from dataclasses import dataclass, replace
from typing import Any, NamedTuple

from PIL import Image

from charengine.config import Character, SheetSettings
from charengine.errors import SheetRejected
from charengine.figures.overlay import keep_picture
from charengine.figures.template import boxes, template
from charengine.language.sides import SideItem, find_side_items, side_bound_items
from charengine.models import Captioner, Questioner, SheetEditor, reads_plain_words, untaught_by_editor
from charengine.pictures import png
from charengine.records import SheetRecord
from charengine.stage import Given, Stage
from charengine.stages.sheet.judge import Verdict, judge_sheet
from charengine.stages.sheet.prompt import full_prompt
from charengine.stages.sheet.reference import ReferenceRecord, as_shown, as_taught
from charengine.store import Store
from charengine.together import draft_warnings, steps_of_drafts

GOOD_ENOUGH = 0.75  # gate score at which no further candidate is drawn
LONGEST_REWRITE = 1200  # characters
REWRITE = (
    "Do not describe the picture. Enrich this description of a character for a picture generator: {prompt}\n"
    "Keep every fact, every colour and every left and right exactly as given; add materials, cut and small details that fit "
    "and that can be seen; no pose, no place, no story. At most 90 words, one paragraph, the description only."
)

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
    reference: ReferenceRecord | None = None,
) -> SheetRecord:
    """Draw a character's sheet, keep the best of several candidates, and store it.

    Args:
        character: its prompt says what to draw, its seed decides the noise.
        settings: how, and how many candidates.
        editor: who draws.
        store: where the sheet goes.
        captioner: for the settings that ask it.
        reference: a picture that shows the character; its words fill in what the prompt leaves out, where that can be told.

    Raises:
        SheetRejected: no candidate shows one front, one side and one back figure; carries a picture of them all.
    """
    warnings = list(reference.warnings) if reference else []
    description = character.prompt
    added: tuple[str, ...] = ()
    if reads_plain_words(editor):
        seen = reference.description if reference else ""
        description, said, added = _in_known_words(character, settings.rewrite, seen)
        warnings += said
    elif settings.rewrite:
        description, said = _rewritten(description, captioner)
        warnings += said
    class_noun = character.class_noun
    warnings += draft_warnings(settings)
    warnings += untaught_by_editor(editor, character, "sheet", settings)
    prompt = full_prompt(description, class_noun, editor, pictured=reference is not None)
    asked = captioner if settings.ask_model else None
    shown = _shown(reference, editor, store)
    drawing = _SheetDrawing(prompt, settings, editor, asked, class_noun, find_side_items(description), shown)
    best, tried = _draw_best(drawing, character.seed)
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
        reference=reference.image if reference else None,
        added=added,
    )


def candidate_seed(seed: int, k: int) -> int:
    """Seed of the k-th candidate: the character's own for the first, hashed from it for the others."""
    if k == 0:
        return seed
    return int.from_bytes(hashlib.sha256(f"sheet {seed} {k}".encode()).digest()[:4], "big") >> 1


@dataclass(frozen=True)
class _SheetDrawing:
    """Everything but the seed that a candidate is drawn with."""

    prompt: str
    settings: SheetSettings
    editor: SheetEditor
    captioner: Captioner | None
    class_noun: str
    items: tuple[SideItem, ...]
    reference: Image.Image | None = None

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
            guided_above=self.settings.guided_above,
            conditioning=self.settings.conditioning,
            redraw=redraw,
            reference=None if redraw else self.reference,  # the sheet that is repaired shows the character itself
        )

    def _judged(self, drawn: _Drawn, ask: bool) -> _Candidate:
        captioner = self.captioner if ask else None
        verdict = judge_sheet(drawn.image, captioner=captioner, class_noun=self.class_noun, items=self.items)
        log.info("sheet candidate, seed %d: score %.2f %s", drawn.seed, verdict.score, "; ".join(verdict.reasons))
        return _Candidate(drawn.seed, drawn.steps, drawn.image, verdict)


def _draw_best(drawing: _SheetDrawing, seed: int) -> tuple[_Candidate, list[_Candidate]]:
    """The best candidate, finished, and all that were drawn on the way to it."""
    settings = drawing.settings
    if not settings.gate:
        only = drawing.draw(seed, settings.steps)
        return only, [only]
    draft = steps_of_drafts(settings)
    tried: list[_Candidate] = []
    for k in range(settings.candidates):
        tried.append(drawing.draw(candidate_seed(seed, k), draft, ask=draft == settings.steps))
        if tried[-1].verdict.accepted and tried[-1].verdict.score >= GOOD_ENOUGH:
            break
    best = max(tried, key=_rank)
    if draft != settings.steps:
        best = _finished(drawing, tried)
    if settings.repair and not best.verdict.accepted and best.verdict.box is not None:
        tried.append(drawing.repair(best))
        best = max((best, tried[-1]), key=_rank)
    return best, tried


def _finished(drawing: _SheetDrawing, tried: list[_Candidate]) -> _Candidate:
    """The best draft drawn again at full steps with its seed; the next one where that fails the gate."""
    drafts = sorted(tried, key=_rank, reverse=True)[:2]
    for draft in drafts:
        tried.append(drawing.draw(draft.seed, drawing.settings.steps))
        if tried[-1].verdict.accepted:
            return tried[-1]
    return max([*tried[-len(drafts) :], *map(drawing.show, drafts)], key=_rank)


def _rank(candidate: _Candidate) -> tuple[bool, float]:
    return candidate.verdict.accepted, candidate.verdict.score


def _shown(reference: ReferenceRecord | None, editor: SheetEditor, store: Store) -> Image.Image | None:
    """The reference as the editor is to see it."""
    if reference is None:
        return None
    return as_taught(reference, store) if reads_plain_words(editor) else as_shown(reference, store)


def _in_known_words(character: Character, complete_it: bool, seen: str) -> tuple[str, list[str], tuple[str, ...]]:
    """The embedded family's prompt in words that it knows, notes of what became of others, and the traits that were added.

    What is left out is taken from what a reference shows. The rest is made up when that is asked for, or when there is nothing but a
    kind of being: the family is too small to choose everything itself.
    """
    from charengine.embedded.completion import complete_prompt, filled_in
    from charengine.embedded.grammar import in_known_words, parse_prompt

    known = in_known_words(character.prompt)
    notes = [f"drawn as the nearest the model knows: {', '.join(known.changed)}"] if known.changed else []
    filled = filled_in(known.text, seen)
    if filled.made_up:
        notes.append(f"the prompt does not say it, so it was taken from the reference: {', '.join(filled.made_up)}")
    if not complete_it and parse_prompt(filled.text).keys() - {"species", "view", "pose", "background"}:
        return filled.text, notes, filled.made_up
    found = complete_prompt(filled.text if filled.made_up else character.prompt, character.seed)
    if not found.made_up:
        return filled.text, notes, filled.made_up
    made_up = ", ".join(found.made_up)
    where = "neither prompt nor reference, as it was read, says" if seen else "the prompt does not say"
    said = f"{where} it, so it was made up: {made_up} (say it, or change the seed)"
    return found.text, [said, *notes], (*filled.made_up, *found.made_up)


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


def _gate_facts(best: _Candidate, tried: list[_Candidate]) -> dict[str, Any]:
    facts = best.verdict.summary()
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


def _models(settings: SheetSettings) -> tuple[str, ...]:
    """The captioner only where it is asked: to judge the sheet, or to rewrite the prompt."""
    return ("editor", "captioner") if settings.ask_model or settings.rewrite else ("editor",)


def _work(given: Given, reference: ReferenceRecord | None = None) -> SheetRecord:
    asked = "captioner" in given.stage.models_for(given.settings)
    return draw_sheet(
        given.character,
        given.settings,
        given.models.editor,
        given.store,
        captioner=given.models.captioner if asked else None,
        reference=reference,
    )


DRAWN_SHEET = Stage(
    name="sheet",
    version=3,
    makes=SheetRecord,
    work=_work,
    settings="sheet",
    character=("prompt", "class_noun"),
    models=_models,
    seeded=True,
    gpu=True,
)
