"""Questions about a picture in one forward: each is answered as if it stood alone, whatever stands beside it."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from PIL import Image

from charengine.config import Profile
from charengine.embedded.traits import sample_indices
from charengine.embedded.world import render_sheet
from charengine.models import load
from charengine.models.choosing import choose
from charengine.models.processor import caption_inputs
from charengine.models.qwen_parts import load_text_encoder

QUESTIONS = ("long red hair", "robot", "a hook for a right hand", "hair red")
WORDS = (("red", "blue"), ("hair",), ("orc", "robot", "elf"))


class Asked:
    """The shipped vision-language model, three views of different sizes, so that two rows are padded, and questions."""

    def __init__(self) -> None:
        captioner = load(Profile(name="test", models={"device": "cpu"})).captioner
        processor = captioner._loaded.get("processor", captioner.parts.processor)
        pixels = render_sheet(sample_indices(1, torch.Generator().manual_seed(0)))[0].permute(1, 2, 0) * 255
        sheet = Image.fromarray(pixels.round().byte().numpy())
        boxes = ((0, 0, 128, 384), (128, 40, 256, 384), (250, 0, 384, 200))
        self.inputs = caption_inputs(processor, [sheet.crop(box) for box in boxes])
        assert len(set(self.inputs["attention_mask"].sum(1).tolist())) == 3
        self.model: Any = load_text_encoder(captioner._loaded, captioner.parts)
        self.questions = [processor.tokenizer(text).input_ids for text in QUESTIONS]
        self.words = [[processor.tokenizer(word).input_ids[0] for word in group] for group in WORDS]

    def together(self, *questions: int, words: int = len(WORDS)) -> torch.Tensor:
        """Ours, of some of the questions and words."""
        return choose(self.model, self.inputs, [self.questions[i] for i in questions], self.words[:words])

    @torch.no_grad()
    def alone(self, question: int) -> torch.Tensor:
        """(rows, words) of one question behind the common part, by the model's own forward and nothing else."""
        rows = len(self.inputs["input_ids"])
        behind = torch.tensor(self.questions[question]).expand(rows, -1)
        added = {
            "input_ids": behind,
            "attention_mask": torch.ones_like(behind),
            "mm_token_type_ids": torch.zeros_like(behind),
        }
        longer = self.inputs | {name: torch.cat([self.inputs[name], more], dim=1) for name, more in added.items()}
        chances = self.model(**longer, use_cache=False).logits[:, -1].float().softmax(-1)
        each = torch.stack([chances[:, words].sum(-1) for words in self.words], dim=-1)
        return each / each.sum(-1, keepdim=True)


@pytest.fixture(scope="module")
def asked() -> Asked:
    return Asked()


def test_each_question_is_answered_as_if_it_stood_alone_in_padded_rows_too(asked: Asked) -> None:
    found = asked.together(0, 1, 2, 3)
    assert found.shape == (3, len(QUESTIONS), len(WORDS))
    for number in range(len(QUESTIONS)):
        assert torch.allclose(found[:, number], asked.alone(number), atol=2e-4), QUESTIONS[number]
    assert float((found[0] - found[1]).abs().max()) > 0.01  # the pictures are looked at
    assert float((found[:, 0] - found[:, 2]).abs().max()) > 0.01  # and the questions


def test_the_order_of_questions_does_not_matter_and_none_sees_another(asked: Asked) -> None:
    there = asked.together(0, 1, 2, 3)
    assert torch.allclose(there, asked.together(3, 2, 1, 0).flip(1), atol=2e-4)
    assert torch.allclose(there[:, 2:3], asked.together(2), atol=2e-4)


def test_chances_are_of_the_allowed_words_alone(asked: Asked) -> None:
    found = asked.together(0, 1, 2, 3)
    assert torch.allclose(found.sum(-1), torch.ones(found.shape[:2]), atol=1e-5)
    fewer = asked.together(0, 1, 2, 3, words=2)
    assert torch.allclose(fewer, found[..., :2] / found[..., :2].sum(-1, keepdim=True), atol=1e-4)
