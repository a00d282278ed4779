"""The vocabulary, its samples and the held-out split."""

from __future__ import annotations

import torch

from charengine.embedded.traits import (
    COLUMN,
    TRAITS,
    Traits,
    as_indices,
    from_indices,
    is_heldout,
    is_untouched,
    sample_indices,
    sample_traits,
    visible,
    visible_mask,
)


def _combinations(indices: torch.Tensor) -> set[tuple[int, ...]]:
    columns = [COLUMN[name] for name in ("species", "hair_colour", "top", "top_colour")]
    return set(map(tuple, indices[:, columns].tolist()))


def test_heldout_combinations_never_occur_in_training_and_every_value_occurs_in_both() -> None:
    generator = torch.Generator().manual_seed(1)
    train = sample_indices(20_000, generator, "train")
    heldout = sample_indices(4_000, generator, "heldout")
    assert not _combinations(train) & _combinations(heldout)
    for indices in (train, heldout):
        for name, values in TRAITS.items():
            assert indices[:, COLUMN[name]].unique().tolist() == list(range(len(values)))


def test_untouched_combinations_occur_neither_in_training_nor_in_tuning() -> None:
    generator = torch.Generator().manual_seed(6)
    splits = {name: _combinations(sample_indices(4_000, generator, name)) for name in ("train", "heldout", "untouched")}
    assert not splits["untouched"] & (splits["train"] | splits["heldout"])
    assert len(splits["untouched"]) > 80
    untouched = sample_indices(4_000, generator, "untouched")
    assert is_untouched(untouched).all() and is_heldout(untouched).all()
    for name, values in TRAITS.items():
        assert untouched[:, COLUMN[name]].unique().tolist() == list(range(len(values)))
    everyone = sample_indices(40_000, generator, "all")
    assert 0.015 < is_untouched(everyone).float().mean() < 0.04


def test_about_a_tenth_of_all_characters_is_held_out() -> None:
    indices = sample_indices(20_000, torch.Generator().manual_seed(2), "all")
    assert 0.08 < is_heldout(indices).float().mean() < 0.12


def test_traits_survive_the_round_trip_through_indices_and_dictionaries() -> None:
    characters = sample_traits(50, torch.Generator().manual_seed(3))
    assert from_indices(as_indices(characters)) == characters
    assert [Traits.from_dict(c.to_dict()) for c in characters] == characters


def test_dependent_traits_agree_in_every_sample() -> None:
    for c in sample_traits(2_000, torch.Generator().manual_seed(4), "all"):
        assert (c.hair_style == "bald") == (c.hair_colour == "none")
        assert (c.top in ("robe", "dress")) == (c.bottom == "none") == (c.bottom_colour == "none")
        assert (c.footwear == "barefoot") == (c.footwear_colour == "none")
        assert not (c.right_item == c.left_item == "eye patch")


def test_an_eye_patch_is_not_visible_from_behind_and_the_far_hand_not_from_the_side() -> None:
    base = sample_traits(1, torch.Generator().manual_seed(5))[0].to_dict()
    c = Traits.from_dict({**base, "right_item": "eye patch", "left_item": "sword"})
    assert [visible("right_item", c, view) for view in ("front", "side", "back")] == [True, True, False]
    assert [visible("left_item", c, view) for view in ("front", "side", "back")] == [True, False, True]
    mask = visible_mask(as_indices([c] * 3), torch.arange(3))
    assert mask[:, COLUMN["right_item"]].tolist() == [True, True, False]
