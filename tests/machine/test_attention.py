"""cuDNN plans attention for long trainings alone: everything else would wait for its plans longer than they save."""

from __future__ import annotations

import pytest
import torch

from charengine.machine.attention import unplanned_attention

planned = torch.backends.cuda.cudnn_sdp_enabled


@pytest.mark.parametrize("before", [True, False])
def test_only_long_trainings_wait_for_cudnn_to_plan_attention_and_it_is_left_as_it_was(before):
    kept = planned()
    torch.backends.cuda.enable_cudnn_sdp(before)
    try:
        with pytest.raises(KeyError), unplanned_attention(400):
            assert not planned()
            raise KeyError
        assert planned() == before
        with unplanned_attention(4000):
            assert planned() == before
    finally:
        torch.backends.cuda.enable_cudnn_sdp(kept)
