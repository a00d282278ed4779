"""A token of the captioner as one CUDA graph: the words are `generate`'s own, whatever its configuration says."""

from __future__ import annotations

import subprocess
import sys
from dataclasses import replace
from typing import Any

import pytest
import torch
from PIL import Image
from torch import nn

from charengine.config import Profile
from charengine.embedded.traits import sample_indices
from charengine.embedded.world import render_sheet
from charengine.models import captioners, decoding, load
from charengine.models.decoding import GreedyDecoder, Rules, is_recordable, rules_of
from charengine.models.processor import caption_inputs
from charengine.models.quantised import INT8, PackedLinear, pack_fp8
from charengine.models.qwen_parts import load_text_encoder
from charengine.models.recording import record
from charengine.models.streaming import BlockStream

CPU = torch.device("cpu")


class Asked:
    """The shipped captioner with inputs about views of different sizes, so that some rows are padded."""

    def __init__(self, device: torch.device) -> None:
        captioner = load(Profile(name="test", models={"device": str(device)})).captioner
        self.processor = captioner._loaded.get("processor", captioner.parts.processor)
        self.model = load_text_encoder(captioner._loaded, captioner.parts)
        pixels = render_sheet(sample_indices(1, torch.Generator().manual_seed(0)))[0].permute(1, 2, 0) * 255
        sheet = Image.fromarray(pixels.round().byte().numpy())
        boxes = ((0, 0, 128, 384), (128, 40, 256, 384), (250, 0, 384, 200))
        self.inputs = caption_inputs(self.processor, [sheet.crop(box) for box in boxes])
        self.inputs = {name: value.to(device) for name, value in self.inputs.items()}
        assert len(set(self.inputs["attention_mask"].sum(1).tolist())) > 1

    @torch.no_grad()
    def generated(self, tokens: int, **changes: Any) -> torch.Tensor:
        """What transformers answers."""
        output = self.model.generate(**self.inputs, do_sample=False, max_new_tokens=tokens, **changes)
        answers: torch.Tensor = output[:, self.inputs["input_ids"].shape[1] :]
        return answers

    def decoded(self, tokens: int, rules: Rules | None = None) -> torch.Tensor:
        """What we do."""
        own = rules or rules_of(self.model)
        assert own is not None
        return GreedyDecoder(self.model, self.inputs, tokens, own).run()


@pytest.fixture(scope="module")
def asked() -> Asked:
    return Asked(CPU)


def test_every_token_is_the_one_that_transformers_chooses_for_padded_rows_too(asked: Asked) -> None:
    expected, found = asked.generated(60), asked.decoded(60)
    length = expected.shape[1]
    assert 10 < length < 60
    assert torch.equal(found[:, :length], expected)
    assert bool((found[:, length:] == asked.model.generation_config.pad_token_id).all())


@pytest.mark.parametrize(
    "changes", [{"repetition_penalty": 8.0}, {"min_new_tokens": 45}, {"repetition_penalty": 4.0, "min_new_tokens": 50}]
)
def test_what_a_model_s_own_configuration_asks_for_is_heeded(asked: Asked, changes: dict[str, Any]) -> None:
    plain = rules_of(asked.model)
    assert plain is not None
    rules = Rules(plain.ends, plain.pad, changes.get("repetition_penalty", 1.0), changes.get("min_new_tokens", 0))
    expected = asked.generated(60, **changes)
    assert torch.equal(asked.decoded(60, rules)[:, : expected.shape[1]], expected)
    assert expected.shape != asked.generated(60).shape or not torch.equal(expected, asked.generated(60))


def test_an_answer_is_as_long_as_was_asked_for_at_most(asked: Asked) -> None:
    for tokens in (1, 2, 5):
        assert torch.equal(asked.decoded(tokens), asked.generated(tokens))


def test_a_configuration_that_asks_for_more_is_left_to_transformers(
    asked: Asked, monkeypatch: pytest.MonkeyPatch
) -> None:
    config = asked.model.generation_config
    for name, value in (
        ("no_repeat_ngram_size", 3),
        ("bad_words_ids", [[5]]),
        ("num_beams", 4),
        ("eos_token_id", None),
    ):
        with monkeypatch.context() as changed:
            changed.setattr(config, name, value)
            assert rules_of(asked.model) is None, name
    assert rules_of(asked.model) == Rules((2,), 0)


def test_a_model_whose_weights_pass_through_is_not_recorded(asked: Asked, monkeypatch: pytest.MonkeyPatch) -> None:
    assert is_recordable(asked.model)
    module = nn.Sequential(*(nn.Linear(4, 4) for _ in range(3)))
    holder: Any = nn.Module()
    holder.blocks = nn.ModuleList(module)
    stream = BlockStream(holder, holder.blocks, CPU, resident=3)
    assert not holder.streams_blocks
    stream.place()
    stream.shrink(2)
    assert holder.streams_blocks
    monkeypatch.setattr(asked.model, "streams_blocks", True, raising=False)
    assert not is_recordable(asked.model)


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_recorded_tokens_are_those_of_transformers_on_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    recordings: list[Any] = []
    monkeypatch.setattr(decoding, "record", lambda *given: recordings.append(record(*given)) or recordings[-1])
    on_gpu = Asked(torch.device("cuda"))
    expected = on_gpu.generated(60)
    assert torch.equal(on_gpu.decoded(60)[:, : expected.shape[1]], expected)
    assert len(recordings) == 1
    assert "replay" in repr(recordings[0])
    words = captioners.generate(on_gpu.model, on_gpu.processor, on_gpu.inputs, on_gpu.model.device, 60)
    assert words == [
        text.strip() for text in on_gpu.processor.tokenizer.batch_decode(expected, skip_special_tokens=True)
    ]
    assert len(recordings) == 2


def test_weights_whose_unpacking_copies_tables_to_the_gpu_are_not_recorded(asked: Asked) -> None:
    layer = asked.model.model.language_model.layers[0].mlp
    plain = layer.up_proj
    weight = pack_fp8(plain.weight.detach())
    for change, wanted in (
        ({}, True),
        ({"rotation": 16}, False),
        ({"packing": "Q4_K"}, False),
        ({"packing": INT8}, True),
    ):
        layer.up_proj = PackedLinear(replace(weight, **change), None, torch.float32)
        try:
            assert is_recordable(asked.model) == wanted, change
        finally:
            layer.up_proj = plain


FAILING = """
import logging, torch
from charengine.models.recording import record
logging.basicConfig(level=logging.WARNING, format="%(message)s")
total = torch.zeros(1, device="cuda")
def step():
    total.add_(1)
    float(total)  # waits for the GPU, which a graph cannot
again = record(step, "answers are made")
again()
assert torch.randn(4, device="cuda").isfinite().all()
print("the GPU works on", float(total) >= 1)
"""


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="needs a CUDA device")
def test_what_cannot_be_recorded_is_done_step_by_step_and_the_gpu_works_on() -> None:
    """In a process of its own: a failed recording leaves marks on torch that other tests must not see."""
    done = subprocess.run([sys.executable, "-c", FAILING], capture_output=True, text=True, timeout=120)
    assert "the GPU works on True" in done.stdout, done.stderr[-2000:]
    assert "without a CUDA graph" in done.stderr
