"""What teaches the picture model by its own pictures: it draws as users draw, and follows what eyes miss."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch

from charengine.embedded.making.clock import write_weights
from charengine.embedded.making.drawn import SCENE_WEIGHT, VARIETY_WEIGHT, VIEW_WEIGHT, DrawnStep, Wishes, train_drawn
from charengine.embedded.making.eye import NAME, OTHER, build_eye, load_eyes
from charengine.embedded.making.family import build_unet
from charengine.embedded.making.images import Writer, time_ids
from charengine.embedded.making.judge import halves
from charengine.embedded.making.run import Run
from charengine.embedded.making.scene_eye import SCENE_EYES, build_scene_eye, load_scene_eyes
from charengine.embedded.making.vae import Autoencoder, trained_vae
from charengine.embedded.traits import COLUMN, TRAITS

SIZE = (128, 64)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """A run whose source holds a whole tiny picture model with random weights, and two eyes of each kind."""
    torch.manual_seed(0)
    source, device = tmp_path_factory.mktemp("drawn"), torch.device("cpu")
    run = Run(source / "out", device, source, tiny=True, max_steps=2)
    writer, vae = Writer(run), Autoencoder("sdxl", run.sizes, device)
    modules = {
        "sdxl_unet": build_unet(run.sizes), "sdxl_text_encoder": writer.first, "sdxl_text_encoder_2": writer.second,
        "sdxl_vae": vae.model,
    }  # fmt: skip
    weights = {name: {k: p.detach() for k, p in module.named_parameters()} for name, module in modules.items()}
    write_weights(source, weights, {"sdxl_vae": vae.facts})
    write_weights(source, {name: halves(build_eye(run, name)) for name in (NAME, OTHER)})
    write_weights(source, {name: halves(build_scene_eye(run, name)) for name in SCENE_EYES})
    return run


def made(run: Run) -> tuple[DrawnStep, Any, tuple[torch.Tensor, ...]]:
    """The step, the U-Net that it draws with, and what it is called with."""
    torch.manual_seed(1)
    writer, unet = Writer(run), build_unet(run.sizes)
    step = DrawnStep(run, writer, unet, trained_vae(run, "sdxl"), load_eyes(run), load_scene_eyes(run))
    wishes = Wishes(run, writer).batch(2, SIZE)
    noise = torch.randn(2, 4, SIZE[1] // 8, SIZE[0] // 8)
    guidance = torch.tensor([3.0, 4.5]).view(-1, 1, 1, 1)
    return step, unet, (noise, guidance, *wishes, time_ids(2, SIZE, run.device), writer.tokens([""]))


def test_it_draws_what_diffusers_draws_with_eulers_method(run: Run) -> None:
    from diffusers import EulerDiscreteScheduler

    step, unet, (noise, guidance, ids, *_, sizes, nothing) = made(run)
    with torch.no_grad():
        states, pooled = step.writer.encode(ids)
        none, no = step.writer.encode(nothing)
        empty = (none.expand(2, -1, -1), no.expand(2, -1), sizes)
        drawn = step.draw(noise, (states, pooled, sizes), empty, guidance)[-1]
        scheduler = EulerDiscreteScheduler(
            beta_start=0.00085, beta_end=0.012, beta_schedule="scaled_linear", timestep_spacing="trailing"
        )
        scheduler.set_timesteps(step.steps)
        x = noise * scheduler.sigmas[0]
        for t in scheduler.timesteps:
            shown = scheduler.scale_model_input(x, t)
            told, untold = (
                unet(shown, t, s, added_cond_kwargs={"text_embeds": p, "time_ids": sizes}).sample
                for s, p in ((states, pooled), empty[:2])
            )
            x = scheduler.step(untold + guidance * (told - untold), t, x).prev_sample
    assert torch.allclose(drawn, x, atol=2e-3 * float(x.abs().max()))


def test_eyes_miss_less_after_a_step_that_follows_them(run: Run) -> None:
    step, unet, given = made(run)
    step.pull.fill_(1e5)  # nothing is learnt yet: what random eyes say is faint
    optimiser = torch.optim.SGD(unet.parameters(), lr=0.5)
    missed, weights = [], (1.0, VIEW_WEIGHT, SCENE_WEIGHT, VARIETY_WEIGHT)
    for _ in range(8):
        torch.manual_seed(7)  # the same steps of the same drawings
        step.generator.manual_seed(7)
        optimiser.zero_grad()
        missed.append(float(sum(w * x for w, x in zip(weights, step(*given), strict=True))))
        torch.nn.utils.clip_grad_norm_(unet.parameters(), 1.0)
        optimiser.step()
    assert missed[-1] < missed[0] - 1e-4


def test_eyes_and_decoder_learn_nothing(run: Run) -> None:
    step, _, given = made(run)
    step(*given)
    eyes = [*step.eyes, *(eye for eye, _ in step.scene_eyes)]
    still = [*step.vae.model.parameters(), *(p for eye in eyes for p in eye.parameters())]
    assert len(eyes) == 4 and all(p.grad is None for p in still)


def test_each_prompt_stands_there_twice_and_is_judged_by_what_it_says(
    run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    wishes, told = Wishes(run, Writer(run)), []
    say = wishes.say
    monkeypatch.setattr(wishes, "say", lambda who, *each: (told.append(each), say(who, *each))[1])
    ids, _, views, _, said, poses, scenes = wishes.batch(16, (256, 256))
    for values in (ids, views, said, poses, scenes):
        assert torch.equal(values[::2], values[1::2])
    assert len({tuple(row.tolist()) for row in ids}) == 8
    assert told == list(zip(*(v[::2].tolist() for v in (views, said, poses, scenes)), strict=True))


def test_what_is_held_counts_more_and_what_cannot_be_seen_not_at_all(run: Run) -> None:
    _, traits, views, weights, *_ = Wishes(run, Writer(run)).batch(8, (256, 256))
    held = TRAITS["right_item"].index("hook")
    for row, view, weight in zip(traits, views, weights, strict=True):
        right = int(row[COLUMN["right_item"]])
        if right == held:
            assert weight[COLUMN["right_item"]] == 4
        if right == 0:
            assert weight[COLUMN["right_item"]] == 1
        assert set(weight.tolist()) <= {0.0, 1.0, 4.0}
        if view == 2:  # nobody sees an eye patch from behind
            patch = TRAITS["right_item"].index("eye patch")
            assert right != patch or weight[COLUMN["right_item"]] == 0


def test_a_whole_training_writes_what_goes_on_from_it(run: Run) -> None:
    train_drawn(run, 10)
    rows = [json.loads(line) for line in (run.out / "drawn.jsonl").read_text().splitlines()]
    assert rows[0]["event"] == "start" and rows[0]["eyes"] == 2 and rows[0]["pull"] > 0
    assert any(row.get("event") == "done" and row["steps"] == 2 for row in rows)
    assert {p.stem for p in run.out.glob("*.safetensors")} == {
        "sdxl_unet", "sdxl_text_encoder", "sdxl_text_encoder_2",
    }  # fmt: skip


def test_without_eyes_nothing_is_trained(run: Run, tmp_path: Path) -> None:
    assert run.source is not None
    for path in run.source.glob("sdxl_*"):
        shutil.copy(path, tmp_path)
    with pytest.raises(FileNotFoundError, match="train the parts eye and scene_eye"):
        train_drawn(Run(tmp_path / "out", run.device, tmp_path, tiny=True, max_steps=1), 0.1)
