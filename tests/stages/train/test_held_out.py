"""Pictures held out from training: validated with, never learnt from."""

from __future__ import annotations

import pytest
import torch
from PIL import Image
from tiny_sdxl import _put, make_dataset
from trainings import train

from charengine.config import TrainSettings
from charengine.records import CaptionRecord, DatasetRecord, ExtraView
from charengine.stages.train.data import encode_dataset
from charengine.stages.train.sampler import groups_of_step
from charengine.stages.train.validation import Validation


def extra(store, name: str, fate: str, colour: str = "orange", size: tuple[int, int] = (64, 64)) -> ExtraView:
    image = Image.new("RGB", size, colour)
    return ExtraView(
        view=name,
        kind="pose",
        instruction="",
        tags=(),
        seed=1,
        fate=fate,
        identity=0.9,
        threshold=0.8,
        copying=0.1,
        image=_put(store, image, f"{name}.png"),
        alpha=_put(store, Image.new("L", size, 255), f"{name}-alpha.png"),
        width=size[0],
        height=size[1],
        background=None,
    )


def with_extras(store, *extras: ExtraView) -> DatasetRecord:
    dataset = make_dataset(store)
    captions = tuple(CaptionRecord(view=one.view, text=f"zorgal, woman, {one.view}") for one in extras)
    return dataset.model_copy(update={"extras": extras, "captions": (*dataset.captions, *captions)})


def test_no_step_trains_on_what_is_held_out(store, diffusion) -> None:
    dataset = with_extras(store, extra(store, "pose-1", "trained"), extra(store, "pose-2", "held out"))
    for batch in (0, 1):
        settings = TrainSettings(batch=batch)
        data = encode_dataset(dataset, settings, diffusion, store)
        groups = [group for step in range(20) for group in groups_of_step(data, settings, seed=1, step=step)]
        seen = {data.buckets[group.bucket].names[i] for group in groups for i in group.samples}
        assert seen == {"front", "side", "back", "pose-1"}
        assert [bucket.names for bucket in data.held_out] == [("pose-2",)]
        assert data.held_out[0].flips == 1 and data.buckets[0].flips == 2
        assert set(data.captions) == seen  # what the file says it was trained on


def test_the_adapter_is_the_same_byte_for_byte_whatever_is_held_out(store, tmp_path) -> None:
    learnt = extra(store, "pose-1", "trained")
    made = [
        train(store, tmp_path / name, dataset=with_extras(store, learnt, *more), steps=4, checkpoints=1)
        for name, more in (
            ("none", ()),
            ("orange", (extra(store, "pose-2", "held out"),)),
            ("blue", (extra(store, "pose-2", "held out", "blue"),)),
        )
    ]
    assert len({record.checkpoints[-1].adapter.sha256 for record in made}) == 1
    assert made[1].validation[-1].by_view["held out pose-2"] != made[2].validation[-1].by_view["held out pose-2"]
    other = with_extras(store, extra(store, "pose-1", "trained", "blue"))
    trained_on_blue = train(store, tmp_path / "other", dataset=other, steps=4, checkpoints=1)
    assert trained_on_blue.checkpoints[-1].adapter.sha256 != made[0].checkpoints[-1].adapter.sha256


def test_the_views_keep_their_validation_noise_when_pictures_join_them(store, diffusion) -> None:
    def measured(dataset: DatasetRecord) -> dict[str, float]:
        data = encode_dataset(dataset, TrainSettings(), diffusion, store)
        return Validation(diffusion.unet(), data, diffusion.alphas_cumprod(), chunk=6).measure(0).by_view

    alone = measured(make_dataset(store))
    joined = measured(with_extras(store, extra(store, "pose-1", "trained"), extra(store, "pose-2", "held out")))
    assert list(joined) == ["front", "side", "back", "pose-1", "held out pose-2"]
    assert {view: joined[view] for view in alone} == pytest.approx(alone, rel=1e-5)


def test_a_picture_of_the_views_own_size_joins_their_bucket_with_its_own_caption(store, diffusion) -> None:
    dataset = with_extras(store, extra(store, "pose-1", "trained", size=(64, 128)))
    [bucket] = encode_dataset(dataset, TrainSettings(), diffusion, store).buckets
    assert bucket.names == ("front", "side", "back", "pose-1")
    assert torch.equal(bucket.embeds[3], diffusion.encode_prompts(["zorgal, woman, pose-1"]).embeds[0])
    assert bucket.time_ids[3].tolist() == [128, 64, 0, 0, 128, 64]
