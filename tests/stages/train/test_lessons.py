"""Lessons: what they hold, what they teach, and how they take their turns."""

from __future__ import annotations

import csv
import io
from dataclasses import replace

import pytest
import torch
from tiny_sdxl import FakeDiffusion, make_dataset
from trainings import Recorder, stop_after
from trainings import train as train_in_full

from charengine.adapter.network import apply_adapter, load_adapter
from charengine.config import TrainSettings
from charengine.errors import ConfigError, StageFailed
from charengine.likeness.prompts import FULL
from charengine.models.usage import Usage
from charengine.stages.train import lessons as module
from charengine.stages.train.data import encode_dataset
from charengine.stages.train.lessons import FILE, POSES, SCENES, draw_lessons, kept_lessons
from charengine.stages.train.loop import TrainingStopped
from charengine.stages.train.sampler import LESSONS, groups_of_step
from charengine.stages.train.setup import Setup
from charengine.stages.train.step import predict
from charengine.store import Store

STEPS = 5  # passes of a picture
TRAITS = ("blue coat", "red hair")
WORDS = "a woman with red hair in a blue coat"


@pytest.fixture(autouse=True)
def _few_passes(monkeypatch):
    monkeypatch.setattr(module, "STEPS", STEPS)


def train(store, folder, **changes):
    """A short training, with a lesson in every second step if it is told the description."""
    quick = {"steps": 6, "checkpoints": 1, "validate_every": 0}
    return train_in_full(store, folder, **{**quick, **changes})


def drawn(store, diffusion=None, **changes):
    settings = TrainSettings(**{"distill": 3, "distill_size": 64, **changes})
    return draw_lessons(make_dataset(store), TRAITS, settings, diffusion or FakeDiffusion(), seed=3)


class Reading(FakeDiffusion):
    """Remembers the prompts."""

    def encode_prompts(self, prompts):
        self.read = list(prompts)
        return super().encode_prompts(prompts)


def test_the_base_is_told_the_description_and_the_adapter_the_trigger_of_the_same_scene(store):
    diffusion = Reading()
    drawn(store, diffusion)
    described, bare, triggered, said = (diffusion.read[i * 3 : i * 3 + 3] for i in range(4))
    assert diffusion.read[12:] == [""]
    ends = [one.removeprefix("woman, ") for one in bare]
    assert described == [f"woman, blue coat, red hair, {end}" for end in ends]
    assert triggered == [f"zorgal woman, {end}" for end in ends]
    assert said == [f"zorgal woman, blue coat, red hair, {end}" for end in ends]
    assert len(set(ends)) == 3


def test_a_base_that_was_taught_few_words_is_told_the_description_in_those(store):
    diffusion = Reading()
    diffusion.usage = Usage(few_words="2")
    settings = TrainSettings(distill=1, distill_size=64)
    draw_lessons(make_dataset(store), ("green cloak", "no hat", "red hair"), settings, diffusion, seed=3)
    told, bare, triggered, said = diffusion.read[:4]
    end = bare.removeprefix("woman, ")
    assert told == f"woman, green robe, red hair, {end}"
    assert triggered == f"zorgal woman, {end}" and said == f"zorgal {told}"


def test_the_scene_is_read_however_long_the_description_is(store):
    diffusion = Reading()
    many = tuple(f"thing number {number}" for number in range(40))
    draw_lessons(make_dataset(store), many, TrainSettings(distill=1, distill_size=64), diffusion, seed=3)
    told, bare = diffusion.read[:2]
    assert told.startswith("woman, thing number 0, ") and told.endswith(bare.removeprefix("woman, "))
    assert diffusion.count_tokens(told) <= 75


def test_scenes_and_poses_that_a_sweep_judges_by_are_left_to_it():
    judged = " ".join(template for template in FULL if "{subject}" in template and "white" not in template)
    assert not [words for words in (*POSES, *SCENES) if words in judged]


@pytest.mark.parametrize("emphasis", [0.0, 1.5])
def test_wanted_is_what_the_base_predicts_by_the_words_taken_further_by_the_emphasis(store, emphasis):
    diffusion = Reading()
    lessons = drawn(store, diffusion, distill_emphasis=emphasis)
    read = diffusion.read
    assert len(lessons.noisy) == 3 * STEPS
    for row in (0, 4, 3 * STEPS - 1):
        picture = int(lessons.picture[row])
        text = diffusion.encode_prompts([read[picture], read[3 + picture], read[12]])
        inputs = lessons.noisy[row].expand(3, -1, -1, -1), lessons.timesteps[row].expand(3)
        with torch.no_grad():
            words, bare, negative = predict(
                diffusion.unet(), *inputs, text.embeds, text.pooled, lessons.time_ids.expand(3, -1)
            )
        assert torch.allclose(lessons.wanted[0, row], words + emphasis * (words - bare), atol=1e-5)
        assert torch.allclose(lessons.wanted[1, row], negative, atol=1e-5)


def test_an_error_counts_by_how_much_the_words_change_at_its_timestep(store):
    lessons = drawn(store)
    effect = (lessons.wanted[0] - lessons.wanted[1]).square().mean((1, 2, 3)).reshape(STEPS, 3).mean(1)
    assert torch.allclose(lessons.weight.reshape(STEPS, 3), (effect.mean() / effect)[:, None].expand(-1, 3))


def test_what_is_told_has_its_own_words_and_its_share(store):
    diffusion = Reading()
    lessons = drawn(store, diffusion)
    index, told = lessons.choose(4000, torch.Generator().manual_seed(1))
    shares = [float((told == kind).float().mean()) for kind in range(3)]
    assert shares == pytest.approx([0.6, 0.25, 0.15], abs=0.03)
    assert set(index.tolist()) == set(range(3 * STEPS))
    triggered, said, negative = (
        FakeDiffusion().encode_prompts(diffusion.read[first:end]) for first, end in ((6, 9), (9, 12), (12, 13))
    )
    assert torch.equal(lessons.embeds[0], triggered.embeds) and torch.equal(lessons.pooled[0], triggered.pooled)
    assert torch.equal(lessons.embeds[1], said.embeds) and torch.equal(lessons.pooled[1], said.pooled)
    assert torch.equal(lessons.embeds[2], negative.embeds.expand(3, -1, -1))


def test_a_base_that_answers_with_no_numbers_teaches_nothing_and_is_named(store):
    """Else the first step's loss would be NaN, and the advice a lower learning rate."""
    diffusion = FakeDiffusion()
    with torch.no_grad():
        diffusion.unet().conv_out.weight.fill_(float("nan"))
    with pytest.raises(StageFailed, match=r"models\.sdxl\) is damaged, or too much for float32"):
        drawn(store, diffusion)


def test_every_second_step_takes_lessons_and_no_view_loses_its_turn(store):
    diffusion = FakeDiffusion()
    settings = TrainSettings(distill=3, distill_size=64, distill_batch=4, batch=1)
    data = replace(encode_dataset(make_dataset(store), settings, diffusion, store), lessons=drawn(store))
    groups = [groups_of_step(data, settings, seed=1, step=step) for step in range(12)]
    assert all(len(step) == 1 and step[0].bucket == LESSONS for step in groups[1::2])
    assert all(len(step[0].samples) == 4 for step in groups[1::2])
    seen = [step[0].samples[0] for step in groups[::2]]
    assert sorted(seen[:3]) == sorted(seen[3:]) == [0, 1, 2]


def test_the_trigger_learns_what_the_words_bring_and_the_negative_prompt_keeps_what_it_brought(store, tmp_path):
    lessons = drawn(store, distill=2)
    rows = torch.arange(len(lessons.noisy))

    def distances(**changes):
        made = train(
            store, tmp_path / str(len(changes)), description=WORDS, steps=40, rank=8, learning_rate=0.02, **changes
        )
        unet, found = FakeDiffusion().unet(), []
        apply_adapter(unet, store.get(made.checkpoints[-1].adapter), 1.0)
        for kind, wanted in ((0, 0), (1, 0), (2, 1)):
            text = lessons.embeds[kind, lessons.picture[rows]], lessons.pooled[kind, lessons.picture[rows]]
            with torch.no_grad():
                ids = lessons.time_ids.expand(len(rows), -1)
                predicted = predict(unet, lessons.noisy[rows], lessons.timesteps[rows], *text, ids)
            found.append(float((predicted - lessons.wanted[wanted, rows]).square().mean()))
        return found

    taught = distances(distill=2, distill_size=64)
    untaught = distances()
    assert all(after < 0.7 * before for after, before in zip(taught, untaught, strict=True))


def test_a_fresh_adapter_errs_by_what_the_words_bring_and_nowhere_by_the_negative_prompt(store):
    """Fresh, it is the base model, whose own prediction by the negative prompt is what it should keep."""
    settings, diffusion = TrainSettings(distill=2, distill_size=64, rank=4), FakeDiffusion()
    lessons = drawn(store, diffusion, distill=2, distill_emphasis=0.5)
    data = replace(encode_dataset(make_dataset(store), settings, diffusion, store), lessons=lessons)
    setup = Setup(diffusion, settings, data, 1, None, fresh=True)
    rows = torch.tensor([1, 2, 5, 8])
    with torch.no_grad():
        by_kind = [setup.step._lesson_loss(lessons, rows, torch.full((4,), kind)) for kind in range(3)]
        for kind in (0, 1):
            text = lessons.embeds[kind, lessons.picture[rows]], lessons.pooled[kind, lessons.picture[rows]]
            ids = lessons.time_ids.expand(4, -1)
            predicted = predict(setup.unet, lessons.noisy[rows], lessons.timesteps[rows], *text, ids)
            error = (predicted - lessons.wanted[0, rows]).square().mean((1, 2, 3)) * lessons.weight[rows]
            assert torch.allclose(by_kind[kind], error, rtol=1e-4)
    setup.close()
    assert float(by_kind[2].max()) < 1e-6 < 1e-4 < float(by_kind[0].min())


def test_groups_too_large_for_memory_are_learnt_in_parts_to_the_same_adapter(store, tmp_path, monkeypatch):
    from charengine.stages.train import step as step_module

    whole = train(store, tmp_path / "whole", description=WORDS, distill=2, distill_size=64, steps=2)
    build = step_module.TrainStep.__init__

    def in_parts(self, *args, **more):
        build(self, *args, **{**more, "micro_batch": 2})

    monkeypatch.setattr(step_module.TrainStep, "__init__", in_parts)
    parts = train(store, tmp_path / "parts", description=WORDS, distill=2, distill_size=64, steps=2)
    first, second = (load_adapter(store.get(one.checkpoints[-1].adapter))[0] for one in (whole, parts))
    assert all(torch.allclose(first[key].float(), second[key].float(), atol=2e-3) for key in first)


def test_without_a_trait_in_the_description_nothing_is_drawn_and_squares_are_shown(store, tmp_path, monkeypatch):
    monkeypatch.setattr(FakeDiffusion, "trace", None)
    tracker = Recorder()
    train(store, tmp_path / "state", description="zorgal woman", tracker=tracker, distill=2, square=128)
    assert not tracker.steps("train/lesson_loss")
    assert not (tmp_path / "state" / FILE).exists()


def test_losses_of_lessons_and_of_views_are_told_apart_once_each(store, tmp_path):
    tracker = Recorder()
    taught = {"description": WORDS, "distill": 2, "distill_size": 64}
    for stop in (3, 2):
        with pytest.raises(TrainingStopped):
            train(store, tmp_path / "state", tracker=tracker, should_stop=stop_after(stop), **taught)
    record = train(store, tmp_path / "state", tracker=tracker, **taught)
    assert tracker.steps("train/loss") == [1, 3, 5]
    assert tracker.steps("train/lesson_loss") == [2, 4, 6]
    assert tracker.steps("train/learning_rate") == list(range(1, 7))
    rows = list(csv.DictReader(io.StringIO(store.get(record.curve).decode())))
    assert [bool(row["loss"]) for row in rows] == [bool(row["smoothed"]) for row in rows] == [True, False] * 3
    assert [bool(row["lesson_loss"]) for row in rows] == [False, True] * 3
    views = [float(row["loss"]) for row in rows[::2]]
    assert float(rows[-2]["smoothed"]) == pytest.approx(sum(views) / len(views))
    assert record.checkpoints[-1].loss == pytest.approx(sum(views) / len(views))


def test_lessons_begun_with_are_kept_and_those_of_other_settings_are_not_taken(store, tmp_path, monkeypatch):
    made = drawn(store)
    cpu = torch.device("cpu")
    first = kept_lessons(tmp_path, "a", cpu, Store(tmp_path / "store"), lambda: made)

    def again():
        raise AssertionError("drawn again")

    second = kept_lessons(tmp_path, "a", cpu, Store(tmp_path / "store"), again)
    assert all(torch.equal(first.tensors()[name], tensor) for name, tensor in second.tensors().items())
    with pytest.raises(AssertionError, match="drawn again"):
        kept_lessons(tmp_path, "b", cpu, Store(tmp_path / "store"), again)
    (tmp_path / FILE).write_bytes(b"half")
    with pytest.raises(AssertionError, match="drawn again"):
        kept_lessons(tmp_path, "a", cpu, Store(tmp_path / "store"), again)


class Told(FakeDiffusion):
    """Says each pass, as the real one does."""

    def trace(self, *args, steps, on_pass, **how):
        for done in range(1, steps + 1):
            on_pass(done, steps)
        return super().trace(*args, steps=steps, **how)


def test_while_lessons_are_drawn_it_is_told_how_far_they_are_and_a_stop_ends_them(store, tmp_path):
    taught = {"description": WORDS, "diffusion": Told(), "distill": 2, "distill_size": 64}
    seen = []
    with pytest.raises(TrainingStopped, match="before the first of 6 steps"):
        train(store, tmp_path / "state", on_step=seen.append, should_stop=stop_after(3), **taught)
    assert [one.step for one in seen] == [0, 0] and seen[-1].doing.endswith("40 % done")
    assert not (tmp_path / "state" / FILE).exists()
    assert train(store, tmp_path / "state", **taught).steps == 6


def test_another_description_does_not_continue_a_training(store, tmp_path):
    taught = {"distill": 2, "distill_size": 64}
    with pytest.raises(TrainingStopped):
        train(store, tmp_path / "state", description=WORDS, should_stop=stop_after(4), **taught)
    seen = []
    train(store, tmp_path / "state", description="a woman in a red hat", on_step=seen.append, **taught)
    assert seen[0].step == 1


def test_the_base_is_loaded_anew_where_it_must_be_made_smaller_before_it_meets_the_gpu(store, tmp_path):
    diffusion = FakeDiffusion()
    train(store, tmp_path / "a", diffusion=diffusion, description=WORDS, distill=2, distill_size=64)
    assert "unet" not in diffusion.unloaded
    train(store, tmp_path / "b", diffusion=diffusion, description=WORDS, distill=2, distill_size=64, fp8_base=True)
    assert diffusion.unloaded.index("unet") > diffusion.unloaded.index("vae")


def test_the_number_of_lessons_a_step_is_a_setting(store, tmp_path):
    few, many = (
        train(store, tmp_path / str(count), description=WORDS, distill=2, distill_size=64, distill_batch=count)
        for count in (1, 6)
    )
    assert (few.facts["samples"], many.facts["samples"]) == (6 / 2 * (3 + 1), 6 / 2 * (3 + 6))
    assert few.checkpoints[-1].adapter != many.checkpoints[-1].adapter
    assert module.WEIGHT > 1


def test_sizes_that_no_latent_has_are_refused():
    with pytest.raises((ConfigError, ValueError), match="distill_size"):
        TrainSettings(distill_size=100)
