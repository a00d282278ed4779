"""Captioners: what is asked and how answers are read."""

from __future__ import annotations

import gc
import json
import logging
import re
import threading
import weakref
from itertools import dropwhile
from pathlib import Path
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from PIL import Image
from transformers import Qwen2_5_VLConfig, Qwen2_5_VLForConditionalGeneration

from charengine.embedded.grammar import parse_tags
from charengine.models import captioners
from charengine.models.captioners import (
    CHAT,
    MAX_ROWS,
    PICTURE,
    EmbeddedCaptioner,
    QwenCaptioner,
    beginnings,
    read_sighting,
    rows_that_fit,
    shrink,
)
from charengine.models.classes import read_config
from charengine.models.loading import Loaded
from charengine.models.qwen_edit import QwenEdit
from charengine.models.qwen_parts import QwenEditFolder

CPU = torch.device("cpu")
ANSWER = {
    "view": "Front view",
    "framing": "full body",
    "pose": "standing, arms down",
    "expression": "none",
    "hair": "long red hair",
    "clothing": ["blue coat", "Brown boots."],
    "background": "white background",
    "asymmetric_items": [{"item": "hook", "side": "right"}],
    "mood": "not asked for",
}


class ScriptedModel(torch.nn.Module):
    """Answers in order, through the real tokenizer; records what it was asked."""

    device = torch.device("cpu")

    def __init__(self, tokenizer, answers: list[str]) -> None:
        super().__init__()
        self.tokenizer, self.answers, self.asked = tokenizer, list(answers), []
        self.rows = []
        self.config = SimpleNamespace(image_token_id=tokenizer.convert_tokens_to_ids("<|image_pad|>"))

    def generate(self, input_ids, do_sample, image_grid_thw=None, **_kwargs):
        assert do_sample is False
        self.rows.append(len(input_ids))
        for row, ids in enumerate(input_ids):
            grid = None if image_grid_thw is None else tuple(image_grid_thw[row].tolist())
            self.asked.append((self.tokenizer.decode(ids).replace("<|image_pad|>", ""), grid))
        given = [self.answers.pop(0) + "<|im_end|>" for _ in input_ids]
        answers = self.tokenizer(given, padding=True, padding_side="right", return_tensors="pt").input_ids
        return torch.cat([input_ids, answers], dim=1)


class ScriptedParts(QwenEditFolder):
    def __init__(self, folder: Path, answers: list[str]) -> None:
        super().__init__(folder, CPU, torch.float32)
        self.model = ScriptedModel(self.processor().tokenizer, answers)

    def text_encoder(self):
        return self.model


@pytest.fixture
def image() -> Image.Image:
    return Image.fromarray(np.random.default_rng(0).integers(0, 256, (112, 84, 3), dtype=np.uint8))


def test_a_json_answer_becomes_ordered_tags_and_facts(qwen_folder: Path, image: Image.Image):
    parts = ScriptedParts(qwen_folder, ["```json\n" + json.dumps(ANSWER) + "\n```"])
    found = QwenCaptioner(parts, CPU, "x").describe(image, hint="orc woman")
    assert found.tags == (
        "front view",
        "full body",
        "standing arms down",
        "long red hair",
        "blue coat",
        "brown boots",
        "right hook",
        "white background",
    )
    assert found.facts["view"] == "front"
    assert found.facts["hair"] == "long red hair"
    assert "expression" not in found.facts
    question, grid = parts.model.asked[0]
    assert "Describe the orc woman in this picture" in question
    assert "<|vision_start|><|vision_end|>" in question
    assert grid == (1, 8, 6)


def test_an_unreadable_answer_is_asked_again(qwen_folder: Path, image: Image.Image, caplog: pytest.LogCaptureFixture):
    parts = ScriptedParts(qwen_folder, ["A woman in red.", json.dumps(ANSWER)])
    found = QwenCaptioner(parts, CPU, "x").describe(image)
    assert found.facts["view"] == "front"
    assert "JSON object only" in parts.model.asked[1][0]
    assert not caplog.records


def test_two_unreadable_answers_fall_back_to_plain_tags_with_a_warning(
    qwen_folder: Path, image: Image.Image, caplog: pytest.LogCaptureFixture
):
    parts = ScriptedParts(qwen_folder, ["no", '{"view": "upside down"}', "red coat, Boots., none, red coat"])
    with caplog.at_level(logging.WARNING):
        found = QwenCaptioner(parts, CPU, "x").describe(image)
    assert found.tags == ("red coat", "boots")
    assert found.facts == {}
    assert "plain tags" in caplog.text


@pytest.mark.parametrize("broken", ["", "{", '{"view": 3}', '["front"]', '{"framing": "full body"}'])
def test_broken_answers_are_not_read(broken: str):
    assert read_sighting(broken) is None


def test_the_trained_captioner_answers_in_canonical_tags(qwen_folder: Path, image: Image.Image):
    parts = ScriptedParts(qwen_folder, ["back view, standing, robot, red coat, right hand hook"])
    found = EmbeddedCaptioner(parts, CPU, "x", parse=parse_tags).describe(image)
    assert found.tags == ("back view", "standing", "robot", "red coat", "right hand hook")
    assert found.facts["view"] == "back"
    assert found.facts["species"] == "robot"
    assert found.facts["right_item"] == "hook"


def test_large_pictures_are_shown_smaller_and_keep_their_shape():
    assert shrink(Image.new("RGB", (2000, 1000)), 200_000).size == (632, 316)
    small = Image.new("RGB", (20, 10))
    assert shrink(small, 200_000) is small


def test_the_real_model_answers_the_same_picture_the_same_way(qwen_folder: Path, image: Image.Image):
    captioner = QwenCaptioner(QwenEditFolder(qwen_folder, CPU, torch.float32), CPU, "x")
    first = captioner.ask(image, "Which view is this?", max_tokens=8)
    captioner.unload()
    assert captioner.ask(image, "Which view is this?", max_tokens=8) == first
    assert first


@pytest.fixture
def three_sizes() -> list[Image.Image]:
    rng = np.random.default_rng(1)
    return [
        Image.fromarray(rng.integers(0, 256, (height, width, 3), dtype=np.uint8))
        for height, width in ((112, 84), (196, 56), (84, 140))
    ]


@pytest.fixture
def generated(monkeypatch: pytest.MonkeyPatch) -> list[list[list[int]]]:
    """Every `generate`'s new tokens, a list a row, without what follows a row's end."""
    seen: list[list[list[int]]] = []
    whole = Qwen2_5_VLForConditionalGeneration.generate

    def watched(self, *args, **kwargs):
        output = whole(self, *args, **kwargs)
        rows = output[:, kwargs["input_ids"].shape[1] :].tolist()
        pad = self.generation_config.pad_token_id
        seen.append([list(reversed([*dropwhile(lambda token: token == pad, reversed(row))])) for row in rows])
        return output

    monkeypatch.setattr(Qwen2_5_VLForConditionalGeneration, "generate", watched)
    return seen


class Opinionated(QwenEditFolder):
    """The tiny model with larger weights, so that its answers depend on the picture."""

    def text_encoder(self):
        model = super().text_encoder()
        with torch.no_grad():
            for weight in model.parameters():
                weight.mul_(20 if weight.ndim > 1 else 1)
        return model


def test_several_pictures_of_other_sizes_get_token_for_token_the_answers_they_get_alone(
    qwen_folder: Path, three_sizes: list[Image.Image], generated: list[list[list[int]]]
):
    captioner = QwenCaptioner(Opinionated(qwen_folder, CPU, torch.float32), CPU, "x")
    together = captioner.ask_all(three_sizes, "Which view is this?", max_tokens=24)
    alone = [captioner.ask(image, "Which view is this?", max_tokens=24) for image in three_sizes]
    assert together == alone
    assert [len(rows) for rows in generated] == [3, 1, 1, 1]
    assert generated[0] == [rows[0] for rows in generated[1:]]
    assert len({tuple(row) for row in generated[0]}) == 3  # the pictures matter


TRAITS = ("red hair", "a hook for a right hand", "blue coat with brass buttons", "boots")


def test_several_questions_about_several_pictures_get_the_words_that_each_gets_alone(
    qwen_folder: Path, three_sizes: list[Image.Image]
):
    captioner = QwenCaptioner(Opinionated(qwen_folder, CPU, torch.float32), CPU, "x")
    allowed = ("red", "blue", "tall")
    together = captioner.choose_all(three_sizes, "Look at it.\n", TRAITS, allowed)
    alone = [
        [captioner.choose_all([image], "Look at it.\n", [question], allowed)[0][0] for question in TRAITS]
        for image in three_sizes
    ]
    assert together == alone
    assert len({tuple(row) for row in together}) > 1 and len({word for row in together for word in row}) > 1
    assert together != captioner.choose_all(three_sizes, "Say something else about it.\n", TRAITS, allowed)


def test_a_question_of_one_word_is_put_as_any_other_in_the_model_s_own_form_of_a_talk(
    qwen_folder: Path, three_sizes: list[Image.Image], monkeypatch: pytest.MonkeyPatch
):
    seen: list[tuple[list[str], list[str]]] = []
    captioner = QwenCaptioner(QwenEditFolder(qwen_folder, CPU, torch.float32), CPU, "x", room=0)
    tokenizer = captioner.parts.processor().tokenizer

    def watched(model, inputs, questions, words):
        kept = [ids[mask.bool()] for ids, mask in zip(inputs["input_ids"], inputs["attention_mask"], strict=True)]
        seen.append((tokenizer.batch_decode(kept), tokenizer.batch_decode(questions)))
        return torch.tensor([0.1, 0.2, 0.7]).expand(len(kept), len(questions), 3)

    monkeypatch.setattr(captioners, "choose", watched)
    found = captioner.choose_all(three_sizes, "Is it there?\n", TRAITS, ("yes", "no", "hidden"))
    assert found == [["hidden"] * len(TRAITS)] * 3
    assert [len(rows) for rows, _ in seen] == [1, 1, 1]  # there was no room for more at once
    for (row,), questions in seen:
        row = re.sub(r"(<\|image_pad\|>)+", "<|image_pad|>", row)
        for question, trait in zip(questions, TRAITS, strict=True):
            assert row + question == CHAT.format(question=f"{PICTURE}Is it there?\n{trait}")


def test_a_word_may_begin_large_or_behind_a_space_but_not_as_another_word_may():
    begins = {"yes": 1, "Yes": 2, " yes": 3, " Yes": 4, "no": 5, "No": 6, " no": 3, " No": 7}

    def tokenizer(text: str, add_special_tokens: bool) -> SimpleNamespace:
        return SimpleNamespace(input_ids=[begins[text], 9])

    assert beginnings(SimpleNamespace(tokenizer=tokenizer), ("yes", "no")) == [[1, 2, 4], [5, 6, 7]]


def test_only_unreadable_answers_of_a_batch_are_asked_again(qwen_folder: Path, three_sizes: list[Image.Image]):
    answers = [
        json.dumps(ANSWER),
        "A woman.",
        json.dumps(ANSWER | {"view": "back"}),
        json.dumps(ANSWER | {"view": "side"}),
    ]
    parts = ScriptedParts(qwen_folder, answers)
    found = QwenCaptioner(parts, CPU, "x").describe_all(three_sizes)
    assert [one.facts["view"] for one in found] == ["front", "side", "back"]
    assert parts.model.rows == [3, 1]
    assert parts.model.asked[3][1] == parts.model.asked[1][1]  # the second picture again


def test_the_room_of_the_memory_plan_decides_how_many_pictures_are_asked_about_at_once():
    config = read_config(Path("nowhere"), "qwen-image-edit", "text_encoder")
    published = SimpleNamespace(config=Qwen2_5_VLConfig.from_dict(config), dtype=torch.bfloat16)
    fit = [rows_that_fit(published, 1344, 400, room) for room in (None, int(1.4 * 2**30), 2**29, 0, 2**40)]
    assert fit == [MAX_ROWS, 4, 1, 1, MAX_ROWS]


def test_a_batch_that_runs_out_of_gpu_memory_is_asked_one_by_one(
    qwen_folder: Path, three_sizes: list[Image.Image], caplog: pytest.LogCaptureFixture
):
    class Small(ScriptedModel):
        def generate(self, input_ids, **kwargs):
            if len(input_ids) > 1:
                raise torch.cuda.OutOfMemoryError("full")
            return super().generate(input_ids, **kwargs)

    parts = ScriptedParts(qwen_folder, ["one", "two", "three"])
    parts.model = Small(parts.model.tokenizer, parts.model.answers)
    assert QwenCaptioner(parts, CPU, "x").ask_all(three_sizes, "What?") == ["one", "two", "three"]
    assert parts.model.rows == [1, 1, 1]
    assert "one at a time" in caplog.text


def test_the_next_pictures_are_prepared_while_these_are_answered_about_and_no_further_ones():
    begun = [threading.Event() for _ in range(4)]
    pictures = [Image.new("RGB", (1, 1), (number, 0, 0)) for number in range(7)]

    def prepare(few):
        numbers = [image.getpixel((0, 0))[0] for image in few]
        begun[numbers[0] // 2].set()
        return numbers

    def answer(inputs):
        batch = inputs[0] // 2
        assert batch == 3 or begun[batch + 1].wait(20)
        assert not any(event.is_set() for event in begun[batch + 2 :])
        return [10 * number for number in inputs]

    assert captioners.in_batches(pictures, 2, prepare, answer) == [0, 10, 20, 30, 40, 50, 60]
    assert captioners.in_batches([], 2, prepare, answer) == []


def test_editor_and_captioner_share_one_set_of_weights_and_really_free_it(qwen_folder: Path, image: Image.Image):
    models: list[weakref.ref] = []

    class Watched(QwenEditFolder):
        def text_encoder(self):
            model = super().text_encoder()
            models.append(weakref.ref(model))
            return model

    loaded, parts = Loaded(), Watched(qwen_folder, CPU, torch.float32)
    captioner = QwenCaptioner(parts, CPU, "x", loaded=loaded)
    editor = QwenEdit(parts, CPU, "x", vae_area=64 * 64, condition_area=56 * 56, keep=("text_encoder",), loaded=loaded)
    captioner.ask(image, "What is it?", max_tokens=2)
    editor.draw(Image.new("RGB", (64, 64), "white"), "an orc", seed=1, steps=1, guidance=1.0)
    assert len(models) == 1
    captioner.unload()
    gc.collect()
    assert models[0]() is None
