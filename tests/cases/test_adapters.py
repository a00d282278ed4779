"""Adapter files as people really have them: damaged, of other programs, of other algorithms; each answered, none believed."""

from __future__ import annotations

import json
import logging
import tracemalloc
from pathlib import Path

import pytest
import torch
from adapter_samples import (
    ALGORITHMS,
    CONV,
    LAYERS,
    LEFT_OUT,
    LINEAR,
    SPELLINGS,
    WIDE,
    file_of,
    output,
    parts_of,
    raw,
    spelt,
    tensors_of,
    tiny_unet,
)

from charengine.adapter.files import by_module, load_adapter
from charengine.adapter.header import read_header
from charengine.adapter.keys import file_names
from charengine.adapter.metadata import told_by
from charengine.adapter.network import apply_adapter, examine_adapter, inject
from charengine.cli.inspection import adapter_facts, inspect_file
from charengine.config import TrainSettings
from charengine.errors import BadInput, UnsafeFile
from charengine.stages.sweep.adapters import UNTOLD, training_from_file
from charengine.store import Store

TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}


# --- headers ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"5",
        raw(b"5"),
        raw([]),
        raw({"x": 5}),
        raw({"__metadata__": ["a"]}),
        raw({"__metadata__": None}),
        raw({"__metadata__": {"a": 1}}),
        raw({"__metadata__": {"a": None}}),
        raw(b"{" * 50_000),
        raw(b"[" * 200_000),
        raw(b'{"__metadata__": {"a": "\\ud800"}}'),
        raw(b"\xff\xfe{}"),
        raw({"x": {**TENSOR, "dtype": 7}}, bytes(4)),
        raw({"x": {**TENSOR, "shape": [-1]}}, bytes(4)),
        raw({"x": {**TENSOR, "shape": [True]}}, bytes(4)),
        raw({"x": {**TENSOR, "shape": "1"}}, bytes(4)),
        raw({"x": {**TENSOR, "data_offsets": [0]}}, bytes(4)),
        raw({"x": {**TENSOR, "data_offsets": [4, 0]}}, bytes(4)),
        raw({"x": {**TENSOR, "shape": [10**18]}}, bytes(4)),
        raw({"x": TENSOR}, bytes(3)),
        raw({"x": TENSOR}, bytes(5)),
        (1 << 63).to_bytes(8, "little") + b"{}",
        b"PK\x03\x04 a zip, as .pt files are",
    ],
)
def test_a_file_with_no_header_of_a_safetensors_file_is_bad_input(tmp_path: Path, data: bytes) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(data)
    with pytest.raises(BadInput, match="not a safetensors file|cut short|damaged") as told:
        adapter_facts(path)
    assert told.value.exit_status == 2
    with pytest.raises(BadInput):
        load_adapter(data)


def test_a_header_of_300_mb_is_refused_before_it_is_read(tmp_path: Path) -> None:
    path = tmp_path / "adapter.safetensors"
    with path.open("wb") as file:
        file.write((300_000_000).to_bytes(8, "little"))
        file.truncate(300_000_100)
    tracemalloc.start()
    with pytest.raises(UnsafeFile, match="not a safetensors file"):
        read_header(path)
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_what_is_no_file_is_said_to_be_none(tmp_path: Path) -> None:
    import os

    os.mkfifo(tmp_path / "pipe")
    for path in (tmp_path, tmp_path / "pipe", Path("/dev/zero"), tmp_path / "no", tmp_path / ("x" * 300), Path("a\0b")):
        with pytest.raises(BadInput):
            read_header(path)


@pytest.mark.parametrize("recipe", ['{"a":', "[]", "7", "null", '"text"', "[" * 100_000])
def test_a_damaged_recipe_leaves_the_facts_and_is_called_damaged(
    tmp_path: Path, skeleton, capsys: pytest.CaptureFixture[str], recipe: str
) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(file_of(tensors_of(tiny_unet()), **{"charengine.recipe": recipe}))
    inspect_file(path)
    told = capsys.readouterr().out
    assert "3 modules" in told and "recipe: damaged" in told.splitlines() and "ss_steps: 4" in told


@pytest.mark.parametrize(
    "recipe", [{"profile": 5}, {"profile": {"models": []}}, {"character": "x"}, {"dataset_digest": 5, "class_noun": []}]
)
def test_parts_of_a_recipe_of_another_kind_are_left_alone(tmp_path: Path, recipe: dict) -> None:
    told = told_by({"charengine.recipe": json.dumps(recipe)})
    assert (told.trigger, told.class_noun, told.dataset_digest, told.family) == ("", "", "", "")


@pytest.mark.parametrize("steps", ["abc", "-5", "1e9", "9" * 40, "١٢", "1.5", "4\n5", "NaN"])
def test_absurd_step_counts_are_not_believed(tmp_path: Path, unet, steps: str) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(file_of(tensors_of(unet), ss_steps=steps))
    assert adapter_facts(path)["damaged"] == ["ss_steps"]
    record = training_from_file(path, Store(tmp_path / "store"), class_noun="orc")
    assert record.steps == UNTOLD and "called step 1 here" in record.warnings[0]


def test_inspect_shows_no_control_characters_of_a_file(tmp_path: Path, unet, capsys) -> None:
    path = tmp_path / "adapter.safetensors"
    path.write_bytes(file_of(tensors_of(unet), **{"modelspec.title": "\x1b[2J\nrecipe: none" + "x" * 5000}))
    inspect_file(path)
    told = capsys.readouterr().out
    assert "\x1b" not in told and max(map(len, told.splitlines())) < 400


# --- values -----------------------------------------------------------------------------------------------------------


def _spoilt(parts: dict, part: str, how: str) -> dict:
    value = parts[part].clone()
    if how == "int":
        return parts | {part: (value * 100).to(torch.int32)}
    if how == "bool":
        return parts | {part: value > 0}
    value.view(-1)[-1] = float(how)
    return parts | {part: value}


@pytest.mark.parametrize("how", ["nan", "inf", "-inf", "int", "bool"])
@pytest.mark.parametrize("algorithm", ["LoRA", "LoHa", "LoKr", "DoRA LoRA"])
def test_values_that_are_no_finite_floats_are_refused_with_the_layer_before_anything_is_drawn(
    tmp_path: Path, skeleton, algorithm: str, how: str
) -> None:
    stem = file_names(skeleton)[WIDE]
    parts = parts_of(algorithm, (32, 24))
    for part in parts:
        if part == "alpha" and how in ("int", "bool"):
            continue  # whole alphas are what some trainers write
        tensors = tensors_of(tiny_unet()) | {
            f"{stem}.{name}": value for name, value in _spoilt(parts, part, how).items()
        }
        tensors = {
            key: value for key, value in tensors.items() if not key.startswith(stem) or key.split(".", 1)[1] in parts
        }
        path = tmp_path / "adapter.safetensors"
        path.write_bytes(file_of(tensors))
        with pytest.raises(BadInput, match=f"{stem}.*(not finite|floats are needed)"):
            training_from_file(path, Store(tmp_path / "store"), class_noun="orc")
        with pytest.raises(BadInput, match="attn2.to_k.*(not finite|floats are needed)"):
            examine_adapter(skeleton, path.read_bytes())


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_layer_without_one_of_its_parts_is_incomplete(skeleton, algorithm: str) -> None:
    stem = file_names(skeleton)[CONV]
    whole = parts_of(algorithm, (32, 16, 3, 3))
    for part in set(whole) - {"alpha", "dora_scale", "lora_mid.weight", "lokr_t2"}:
        tensors = {f"{stem}.{name}": value for name, value in whole.items() if name != part}
        with pytest.raises(BadInput, match="incomplete"):
            by_module(tensors, skeleton)


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_a_part_of_another_shape_is_refused_with_the_layer(skeleton, algorithm: str) -> None:
    stem = file_names(skeleton)[CONV]
    whole = parts_of(algorithm, (32, 16, 3, 3))
    for part, value in whole.items():
        for other in (
            torch.ones(*value.shape[:-1], value.shape[-1] + 1) if value.dim() else torch.ones(3),
            torch.ones(7),
            torch.ones(0, *value.shape[1:]) if value.dim() else torch.ones(0),
            torch.ones(*value.shape, 2),
        ):
            tensors = {f"{stem}.{name}": part_value for name, part_value in (whole | {part: other}).items()}
            with pytest.raises(BadInput, match=r"down_blocks\.1\.resnets\.0\.conv1"):
                by_module(tensors, skeleton)


def test_a_layer_adapted_in_two_ways_or_twice_is_refused(skeleton) -> None:
    stems = file_names(skeleton)
    both = {f"{stems[WIDE]}.{part}": v for kind in ("LoRA", "LoKr") for part, v in parts_of(kind, (32, 24)).items()}
    with pytest.raises(BadInput, match="LoRA and LoKr at once"):
        by_module(both, skeleton)
    tensors = tensors_of(skeleton, layers=(WIDE,))
    with pytest.raises(BadInput, match="twice, in two spellings"):
        by_module(tensors | spelt(skeleton, tensors, "kohya-diffusers"), skeleton)


def test_an_alpha_that_loaders_read_differently_is_refused(skeleton) -> None:
    with pytest.raises(BadInput, match="alpha is 0, which ComfyUI reads as no effect"):
        by_module(tensors_of(skeleton, alpha=0.0), skeleton)


# --- what is left out, what is refused --------------------------------------------------------------------------------


@pytest.mark.parametrize("key", LEFT_OUT)
def test_what_is_no_layer_is_left_out_with_a_warning_that_names_it(unet, caplog, key: str) -> None:
    told, shape = LEFT_OUT[key]
    tensors = tensors_of(unet) | {key: torch.ones(shape)}
    with caplog.at_level(logging.WARNING):
        assert set(by_module(tensors, unet)) == set(LAYERS)
    assert told in caplog.text and key[:40] in caplog.text
    [sentence] = examine_adapter(unet, file_of(tensors))
    assert told in sentence


@pytest.mark.parametrize(
    ("part", "kind"),
    [
        ("oft_blocks", "OFT"),
        ("oft_diag", "OFT"),
        ("oft_R.weight", "OFT"),
        ("a1.weight", "GLoRA"),
        ("b2.weight", "GLoRA"),
        ("on_input", "IA3"),
        ("diff", r"whole differences of weights \(\.diff\)"),
        ("diff_b", r"whole differences of weights \(\.diff\)"),
        ("vera_lambda_b", "VeRA"),
        ("p_layer.weight", "T-LoRA"),
        ("lora_B.bias", "LoRA with biases"),
        ("something_newer", "parts that are not known here"),
    ],
)
@pytest.mark.parametrize("beside", [True, False])
def test_a_layer_adapted_in_a_way_that_is_not_supported_is_refused_and_the_way_named(
    unet, part: str, kind: str, beside: bool
) -> None:
    stem = file_names(unet)["mid_block.attentions.0.proj_in"]
    tensors = (tensors_of(unet) if beside else {}) | {f"{stem}.{part}": torch.ones(4, 4)}
    with pytest.raises(BadInput, match=kind):
        by_module(tensors, unet)


@pytest.mark.parametrize("spelling", SPELLINGS)
def test_every_spelling_of_a_lora_is_read(skeleton, spelling: str) -> None:
    tensors = spelt(skeleton, tensors_of(skeleton), spelling)
    assert set(by_module(tensors, skeleton)) == set(LAYERS)


# --- going on from a file ---------------------------------------------------------------------------------------------


def _settings(algorithm: str, **changes) -> TrainSettings:
    return TrainSettings(**({"algorithm": algorithm, "rank": 2, "alpha": 8, "conv_rank": 2, "conv_alpha": 4} | changes))


@pytest.mark.parametrize("rank", [2, 4])
@pytest.mark.parametrize(
    ("kind", "algorithm"),
    [
        ("LoRA", "locon"),
        ("LoRA", "dora"),
        ("DoRA LoRA", "dora"),
        ("LoHa", "loha"),
        ("LoKr", "lokr"),
        ("LoRA Tucker", "locon"),
    ],
)
def test_training_starts_from_exactly_what_the_file_does_whatever_its_alpha(
    unet, kind: str, algorithm: str, rank: int
) -> None:
    made = inject(unet, _settings(algorithm), seed=1)
    own = {stem: {part for part in module.state_dict()} for stem, module in made.modules.items()}
    made.remove()
    tensors = tensors_of(unet, kind, alpha=1.0)
    if kind == "LoKr":  # split as these settings split it
        made = inject(unet, _settings(algorithm), seed=1)
        state = {
            key: value
            for key, value in made.state_dict().items()
            if any(file_names(unet)[n] + "." in key for n in LAYERS)
        }
        made.remove()
        generator = torch.Generator().manual_seed(3)
        tensors = {
            k: torch.tensor(1.0) if k.endswith("alpha") else torch.randn(v.shape, generator=generator) * 0.3
            for k, v in state.items()
        }
    applied = apply_adapter(unet, file_of(tensors))
    wanted = output(unet)
    applied.remove()
    adapter = inject(unet, _settings(algorithm, rank=rank, conv_rank=rank), seed=5)
    assert not torch.allclose(output(unet), wanted, atol=1e-3)
    adapter.load(tensors)
    adapter.train(False)
    assert torch.allclose(output(unet), wanted, atol=2e-5)
    assert own


@pytest.mark.parametrize(
    ("kind", "algorithm", "remedy"),
    [
        ("LoHa", "locon", "set train.algorithm=loha"),
        ("LoKr", "loha", "set train.algorithm=lokr"),
        ("LoRA", "lokr", "set train.algorithm=locon"),
        ("LoRA", "tlora", "set train.algorithm=locon"),
        ("DoRA LoRA", "locon", "set train.algorithm=dora"),
        ("DoRA LoHa", "loha", "no setting trains that"),
        ("LoHa Tucker", "loha", "Tucker"),
    ],
)
def test_a_file_that_the_settings_cannot_say_exactly_is_not_started_from(
    unet, kind: str, algorithm: str, remedy: str
) -> None:
    adapter = inject(unet, _settings(algorithm, conv_rank=0 if algorithm == "tlora" else 2), seed=1)
    layers = (LINEAR,) if "Tucker" not in kind else LAYERS
    with pytest.raises(BadInput, match=remedy):
        adapter.load(tensors_of(unet, kind, layers=layers))


def test_norms_by_input_and_trained_norms_are_not_started_from(unet) -> None:
    stem = file_names(unet)[WIDE]
    by_input = {f"{stem}.{part}": value for part, value in parts_of("LoRA", (32, 24)).items()}
    adapter = inject(unet, _settings("dora"), seed=1)
    with pytest.raises(BadInput, match="norms by input"):
        adapter.load(by_input | {f"{stem}.dora_scale": torch.ones(1, 24)})
    adapter.remove()
    adapter = inject(unet, _settings("locon"), seed=1)
    with pytest.raises(BadInput, match="trained norms"):
        adapter.load(tensors_of(unet) | {"lora_unet_out_0.w_norm": torch.ones(16)})
