"""Byte-pair tokenizers of the embedded family, trained on the grammar's words: a known word is one token."""

from __future__ import annotations

import random
from pathlib import Path
from typing import TYPE_CHECKING, Any

from charengine.embedded.captioning import CAPTION_PROMPT
from charengine.embedded.grammar import describe
from charengine.embedded.lexicon import VOCABULARY
from charengine.embedded.traits import BACKGROUNDS, POSES, VIEWS, sample_traits

if TYPE_CHECKING:
    from tokenizers import Tokenizer
    from transformers import CLIPTokenizer, Qwen2Tokenizer

SHIPPED = Path(__file__).resolve().parent.parent / "weights" / "sdxl" / "tokenizer"
QWEN_SPECIALS = (
    "<|endoftext|>", "<|im_start|>", "<|im_end|>", "<|vision_start|>", "<|vision_end|>", "<|image_pad|>", "<|video_pad|>",
)  # fmt: skip

# What QwenImageEditPlusPipeline puts before every prompt; it then drops the first 64 tokens of the hidden states,
# so this text must be exactly 64 tokens, as it is with Qwen's own vocabulary.
EDIT_PREFIX = (
    "<|im_start|>system\nDescribe the key features of the input image (color, shape, size, texture, objects, "
    "background), then explain how the user's text instruction should alter or modify the image. Generate a new image "
    "that meets the user's requirements while maintaining consistency with the original input where appropriate."
    "<|im_end|>\n<|im_start|>user\n"
)
EDIT_SUFFIX = "<|im_end|>\n<|im_start|>assistant\n"
PICTURE_PREFIX = "Picture 1: <|vision_start|><|image_pad|><|vision_end|>"

_EXTRA_WORDS = """
a an and photo picture image of portrait full body highly detailed cinematic lighting masterpiece best quality concept
art illustration cartoon style character sheet same simple white background on in the with standing walking digital
painting realistic fantasy cute beautiful tags describe
"""


def _sample_texts(n: int = 3000) -> list[str]:
    """A fixed sample of the grammar, for its word starts and punctuation."""
    import torch

    rng = random.Random(0)
    characters = sample_traits(n, torch.Generator().manual_seed(0), "train")
    styles = ("prompt", "tags", "canonical", "sheet")
    return [
        describe(
            traits,
            view=None if style == "sheet" else rng.choice((None, *VIEWS)),
            pose=None if style == "sheet" else rng.choice((None, *POSES)),
            background=None if style == "sheet" else rng.choice((None, *BACKGROUNDS)),
            rng=rng,
            style=style,
        )
        for traits in characters
        for style in styles[:: 1 if n < 100 else 3] + styles[1:2]
    ]


def _learn_merges(tokenizer: Tokenizer, texts: list[str], end_of_word: str) -> list[tuple[str, str]]:
    """BPE merges until every word of `texts` is one token."""
    import json

    from tokenizers import Tokenizer, models, trainers

    suffix: dict[str, Any] = {"end_of_word_suffix": end_of_word} if end_of_word else {}
    # numbered first: the trainer meets them in the order of a hash, and breaks ties by their numbers
    ends = [letter + end_of_word for letter in _byte_alphabet()] if end_of_word else []
    learner = Tokenizer(models.BPE(**suffix))
    learner.pre_tokenizer = tokenizer.pre_tokenizer
    learner.normalizer = tokenizer.normalizer
    trainer = trainers.BpeTrainer(vocab_size=20000, min_frequency=1, show_progress=False, special_tokens=ends, **suffix)
    learner.train_from_iterator(texts, trainer)
    return [tuple(pair) for pair in json.loads(learner.to_str())["model"]["merges"]]


def _assemble(alphabet: list[str], merges: list[tuple[str, str]], specials: tuple[str, ...]) -> dict[str, int]:
    tokens = dict.fromkeys([*specials, *alphabet, *("".join(pair) for pair in merges)])
    return {token: i for i, token in enumerate(tokens)}


def _byte_alphabet() -> list[str]:
    from tokenizers import pre_tokenizers

    return sorted(pre_tokenizers.ByteLevel.alphabet())


def build_qwen_tokenizer() -> Qwen2Tokenizer:
    """A `Qwen2Tokenizer` whose edit template is 64 tokens and whose grammar words are one token each."""
    from transformers import Qwen2Tokenizer

    bare = Qwen2Tokenizer(vocab={"<|endoftext|>": 0}, merges=[])
    words = sorted(VOCABULARY | set(_EXTRA_WORDS.split()))
    texts = [" " + " ".join(words), *_sample_texts(40)]
    plain = EDIT_PREFIX + PICTURE_PREFIX + EDIT_SUFFIX + CAPTION_PROMPT
    for marker in QWEN_SPECIALS:
        plain = plain.replace(marker, "\x00")
    texts += plain.split("\x00")
    merges = _learn_merges(bare._tokenizer, texts, "")
    return Qwen2Tokenizer(
        vocab=_assemble(_byte_alphabet(), merges, QWEN_SPECIALS),
        merges=merges,
        eos_token="<|im_end|>",
        pad_token="<|endoftext|>",
        additional_special_tokens=list(QWEN_SPECIALS[1:]),
        model_max_length=1024,
    )


def clip_tokenizer() -> CLIPTokenizer:
    """The shipped one of SDXL and CLIP, by whose numbers their weights know words; built anew when a word is missing in it."""
    from transformers import CLIPTokenizer

    if SHIPPED.is_dir():
        found = CLIPTokenizer.from_pretrained(SHIPPED)
        if all(len(found.tokenize(word)) == 1 for word in VOCABULARY):
            return found
    return build_clip_tokenizer()


def build_clip_tokenizer() -> CLIPTokenizer:
    """A 77-token `CLIPTokenizer`, the same every time; a grammar word is one token, an unknown word falls to pieces."""
    from transformers import CLIPTokenizer

    specials = ("<|startoftext|>", "<|endoftext|>")
    bare = CLIPTokenizer()
    words = sorted(VOCABULARY | set(_EXTRA_WORDS.split()))
    merges = _learn_merges(bare._tokenizer, [" ".join(words)], "</w>")
    letters = _byte_alphabet()
    alphabet = [*letters, *(letter + "</w>" for letter in letters)]
    vocab = _assemble(alphabet, merges, specials)
    return CLIPTokenizer(vocab=vocab, merges=merges, model_max_length=77)
