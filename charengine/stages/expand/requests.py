"""What may be asked of the edit model: closer, turned, another expression, pose or background."""

from __future__ import annotations

from dataclasses import dataclass

from charengine.language.traits import VIEW_TAGS
from charengine.records import ViewName

FULL_BODY, CLOSE_UP = "full body", "close-up"


@dataclass(frozen=True)
class ViewRequest:
    """What to ask for.

    Args:
        words: in the instruction to the edit model.
        view: how its caption names the direction it is seen from.
        framing: "full body" or "close-up"; also what it is compared with.
        source: the view that is edited.
        scene: it has a background of its own, instead of the sheet's colour.
    """

    words: str
    view: tuple[str, ...] = VIEW_TAGS["front"]
    framing: str = FULL_BODY
    source: ViewName = "front"
    scene: bool = False

    @property
    def tags(self) -> tuple[str, ...]:
        """View and framing words of its caption."""
        return (*self.view, self.framing)


def _faces(*expressions: str) -> tuple[ViewRequest, ...]:
    return tuple(
        ViewRequest(f"close-up of the face, {words}, facing the viewer", framing=CLOSE_UP) for words in expressions
    )


THREE_QUARTER = VIEW_TAGS["three-quarter"]
REQUESTS: dict[str, tuple[ViewRequest, ...]] = {
    "close-up": (
        ViewRequest("close-up of the face, head and shoulders, facing the viewer", framing=CLOSE_UP),
        ViewRequest("close-up of the face in profile, head and shoulders", VIEW_TAGS["side"], CLOSE_UP, "side"),
        ViewRequest("close-up of the face in three-quarter view, head and shoulders", THREE_QUARTER, CLOSE_UP),
    ),
    "three-quarter": (
        ViewRequest("full body from head to feet, turned halfway to one side: three-quarter view", THREE_QUARTER),
        ViewRequest(
            "full body from head to feet, turned halfway away from the viewer: three-quarter view from behind",
            (*THREE_QUARTER, *VIEW_TAGS["back"]),
            source="back",
        ),
    ),
    "expression": _faces("smiling", "angry, frowning", "surprised, mouth open", "sad, looking down"),
    "pose": tuple(
        ViewRequest(f"full body from head to feet, {words}")
        for words in ("walking", "both arms raised", "sitting", "running", "kneeling on one knee", "hands on hips")
    ),
    "background": tuple(
        ViewRequest(f"full body from head to feet, standing {words}", scene=True)
        for words in ("in a forest", "in a city street at night", "on a beach", "in the hall of a castle")
    ),
}


def _plain(words: str, view: tuple[str, ...] = (), framing: str = FULL_BODY, source: ViewName = "front") -> ViewRequest:
    said = "portrait" if framing == CLOSE_UP else framing
    return ViewRequest(f"{words}, {said}", view, framing, source, scene="white" not in words)


FRONT, SIDE, BACK = VIEW_TAGS["front"], VIEW_TAGS["side"], VIEW_TAGS["back"]
# In the words of the embedded family, which knows no expressions; who does not say how somebody is seen means from the front, more
# or less. The sweep's own scenes and poses are left to it.
PLAIN_REQUESTS: dict[str, tuple[ViewRequest, ...]] = {
    "close-up": (
        _plain("facing the viewer, standing, plain white background", FRONT, CLOSE_UP),
        _plain("facing the viewer, standing, meadow", FRONT, CLOSE_UP),
        _plain("side view, standing, starry night", SIDE, CLOSE_UP, "side"),
    ),
    "three-quarter": (
        _plain("standing, plain white background"),
        _plain("back view, kneeling, lava cave", BACK, source="back"),
        _plain("side view, pointing, stormy sea", SIDE, source="side"),
    ),
    "pose": (
        _plain("pointing, meadow"),
        _plain("facing the viewer, arms raised, starry night", FRONT),
        _plain("kneeling, lava cave"),
        _plain("facing the viewer, hands on hips, stormy sea", FRONT),
        _plain("jumping, underwater"),
    ),
    "background": (
        _plain("facing the viewer, standing, stormy sea", FRONT),
        _plain("standing, meadow"),
        _plain("facing the viewer, standing, lava cave", FRONT),
        _plain("standing, underwater"),
    ),
}
