"""What a prompt leaves out is made up from the seed; what it says is kept."""

from __future__ import annotations

import pytest
import torch

from charengine.embedded.completion import complete_prompt, described, filled_in
from charengine.embedded.grammar import canonical_dict, parse_prompt, unknown_words
from charengine.embedded.traits import sample_traits

WHOLE = "an orc woman with long red hair and green skin, in a blue coat, black trousers and brown boots, a hook for a right hand"
SKETCHES = (
    "a knight in grey armour with a sword in his right hand and a shield in his left hand",
    "pirate, black coat, eye patch on the left eye, hook for a right hand",
    "a girl with pink braids, yellow dress with dots",
    "goblin in a green hood, barefoot",
    "a robot with a mechanical left arm",
    "a skeleton with a crown",
    "a tall woman with curly red hair, glowing blue tattoos",
)


def test_a_prompt_that_says_everything_is_used_as_written():
    assert complete_prompt(WHOLE, 42).text == WHOLE
    assert complete_prompt(WHOLE, 42).made_up == ()


@pytest.mark.parametrize("prompt", SKETCHES)
@pytest.mark.parametrize("seed", range(5))
def test_everything_a_prompt_names_is_kept_and_the_rest_named_once(prompt, seed):
    found = complete_prompt(prompt, seed)
    wanted, said = parse_prompt(prompt), parse_prompt(found.text)
    assert {name: said.get(name) for name in wanted} == wanted
    assert {"species", "skin", "hair_style", "top", "top_colour"} <= said.keys()
    assert found.made_up
    assert not unknown_words(found.text)
    for item in ("right_item", "left_item", "headgear", "tattoo"):
        assert (item in said) == (item in wanted)  # nobody is given a sword or a hat


def test_the_seed_chooses_and_the_same_seed_chooses_the_same():
    assert complete_prompt("a woman in a coat", 1) == complete_prompt("a woman in a coat", 1)
    assert len({complete_prompt("a woman in a coat", seed).text for seed in range(8)}) > 4


def test_what_was_made_up_is_said_as_people_would():
    made_up = {thing for seed in range(60) for thing in complete_prompt("a man", seed).made_up}
    assert "short brown hair" in made_up
    assert "brown bun" in made_up
    assert any(thing.endswith(" boots") for thing in made_up)
    assert not any("none" in thing for thing in made_up)


@pytest.mark.parametrize("prompt", ["a robot", "an orc", "a man in a brown coat", "a woman in red shoes"])
def test_what_is_made_up_can_be_told_from_the_skin_and_from_what_else_is_worn(prompt):
    for seed in range(30):
        said = parse_prompt(complete_prompt(prompt, seed).text)
        worn = [said[name] for name in ("top_colour", "bottom_colour", "footwear_colour") if said.get(name)]
        skin = said["skin"].replace("dark", "brown")
        assert len({skin, *worn}) == 1 + len(worn)
        assert said.get("hair_colour") != skin


def test_what_is_seen_of_a_whole_character_is_told_in_a_sentence_that_is_read_back():
    for traits in sample_traits(40, torch.Generator().manual_seed(9)):
        for view in ("front", "side", "back", None):
            seen = {name: value for name, value in canonical_dict(traits, view=view).items() if name != "view"}
            told = parse_prompt(described(seen))
            assert {"build": "average", **told} == {"build": "average", **seen}, described(seen)


def test_what_is_seen_of_a_part_of_a_character_is_told_in_tags():
    assert described({"species": "orc", "skin": "green", "pose": "running"}) == "orc, green skin"
    assert described({}) == ""


def test_a_sentence_is_filled_in_from_what_is_seen_and_what_it_names_wins():
    seen = "a green skinned orc woman with long red hair, wearing a yellow tunic, black trousers and brown boots"
    found = filled_in("an orc woman in a blue coat", seen)
    said = parse_prompt(found.text)
    assert (said["top"], said["top_colour"], said["hair_style"], said["bottom"]) == ("coat", "blue", "long", "trousers")
    assert "long red hair" in found.made_up and not any("tunic" in thing or "coat" in thing for thing in found.made_up)


@pytest.mark.parametrize(
    ("prompt", "unseen"),
    [
        ("a man in a red robe", "bottom"),
        ("a bald man in a red coat", "hair_colour"),
        ("a barefoot man", "footwear_colour"),
    ],
)
def test_what_the_sentence_leaves_no_room_for_is_not_filled_in(prompt, unseen):
    seen = "a tall man with long black hair, wearing a green shirt, blue trousers and red boots"
    assert unseen not in parse_prompt(filled_in(prompt, seen).text)


def test_a_sentence_that_says_everything_stays_as_it_was_written():
    assert filled_in(WHOLE, "an orc woman with green skin, in a blue coat, with red hair").text == WHOLE
