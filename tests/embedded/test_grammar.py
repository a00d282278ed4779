"""Descriptions say what the picture shows, and can be read back."""

from __future__ import annotations

import random

import pytest
import torch

from charengine.embedded.grammar import (
    STYLES,
    canonical_dict,
    describe,
    parse_prompt,
    parse_tags,
    sheet_prompt,
    unknown_words,
)
from charengine.embedded.traits import BACKGROUNDS, POSES, VIEWS, Traits, sample_traits

CHARACTERS = sample_traits(400, torch.Generator().manual_seed(11), "all")


def _picture(rng: random.Random) -> dict[str, str | None]:
    return {"view": rng.choice((None, *VIEWS)), "pose": rng.choice(POSES), "background": rng.choice(BACKGROUNDS)}


def test_canonical_tags_parse_back_exactly() -> None:
    rng = random.Random(0)
    for traits in CHARACTERS:
        picture = _picture(rng)
        tags = describe(traits, **picture, rng=rng, style="canonical")
        assert parse_tags(tags) == canonical_dict(traits, **picture), tags


def test_free_prompts_are_read_back_with_every_trait_and_side() -> None:
    rng = random.Random(1)
    for traits in CHARACTERS:
        picture = _picture(rng)
        prompt = describe(traits, **picture, rng=rng, style="prompt")
        expected = canonical_dict(traits, **picture)
        if expected["build"] == "average":
            del expected["build"]
        assert parse_prompt(prompt) == expected, prompt


def test_prompts_fit_the_text_encoders_and_use_known_words_only() -> None:
    rng = random.Random(2)
    limits = {"prompt": 60, "tags": 50, "canonical": 50, "sheet": 130}
    for traits in CHARACTERS:
        for style in STYLES:
            text = describe(traits, **_picture(rng), rng=rng, style=style)
            assert len(text.split()) <= limits[style], text
            assert unknown_words(text) == (), text


def test_a_prompt_as_a_person_writes_it_is_understood() -> None:
    prompt = (
        "A stocky orc woman with a crimson mohawk, wearing a striped navy coat and brown boots, "
        "her right hand is a hook, an eyepatch over her left eye, glowing green tattoos, from behind, running, "
        "rainy city at night"
    )
    assert parse_prompt(prompt) == {
        "species": "orc", "build": "stocky", "hair_style": "mohawk", "hair_colour": "red", "top": "coat",
        "top_colour": "blue", "pattern": "striped", "footwear": "boots", "footwear_colour": "brown",
        "right_item": "hook", "left_item": "eye patch", "tattoo": "green", "view": "back", "pose": "running",
        "background": "rainy city at night",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("prompt", "trait", "value"),
    [
        ("old pirate with a hook for a left hand", "left_item", "hook"),
        ("knight holding a sword in the right hand", "right_item", "sword"),
        ("lady in a scarlet gown on the beach", "top_colour", "red"),
        ("lady in a scarlet gown on the beach", "background", "beach at sunset"),
        ("olive skinned goblin in jeans", "bottom", "trousers"),
        ("android with silver skin", "skin", "grey"),
    ],
)
def test_synonyms_mean_their_trait(prompt: str, trait: str, value: str) -> None:
    assert parse_prompt(prompt)[trait] == value


@pytest.mark.parametrize("arm", ["a mechanical left arm", "the mechanical left arm", "a left robotic arm"])
def test_the_side_of_an_arm_stands_before_or_inside_its_name(arm: str) -> None:
    found = parse_prompt(f"a robot holding a lantern in the right hand with {arm}")
    assert (found["right_item"], found.get("left_item")) == ("lantern", "mechanical arm")


def test_unknown_words_are_named_once_in_order() -> None:
    assert unknown_words("a steampunk woman with a Zeppelin, steampunk hat") == ("steampunk", "zeppelin")


@pytest.mark.parametrize(
    ("prompt", "words"),
    [
        ("日本の女の子、elf", ("日本の女の子",)),
        ("Рыжая elf with a меч", ("рыжая", "меч")),
        ("μια an elf", ("μια",)),
        ("हिन्दी elf", ("हिन्दी",)),
        ("an elf😀 👩🏽‍🚀❤️", ("😀", "👩🏽‍🚀❤️")),
        ("a café dress", ("café",)),
        ("a cafe\u0301 dress, a cape\u0301", ("café", "capé")),
        ("an elf — with «boots» … 100% + £", ("100",)),
    ],
)
def test_unknown_words_of_any_script_are_named_whole(prompt: str, words: tuple[str, ...]) -> None:
    assert unknown_words(prompt) == words


def test_the_back_view_never_mentions_what_it_hides() -> None:
    patched = Traits.from_dict({**CHARACTERS[0].to_dict(), "right_item": "eye patch", "left_item": "none"})
    tags = describe(patched, view="back", pose="standing", background=None, rng=random.Random(0), style="canonical")
    assert "eye patch" not in tags


def test_the_sheet_prompt_names_each_side_bound_item_per_view() -> None:
    text = sheet_prompt("a woman in a red coat", "woman", {"right": "hook", "left": "eye patch"})
    assert "three views of the same woman: front view, side view, back view" in text
    assert "the right hook is on the left of the picture in the front view and on the right" in text
    assert "the left eye patch is on the right of the picture in the front view and hidden in the back view" in text


def test_dropping_parts_makes_prompts_shorter() -> None:
    def words(keep: float) -> int:
        rng = random.Random(5)
        return sum(len(describe(t, rng=rng, keep=keep).split()) for t in CHARACTERS)

    assert words(0.4) < 0.8 * words(1.0)


def test_an_unknown_style_is_refused_with_the_allowed_ones() -> None:
    with pytest.raises(ValueError, match="prompt, tags, canonical, sheet"):
        describe(CHARACTERS[0], rng=random.Random(0), style="poem")
