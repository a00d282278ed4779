"""Short questions about a picture, all of them answered by one forward of Qwen2.5-VL.

An answer of one word needs no `generate`: the word is chosen by the scores that follow the question, as VQAScore does (Lin et
al. 2404.01291). What all questions have in common, the picture above all, is read once. The questions stand behind it in one
sequence and do not see each other (a mask, and positions that begin anew), so that each is answered as if it stood alone.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor


@torch.no_grad()
def choose(
    model: Any, inputs: dict[str, Tensor], questions: Sequence[Sequence[int]], words: Sequence[Sequence[int]]
) -> Tensor:
    """How likely each word is as the answer to each question, among the words allowed.

    Args:
        model: Qwen2_5_VLForConditionalGeneration.
        inputs: what its forward takes of the common part, padded on the left, on its device: `input_ids` and
            `attention_mask` (rows, tokens), `mm_token_type_ids`, pictures.
        questions: tokens of each, to the place where the answer begins; not empty.
        words: of each possible answer, the tokens that it may begin with ("Yes", "yes").

    Returns:
        (rows, questions, words) float32 probabilities that add up to 1.
    """
    ids, device = inputs["input_ids"], inputs["input_ids"].device
    common, behind = ids.shape[1], torch.tensor([token for one in questions for token in one], device=device)
    seen = inputs.get("attention_mask", torch.ones_like(ids)).bool()
    lengths = [len(one) for one in questions]
    own = torch.cat([torch.full((length,), number, device=device) for number, length in enumerate(lengths)])
    within = torch.cat([torch.arange(length, device=device) for length in lengths])
    ends = common + torch.tensor(lengths, device=device).cumsum(0) - 1  # whose scores are the answers'
    kinds = inputs["mm_token_type_ids"]
    pictures = {
        name: value
        for name, value in inputs.items()
        if name not in ("input_ids", "attention_mask", "mm_token_type_ids")
    }
    where, further = model.model.get_rope_index(
        ids, mm_token_type_ids=kinds, image_grid_thw=inputs.get("image_grid_thw"), attention_mask=seen.long()
    )
    first = seen.sum(1, keepdim=True) + further.to(device)  # (rows, 1), the position behind the common part
    output = model(
        input_ids=torch.cat([ids, behind.expand(len(ids), -1)], dim=1),
        mm_token_type_ids=torch.cat([kinds, kinds.new_zeros(len(ids), len(behind))], dim=1),
        attention_mask=_mask(seen, own, model.dtype),
        position_ids=torch.cat([where, (first + within).expand(3, -1, -1)], dim=2),
        use_cache=False,
        logits_to_keep=ends,
        **pictures,
    )
    assert output.logits.shape[1] == len(questions), common
    scores = output.logits.float().log_softmax(-1)
    each = [scores[..., list(tokens)].logsumexp(-1) for tokens in words]
    return torch.stack(each, dim=-1).softmax(-1)


def _mask(seen: Tensor, own: Tensor, dtype: torch.dtype) -> Tensor:
    """What each token looks at: 0, or the least number of `dtype` where it does not.

    Args:
        seen: (rows, common), False where the common part is padding.
        own: (behind,) number of the question that a token belongs to.
        dtype: of the model.

    Returns:
        (rows, 1, common + behind, common + behind).
    """
    common, whole = seen.shape[1], seen.shape[1] + len(own)
    earlier = torch.ones(whole, whole, dtype=torch.bool, device=seen.device).tril()
    earlier[common:, common:] &= own[:, None] == own
    looked_at = torch.nn.functional.pad(seen, (0, len(own)), value=True)[:, None, None]
    allowed = earlier & looked_at
    return torch.zeros(allowed.shape, dtype=dtype, device=seen.device).masked_fill(~allowed, torch.finfo(dtype).min)
