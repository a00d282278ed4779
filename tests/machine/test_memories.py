"""What the home only remembers may be damaged: it is passed over with a word and found out again."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from charengine.machine.home import Home
from charengine.machine.memories import recall, remember
from charengine.models import prediction_probe

DAMAGED = (b"\xff\xfe{", b"[" * 100_000, b"", b"[1]", b'{"a": ')


@pytest.mark.parametrize("data", DAMAGED, ids=range(len(DAMAGED)))
def test_a_damaged_memory_is_passed_over_with_a_word(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, data: bytes
) -> None:
    path = tmp_path / "plans.json"
    assert recall(path) == {} and not caplog.records
    path.write_bytes(data)
    assert recall(path) == {} and f"{path} is damaged and passed over" in caplog.text
    remember(path, {"a": 1})
    assert recall(path) == {"a": 1}


def test_what_cannot_be_remembered_is_no_error(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    (tmp_path / "file").touch()
    remember(tmp_path / "file" / "plans.json", {})
    assert "is not remembered" in caplog.text


@pytest.mark.parametrize(
    "data", [b"\xff", b"[" * 100_000, b'{"digest": ["epsilon"]}', b'{"digest": "nonsense"}'], ids=range(4)
)
def test_what_a_checkpoint_predicts_is_measured_again_where_its_memory_is_damaged(
    home: Home, monkeypatch: pytest.MonkeyPatch, data: bytes
) -> None:
    unet: Any = torch.nn.Linear(1, 1)
    parts: Any = SimpleNamespace(unet=lambda: unet, scheduler=lambda: SimpleNamespace(alphas_cumprod=torch.ones(1000)))
    losses = {"epsilon": 1.5, "v_prediction": 0.2}
    monkeypatch.setattr(prediction_probe, "high_noise_losses", lambda *_: losses)
    (home.root / "predictions.json").parent.mkdir(parents=True, exist_ok=True)
    (home.root / "predictions.json").write_bytes(data)
    found = prediction_probe.measured_prediction(parts, torch.device("cpu"), "digest", home)
    assert found.kind == "v_prediction"
    assert json.loads((home.root / "predictions.json").read_text()) == {"digest": "v_prediction"}
