"""The step against a plain reference, and each option of the recipe."""

from __future__ import annotations

import math
import re

import pytest
import torch
from tiny_sdxl import FakeDiffusion, make_dataset, tiny_unet

from benchmarks.random_sdxl import SDXL, TINY
from charengine.adapter.network import inject
from charengine.config import TrainSettings
from charengine.models.prediction import Prediction, rescaled_for_zero_terminal_snr
from charengine.stages.train.data import encode_dataset
from charengine.stages.train.plan import Plan, set_checkpointing
from charengine.stages.train.sampler import groups_of_step, hash_seed
from charengine.stages.train.schedule import learning_rate, min_snr_weights
from charengine.stages.train.setup import Setup

RECIPE = {
    "rank": 4,
    "alpha": 2,
    "conv_rank": 2,
    "conv_alpha": 1,
    "learning_rate": 1e-2,
    "steps": 50,
    "caption_dropout": 0.1,
}


def test_the_tiny_unets_have_every_kind_of_layer_that_sdxl_has():
    from diffusers import UNet2DConditionModel

    def kinds(unet):
        weighted = (
            (name, module) for name, module in unet.named_modules() if getattr(module, "weight", None) is not None
        )
        return {(re.sub(r"\d+", "N", name), type(module)) for name, module in weighted}

    with torch.device("meta"):
        full, small = (UNet2DConditionModel.from_config(config) for config in (SDXL, TINY))
    assert kinds(tiny_unet()) == kinds(small) == kinds(full)


def make(store, dtype=torch.float32, sizes=((64, 128),) * 3, **changes):
    """A setup and its data."""
    settings = TrainSettings(**(RECIPE | changes))
    diffusion = FakeDiffusion(dtype)
    data = encode_dataset(make_dataset(store, sizes), settings, diffusion, store)
    if dtype == torch.float64:
        data = data.to(torch.device("cpu"))
        doubled = [
            type(b)(**{**vars(b), **{k: v.double() for k, v in vars(b).items() if torch.is_tensor(v)}})
            for b in data.buckets
        ]
        data = type(data)(**{**vars(data), "buckets": tuple(doubled)})
    plan = Plan(precision=str(dtype), micro_batch=3) if dtype == torch.float64 else None
    return Setup(diffusion, settings, data, 7, plan, fresh=True)


def steps(setup, count):
    for step in range(count):
        setup.step.run(step, groups_of_step(setup.data, setup.settings, setup.seed, step))
    return setup.step.read_losses(0, count)


def values(setup):
    return {key: value.clone() for key, value in setup.parameters.named().items()}


@pytest.fixture
def double(monkeypatch):
    """Plans that compute in float64."""
    monkeypatch.setitem(
        __import__("charengine.stages.train.plan", fromlist=["x"]).PRECISIONS, "torch.float64", torch.float64
    )


@pytest.mark.parametrize(("dtype", "count"), [(torch.float64, 50), (torch.float32, 20)], ids=["float64", "float32"])
def test_steps_are_those_of_a_plain_loop_with_lycoris_and_transformers(store, dtype, count, double):
    from transformers.optimization import Adafactor

    ours = make(store, dtype)
    losses = steps(ours, count)
    fused_values = values(ours)
    draw, data, settings = ours.step._draw, ours.data, ours.settings

    unet = FakeDiffusion(dtype).unet()
    adapter = inject(unet, settings, seed=hash_seed(7, 0))
    for name, module in adapter.modules.items():
        module.to(dtype)
        unet.get_submodule(name).forward = module.forward  # LyCORIS' own bypass forward
    parameters = list(adapter.parameters().values())
    options = {"scale_parameter": False, "relative_step": False, "warmup_init": False}
    optimizer = Adafactor(parameters, lr=1e-2, **options)
    alphas = FakeDiffusion().alphas_cumprod().to(dtype)
    weights, bucket, found = min_snr_weights(alphas, 5.0), data.buckets[0], []
    for step in range(count):
        ours.step.generator.manual_seed(hash_seed(ours.step.seed, step))
        draws = draw(bucket, 3)
        rows = torch.arange(3)
        latents = bucket.mean[rows, draws.variant] + bucket.std[rows, draws.variant] * draws.spread
        share = alphas[draws.timesteps].view(-1, 1, 1, 1)
        noisy = share.sqrt() * latents + (1 - share).sqrt() * draws.noise
        embeds, pooled = bucket.embeds.clone(), bucket.pooled.clone()
        embeds[draws.dropped], pooled[draws.dropped] = data.empty_embeds, data.empty_pooled
        conditions = {"text_embeds": pooled, "time_ids": bucket.time_ids}
        predicted = unet(noisy, draws.timesteps, embeds, added_cond_kwargs=conditions).sample
        error = torch.nn.functional.mse_loss(predicted, draws.noise, reduction="none").mean((1, 2, 3))
        loss = (error * weights[draws.timesteps]).mean()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(parameters, 1.0)
        optimizer.step()
        optimizer.zero_grad()
        found.append(loss.item())
    near = 1e-9 if dtype == torch.float64 else 1e-4
    assert losses == pytest.approx(found, rel=near)
    distance = sum((fused_values[k] - p).square().sum().item() for k, p in adapter.parameters().items())
    size = sum(p.square().sum().item() for p in parameters)
    assert math.sqrt(distance / size) < near


@pytest.mark.parametrize("zero_terminal_snr", [False, True])
def test_a_v_prediction_base_is_trained_and_validated_towards_the_velocity(store, monkeypatch, zero_terminal_snr):
    """Before the first step the adapter is nothing, so every loss is the base's own against √ᾱ·ε − √(1−ᾱ)·x."""
    alphas = FakeDiffusion().alphas_cumprod()
    if zero_terminal_snr:
        alphas = rescaled_for_zero_terminal_snr(alphas)
    monkeypatch.setattr(FakeDiffusion, "alphas_cumprod", lambda self: alphas)
    monkeypatch.setattr(FakeDiffusion, "prediction", Prediction("v_prediction", zero_terminal_snr))
    setup = make(store, caption_dropout=0.0, conv_rank=0)
    bucket, rows = setup.data.buckets[0], torch.arange(3)
    setup.step.generator.manual_seed(hash_seed(setup.step.seed, 0))
    draws = setup.step._draw(bucket, 3)
    latents = bucket.mean[rows, draws.variant] + bucket.std[rows, draws.variant] * draws.spread
    share = alphas[draws.timesteps].view(-1, 1, 1, 1)
    noisy = share.sqrt() * latents + (1 - share).sqrt() * draws.noise
    velocity = share.sqrt() * draws.noise - (1 - share).sqrt() * latents
    conditions = {"text_embeds": bucket.pooled, "time_ids": bucket.time_ids}
    with torch.no_grad():
        predicted = FakeDiffusion().unet()(noisy, draws.timesteps, bucket.embeds, added_cond_kwargs=conditions).sample
    snr = alphas / (1 - alphas)
    weights = (snr.clamp(max=5.0) / (snr + 1))[draws.timesteps]
    expected = ((predicted - velocity).square().mean((1, 2, 3)) * weights).mean()
    assert steps(setup, 1) == pytest.approx([expected.item()], rel=1e-4)
    batch = setup.validation.batches[0]
    shares = alphas[batch.timesteps].view(-1, 1, 1, 1)
    kept = shares.sqrt() * batch.noisy - (1 - shares).sqrt() * batch.target  # the picture, whatever the noise
    torch.testing.assert_close(kept, bucket.mean[:1, 0].expand_as(kept), rtol=1e-4, atol=1e-4)


def test_only_the_adapter_changes(store):
    setup = make(store)
    before = {key: value.clone() for key, value in setup.unet.state_dict().items()}
    first = values(setup)
    steps(setup, 2)
    assert all(torch.equal(before[key], value) for key, value in setup.unet.state_dict().items())
    moved = [key for key, value in values(setup).items() if not torch.equal(first[key], value)]
    assert any("lora_up" in key for key in moved)
    setup.close()
    with torch.no_grad():
        assert "forward" not in setup.unet.mid_block.attentions[0].transformer_blocks[0].__dict__


@pytest.mark.parametrize(("mode", "share"), [("selective", 0.5), ("full", 1.0)])
def test_checkpointing_changes_nothing_but_memory(store, mode, share):
    plain, again = make(store), make(store)
    set_checkpointing(again.unet, Plan(checkpointing=mode, recomputed=share))
    assert steps(plain, 3) == steps(again, 3)
    assert all(torch.equal(value, again.parameters.named()[key]) for key, value in values(plain).items())


def test_a_step_split_into_micro_batches_is_the_same_step(store):
    whole, split = make(store), make(store)
    split.step.micro_batch = 1
    assert steps(whole, 3) == pytest.approx(steps(split, 3), rel=1e-4)


def test_accumulation_takes_the_mean_over_more_samples(store):
    setup = make(store, accumulate=2)
    assert groups_of_step(setup.data, setup.settings, 7, 0)[0].samples == (0, 1, 2, 0, 1, 2)
    setup.step.generator.manual_seed(hash_seed(setup.step.seed, 0))
    draws = setup.step._draw(setup.data.buckets[0], 6)
    with torch.no_grad():
        each = setup.step._loss(setup.data.buckets[0], torch.tensor([0, 1, 2, 0, 1, 2]), draws)
    assert each.shape == (6,)
    assert steps(setup, 1)[0] == pytest.approx(each.mean().item(), rel=1e-5)


def test_views_of_different_sizes_all_take_part_in_every_step(store):
    setup = make(store, sizes=((64, 128), (64, 64), (64, 128)))
    assert len(setup.data.buckets) == 2
    groups = groups_of_step(setup.data, setup.settings, 0, 0)
    assert sorted(len(group.samples) for group in groups) == [1, 2]
    assert all(math.isfinite(loss) for loss in steps(setup, 2))


def test_a_batch_of_one_goes_through_every_view_once_an_epoch(store):
    setup = make(store, batch=1, sizes=((64, 128), (64, 64), (64, 128)))
    for epoch in range(3):
        seen = [groups_of_step(setup.data, setup.settings, 7, 3 * epoch + i)[0] for i in range(3)]
        assert sorted((group.bucket, *group.samples) for group in seen) == [(0, 0), (0, 1), (1, 0)]


def _loss(store, **changes):
    return steps(make(store, **changes), 1)[0]


def test_min_snr_and_noise_offset_change_the_loss(store):
    base = sum(steps(make(store, learning_rate=1e-9), 14))
    assert sum(steps(make(store, learning_rate=1e-9, min_snr_gamma=0.0), 14)) > base
    assert _loss(store, noise_offset=0.5) != _loss(store)


@pytest.mark.parametrize("limit", [1e-4, 1e4])
@pytest.mark.parametrize("precision", ["fp32", "fp16"])
def test_gradients_are_scaled_to_the_norm_asked_for_and_never_up(store, limit, precision):
    setup = make(store, max_grad_norm=limit, precision=precision)
    unclipped = make(store, max_grad_norm=0.0, precision=precision)
    steps(setup, 1), steps(unclipped, 1)
    norm = torch.cat([gradient.flatten() for gradient in setup.parameters.grads]).norm()
    true_norm = (norm * unclipped.step.factor).item()  # of fp16 the loss scale is taken out again
    assert 1e-4 < true_norm < 1e4
    assert (norm * setup.step.factor).item() == pytest.approx(min(true_norm, limit), rel=0.02)


def test_clipped_gradients_are_what_the_optimizer_gets(store):
    moved = {}
    for limit in (0.0, 1e-10):  # far below AdamW's epsilon of 1e-8: it hardly moves, so no settings may say it
        setup = make(store, optimizer="adamw")
        setup.step.settings = setup.settings.model_copy(update={"max_grad_norm": limit})
        first = values(setup)
        steps(setup, 1)
        moved[limit] = max((value - first[key]).abs().max().item() for key, value in values(setup).items())
    assert moved[1e-10] < 0.1 * moved[0.0]


def test_resampling_the_posterior_changes_the_latents(store):
    assert _loss(store, resample_latents=False) != _loss(store)


def test_dropped_captions_train_the_empty_caption(store):
    setup = make(store, caption_dropout=1.0)
    setup.data.buckets[0].embeds.fill_(float("nan"))  # would poison the loss if it were read
    setup.data.buckets[0].pooled.fill_(float("nan"))
    assert math.isfinite(steps(setup, 1)[0])


def test_a_masked_loss_is_the_error_of_the_figure_alone(store):
    setup = make(store, masked_loss=1.0, min_snr_gamma=0.0)
    bucket, index = setup.data.buckets[0], torch.arange(3)
    draws = setup.step._draw(bucket, 3)
    plain = make(store).data.buckets[0]
    assert torch.equal(plain.mask, torch.ones_like(plain.mask))
    with torch.no_grad():
        masked = setup.step._loss(bucket, index, draws)
        figure = bucket.mask[index, draws.variant] > 0
        bucket.mask.fill_(1.0)
        everywhere = setup.step._loss(bucket, index, draws)
        bucket.mask.copy_(torch.where(bucket.mask > 0, 1.0, 0.0))
    assert 0.1 < figure.float().mean() < 0.7
    assert not torch.allclose(masked, everywhere, rtol=1e-3)


def test_dropout_draws_new_masks_every_step_and_none_while_evaluating(store):
    setup = make(store, dropout=0.5)
    steps(setup, 1)
    first = setup.step.masks.clone()
    setup.step.run(1, groups_of_step(setup.data, setup.settings, 7, 1))
    assert sorted(first.unique().tolist()) == [0.0, 2.0]
    assert not torch.equal(first, setup.step.masks)
    with setup.evaluating():
        point = setup.validation.measure(1)
        setup.step.masks.zero_()
        assert setup.validation.measure(1).loss == point.loss


def test_tlora_uses_fewer_components_the_more_noise_there_is(store):
    setup = make(store, algorithm="tlora")
    setup.adapter.attach_timesteps(torch.tensor([0, 500, 999]), 1000)
    module = next(iter(setup.adapter.modules.values()))
    assert module.timestep_mask.sum(1).tolist() == [4, 2, 1]
    assert all(math.isfinite(loss) for loss in steps(setup, 3))


@pytest.mark.parametrize("algorithm", ["loha", "lokr", "dora"])
def test_other_algorithms_learn_too(store, algorithm):
    setup = make(store, algorithm=algorithm, min_snr_gamma=0.0)
    losses = steps(setup, 12)
    assert sum(losses[-4:]) < sum(losses[:4])


@pytest.mark.parametrize("options", [{"fp8_base": True}, {"dropout": 0.1}])
def test_options_other_algorithms_lack_are_refused_by_name(store, options):
    with pytest.raises(ValueError, match=f"{next(iter(options))}=.* works with locon and lora, not loha"):
        make(store, algorithm="loha", **options)


def test_a_float8_base_is_near_the_real_one_and_trains(store):
    plain, small = make(store, caption_dropout=0.0), make(store, caption_dropout=0.0, fp8_base=True)
    layer = small.unet.mid_block.attentions[0].transformer_blocks[0].attn1.to_q
    assert layer.weight.dtype == torch.float8_e4m3fn
    a, b = steps(plain, 8), steps(small, 8)
    assert a == pytest.approx(b, rel=0.05)
    assert a != b
    assert b[-1] < b[0]


def test_half_precision_trains_with_scaled_losses(store):
    setup = make(store, precision="fp16")
    setup.step.scaling.scale.fill_(2.0**40)  # overflows: the step is dropped and the scale halved
    first = values(setup)
    steps(setup, 1)
    assert setup.step.scaling.scale.item() == 2.0**39
    assert all(torch.equal(first[key], value) for key, value in values(setup).items())


def test_losses_are_weighted_averages_of_samples(store):
    setup = make(store, learning_rate=1e-9)
    assert learning_rate(setup.settings, 0) == 1e-9
    setup.data.buckets[0].weight.fill_(2.0)
    doubled = steps(setup, 1)[0]
    setup.data.buckets[0].weight.fill_(1.0)
    assert doubled == pytest.approx(2 * steps(setup, 1)[0], rel=1e-5)


def test_variants_and_dropped_captions_are_drawn_as_often_as_asked(store):
    setup = make(store, random_backgrounds=0.25, caption_dropout=0.5, flips="on")
    bucket = setup.data.buckets[0]
    draws = setup.step._draw(bucket, 4000)
    background, flip = draws.variant // bucket.flips, draws.variant % bucket.flips
    assert (background > 0).float().mean().item() == pytest.approx(0.25, abs=0.03)
    assert sorted(background.unique().tolist()) == [0, 1, 2, 3, 4]
    assert flip.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert draws.dropped.float().mean().item() == pytest.approx(0.5, abs=0.03)
    assert 480 < draws.timesteps.float().mean() < 520
    plain = make(store, flips="off").step._draw(make(store, flips="off").data.buckets[0], 100)
    assert plain.variant.unique().tolist() == [0]


def test_compiled_blocks_compute_the_same_with_plain_operations(store, monkeypatch):
    compiled = []
    monkeypatch.setattr(torch.nn.Module, "compile", lambda self, *_, **__: compiled.append(type(self).__name__))
    plain, fused = make(store, compile=True), make(store)
    assert compiled == ["BasicTransformerBlock"] * 4
    assert not plain.fused
    assert len(fused.fused) == 4
    assert steps(plain, 4) == pytest.approx(steps(fused, 4), rel=1e-4)


def test_a_full_recomputation_is_what_the_setting_asks_for(store):
    setup = make(store, checkpointing="full")
    assert setup.plan.checkpointing == "full"
    assert setup.unet.down_blocks[0].gradient_checkpointing
    assert steps(setup, 2) == steps(make(store), 2)
    setup.close()
    assert not setup.unet.down_blocks[0].gradient_checkpointing
