"""What a prompt leaves out is made up from the seed; what it says is kept."""

from __future__ import annotations

import pytest

from charengine.embedded.completion import complete_prompt
from charengine.embedded.grammar import parse_prompt, unknown_words

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
