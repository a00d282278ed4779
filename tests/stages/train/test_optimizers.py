"""Optimizers over stacked parameters do what the originals do to each parameter alone."""

from __future__ import annotations

import importlib.util

import pytest
import torch

from charengine.config import TrainSettings
from charengine.errors import ConfigError, MissingDependency
from charengine.profiles.loading import load_profile
from charengine.stages.train.optimizers import PACKAGES, BatchedAdafactor, build_optimizer
from charengine.stages.train.schedule import learning_rate, min_snr_weights
from charengine.stages.train.storage import StackedParameters

SHAPES = [(4, 24), (4, 24), (24, 4), (4, 24), (2, 8, 3, 3), (2, 8, 3, 3), (8, 2, 1, 1), (24, 4), (1, 6), (5,)]


def parameters(seed=0, shapes=SHAPES):
    generator = torch.Generator().manual_seed(seed)
    return {
        f"m{i}.w": torch.nn.Parameter(torch.randn(shape, generator=generator) * 0.1) for i, shape in enumerate(shapes)
    }


def walk(ours, stacked, theirs, reference, steps=50, factor=1.0):
    """Give both sides the same gradients; the largest relative difference after the last step."""
    generator = torch.Generator().manual_seed(1)
    for step in range(steps):
        for (key, mine), other in zip(ours.items(), theirs, strict=True):
            gradient = torch.randn(mine.shape, generator=generator) * 10 ** (len(key) - 4)
            mine.grad.copy_(gradient)
            other.grad = gradient * factor
        stacked.prepare(step, 1e-2)
        stacked.update(torch.tensor(factor))
        reference.step()
    pairs = zip(ours.values(), theirs, strict=True)
    return max(((mine - other).norm() / other.norm()).item() for mine, other in pairs)


@pytest.mark.parametrize("weight_decay", [0.0, 0.1])
def test_batched_adafactor_is_transformers_adafactor_over_fifty_steps(weight_decay):
    from transformers.optimization import Adafactor

    ours = parameters()
    theirs = [torch.nn.Parameter(value.detach().clone()) for value in ours.values()]
    options = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    reference = Adafactor(theirs, lr=1e-2, weight_decay=weight_decay, **options)
    stacked = StackedParameters(ours)
    assert len(stacked.stacks) == 6
    assert walk(ours, BatchedAdafactor(stacked, weight_decay), theirs, reference, factor=0.3) < 2e-6


def test_adamw_is_torchs_adamw_over_fifty_steps():
    ours = parameters()
    theirs = [torch.nn.Parameter(value.detach().clone()) for value in ours.values()]
    reference = torch.optim.AdamW(theirs, lr=1e-2, weight_decay=0.05)
    optimizer = build_optimizer(TrainSettings(optimizer="adamw", weight_decay=0.05), StackedParameters(ours))
    assert walk(ours, optimizer, theirs, reference, factor=0.5) < 1e-6


@pytest.mark.parametrize("name", ["adafactor", "adamw", "adamw8bit", "prodigy", "prodigy-schedulefree"])
def test_a_restored_optimizer_goes_on_bit_for_bit(name):
    if name in PACKAGES:
        modules = {"adamw8bit": "bitsandbytes", "prodigy": "prodigyopt", "prodigy-schedulefree": "prodigyplus"}
        pytest.importorskip(modules[name])
    settings = TrainSettings(optimizer=name)
    shapes = [*SHAPES, (8, 1024)]  # the last is large enough for bitsandbytes to keep its state in 8 bits

    def go(optimizer, values, steps):
        for step in steps:
            generator = torch.Generator().manual_seed(step)
            for value in values.values():
                value.grad.copy_(torch.randn(value.shape, generator=generator))
            optimizer.prepare(step, learning_rate(settings, step))
            optimizer.update(torch.tensor(1.0))

    whole = parameters(shapes=shapes)
    go(build_optimizer(settings, StackedParameters(whole)), whole, range(8))

    first = parameters(shapes=shapes)
    stacked = StackedParameters(first)
    optimizer = build_optimizer(settings, stacked)
    go(optimizer, first, range(5))
    state = {key: tensor.clone() for key, tensor in optimizer.state().items()}
    masters = [master.clone() for master in stacked.masters]

    second = parameters(3, shapes)
    stacked = StackedParameters(second)
    optimizer = build_optimizer(settings, stacked)
    for master, saved in zip(stacked.masters, masters, strict=True):
        master.copy_(saved)
    optimizer.load_state(state)
    go(optimizer, second, range(5, 8))
    assert all(torch.equal(second[key], value) for key, value in whole.items())


@pytest.mark.parametrize("name", ["adafactor", "adamw"])
def test_a_rehearsed_step_changes_nothing(name):
    values = parameters()
    optimizer = build_optimizer(TrainSettings(optimizer=name, weight_decay=0.1), StackedParameters(values))
    for value in values.values():
        value.grad.fill_(0.3)
    before = {key: value.clone() for key, value in values.items()}
    state = {key: tensor.clone() for key, tensor in optimizer.state().items()}
    optimizer.rehearse()
    assert all(torch.equal(before[key], value) for key, value in values.items())
    assert all(torch.equal(state[key], tensor) for key, tensor in optimizer.state().items())


def test_eight_bit_adamw_moves_as_adamw_does_with_a_quarter_of_its_state():
    pytest.importorskip("bitsandbytes")
    start = torch.randn(16, 4096, generator=torch.Generator().manual_seed(0))
    moved, held = {}, {}
    for name in ("adamw", "adamw8bit"):
        values = {"w": torch.nn.Parameter(start.clone())}
        optimizer = build_optimizer(TrainSettings(optimizer=name), StackedParameters(values))
        for step in range(20):
            values["w"].grad.copy_(torch.randn(start.shape, generator=torch.Generator().manual_seed(step)))
            optimizer.prepare(step, 1e-3)
            optimizer.update(torch.tensor(1.0))
        moved[name] = values["w"].detach() - start
        held[name] = sum(tensor.nbytes for tensor in optimizer.state().values())
    difference = (moved["adamw8bit"] - moved["adamw"]).norm() / moved["adamw"].norm()
    assert 0 < difference < 0.05
    assert held["adamw8bit"] < 0.3 * held["adamw"]


def test_schedule_free_weights_are_the_averaged_ones_only_while_evaluating():
    if not importlib.util.find_spec("prodigyplus"):
        pytest.skip("package not installed")
    values = parameters()
    optimizer = build_optimizer(TrainSettings(optimizer="prodigy-schedulefree"), StackedParameters(values))
    for step in range(5):
        for value in values.values():
            value.grad.fill_(1.0)
        optimizer.prepare(step, 1.0)
        optimizer.update(torch.tensor(1.0))
    training = {key: value.clone() for key, value in values.items()}
    optimizer.evaluating(True)
    assert any(not torch.equal(training[key], value) for key, value in values.items())
    optimizer.evaluating(False)
    assert all(torch.allclose(training[key], value, atol=1e-6) for key, value in values.items())


@pytest.mark.parametrize("name", list(PACKAGES))
def test_a_missing_optimizer_package_is_named_with_how_to_get_it(name, monkeypatch):
    def absent(place):
        raise ImportError(place)

    monkeypatch.setattr("charengine.stages.train.optimizers.importlib.import_module", absent)
    with pytest.raises(MissingDependency, match=f"train.optimizer={name} needs the package .*pip install"):
        build_optimizer(TrainSettings(optimizer=name), StackedParameters(parameters()))


def test_half_precision_parameters_are_moved_through_float32_masters():
    values = {"a.w": torch.nn.Parameter(torch.ones(4, 4))}
    stacked = StackedParameters(values, torch.bfloat16)
    optimizer = build_optimizer(TrainSettings(optimizer="adamw"), stacked)
    for step in range(20):
        values["a.w"].grad.fill_(1.0)
        optimizer.prepare(step, 1e-4)  # a twentieth of bfloat16's spacing at 1
        optimizer.update(torch.tensor(1.0))
    assert values["a.w"].dtype == torch.bfloat16
    assert stacked.named()["a.w"].mean().item() == pytest.approx(1 - 20e-4, abs=1e-5)
    assert values["a.w"].float().mean().item() == pytest.approx(1 - 20e-4, abs=4e-3)


def test_learning_rates_are_those_of_the_formulas():
    def rates(schedule, warmup, steps=8):
        settings = TrainSettings(learning_rate=1.0, schedule=schedule, warmup=warmup, steps=steps)
        return [round(learning_rate(settings, step), 4) for step in range(steps)]

    assert rates("constant", 2) == [0.5, 1, 1, 1, 1, 1, 1, 1]
    assert rates("linear", 0, 4) == [1, 0.75, 0.5, 0.25]
    assert rates("cosine", 0, 4) == [1, 0.8536, 0.5, 0.1464]
    assert rates("cosine", 4) == [0.25, 0.5, 0.75, 1, 1, 0.8536, 0.5, 0.1464]


def test_min_snr_weighs_little_noise_down_and_is_off_at_zero():
    alphas = torch.tensor([0.9, 0.5, 0.1])  # SNR 9, 1, 1/9
    assert min_snr_weights(alphas, 5.0).tolist() == pytest.approx([5 / 9, 1, 1])
    assert min_snr_weights(alphas, 0.0).tolist() == [1, 1, 1]


def test_min_snr_of_a_velocity_is_divided_by_snr_and_one_and_is_zero_on_pure_noise():
    alphas = torch.tensor([0.9, 0.5, 0.1, 0.0])  # SNR 9, 1, 1/9, 0
    weights = min_snr_weights(alphas, 5.0, velocity=True)  # sd-scripts: min(SNR, gamma) / (SNR + 1)
    assert weights.tolist() == pytest.approx([5 / 10, 1 / 2, 1 / 10, 0])
    assert min_snr_weights(alphas, 0.0, velocity=True).tolist() == [1, 1, 1, 1]


@pytest.mark.parametrize("name", ["prodigy", "prodigy-schedulefree"])
def test_prodigy_gets_a_rate_it_learns_with(name):
    assert TrainSettings(optimizer=name).learning_rate == 1.0
    assert load_profile("sdxl-12gb", [f"train.optimizer={name}"]).train.learning_rate == 1.0
    assert load_profile("sdxl-12gb", [f"train.optimizer={name}", "train.learning_rate=0.1"]).train.learning_rate == 0.1
    assert load_profile("sdxl-12gb", ["train.optimizer=adamw"]).train.learning_rate == 3e-4
    with pytest.raises(ConfigError, match=r"train: learning_rate=0.099 with optimizer=prodigy.*set it to 1.0"):
        load_profile("sdxl-12gb", [f"train.optimizer={name}", "train.learning_rate=0.099"])


def test_a_profile_that_changes_to_prodigy_does_not_inherit_the_rate_below(tmp_path):
    file = tmp_path / "mine.yaml"
    file.write_text("extends: sdxl-12gb\nname: mine\ntrain: {optimizer: prodigy}\n")
    assert load_profile(str(file)).train.learning_rate == 1.0
    assert load_profile(str(file), ["train.optimizer=adafactor"]).train.learning_rate == 1e-3
