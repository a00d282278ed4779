"""What the home only remembers may be damaged: it is passed over with a word and found out again."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from charengine.machine.home import Home
from charengine.machine.memories import recall, remember
from charengine.models import prediction_probe

DAMAGED = (b"\xff\xfe{", b"[" * 100_000, b"", b"[1]", b'{"a": ')


@pytest.mark.parametrize("data", [*DAMAGED, b'{"digest": ["epsilon"]}'], ids=range(6))
def test_a_damaged_memory_is_passed_over_with_a_word(
    home: Home, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    unet: Any = torch.nn.Linear(1, 1)
    parts: Any = SimpleNamespace(unet=lambda: unet, scheduler=lambda: SimpleNamespace(alphas_cumprod=torch.ones(1000)))
    monkeypatch.setattr(prediction_probe, "high_noise_losses", lambda *_: {"epsilon": 1.5, "v_prediction": 0.2})
    path = home.create().root / "predictions.json"
    path.write_bytes(data)
    found = prediction_probe.measured_prediction(parts, torch.device("cpu"), "digest", home)
    assert found.kind == "v_prediction" and recall(path) == {"digest": "v_prediction"}
    assert (f"{path} is damaged and passed over" in caplog.text) == (data in DAMAGED)


def test_what_cannot_be_remembered_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    assert recall(tmp_path / "none.json") == {} and not caplog.records
    remember(tmp_path / "file" / "plans.json", {})
    assert "is not remembered" in caplog.text
