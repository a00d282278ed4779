"""Three hundred damaged adapters: each is read, used whole or refused in words; none ends in a traceback or leaves anything half-written."""

from __future__ import annotations

import json
import random
from collections import Counter
from pathlib import Path

import pytest
import torch
from adapter_samples import ALGORITHMS, LAYERS, SPELLINGS, file_of, output, raw, spelt, tensors_of, tiny_unet

from charengine.adapter.network import apply_adapter, examine_adapter
from charengine.adapter.rescaling import rescale
from charengine.errors import EngineError
from charengine.stages.sweep.adapters import training_from_file
from charengine.store import Store

COUNT = 300
GARBAGE = (
    "", "abc", "-1", "{}", "[]", '{"a":', "null", "1e999", "../../x", "\n", "\x1b[2J", "9" * 50, "NaN",
    '{"character": [1]}', "é" * 200,
)  # fmt: skip
ENDS = (
    "lora_up.weight", "lora_down.weight", "alpha", "hada_w1_a", "lokr_w1", "dora_scale", "oft_blocks", "w_norm",
    "diff", "x", "",
)  # fmt: skip


def damaged(chance: random.Random, unet) -> bytes:
    """An adapter of any algorithm and spelling with one to three defects, or none."""
    tensors = spelt(unet, tensors_of(unet, chance.choice(ALGORITHMS)), chance.choice(list(SPELLINGS)))
    if chance.random() < 0.2:
        tensors |= spelt(unet, tensors_of(unet, chance.choice(ALGORITHMS)), chance.choice(list(SPELLINGS)))
    for _ in range(chance.randrange(3)):
        key = chance.choice(sorted(tensors))
        chance.choice(TENSOR_DAMAGE)(chance, tensors, key)
        if not tensors:
            break
    keys = ("charengine.recipe", "ss_steps", "ss_max_train_steps", "modelspec.trigger_phrase", "modelspec.title")
    metadata = {key: chance.choice(GARBAGE) for key in keys if chance.random() < 0.3}
    data = file_of(tensors, **metadata)
    return chance.choice(FILE_DAMAGE)(chance, data) if chance.random() < 0.3 else data


def _drop(chance: random.Random, tensors: dict, key: str) -> None:
    del tensors[key]


def _reshape(chance: random.Random, tensors: dict, key: str) -> None:
    shape = list(tensors[key].shape) or [1]
    place = chance.randrange(len(shape))
    shape[place] = chance.choice([0, 1, 2, shape[place] + 1, shape[place] * 2])
    shape = chance.choice([shape, shape[::-1], [*shape, 1], shape[:-1]])
    tensors[key] = torch.ones(shape)


def _poison(chance: random.Random, tensors: dict, key: str) -> None:
    value = tensors[key].clone().float()
    if value.numel():
        value.view(-1)[chance.randrange(value.numel())] = chance.choice(
            [float("nan"), float("inf"), -float("inf"), 1e38, 0.0]
        )
    tensors[key] = value


def _retype(chance: random.Random, tensors: dict, key: str) -> None:
    kinds = (
        torch.int8, torch.int64, torch.bool, torch.uint8, torch.float64, torch.float16, torch.bfloat16,
        torch.float8_e4m3fn, torch.float8_e5m2,
    )  # fmt: skip
    tensors[key] = tensors[key].to(chance.choice(kinds))


def _rename(chance: random.Random, tensors: dict, key: str) -> None:
    stem = key.split(".", 1)[0] if chance.random() < 0.5 else key.rsplit(".", 2)[0]
    tensors[f"{stem}.{chance.choice(ENDS)}"] = tensors.pop(key)


def _add(chance: random.Random, tensors: dict, key: str) -> None:
    name = chance.choice(
        ["bundle_emb.a.clip_l", "lora_te1_x.lora_up.weight", "step", "a.b.c", "lora_unet_out_0.b_norm", "x" * 5000]
    )
    tensors[name] = torch.ones(chance.choice([(), (0,), (2, 2)]))


def _flip(chance: random.Random, data: bytes) -> bytes:
    changed = bytearray(data)
    for _ in range(chance.randrange(1, 6)):
        changed[chance.randrange(min(len(changed), 2000))] = chance.randrange(256)
    return bytes(changed)


def _cut(chance: random.Random, data: bytes) -> bytes:
    return data[: chance.randrange(len(data))]


def _grow(chance: random.Random, data: bytes) -> bytes:
    return data + bytes(chance.randrange(1, 100))


def _reheader(chance: random.Random, data: bytes) -> bytes:
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    key = chance.choice(sorted(header))
    header[key] = chance.choice([None, 5, [], {}, "x", {"dtype": "F4", "shape": [2], "data_offsets": [0, 1]}, True])
    return raw(header, data[8 + int.from_bytes(data[:8], "little") :])


TENSOR_DAMAGE = (_drop, _reshape, _poison, _retype, _rename, _add)
FILE_DAMAGE = (_flip, _cut, _grow, _reheader)


def _stored(tmp_path: Path) -> list[Path]:
    return sorted(path for path in (tmp_path / "store").rglob("*") if path.is_file())


def _inspect(path: Path, monkeypatch: pytest.MonkeyPatch) -> int:
    from charengine.cli.main import main

    monkeypatch.setattr("sys.argv", ["charengine", "inspect", str(path)])
    with pytest.raises(SystemExit) as end:
        main()
    return int(end.value.code or 0)


def test_three_hundred_damaged_adapters_are_used_whole_or_refused_in_words(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capfd: pytest.CaptureFixture[str]
) -> None:
    torch.manual_seed(0)
    chance, unet = random.Random(11), tiny_unet()
    base, store, fates = output(unet), Store(tmp_path / "store"), Counter()
    path = tmp_path / "adapter.safetensors"
    for number in range(COUNT):
        path.write_bytes(damaged(chance, unet))
        status = _inspect(path, monkeypatch)
        told = capfd.readouterr()
        assert status in (0, 2), (number, told.err)
        assert "Traceback" not in told.err and "defect" not in told.err
        before = _stored(tmp_path)
        record = None
        try:
            record = training_from_file(path, store, trigger="griqul", class_noun="orc")
            examine_adapter(unet, path.read_bytes())
        except EngineError as error:
            assert error.exit_status in (2, 3) and str(error), number
            assert record or _stored(tmp_path) == before, number
            fates["refused"] += 1
            continue
        applied = apply_adapter(unet, path.read_bytes(), 0.5)
        assert set(applied.modules) <= set(LAYERS)
        applied.set_strength(0.0)
        assert torch.equal(output(unet), base), number
        applied.remove()
        try:
            rescale(path.read_bytes(), 0.5)
        except EngineError as error:
            assert "rescaled" in str(error), number
            fates["not rescaled"] += 1
        fates["used"] += 1
    assert fates["used"] > 60 and fates["refused"] > 60 and fates["not rescaled"] > 3, fates
    assert torch.equal(output(unet), base)
    assert all(len(file.name) == 64 for file in _stored(tmp_path)), "a blob was left half-written"
