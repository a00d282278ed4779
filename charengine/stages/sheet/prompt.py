"""The full prompt of a sheet: each view told what it shows and hides, item by item."""

from __future__ import annotations

import re
from collections.abc import Iterable

from charengine.language.sides import FACE_PARTS, SideItem, find_side_items
from charengine.models import SheetEditor, pictures_seen, reads_plain_words

OPENING = {
    0: "Fill the three boxes with a character turnaround sheet: three full-body views of the same {who}.",
    1: (
        "Draw a character turnaround sheet of the {who} in the picture, three full-body views side by side in three boxes of equal "
        "width: the very same face, hair, skin, build, outfit and colours. Its pose, place and light in the picture are not kept."
    ),
    2: (
        "Picture 1 is a template of three boxes, picture 2 shows a {who}. Fill the three boxes of picture 1 with a character turnaround "
        "sheet: three full-body views of the very {who} of picture 2, with the same face, hair, skin, build, outfit and colours. Its "
        "pose, place and light in picture 2 are not kept."
    ),
}  # by how many pictures show the template and the character


def write_sheet_prompt(description: str, class_noun: str, items: tuple[SideItem, ...] = (), pictures: int = 0) -> str:
    """The full prompt for an edit model that reads plain English (Qwen-Image-Edit).

    Args:
        description: what the character looks like.
        class_noun: what it is.
        items: what belongs to one of its sides.
        pictures: 0, the model sees the template alone; 1, a reference alone; 2, both.
    """
    who = class_noun or "character"
    text = [
        OPENING[pictures].format(who=who),
        f"The character: {description.rstrip('. ')}.",
        "Left box: front view, facing the viewer, the face fully visible.",
        "Middle box: side view, a strict 90 degree profile facing the right edge of the picture, only one eye visible; "
        "the character's right side is towards the viewer and the left side is hidden.",
        "Right box: back view, seen from directly behind, no face visible; what is worn on the chest or the face is "
        "hidden, the back of the hair and of the clothes is shown.",
    ]
    text += [_placement(item) for item in items]
    text.append(
        "The character is physically rotated about the vertical axis; no panel is a flip or a copy of another. The same "
        "outfit, colours, proportions and height in all three views, head to feet inside each box with a margin, "
        "standing upright with the arms slightly away from the body whatever the description says of pose or place, nothing crossing into the next box. "
        "Plain pure white background, even light, no shadow on the floor, no text, no lines between the views."
    )
    return " ".join(text)


def without_scene(description: str, scenes: Iterable[str]) -> str:
    """The description without the poses and places it names: a clause of its own, or what follows a preposition.

    >>> without_scene("a robot in the forest, running, with a red hat", ["forest", "running"])
    'a robot, with a red hat'
    """
    any_scene = "|".join(re.escape(scene) for scene in sorted(scenes, key=len, reverse=True))
    ending = r"(?=\s*(?:$|[,.;]|\band\b|\bwith\b|\bin\b|\bat\b))"
    placed = rf"\s(?:in|on|at|under|by|near|through)(?: (?:a|an|the))? (?:{any_scene}){ending}"
    text = re.sub(rf"{placed}|\s(?:is )?(?:{any_scene}){placed}", "", description)
    clauses = [clause.strip() for clause in text.split(",")]
    alone = re.compile(rf"(?:(?:in|on|at|under|and|is) )?(?:(?:a|an|the) )?(?:{any_scene})")
    kept = [clause for clause in clauses if clause and not alone.fullmatch(clause)]
    return ", ".join(kept) or description


def _placement(item: SideItem) -> str:
    """Where a side-bound item appears in each view; left and right swap between the character and the picture."""
    place = f"the character's {item.side} {item.part}" if item.part else f"the character's {item.side} side"
    front, back = ("left", "right") if item.side == "right" else ("right", "left")
    side = "on the near side, fully visible" if item.side == "right" else "on the far side, hidden by the body"
    behind = "not visible" if item.part in FACE_PARTS else f"on the {back} of the picture"
    return (
        f"The {item.item} belongs to {place}: on the {front} of the picture in the front view, {side} in the side view, "
        f"{behind} in the back view, and never on the other side."
    )


def full_prompt(description: str, class_noun: str, editor: SheetEditor, pictured: bool = False) -> str:
    """The prompt in the style the editor was trained for: "plain" for the embedded family, else "rich".

    The plain one is the same with a reference (`pictured`): that is how the family was taught.
    """
    if reads_plain_words(editor):
        return _plain_prompt(description, class_noun)
    pictures = pictures_seen(editor) if pictured else 0
    return write_sheet_prompt(description, class_noun, find_side_items(description), pictures)


def _plain_prompt(description: str, class_noun: str) -> str:
    """The embedded family's own wording, from the grammar that it was trained on; a sheet has no pose and no place."""
    from charengine.embedded import grammar
    from charengine.embedded.lexicon import BACKGROUND_PHRASES, POSE_PHRASES
    from charengine.embedded.tags import SIDES

    scenes = [
        phrase for table in (BACKGROUND_PHRASES, POSE_PHRASES) for phrases in table.values() for phrase in phrases
    ]
    text = without_scene(description.lower().strip(" ."), scenes)
    traits = grammar.parse_prompt(text)
    items = {side: traits[f"{side}_item"] for side in SIDES if f"{side}_item" in traits}
    known = class_noun if set(class_noun.lower().split()) <= grammar.VOCABULARY else "character"
    return grammar.sheet_prompt(text, traits.get("species", known), items)
