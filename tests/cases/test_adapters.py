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
from charengine.adapter.rescaling import rescale
from charengine.cli.inspection import adapter_facts, inspect_file
from charengine.config import TrainSettings
from charengine.errors import BadInput, UnsafeFile
from charengine.stages.sweep import adapters as sweep_adapters
from charengine.stages.sweep.adapters import training_from_file
from charengine.store import Store

TENSOR = {"dtype": "F32", "shape": [1], "data_offsets": [0, 4]}
BASE = "unet.down_blocks.1.attentions.0.transformer_blocks.0.attn1"


@pytest.fixture(scope="module")
def skeleton():
    return tiny_unet("meta")


@pytest.fixture
def unet():
    return tiny_unet()


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
    "recipe",
    [{"profile": 5}, {"profile": {"models": []}}, {"character": "x"}, {"dataset_digest": 5, "class_noun": []}],
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
    assert record.steps == 0


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


# --- algorithms -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algorithm", ALGORITHMS)
def test_every_algorithm_computes_what_lycoris_own_formulas_say(unet, algorithm: str) -> None:
    from lycoris.functional import loha, lokr
    from lycoris.functional.general import rebuild_tucker, weight_decompose

    tensors = tensors_of(unet, algorithm, alpha=3.0)
    base = output(unet)
    applied = apply_adapter(unet, file_of(tensors), 1.0)
    got = output(unet)
    applied.remove()
    assert torch.equal(output(unet), base)
    for name, stem in file_names(unet).items():
        parts = {key.split(".", 1)[1]: value for key, value in tensors.items() if key.startswith(stem + ".")}
        if not parts:
            continue
        weight = unet.get_submodule(name).weight
        get = parts.get
        if "hada_w1_a" in parts:
            names = ("hada_w1_b", "hada_w1_a", "hada_w2_b", "hada_w2_a", "hada_t1", "hada_t2")
            change = loha.diff_weight(*map(get, names), gamma=torch.tensor(1.5)).reshape(weight.shape)
        elif "lokr_w1" in parts:
            names = ("lokr_w1", "lokr_w1_a", "lokr_w1_b", "lokr_w2", "lokr_w2_a", "lokr_w2_b", "lokr_t2")
            scale = 1.0 if "lokr_w2" in parts else 1.5
            change = lokr.kron_weight(*map(get, names), scale=scale).reshape(weight.shape)
        else:
            down, up = parts["lora_down.weight"], parts["lora_up.weight"].flatten(1)
            if "lora_mid.weight" in parts:
                change = 1.5 * rebuild_tucker(parts["lora_mid.weight"], up.T, down.flatten(1))
            else:
                change = 1.5 * (up @ down.flatten(1)).reshape(weight.shape)
        merged = weight + change
        weight.copy_(weight_decompose(merged, parts["dora_scale"]) if "dora_scale" in parts else merged)
    assert torch.allclose(output(unet), got, atol=3e-5)


def test_a_dora_with_norms_by_input_is_applied_along_that_axis(unet) -> None:
    parts = parts_of("LoRA", (32, 24), alpha=2.0) | {"dora_scale": torch.rand(1, 24) + 0.5}
    stem = file_names(unet)[WIDE]
    applied = apply_adapter(unet, file_of({f"{stem}.{part}": value for part, value in parts.items()}))
    got = output(unet)
    applied.set_strength(0.5)
    half = output(unet)
    applied.remove()
    weight = unet.get_submodule(WIDE).weight
    before = weight.clone()
    sum_ = before + parts["lora_up.weight"] @ parts["lora_down.weight"]
    after = sum_ * parts["dora_scale"] / sum_.norm(dim=0, keepdim=True)
    weight.copy_(after)
    assert torch.allclose(output(unet), got, atol=1e-5)
    weight.copy_(before + 0.5 * (after - before))  # as ComfyUI and A1111 do at half strength
    assert torch.allclose(output(unet), half, atol=1e-5)


def test_peft_doras_norms_of_a_convolution_are_by_output(unet) -> None:
    norms = torch.rand(32) + 0.5
    parts = parts_of("LoRA", (32, 16, 3, 3), alpha=None)
    key = f"unet.{CONV}"
    peft = {
        f"{key}.lora_A.weight": parts["lora_down.weight"],
        f"{key}.lora_B.weight": parts["lora_up.weight"],
        f"{key}.lora_magnitude_vector.weight": norms.view(1, 32, 1, 1),
    }
    assert by_module(peft, unet)[CONV]["dora_scale"].shape == (32, 1, 1, 1)


@pytest.mark.parametrize("kind", [torch.float8_e4m3fn, torch.float8_e5m2])
def test_a_float8_adapter_is_applied_and_rescaled_in_float32(unet, kind: torch.dtype) -> None:
    small = {key: value.to(kind) for key, value in tensors_of(unet, alpha=1.5).items()}
    same = {key: value.float() for key, value in small.items()}
    results = []
    for tensors in (small, same):
        applied = apply_adapter(unet, rescale(file_of(tensors), 0.7))
        results.append(output(unet))
        applied.remove()
        applied = apply_adapter(unet, file_of(tensors), 0.7)
        assert torch.allclose(output(unet), results[-1], atol=2e-6)
        applied.remove()
    assert torch.equal(*results)


# --- rescaling --------------------------------------------------------------------------------------------------------


def _mixed(unet) -> dict[str, torch.Tensor]:
    """LoCon with and without alpha, LoHa without, LoKr of all splits: in one file."""
    stems = file_names(unet)
    kinds = {
        LINEAR: ("LoRA", None),
        WIDE: ("LoRA", 1.0),
        CONV: ("LoHa", None),
        "mid_block.attentions.0.proj_in": ("LoKr", 1.0),
        "mid_block.attentions.0.proj_out": ("LoKr whole", 1.0),
    }
    found = {}
    for name, (kind, alpha) in kinds.items():
        shape = tuple(unet.get_submodule(name).weight.shape)
        found |= {f"{stems[name]}.{part}": value for part, value in parts_of(kind, shape, alpha=alpha).items()}
    stem = stems["mid_block.resnets.0.time_emb_proj"]
    into, out = unet.get_submodule("mid_block.resnets.0.time_emb_proj").weight.shape[::-1]
    product = {
        "lokr_w1_a": torch.randn(4, 2),
        "lokr_w1_b": torch.randn(2, 4),
        "lokr_w2": torch.randn(out // 4, into // 4),
    }
    return found | {f"{stem}.{part}": value for part, value in (product | {"alpha": torch.tensor(1.0)}).items()}


@pytest.mark.parametrize("spelling", ["kohya", "lycoris", "diffusion_model"])
def test_every_layer_of_a_mixed_file_is_rescaled_alike(unet, spelling: str) -> None:
    tensors = _mixed(unet)
    if spelling == "lycoris":
        tensors = spelt(unet, tensors, "lycoris")
    if spelling == "diffusion_model":  # dotted names, where a missing alpha is no key that loaders know
        from charengine.adapter.keys import sgm_names

        stems = {"lora_unet_" + name.replace(".", "_"): "diffusion_model." + name for name in sgm_names(unet).values()}
        tensors = {stems[key.split(".", 1)[0]] + "." + key.split(".", 1)[1]: value for key, value in tensors.items()}
    applied = apply_adapter(unet, file_of(tensors), 0.4)
    wanted = {name: layer.merged(unet.get_submodule(name).weight, 0.4) for name, layer in applied.modules.items()}
    applied.remove()
    applied = apply_adapter(unet, rescale(file_of(tensors), 0.4))
    assert len(wanted) == 6
    for name, layer in applied.modules.items():
        weight = unet.get_submodule(name).weight
        assert torch.allclose(layer.merged(weight, 1.0), wanted[name], atol=1e-5), name
        assert not torch.allclose(wanted[name], weight, atol=1e-3), name


def test_a_lokr_of_products_is_scaled_in_its_first_factor_not_in_an_alpha_that_loaders_may_ignore(unet) -> None:
    tensors = _mixed(unet)
    scaled = load_adapter(rescale(file_of(tensors), 0.5))[0]
    [key] = [key for key in tensors if key.endswith(".lokr_w1_a")]
    assert torch.equal(scaled[key], tensors[key] * 0.5)
    unchanged = [k for k in tensors if k.startswith(key.rpartition(".")[0]) and k != key]
    assert unchanged and all(torch.equal(scaled[k], tensors[k]) for k in unchanged)


def test_trained_norms_are_rescaled_too_and_embeddings_are_not(unet) -> None:
    more = {
        "lora_unet_out_0.w_norm": torch.ones(16),
        "bundle_emb.x.clip_l": torch.ones(2, 8),
        "lora_te1_a.alpha": torch.tensor(4.0),
    }
    scaled = load_adapter(rescale(file_of(tensors_of(unet) | more), 0.5))[0]
    assert torch.equal(scaled["lora_unet_out_0.w_norm"], torch.full((16,), 0.5))
    assert torch.equal(scaled["bundle_emb.x.clip_l"], torch.ones(2, 8))
    assert scaled["lora_te1_a.alpha"] == 2.0


@pytest.mark.parametrize("error", [BadInput("no"), NotImplementedError("mul"), RuntimeError("x")])
def test_a_finished_sweep_is_not_lost_when_its_pick_cannot_be_rescaled(unet, monkeypatch, error: Exception) -> None:
    from run_samples import sample_cell

    def fail(data: bytes, strength: float) -> bytes:
        raise error

    monkeypatch.setattr(sweep_adapters, "rescale", fail)
    data, doubts = sweep_adapters.recommended(file_of(tensors_of(unet)), sample_cell(4, 0.5), None)
    assert len(doubts) == 1 and "use it at strength 0.5" in doubts[0]
    assert load_adapter(data)[0].keys() == tensors_of(unet).keys()


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
