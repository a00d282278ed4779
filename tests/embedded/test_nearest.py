"""Everyday words find their nearest in the embedded family's vocabulary; what a prompt says is not there is not drawn."""

from __future__ import annotations

import random

import pytest
import torch

from charengine.embedded.completion import complete_prompt
from charengine.embedded.grammar import STYLES, VOCABULARY, describe, in_known_words, parse_prompt, unknown_words
from charengine.embedded.nearest import _NEAREST
from charengine.embedded.shades import in_its_shades
from charengine.embedded.traits import from_indices, sample_indices


@pytest.mark.parametrize(
    ("prompt", "traits"),
    [
        ("a woman in a yellow raincoat", {"top": "coat", "top_colour": "yellow"}),
        ("a man in a black cloak", {"top": "robe", "top_colour": "black"}),
        ("a man in a grey suit", {"top": "coat", "top_colour": "grey"}),
        ("a robot in gold armour", {"top": "armour", "top_colour": "yellow"}),
        ("a woman with gold hair", {"hair_colour": "blonde"}),
        ("an orc with red gloves", {"top": "shirt", "top_colour": "red"}),
        ("an orc in a blue coat with red gloves", {"top": "coat", "top_colour": "blue"}),
        ("an elf in white T-shirts and teal leggings", {"top_colour": "white", "bottom": "trousers", "bottom_colour": "blue"}),
        ("a man with a black top hat and brown sandals", {"headgear": "hat", "headgear_colour": "black", "footwear": "shoes"}),
        ("a samurai with a katana in his left hand", {"species": "man", "left_item": "sword"}),
        ("a female astronaut in a white space suit", {"species": "woman", "top": "armour", "top_colour": "white"}),
        ("Astronaut", {"species": "man"}),
    ],
)  # fmt: skip
def test_an_everyday_word_is_read_as_its_nearest_with_its_colour(prompt: str, traits: dict[str, str]) -> None:
    found = parse_prompt(prompt)
    assert {name: found.get(name) for name in traits} == traits
    assert unknown_words(prompt) == () and in_known_words(prompt).changed


@pytest.mark.parametrize(
    ("prompt", "said", "traits"),
    [
        ("an elf with long silver hair", "silver hair as white hair", {"hair_colour": "white", "hair_style": "long"}),
        ("a purple-haired woman", "purple haired as pink haired", {"hair_colour": "pink"}),
        ("a man with an orange mohawk", "orange mohawk as red mohawk", {"hair_colour": "red", "hair_style": "mohawk"}),
        ("a girl, hair: yellow", "yellow hair as blonde hair", {"hair_colour": "blonde"}),
        ("a girl in a pink quilted coat", "pink coat as red coat", {"top": "coat", "top_colour": "red"}),
        ("a man in rose trousers and lime boots", "rose trousers as red trousers", {"bottom_colour": "red", "footwear_colour": "blue"}),
        ("a woman in grey shoes", "grey shoes as white shoes", {"footwear_colour": "white"}),
        ("a man in a mustard pointed hat", "mustard pointed hat as brown pointed hat", {"headgear": "pointed hat", "headgear_colour": "brown"}),
        ("an orc with purple skin and a black tattoo", "black tattoo as blue tattoo", {"skin": "blue", "tattoo": "blue"}),
        ("an orange goblin", "orange goblin as red goblin", {"skin": "red"}),
        ("a catgirl in a pink and grey coat", None, {"top_colour": "grey"}),
        ("a woman with pink hair, a green coat", None, {"hair_colour": "pink", "top_colour": "green"}),
    ],
)  # fmt: skip
def test_a_colour_that_a_part_never_had_is_the_nearest_it_has_and_said(
    prompt: str, said: str | None, traits: dict[str, str]
) -> None:
    found, known = parse_prompt(prompt), in_known_words(prompt)
    assert {name: found.get(name) for name in traits} == traits
    assert (said in known.changed) if said else not known.changed
    assert in_known_words(known.text).text == known.text


def test_no_sentence_the_family_was_taught_gets_another_colour() -> None:
    people = from_indices(sample_indices(400, torch.Generator().manual_seed(5)))
    told = [describe(one, rng=random.Random(7), style=style) for one in people for style in STYLES]
    assert [text for text in told if in_its_shades(text, {}) != text] == []


@pytest.mark.parametrize(
    ("prompt", "traits"),
    [
        ("an orc in a red coat, no shoes", {"top": "coat", "footwear": "barefoot"}),
        ("an orc without shoes or a hat", {"footwear": "barefoot", "headgear": None}),
        ("an orc without a hat", {"headgear": None}),
        ("an orc w/o a hat, with out shoes", {"headgear": None, "footwear": "barefoot"}),
        ("a man who isn’t wearing a hat and doesn’t wear shoes", {"headgear": None, "footwear": "barefoot"}),
        ("a woman with no hair, wearing blue boots", {"hair_style": "bald", "footwear": "boots"}),
        ("a woman who isn't wearing a red hat, in a green robe", {"headgear": None, "headgear_colour": None, "top": "robe"}),
        ("a man with a shield in his left hand, without a sword in his right hand", {"left_item": "shield", "right_item": None}),
        ("a man, no cape and no sandals", {"top": None, "footwear": "barefoot"}),
        ("a robot without any tattoos", {"tattoo": None}),
        ("a girl in a dress with no polka dots", {"top": "dress", "pattern": None}),
        ("a no-nonsense woman with a hat", {"species": "woman", "headgear": "hat"}),
        ("an orc with neither a hat nor shoes, in a red coat", {"headgear": None, "footwear": "barefoot", "top": "coat"}),
        ("a woman, never a sword", {"right_item": None, "left_item": None}),
        ("a man minus his hat", {"species": "man", "headgear": None}),
        ("an orc not holding a sword", {"species": "orc", "right_item": None}),
        ("a robot that doesn't have a shield", {"right_item": None, "left_item": None}),
        ("not a woman but a man", {"species": "man"}),
        ("a knight who lost his sword and his shield, helmet off", {"right_item": None, "left_item": None, "headgear": None}),
        ("a hatless girl, her shoes removed, in a red dress", {"headgear": None, "footwear": "barefoot", "top_colour": "red"}),
        ("an orc, hat: none, hair: long, red, coat: blue", {"headgear": None, "hair_colour": "red", "hair_style": "long", "top_colour": "blue"}),
        ("a woman not in a red coat but a dress that is blue", {"top": "dress", "top_colour": "blue"}),
        ("a man in a red coat rather than a robe, a crown, not a hat", {"top": "coat", "top_colour": "red", "headgear": "crown"}),
        ("a pirate with a lost look, the lost sword and a hook instead of his left hand", {"right_item": "sword", "left_item": "hook"}),
        ("a man without a hat and with black boots", {"headgear": None, "footwear": "boots", "footwear_colour": "black"}),
    ],
)  # fmt: skip
def test_what_is_not_there_is_not_drawn(prompt: str, traits: dict[str, str | None]) -> None:
    found = parse_prompt(prompt)
    assert {name: found.get(name) for name in traits} == traits
    for seed in range(5):  # nor when the rest is made up
        made = parse_prompt(complete_prompt(prompt, seed).text)
        assert {name: made.get(name) for name in traits if name not in ("top", "headgear_colour")} == {
            name: value for name, value in traits.items() if name not in ("top", "headgear_colour")
        }


@pytest.mark.parametrize(
    ("prompt", "skin"),
    [
        ("a green orc woman in a blue coat", "green"),
        ("the tall green goblin", "green"),
        ("a green, hooded goblin in a red coat", None),  # said of nothing
        ("a red demon", "red"),
        ("a grey wolf with a sword in his left hand", "grey"),
        ("a steel robot", "grey"),
        ("a blue and white robot", "white"),
        ("a light blue alien", "blue"),
        ("an alien with dark green skin", "green"),
        ("a man with dark brown skin", "dark"),
        ("a pale girl in red shoes", "pale"),
        ("a white woman", "pale"),
        ("a black woman", "dark"),
        ("a green orc with grey skin", "grey"),
        ("a red headed woman", None),
        ("a blue-eyed girl", None),
        ("a red haired woman", None),
        ("a black ninja", None),
        ("the green knight", None),
        ("a green hooded goblin", None),
        ("a purple alien", "blue"),
        ("a tall yellow robot", "tan"),
    ],
)  # fmt: skip
def test_a_colour_before_a_species_is_its_skins_and_before_a_part_of_it_is_not(prompt: str, skin: str | None) -> None:
    assert parse_prompt(prompt).get("skin") == skin
    made = parse_prompt(complete_prompt(prompt, 3).text)
    assert made["skin"] == skin if skin else made["skin"]


@pytest.mark.parametrize(
    ("prompt", "hair"),
    [
        ("a blonde woman", "blonde"),
        ("a blonde elf", "blonde"),
        ("a ginger man", "red"),
        ("a redhead", "red"),
        ("a red-headed woman", "red"),
        ("a brunette girl", "brown"),
    ],
)
def test_what_is_said_of_a_person_may_be_the_hairs_colour(prompt: str, hair: str) -> None:
    found = parse_prompt(prompt)
    assert found["hair_colour"] == hair and "skin" not in found


def test_no_ponytail_is_another_hair() -> None:
    assert "hair_style" not in parse_prompt("a woman with no ponytail")
    assert parse_prompt("a woman with short hair and no braids")["hair_style"] == "short"


def test_a_coats_colour_stays_its_own_whatever_stands_between() -> None:
    found = parse_prompt("an orc in a red quilted coat and a black studded hat")
    assert (found["top_colour"], found["headgear_colour"], "skin" in found) == ("red", "black", False)


def test_known_words_stay_as_they_are() -> None:
    prompt = "A King with a gold crown, in golden armour, holding a lantern"
    assert in_known_words(prompt).text == prompt and in_known_words(prompt).changed == ()
    text = in_known_words("a woman in a raincoat, no shoes").text
    assert in_known_words(text).text == text


def test_nothing_the_family_was_taught_is_replaced() -> None:
    own = {word for word in _NEAREST if set(word.split()) <= VOCABULARY}
    assert own <= {"gold", "person"}  # known in "gold crown" and "cat person" alone
    assert in_known_words("a cat person with a gold crown").changed == ()
    assert all(set(known.split()) <= VOCABULARY for known in _NEAREST.values())
