"""Which base and how many steps a distilled edit model was made for; its file's name is all that says so.

Names as published (lightx2v): Qwen-Image-Lightning-8steps-V1.1, Qwen-Image-Edit-Lightning-4steps-V1.0,
Qwen-Image-Edit-2509-Lightning-4steps-V1.0, Qwen-Image-Edit-2511-Lightning-4steps-V1.0, with or without -bf16 and -fp32.
"""

from __future__ import annotations

import re

STEPS = re.compile(r"(\d+)[-_ ]?steps?", re.IGNORECASE)
USUAL_STEPS = 4  # of a distilled model whose name does not say; ComfyUI's own template for 2511
FUSED = re.compile(r"lightning|rapid|[-_ ]aio\b|turbo", re.IGNORECASE)
SECOND = ("2509", "2511")


def base_of(text: str) -> str:
    """The published model a name stands for: "Qwen-Image", "Qwen-Image-Edit", "Qwen-Image-Edit-2509" or "-2511"."""
    low = text.lower()
    version = next((version for version in SECOND if version in low), "")
    if version:
        return f"Qwen-Image-Edit-{version}"
    if "plus" in low:  # diffusers' class of 2509 and later, where a folder's name says no more
        return "Qwen-Image-Edit-2509"
    return "Qwen-Image-Edit" if "edit" in low else "Qwen-Image"


def steps_of(name: str) -> int:
    """Steps a file's name says it was distilled to; `USUAL_STEPS` where it says nothing."""
    found = STEPS.search(name)
    return int(found.group(1)) if found else USUAL_STEPS


def fused_steps(name: str) -> int:
    """Steps of a whole transformer with a Lightning LoRA fused in, by its name; 0 for one that is not distilled."""
    return steps_of(name) if FUSED.search(name) else 0
