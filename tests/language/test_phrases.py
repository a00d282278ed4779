"""A description is taken apart into its traits: none lost, none made up."""

from __future__ import annotations

import random

import pytest
import torch

from charengine.embedded import grammar
from charengine.embedded.traits import from_indices, sample_indices
from charengine.language.naming import derive_class_noun
from charengine.language.phrases import trait_phrases, without_repeats

DESCRIPTIONS = {
    "a green skinned orc woman with long red hair, a blue coat, black trousers, brown boots and a hook for a right hand": (
        "green skinned", "long red hair", "blue coat", "black trousers", "brown boots", "hook for a right hand",
    ),
    "an old wizard in a purple robe with silver stars, a long white beard, holding a glowing staff, standing in a forest": (
        "old", "purple robe with silver stars", "long white beard", "holding a glowing staff",
    ),
    "a young woman with freckles and green eyes, wearing a leather jacket over a white shirt, her left arm is mechanical": (
        "young", "freckles", "green eyes", "leather jacket over a white shirt", "her left arm is mechanical",
    ),
    "tall deep blue robot, carrying a sword with the left hand, bare feet": (
        "tall", "deep blue robot", "carrying a sword with the left hand", "bare feet",
    ),
    "an orc woman, hair: long and red, coat colour: blue, weapon: sword": ("long red hair", "blue coat", "sword"),
    "a woman with green, not blue eyes, in a red coat rather than a robe": ("green eyes", "red coat"),
    "a girl without any shoes, who lost her hat and gloves": ("no shoes", "no hat or gloves"),
    "a red goblin": ("red goblin",),
    "a robot": (),
}  # fmt: skip


@pytest.mark.parametrize("description", DESCRIPTIONS)
def test_a_description_is_taken_apart_in_its_own_words_without_pose_place_and_class_noun(description: str) -> None:
    assert trait_phrases(description, derive_class_noun(description)) == DESCRIPTIONS[description]


def test_what_descriptions_state_is_stated_by_their_phrases() -> None:
    stated, kept = 0, 0
    for index, traits in enumerate(from_indices(sample_indices(200, torch.Generator().manual_seed(5), "train"))):
        text = grammar.describe(traits, rng=random.Random(index), style="prompt")
        noun = derive_class_noun(text)
        found: dict[str, str] = {}
        for words in (*trait_phrases(text, noun), noun):
            found = grammar.parse_prompt(words) | found
        whole = grammar.parse_prompt(text)
        stated += len(whole)
        kept += sum(found.get(name) == value for name, value in whole.items())
    assert kept / stated >= 0.99


@pytest.mark.parametrize(
    ("phrases", "said"),
    [
        ("red hair, green skin, curly red hair", "green skin, curly red hair"),
        ("red-haired, blue coat, red braids", "blue coat, red braids"),
        ("blue coat, long blue coat with brass buttons, brass buttons", "long blue coat with brass buttons"),
        ("boots, brown boots, hook for a right hand, hook", "brown boots, hook for a right hand"),
        ("green skinned, green skin", "green skinned"),
        ("curly red hair, red curly hair, red hair", "curly red hair"),
    ],
)
def test_what_a_longer_phrase_says_too_is_not_said_again(phrases: str, said: str) -> None:
    assert ", ".join(without_repeats(phrases.split(", "))) == said


@pytest.mark.parametrize(
    "phrases",
    [
        ("green skin", "green scarf"),
        ("red hair", "red hair ribbon", "long red beard", "blonde braids", "short brown hair"),
        ("green eyes", "green eye patch"),
        ("sword with the left hand", "sword with the right hand"),
        ("brown belt", "coat with brown buttons"),
    ],
)
def test_another_thing_with_the_same_words_is_still_said(phrases: tuple[str, ...]) -> None:
    assert without_repeats(phrases) == phrases
