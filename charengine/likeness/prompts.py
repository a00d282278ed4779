"""What a sweep asks for: views on white, scenes with poses, and prompts that should not show the character."""

from __future__ import annotations

import re
from dataclasses import dataclass
from typing import Literal

from charengine.config import SweepSettings
from charengine.records import ViewName

Kind = Literal["view", "scene", "class"]

_VIEW_WORDS: dict[ViewName, re.Pattern[str]] = {
    "front": re.compile(r"\b(front view|from the front|facing the viewer|facing the camera)\b"),
    "side": re.compile(r"\b(side view|from the side|in profile|profile view)\b"),
    "back": re.compile(r"\b(back view|rear view|from behind|from the back)\b"),
}
_PLAIN = re.compile(r"\b(white background|plain background|simple background|on white)\b")

# Scenes and poses that both SDXL and the embedded family know. The quick set is what two CPU cores can draw in about a
# minute and a half over thirteen cells; the full set adds the remaining views, more scenes and the class prompts.
QUICK = (
    "{subject}, front view, standing, full body, plain white background",
    "{subject}, running, full body, desert in daylight",
    "{subject}, waving, full body, rainy city at night",
    "{subject}, sitting, full body, forest",
)
FULL = (
    "{subject}, front view, standing, full body, plain white background",
    "{subject}, side view, standing, full body, plain white background",
    "{subject}, back view, standing, full body, plain white background",
    "{subject}, running, full body, desert in daylight",
    "{subject}, waving, full body, rainy city at night",
    "{subject}, sitting, full body, forest",
    "{subject}, fighting stance, full body, snowy mountains",
    "{subject}, walking, full body, beach at sunset",
    "{subject}, dancing, full body, castle hall",
    "{class}, walking, full body, meadow",
)

# What is shown of a finished adapter: everyday scenes, the face towards the viewer.
SHOWN = (
    "{subject}, facing the viewer, standing, full body, meadow",
    "{subject}, facing the viewer, walking, full body, desert in daylight",
    "{subject}, facing the viewer, waving, full body, beach at sunset",
    "{subject}, facing the viewer, hands on hips, full body, castle hall",
)


@dataclass(frozen=True)
class SweepPrompt:
    """One prompt of a sweep; `template` holds {subject} (the character) or {class} (anyone of its kind)."""

    template: str
    kind: Kind
    view: ViewName | None = None

    def to_draw(self, trigger: str, class_noun: str) -> str:
        """The prompt for the adapted model: the subject is "trigger class_noun"."""
        return self._fill(f"{trigger} {class_noun}".strip(), class_noun)

    def to_score(self, class_noun: str) -> str:
        """The prompt for the scorer, which never saw the trigger: the subject is the class noun alone."""
        return self._fill(class_noun, class_noun)

    def _fill(self, subject: str, class_noun: str) -> str:
        return self.template.replace("{subject}", subject).replace("{class}", class_noun)


def sweep_prompts(settings: SweepSettings) -> tuple[SweepPrompt, ...]:
    """The prompts of a sweep: the user's, or the built-in set the settings name."""
    built_in = QUICK if settings.prompt_set == "quick" else FULL
    return tuple(classify(template) for template in settings.prompts or built_in)


def classify(template: str) -> SweepPrompt:
    """A view prompt names a view on a plain background, as the training images do; anything else is a scene."""
    text = template.lower()
    view = next((name for name, words in _VIEW_WORDS.items() if words.search(text)), None)
    if "{subject}" not in template:
        return SweepPrompt(template, "class", view)
    return SweepPrompt(template, "view" if view and _PLAIN.search(text) else "scene", view)
