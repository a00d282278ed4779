"""How a checkpoint wants to be prompted and sampled: its family's quality tags and negative prompt, a distilled one's steps.

A family is told from the file's name and metadata. The defaults are what their users commonly write (Illustrious XL, NoobAI-XL,
Pony Diffusion V6 XL; SDXL-Turbo, SDXL-Lightning, Hyper-SD, DMD2, LCM), not copied from their cards; `models.prompt_prefix` and `models.negative_prompt` replace them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass, field
from pathlib import Path

from charengine import files
from charengine.config import ModelSettings
from charengine.models.files import read_header
from charengine.together import FILLED
from charengine.wording import never_taught

TOLD_BY = ("modelspec.title", "modelspec.architecture", "ss_base_model_version", "ss_sd_model_name", "ss_output_name")


@dataclass(frozen=True)
class Usage:
    """How a base model is used.

    Args:
        family: "" for SDXL and what is prompted like it, else "Illustrious", "NoobAI" or "Pony".
        prompt_prefix: stands before every prompt that is drawn (not before captions that are trained on).
        negative_prompt: what guidance leads away from.
        most_steps: of a distilled checkpoint; more make it worse; 0 = not distilled.
        most_guidance: of the same.
        distilled: the name of the method.
        few_words: it was taught the embedded family's words alone, and a description is put into them by this reading; "" = any words do.
    """

    family: str = ""
    prompt_prefix: str = ""
    negative_prompt: str = ""
    most_steps: int = 0
    most_guidance: float = 0.0
    distilled: str = ""
    few_words: str = field(default="", repr=False)

    def known(self, description: str) -> str:
        """A description, without a trigger, in words that the model was taught: a cloak is its robe."""
        if not self.few_words:
            return description
        from charengine.embedded.nearest import in_known_words  # imports torch

        return re.sub(r"(,\s*)+", ", ", in_known_words(description).text)

    def untaught(self, setting: str, *texts: str) -> tuple[str, ...]:
        """A warning that names the words of a setting's texts, which are drawn as they stand, that the model was never taught."""
        if not self.few_words or not any(texts):
            return ()
        from charengine.embedded.reading import unknown_words  # imports torch

        return never_taught(unknown_words(", ".join(FILLED.sub(" ", text) for text in texts), near=False), setting)

    def untaught_of_its_own(self) -> tuple[str, ...]:
        """The same of the prefix and of the negative prompt."""
        return (
            *self.untaught("models.prompt_prefix", self.prompt_prefix),
            *self.untaught("models.negative_prompt", self.negative_prompt),
        )

    def prompt(self, text: str) -> str:
        """A prompt with the family's prefix before it."""
        return f"{self.prompt_prefix.rstrip(' ,')}, {text}" if self.prompt_prefix.strip(" ,") else text

    def steps(self, asked: int) -> int:
        """Steps to draw in."""
        return min(asked, self.most_steps) if self.most_steps else asked

    def guidance(self, asked: float) -> float:
        """Guidance scale to draw with."""
        return min(asked, self.most_guidance) if self.most_steps else asked

    def digest(self) -> str:
        """Of everything that changes what is drawn."""
        return hashlib.sha256(f"{self!r}{self.few_words}".encode()).hexdigest()[:16]

    def fingerprint_of(self, diffusion: str) -> str:
        """Of what is drawn by a model with this fingerprint: the family's prefix, negative prompt and steps count too."""
        return diffusion + ("" if self == Usage() else f"|{self.digest()}")

    def describe(self) -> list[str]:
        """Lines for the log and the doctor; none for a model that is used like SDXL."""
        lines = []
        if self.prompt_prefix or self.negative_prompt:
            of = f"{self.family} " if self.family else ""
            lines.append(
                f"{of}prompts are drawn with {self.prompt_prefix!r} before them and {self.negative_prompt!r} as negative prompt"
            )
        if self.distilled:
            lines.append(
                f"{self.distilled} checkpoint: at most {self.most_steps} steps with guidance {self.most_guidance:g}"
            )
        return lines


FAMILIES = (  # the first whose name is found; NoobAI before Illustrious, on which it is based
    Usage("NoobAI", "masterpiece, best quality, newest, absurdres, highres",
          "worst quality, old, early, low quality, lowres, signature, username, logo, bad hands, mutated hands"),
    Usage("Illustrious", "masterpiece, best quality", "worst quality, low quality, lowres, bad anatomy, signature, watermark, username"),
    Usage("Pony", "score_9, score_8_up, score_7_up", "score_6, score_5, score_4, worst quality, low quality"),
)  # fmt: skip
FAMILY_NAMES = {
    "NoobAI": re.compile(r"noob[-_ ]?ai|noobxl|noob[-_ ]?xl", re.IGNORECASE),
    "Illustrious": re.compile(r"illustrious|ilxl|wai[-_ ]?(nsfw|ani|shuffle|illu)|[-_ ]il[-_ .v]", re.IGNORECASE),
    "Pony": re.compile(r"pony", re.IGNORECASE),
}
DISTILLED = (  # method, its name in files, most steps where the name does not say, most guidance
    ("SDXL-Lightning", re.compile(r"lightning", re.IGNORECASE), 8, 2.0),
    ("DMD2", re.compile(r"dmd2?\b|dmd2?[-_ ]", re.IGNORECASE), 8, 1.0),
    ("Hyper-SD", re.compile(r"hyper[-_ ]?(sd|xl|\d)|[-_ ]hyper", re.IGNORECASE), 8, 1.5),
    ("LCM", re.compile(r"(^|[-_ ])lcm([-_ .]|$)", re.IGNORECASE), 8, 1.5),
    ("Turbo", re.compile(r"turbo", re.IGNORECASE), 8, 2.0),
)
STEPS = re.compile(r"(\d+)[-_ ]?steps?", re.IGNORECASE)


def usage_of(checkpoint: Path, settings: ModelSettings) -> Usage:
    """How a checkpoint wants to be used, with what the settings say taken over it."""
    text = names_of(checkpoint)
    family = next((one for one in FAMILIES if FAMILY_NAMES[one.family].search(text)), Usage())
    method, steps, guidance = "", 0, 0.0
    for name, pattern, usual, most in DISTILLED:
        if pattern.search(text):
            said = STEPS.search(checkpoint.name)
            method, steps, guidance = name, int(said.group(1)) if said else usual, most
            break
    given = (settings.prompt_prefix, settings.negative_prompt)
    prefix, negative = (
        default if text is None else text
        for text, default in zip(given, (family.prompt_prefix, family.negative_prompt), strict=True)
    )
    return Usage(family.family, prefix, negative, steps, guidance, method)


def names_of(checkpoint: Path) -> str:
    """Everything that may name a checkpoint's family: its file's or folder's name and its metadata."""
    hub = checkpoint.parent.parent.name if checkpoint.parent.name == "snapshots" else ""
    said = []
    if files.is_file(checkpoint):
        metadata = read_header(checkpoint).metadata
        said = [metadata[key] for key in TOLD_BY if key in metadata]
    return " | ".join([hub, checkpoint.name, *said])
