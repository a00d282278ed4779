"""Sweep prompts: what is drawn names the trigger, what is scored does not."""

from __future__ import annotations

from charengine.config import SweepSettings
from charengine.likeness.prompts import FULL, QUICK, sweep_prompts


def test_the_trigger_is_drawn_and_never_scored() -> None:
    for prompt in sweep_prompts(SweepSettings(prompt_set="full")):
        assert "zorblax" not in prompt.to_score("robot") and "robot" in prompt.to_score("robot")
        drawn = prompt.to_draw("zorblax", "robot")
        assert ("zorblax robot" in drawn) == (prompt.kind != "class")
        assert "{" not in drawn + prompt.to_score("robot")


def test_views_on_white_are_views_and_everything_else_is_a_scene() -> None:
    kinds = {prompt.template: (prompt.kind, prompt.view) for prompt in sweep_prompts(SweepSettings(prompt_set="full"))}
    assert [kinds[text][1] for text in FULL[:3]] == ["front", "side", "back"]
    assert {kinds[text][0] for text in FULL[:3]} == {"view"}
    assert {kinds[text][0] for text in FULL[3:9]} == {"scene"}
    assert kinds[FULL[9]] == ("class", None)


def test_a_view_named_in_a_scene_chooses_the_reference_but_stays_a_scene() -> None:
    (prompt,) = sweep_prompts(SweepSettings(prompts=("{subject} from behind, walking into a forest",)))
    assert (prompt.kind, prompt.view) == ("scene", "back")


def test_the_users_prompts_replace_the_built_in_ones() -> None:
    assert len(sweep_prompts(SweepSettings())) == len(QUICK) == 4
    assert [p.template for p in sweep_prompts(SweepSettings(prompts=("{subject} asleep",)))] == ["{subject} asleep"]


def test_the_embedded_family_knows_every_word_of_the_built_in_prompts() -> None:
    from charengine.embedded.lexicon import VOCABULARY

    words = " ".join(prompt.to_score("woman") for prompt in sweep_prompts(SweepSettings(prompt_set="full")))
    assert set(words.replace(",", "").split()) <= set(VOCABULARY)
