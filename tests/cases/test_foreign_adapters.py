"""Adapter files of other programs: read as those read them, or refused before a model is loaded."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest
import torch
from adapter_samples import ALGORITHMS, BASE, CONV, LINEAR, WIDE, file_of, parts_of, raw, tensors_of, tiny_unet
from run_samples import write_views
from test_adapter_words import profile_of

from charengine.adapter.files import by_module, check_layers, check_values, file_problems, load_adapter, read_adapter
from charengine.adapter.fresh import by_name, create_network
from charengine.adapter.header import Header, read_header
from charengine.adapter.parts import difference, scale_of
from charengine.adapter.starting import start_layer
from charengine.cli.inspection import adapter_facts
from charengine.config import TrainSettings
from charengine.errors import BadInput, UnsafeFile
from charengine.run.earlier_runs import sweep_inputs
from charengine.run.starting_files import starting_problems
from charengine.store import Store

LAYER = f"{BASE}.to_k"


def kept(tmp_path: Path, tensors: dict[str, torch.Tensor]) -> Path:
    (path := tmp_path / "adapter.safetensors").write_bytes(file_of(tensors))
    return path


@pytest.mark.parametrize(
    ("factor", "told"), [(0.0, "holds no norm above 0"), (-1.0, "holds no norm above 0"), (4e3, "norms of up to")]
)
def test_norms_that_no_layer_has_are_refused(factor: float, told: str) -> None:
    tensors = tensors_of(tiny_unet(), "DoRA LoRA")
    check_values(tensors)
    tensors = {key: value.abs() * factor if "dora_scale" in key else value for key, value in tensors.items()}
    with pytest.raises(BadInput, match=told):
        check_values(tensors)


def pefts_own(tmp_path: Path, **settings: object) -> Path:
    folder = tmp_path / "saved by PEFT"
    folder.mkdir(exist_ok=True)
    (folder / "adapter_config.json").write_text(json.dumps(settings), encoding="utf-8")
    parts = parts_of("LoRA", (32, 32), rank=2)
    spelt = {"lora_A": parts["lora_down.weight"], "lora_B": parts["lora_up.weight"]}
    path = folder / "adapter_model.safetensors"
    path.write_bytes(file_of({f"base_model.model.{LINEAR}.{name}.weight": value for name, value in spelt.items()}))
    return path


def test_pefts_own_file_is_as_strong_as_the_settings_beside_it_say(tmp_path: Path) -> None:
    unet, up = tiny_unet(), parts_of("LoRA", (32, 32), rank=2)["lora_up.weight"]
    for settings, times in (({"lora_alpha": 16}, 8), ({"lora_alpha": 16, "use_rslora": True}, 16 / 2**0.5), ({}, 1)):
        [parts] = by_module(load_adapter(read_adapter(pefts_own(tmp_path, **settings)))[0], unet).values()
        assert torch.allclose(parts["lora_up.weight"] * scale_of(parts), up * times)
    swept, _ = sweep_inputs(
        pefts_own(tmp_path, lora_alpha=16),
        store := Store(tmp_path / "store"),
        profile_of(tmp_path),
        views=write_views(tmp_path / "views", "griqul, woman, {view}"),
        trigger="griqul",
        class_noun="woman",
    )
    [parts] = by_module(load_adapter(store.get(swept.checkpoints[0].adapter))[0], unet).values()
    assert torch.allclose(parts["lora_up.weight"] * scale_of(parts), up * 8)


def test_regular_expressions_in_pefts_settings_are_not_passed_over(tmp_path: Path) -> None:
    path = pefts_own(tmp_path, lora_alpha=2, alpha_pattern={"^.*to_k$": 16})
    with pytest.raises(BadInput, match=r"alpha_pattern '\^\.\*to_k\$'; allowed are layers' names"):
        load_adapter(read_adapter(path))


def test_parts_of_one_layer_in_two_spellings_are_refused() -> None:
    tensors = {f"{LAYER}.{part}": value for part, value in parts_of("LoRA", (32, 32)).items()}
    alone = f"lycoris_{LINEAR.replace('.', '_')}.alpha"
    with pytest.raises(BadInput, match="one layer twice, in two spellings"):
        check_layers(file_of({alone: torch.tensor(80.0), **tensors}), tiny_unet())


@pytest.mark.parametrize(
    ("added", "told"),
    [
        ({f"{LAYER}.oft_blocks": torch.ones(2, 2)}, "OFT"),
        ({f"{LAYER}.scalar": torch.ones(1)}, "parts that are not known here"),
        ({"unet.nowhere.lora_A.weight": torch.ones(1, 1), "unet.nowhere.lora_B.weight": torch.ones(1, 1)}, "no layer"),
        (None, "change nothing"),
    ],
)
def test_what_cannot_be_swept_is_refused_with_its_file_before_a_model_is_loaded(
    tmp_path: Path, added: dict[str, torch.Tensor] | None, told: str
) -> None:
    tensors = {f"{LAYER}.{part}": value for part, value in parts_of("LoRA", (32, 32)).items()}
    path = kept(
        tmp_path,
        {key: value * (added is not None or "up" not in key) for key, value in tensors.items()} | (added or {}),
    )
    words = {
        "trigger": "griqul",
        "class_noun": "woman",
        "views": write_views(tmp_path / "views", "griqul, woman, {view}"),
    }
    with pytest.raises(BadInput, match=told) as caught:
        sweep_inputs(path, Store(tmp_path / "store"), profile_of(tmp_path), **words)
    assert str(caught.value).startswith(f"{path}: ")


@pytest.mark.parametrize(
    ("algorithm", "tensors", "told"),
    [
        ("loha", tensors_of(tiny_unet(), "LoHa"), "set train.rank=2"),
        ("loha", tensors_of(tiny_unet(), "LoHa", layers=(CONV,)), "set train.conv_rank=2"),
        ("loha", tensors_of(tiny_unet(), "LoHa Tucker", layers=(CONV,)), "Tucker factors"),
        ("dora", {f"{BASE}.to_k.{part}": value for part, value in {**parts_of("LoRA", (32, 32), rank=1), "dora_scale": torch.ones(1, 32)}.items()}, "norms by input"),
    ],
)  # fmt: skip
def test_what_cannot_be_trained_on_is_refused_before_any_stage(
    tmp_path: Path, algorithm: str, tensors: dict[str, torch.Tensor], told: str
) -> None:
    train = {"continue_from": str(kept(tmp_path, tensors)), "algorithm": algorithm, "rank": 1, "conv_rank": 1}
    [problem] = starting_problems(profile_of(tmp_path, **train))
    assert told in problem


@pytest.mark.parametrize(
    ("tensors", "train", "told"),
    [
        ({f"{LAYER}.lokr_w1": torch.eye(2), f"{LAYER}.lokr_w2": torch.eye(16)}, {}, "(2, 2) in the file and (4, 4)"),
        (tensors_of(tiny_unet(), "LoKr whole", layers=(WIDE,)), {"rank": 1}, "split in another way in the file"),
        (tensors_of(tiny_unet(), "LoKr whole", layers=(CONV,)), {"conv_rank": 0}, "layers these settings do not train"),
    ],
)
def test_modules_that_the_run_makes_otherwise_than_the_file_has_them_are_told_before_any_stage(
    tmp_path: Path, tensors: dict[str, torch.Tensor], train: dict[str, int], told: str
) -> None:
    start = str(kept(tmp_path, tensors))
    [problem] = starting_problems(profile_of(tmp_path, continue_from=start, algorithm="lokr", **train))
    assert told in problem


@pytest.mark.parametrize(
    ("algorithm", "setting"), [("LoRA", "locon"), ("DoRA LoRA", "dora"), ("LoRA", "dora"), ("LoHa", "loha")]
)
def test_what_can_be_trained_on_passes(tmp_path: Path, algorithm: str, setting: str) -> None:
    start = str(kept(tmp_path, tensors_of(tiny_unet(), algorithm)))
    assert starting_problems(profile_of(tmp_path, continue_from=start, algorithm=setting)) == []


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_adapters_of_every_algorithm_pass(algorithm: str) -> None:
    check_layers(file_of(tensors_of(tiny_unet(), algorithm)), tiny_unet())


def header_changed(path: Path, change: object) -> None:
    data = path.read_bytes()
    size = int.from_bytes(data[:8], "little")
    text = change(data[8 : 8 + size].decode().strip())  # type: ignore[operator]
    path.write_bytes(len(text).to_bytes(8, "little") + text + data[8 + size :])


@pytest.mark.parametrize(
    ("change", "told"),
    [
        (lambda text: text.encode("utf-8-sig"), "header is not JSON"),
        (lambda text: text.encode("utf-16"), "header is not JSON"),
        (lambda text: text.encode("utf-32-le"), "header is not JSON"),
        (lambda text: f'{{"__metadata__":{{}},{text[1:]}'.encode(), "says '__metadata__' twice"),
        (lambda text: text.replace('"dtype":"F32"', '"dtype":"F16","dtype":"F32"', 1).encode(), "says 'dtype' twice"),
        (lambda text: f'{{"__metadata__":null,{text[1:]}'.encode(), "no texts by name"),
    ],
)
def test_a_header_that_the_format_does_not_know_is_refused_by_inspect_too(
    tmp_path: Path, change: object, told: str
) -> None:
    path = kept(tmp_path, tensors_of(tiny_unet()))
    header_changed(path, lambda text: text.encode())
    read_header(path)
    if "null" in str(change(json.dumps({"a": 1}))):  # type: ignore[operator]
        header_changed(
            path, lambda text: json.dumps({k: v for k, v in json.loads(text).items() if k[:2] != "__"}).encode()
        )
    header_changed(path, change)
    with pytest.raises(UnsafeFile, match=told) as caught:
        adapter_facts(path)
    assert ".ckpt" not in str(caught.value) and "save it anew" in str(caught.value)


@pytest.mark.parametrize("kind", [torch.float16, torch.bfloat16])
def test_training_starts_exactly_from_half_precision_whatever_the_alphas_are_to_each_other(kind: torch.dtype) -> None:
    tensors = {key: value.to(kind) for key, value in tensors_of(tiny_unet(), "LoHa", alpha=3.0, layers=(WIDE,)).items()}
    [wanted] = check_layers(file_of(tensors), tiny_unet()).values()
    settings = TrainSettings(algorithm="loha", rank=4, alpha=5)
    module = by_name(unet := tiny_unet(), create_network(unet, settings))[WIDE]
    with torch.no_grad():
        start_layer(WIDE, module, wanted, "loha")
    made = {part: value for part, value in module.state_dict().items() if part != "alpha"}
    exact = difference({part: value.double() for part, value in wanted.items()}, (32, 24), scale_of(wanted))
    assert torch.allclose(difference(made, (32, 24), float(module.scale)).double(), exact, rtol=1e-4, atol=1e-6)


def test_a_checkpoint_in_the_place_of_an_adapter_is_told_by_its_header(tmp_path: Path) -> None:
    path, size = tmp_path / "checkpoint.safetensors", 20 * 2**30
    entry = {"dtype": "F16", "shape": [size // 2], "data_offsets": [0, size]}
    header = raw({"model.diffusion_model.out.2.weight": entry})
    with path.open("wb") as file:
        file.write(header)
        file.truncate(len(header) + size)  # nothing lies on the disk
    told = "none of the file's 1 tensors is part of an adapter, e.g. 'model.diffusion_model.out.2.weight'"
    with pytest.raises(BadInput, match=told):
        read_adapter(path)
    [problem] = file_problems(path)
    assert problem.startswith(told)


def test_what_takes_an_adapters_place_while_it_is_read_is_not_taken_for_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path, own = tmp_path / "adapter.safetensors", file_of(tensors_of(tiny_unet()))
    path.write_bytes(own)

    def replaced(header: Header) -> str:
        path.unlink()
        os.mkfifo(path)  # whoever opened this would wait for ever
        return ""

    monkeypatch.setattr("charengine.adapter.files.no_adapter_told", replaced)
    monkeypatch.setattr("charengine.adapter.files.settings_beside", lambda _: "")
    assert read_adapter(path) == own


def test_a_rank_of_zero_is_refused_wherever_an_adapter_is_read() -> None:
    empty = {"lora_down": torch.zeros(0, 32), "lora_up": torch.zeros(32, 0)}
    tensors = {f"{LAYER}.{part}.weight": value for part, value in empty.items()}
    for check in (check_values, lambda named: check_layers(file_of(named), tiny_unet())):
        with pytest.raises(BadInput, match="rank 0"):
            check(tensors)


@pytest.mark.parametrize(("alpha", "kind"), [(torch.tensor(1 + 2j), "complex64"), (torch.tensor(True), "bool")])
def test_an_alpha_that_is_no_number_is_refused(alpha: torch.Tensor, kind: str) -> None:
    parts = parts_of("LoRA", (32, 32), rank=2) | {"alpha": alpha}
    with pytest.raises(BadInput, match=f"alpha holds {kind} values"):
        check_values({f"{LAYER}.{part}": value for part, value in parts.items()})
