"""How the embedded captioner is asked; training and inference share this."""

from __future__ import annotations

CAPTION_PROMPT = (
    "<|im_start|>user\n<|vision_start|><|image_pad|><|vision_end|>Describe the character in tags.<|im_end|>\n"
    "<|im_start|>assistant\n"
)
"""The question; the answer is `grammar.canonical_tags` and <|im_end|>."""
CAPTION_PIXELS = (140 * 392, 448 * 448)
"""Fewest and most pixels of a picture the captioner reads; smaller ones are enlarged."""
