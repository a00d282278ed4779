"""What training reads: variants, masks, size conditioning, class images."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from PIL import Image
from tiny_sdxl import FakeDiffusion, make_dataset

from charengine.config import TrainSettings
from charengine.errors import BadInput
from charengine.records import ViewRecord
from charengine.stages.train.data import class_bucket, encode_dataset, time_ids
from charengine.stages.train.sampler import groups_of_step


def encode(store, sizes=((64, 128),) * 3, side_bound=False, **changes):
    diffusion = FakeDiffusion()
    diffusion.native_area = 256 * 256
    return encode_dataset(make_dataset(store, sizes, side_bound), TrainSettings(**changes), diffusion, store), diffusion


def test_text_encoders_and_vae_are_gone_before_the_unet_arrives(store):
    _, diffusion = encode(store)
    assert diffusion.unloaded == ["text_encoders", "vae"]
    assert diffusion._unet is None


def test_flips_are_off_when_an_item_is_bound_to_one_side(store):
    assert encode(store, side_bound=False)[0].buckets[0].flips == 2
    assert encode(store, side_bound=True)[0].buckets[0].flips == 1
    assert encode(store, side_bound=True, flips="on")[0].buckets[0].flips == 2
    assert encode(store, side_bound=False, flips="off")[0].buckets[0].flips == 1


def test_a_flip_is_encoded_from_the_mirrored_picture_with_its_mask(store):
    bucket = encode(store, flips="on", masked_loss=1.0)[0].buckets[0]
    assert torch.allclose(bucket.mean[:, 1], bucket.mean[:, 0].flip(-1))
    assert torch.equal(bucket.mask[:, 1], bucket.mask[:, 0].flip(-1))
    assert not torch.equal(bucket.mean[:, 1], bucket.mean[:, 0])


def test_random_backgrounds_change_what_is_behind_the_figure_and_nothing_else(store):
    bucket = encode(store, flips="off", random_backgrounds=0.5, masked_loss=1.0)[0].buckets[0]
    assert bucket.backgrounds == 5
    figure = (bucket.mask[0, 0] == bucket.mask[0, 0].max()).expand(4, -1, -1)  # latent pixels wholly inside
    outside = (bucket.mask[0, 0] == 0).expand(4, -1, -1)
    for variant in range(1, 5):
        assert torch.allclose(bucket.mean[0, variant][figure], bucket.mean[0, 0][figure])
        assert not torch.allclose(bucket.mean[0, variant][outside], bucket.mean[0, 0][outside])


def test_a_half_masked_background_counts_half(store):
    mask = encode(store, masked_loss=0.5, flips="off")[0].buckets[0].mask[0, 0]
    assert mask.mean().item() == pytest.approx(1.0)
    assert (mask.min() / mask.max()).item() == pytest.approx(0.5)


def test_size_conditioning_tells_the_size_on_the_sheet_and_that_nothing_was_cut(store):
    ids = encode(store)[0].buckets[0].time_ids[0].tolist()  # source box 32×64 of a 64×128 bucket
    assert ids == [64, 32, 0, 0, 128, 64]


def test_size_conditioning_follows_the_crops_own_scale_also_of_views_that_0_1_0_kept(store):
    view = make_dataset(store).views.views[0]
    known = view.model_copy(update={"scale": 4.0})
    kept = {**view.model_dump(exclude={"scale"}), "facts": {"scale": 4.0, "sharpness": 9.0}}
    assert time_ids(known) == time_ids(ViewRecord.model_validate(kept)) == (32, 16, 0, 0, 128, 64)
    assert time_ids(view.model_copy(update={"scale": 1.0})) == (128, 64, 0, 0, 128, 64)


def test_squares_show_each_view_whole_in_the_middle_on_the_sheets_background(store):
    data, _ = encode(store, square=128, flips="off", masked_loss=1.0)
    cut, square = data.buckets  # a view is 64×128, its latents 8×16
    assert (square.width, square.height, square.names) == (128, 128, cut.names)
    assert square.mean.shape[-2:] == (16, 16)
    assert torch.allclose(square.mean[..., 4:12], cut.mean)
    background = square.mean[0, 0, :, 0, 0].view(4, 1, 1)
    assert torch.allclose(square.mean[0, 0, :, :, :4], background.expand(4, 16, 4))
    assert bool((square.mask[..., :4] == 0).all()) and bool((square.mask[..., 12:] == 0).all())
    assert torch.equal(square.embeds, cut.embeds)
    assert square.time_ids.tolist() == [[128, 128, 0, 0, 128, 128]] * 3


def test_squares_take_turns_with_the_views_as_they_were_cut(store):
    data, _ = encode(store, square=128)
    settings = TrainSettings(square=128)
    turns = [[group.bucket for group in groups_of_step(data, settings, seed=1, step=step)] for step in range(4)]
    assert turns == [[0], [1], [0], [1]]
    one_by_one = TrainSettings(square=128, batch=1)
    epoch = [groups_of_step(data, one_by_one, seed=1, step=step)[0] for step in range(6)]
    assert sorted((group.bucket, group.samples[0]) for group in epoch) == [(b, i) for b in (0, 1) for i in range(3)]


def test_squares_are_trained_on_but_neither_validated_with_nor_counted_as_views(store):
    data, _ = encode(store, square=128)
    assert [bucket.square for bucket in data.buckets] == [False, True]
    assert [bucket.square for bucket in data.views] == [False]


def test_a_view_without_caption_is_named(store):
    dataset = make_dataset(store)
    dataset = dataset.model_copy(update={"captions": dataset.captions[:2]})
    with pytest.raises(BadInput, match="no caption for its back view"):
        encode_dataset(dataset, TrainSettings(), FakeDiffusion(), store)


def test_latents_that_are_not_numbers_name_the_vae_setting(store):
    diffusion = FakeDiffusion()
    whole = diffusion.encode_images

    def broken(images):
        posterior = whole(images)
        posterior.mean.fill_(float("nan"))
        return posterior

    diffusion.encode_images = broken
    with pytest.raises(BadInput, match="NaN latents .* models.sdxl_vae"):
        encode_dataset(make_dataset(store), TrainSettings(), diffusion, store)


def test_class_images_join_every_step_in_equal_number_with_their_weight(store, tmp_path):
    folder = tmp_path / "women"
    folder.mkdir()
    for i, size in enumerate([(200, 200), (200, 200), (100, 400)]):
        Image.fromarray(np.full((size[1], size[0], 3), 40 * i, np.uint8)).save(folder / f"{i}.png")
    (folder / "0.txt").write_text("a woman in a garden")
    data, _ = encode(store, regularisation=str(folder), regularisation_weight=0.5, flips="off")
    classes = [bucket for bucket in data.buckets if bucket.regularisation]
    assert sorted(len(bucket) for bucket in classes) == [1, 2]
    assert all(bucket.weight.tolist() == [0.5] * len(bucket) for bucket in classes)
    settings = TrainSettings(regularisation=str(folder))
    seen = [groups_of_step(data, settings, 0, step)[-1] for step in range(4)]
    assert [len(group.samples) for group in seen] == [3, 3, 3, 3]
    assert {group.bucket for group in seen} == {1, 2}
    assert [bucket.names for bucket in data.views] == [("front", "side", "back")]


def test_a_class_image_has_the_caption_beside_it_or_the_class_noun(store, tmp_path):
    for name in ("0", "1"):
        Image.new("RGB", (200, 200), "grey").save(tmp_path / f"{name}.png")
    (tmp_path / "0.txt").write_text("a woman in a garden\n")
    data, diffusion = encode(store, regularisation=str(tmp_path))
    wanted = diffusion.encode_prompts(["a woman in a garden", "woman"])
    assert torch.equal(data.buckets[-1].embeds, wanted.embeds)
    assert torch.equal(data.buckets[-1].pooled, wanted.pooled)


def test_the_empty_caption_and_the_trigger_alone_are_kept_apart(store):
    data, diffusion = encode(store)
    empty, trigger = diffusion.encode_prompts([""]), diffusion.encode_prompts(["zorgal, woman"])
    assert torch.equal(data.empty_embeds, empty.embeds) and torch.equal(data.empty_pooled, empty.pooled)
    assert torch.equal(data.sample_prompt.embeds, trigger.embeds)
    assert torch.equal(data.sample_prompt.pooled, trigger.pooled)
    assert data.captions["side"] == "zorgal, woman, side view, standing"


def test_padding_of_a_class_image_carries_no_loss(store, tmp_path):
    Image.new("RGB", (100, 130), "red").save(tmp_path / "a.png")
    data, _ = encode(store, regularisation=str(tmp_path))
    assert data.buckets[-1].mask.min().item() == 0.0


@pytest.mark.parametrize(
    ("size", "wanted"), [((1000, 1000), (1024, 1024)), ((800, 1200), (832, 1216)), ((300, 1000), (576, 1792))]
)
def test_class_buckets_are_sdxls(size, wanted):
    assert class_bucket(size, 1024 * 1024) == wanted
