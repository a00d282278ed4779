"""Greedy answers of Qwen2.5-VL with a whole token as one CUDA graph.

A token of `generate` is some two thousand small kernels, each launched by Python while the GPU waits: 82 ms on an H100, where
reading and unpacking all weights takes about a tenth of that. Here the first token is the model's own forward. For the others
keys and values lie in buffers of fixed size, so that every token is the same work on the same memory: it is recorded once an
answer and replayed. The words are `generate`'s own.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from charengine.models.quantised import FP8, INT8, PackedLinear
from charengine.models.recording import record

BEFORE_RECORDING = 2  # tokens step by step: a shorter answer is not worth a recording, and libraries set themselves up
LOOK_EVERY = 4  # tokens between looks whether all answers have ended: each look waits for the GPU
UNDERSTOOD = {  # what a generation configuration may say without `generate` being needed
    "_from_model_config", "bos_token_id", "do_sample", "eos_token_id", "max_length", "max_new_tokens", "min_new_tokens",
    "output_attentions", "output_hidden_states", "pad_token_id", "repetition_penalty", "temperature", "top_k", "top_p",
    "transformers_version", "trust_remote_code", "use_cache",
}  # fmt: skip


@dataclass(frozen=True)
class Rules:
    """What greedy choice heeds, of a model's generation configuration.

    Args:
        ends: tokens that end an answer.
        pad: what follows the end.
        penalty: divides the score of what was said before, where positive, and multiplies it where negative; 1 = off.
        least: tokens before which an answer does not end.
    """

    ends: tuple[int, ...]
    pad: int
    penalty: float = 1.0
    least: int = 0


def rules_of(model: Any) -> Rules | None:
    """The rules of a model's configuration; None where it asks for something that only `generate` does."""
    config = model.generation_config
    said = {name for name, value in config.to_diff_dict().items() if value is not None}
    if said - UNDERSTOOD or config.eos_token_id is None:
        return None
    ends = config.eos_token_id if isinstance(config.eos_token_id, list) else [config.eos_token_id]
    pad = config.pad_token_id if config.pad_token_id is not None else ends[0]
    return Rules(tuple(ends), pad, config.repetition_penalty or 1.0, config.min_new_tokens or 0)


def is_recordable(model: Any) -> bool:
    """Whether every token is the same work on the same memory, and nothing in it waits for the GPU.

    Not with weights that pass through, attention to a window alone, or weights whose unpacking copies tables to the GPU (GGUF,
    rotated ones).
    """
    text = model.config.text_config
    if getattr(model, "streams_blocks", False) or "sliding_attention" in text.layer_types:
        return False
    packed = [layer for layer in model.modules() if isinstance(layer, PackedLinear)]
    return all(layer.packing in (*FP8, INT8) and not layer.rotation for layer in packed)


class GreedyDecoder:
    """Answers to prepared inputs, a token of all of them at a time.

    Args:
        model: Qwen2_5_VLForConditionalGeneration, `is_recordable`.
        inputs: what its forward takes, padded on the left, on its device.
        tokens: of the longest answer.
        rules: which token is chosen.
    """

    @torch.no_grad()
    def __init__(self, model: Any, inputs: dict[str, Tensor], tokens: int, rules: Rules) -> None:
        self.model, self.language, self.rules = model, model.model.language_model, rules
        rows, prompt = inputs["input_ids"].shape
        device = inputs["input_ids"].device
        mask = inputs.get("attention_mask", torch.ones_like(inputs["input_ids"])).bool()
        output = model(**inputs, use_cache=True, logits_to_keep=1)
        self.keys, self.values = _fixed(output, prompt + tokens)
        self.allowed = functional.pad(mask, (0, tokens))[:, None, None]  # (rows, 1, 1, prompt + tokens)
        self.slot = torch.tensor([prompt], device=device)  # where the next key goes
        self.position = mask.sum(1, keepdim=True) + model.model.rope_deltas.to(device)  # (rows, 1) of the next token
        self.count = torch.zeros(1, dtype=torch.long, device=device)
        self.current = torch.zeros(rows, 1, dtype=torch.long, device=device)
        self.ended = torch.zeros(rows, 1, dtype=torch.bool, device=device)
        self.answers = torch.full((rows, tokens), rules.pad, dtype=torch.long, device=device)
        self._ends = torch.tensor(rules.ends, device=device)
        self._said = torch.zeros(rows, output.logits.shape[-1], dtype=torch.bool, device=device)
        self._said.scatter_(1, inputs["input_ids"], True)
        self._choose(output.logits[:, -1])

    def step(self) -> None:
        """The next token of every answer. No memory is asked for that depends on how far the answers are."""
        hidden = self.language.embed_tokens(self.current)
        self.allowed.index_fill_(3, self.slot, True)
        turn = self.language.rotary_emb(hidden, self.position.expand(3, -1, -1))
        for layer, keys, values in zip(self.language.layers, self.keys, self.values, strict=True):
            hidden = hidden + self._attend(layer.self_attn, layer.input_layernorm(hidden), turn, keys, values)
            hidden = hidden + layer.mlp(layer.post_attention_layernorm(hidden))
        self.slot += 1
        self.position += 1
        self._choose(self.model.lm_head(self.language.norm(hidden))[:, -1])

    def _attend(self, own: Any, x: Tensor, turn: tuple[Tensor, Tensor], keys: Tensor, values: Tensor) -> Tensor:
        """Attention of one new token a row to all before it, whose keys and values it joins.

        Queries that share a key stand in the place of a sequence: nothing is repeated.
        """
        rows, groups, _, width = keys.shape
        query, key, value = (
            project(x).view(rows, 1, -1, width).transpose(1, 2) for project in (own.q_proj, own.k_proj, own.v_proj)
        )
        keys.index_copy_(2, self.slot, _turned(key, *turn))
        values.index_copy_(2, self.slot, value)
        together = _turned(query, *turn).reshape(rows, groups, -1, width)
        found = functional.scaled_dot_product_attention(
            together, keys, values, attn_mask=self.allowed, scale=own.scaling
        )
        attended: Tensor = own.o_proj(found.reshape(rows, 1, -1))
        return attended

    def _choose(self, logits: Tensor) -> None:
        """Take the likeliest token (rows, words) of each row that has not ended."""
        scores, rules = logits.float(), self.rules
        if rules.penalty != 1:
            lowered = torch.where(scores < 0, scores * rules.penalty, scores / rules.penalty)
            scores = torch.where(self._said, lowered, scores)
        if rules.least:
            early = scores.index_fill(1, self._ends, -torch.inf)
            scores = torch.where(self.count < rules.least, early, scores)
        chosen = scores.argmax(dim=1, keepdim=True).masked_fill(self.ended, rules.pad)
        self.ended |= (chosen == self._ends).any(dim=1, keepdim=True)
        self._said.scatter_(1, chosen, True)
        self.answers.index_copy_(1, self.count, chosen)
        self.current.copy_(chosen)
        self.count += 1

    @torch.no_grad()
    def run(self) -> Tensor:
        """(rows, tokens) of the answers, padded behind their ends; on a GPU one token is recorded and replayed."""
        step, longest = self.step, self.answers.shape[1]
        for done in range(1, longest):
            recorded = done > BEFORE_RECORDING
            if (not recorded or done % LOOK_EVERY == 0) and bool(self.ended.all()):
                break
            if done == BEFORE_RECORDING + 1 and self.current.is_cuda:
                step = record(self.step, "answers are made")
            step()
        return self.answers


def _fixed(output: Any, length: int) -> tuple[list[Tensor], list[Tensor]]:
    """Keys and values of every layer in buffers of (rows, heads, length, width); the model's own cache is emptied on the way."""
    cache = getattr(output, "cache", None) or output.past_key_values  # renamed in transformers 5.2x
    kept: tuple[list[Tensor], list[Tensor]] = ([], [])
    for layer in cache.layers:
        for name, buffers in zip(("keys", "values"), kept, strict=True):
            found = getattr(layer, name)
            buffers.append(functional.pad(found, (0, 0, 0, length - found.shape[2])))
            setattr(layer, name, found[:, :, :0])
    return kept


def _turned(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """Rotary positions (Su et al. 2104.09864) of (rows, heads, 1, width)."""
    first, second = x.chunk(2, dim=-1)
    return x * cos[:, None] + torch.cat([-second, first], dim=-1) * sin[:, None]
