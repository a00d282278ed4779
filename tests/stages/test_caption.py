"""Captions: trigger, class noun, view, framing, what is left of the tags; the character's own traits are pruned."""

import pytest
from PIL import Image

from charengine.config import CaptionSettings, Character
from charengine.language.naming import derive_class_noun, derive_trigger, known_word_warnings
from charengine.language.traits import background_tags, colour_name, is_side_bound, trait_kinds
from charengine.models import Description
from charengine.pictures import png
from charengine.records import VIEWS, ViewRecord, ViewsRecord
from charengine.stages.caption import caption_views
from charengine.wording import TRIGGER_PATTERN

AYA = Character(
    name="Aya Brea",
    prompt="an orc woman in a blue coat, her right hand is a hook",
    class_noun="orc woman",
    trigger="ayabrix",
)
WHITE = (255, 255, 255)


class Witness:
    """A captioner that gives each view in turn its tags, and remembers the hints."""

    fingerprint = "witness"

    def __init__(self, front, side, back, facts=({}, {}, {})):
        self.answers = [Description(tags, "", fact) for tags, fact in zip((front, side, back), facts, strict=True)]
        self.hints = []

    def describe(self, image, hint=""):
        assert image.mode == "RGB"
        self.hints.append(hint)
        return self.answers[len(self.hints) - 1]

    def unload(self):
        pass


def views(store, background=WHITE):
    def one(name):
        image = store.put(png(Image.new("RGB", (128, 384), background)), f"{name}.png")
        alpha = store.put(png(Image.new("L", (128, 384), 255)), f"{name}_mask.png")
        return ViewRecord(view=name, image=image, alpha=alpha, width=128, height=384, source_box=(0, 0, 9, 9))

    records = tuple(one(name) for name in VIEWS)
    return ViewsRecord(views=records, background=background, overlay=records[0].image)


def caption(store, *tags, character=AYA, background=WHITE, facts=({}, {}, {}), **settings):
    witness = Witness(*(tags * 3 if len(tags) == 1 else tags), facts=facts)
    return caption_views(views(store, background), character, CaptionSettings(**settings), witness, store)


def texts(dataset):
    return [one.text for one in dataset.captions]


def test_captions_have_trigger_class_noun_view_framing_and_background_in_that_order(store):
    dataset = caption(store, ("standing",))
    assert texts(dataset) == [
        "ayabrix, orc woman, front view, full body, standing, simple background, white background",
        "ayabrix, orc woman, from side, profile, full body, standing, simple background, white background",
        "ayabrix, orc woman, from behind, full body, standing, simple background, white background",
    ]
    assert (dataset.trigger, dataset.class_noun) == ("ayabrix", "orc woman")


def test_traits_seen_in_most_views_are_pruned_and_recorded_the_scene_is_not(store):
    front = ("front view", "full body", "standing", "green skin", "long black hair", "red boots", "smile", "wristwatch")
    side = ("standing", "green skin", "black hair", "white background")
    back = ("standing", "long hair", "red boots", "from behind")
    dataset = caption(store, front, side, back, character=Character(name="A", prompt="an orc"))
    kept = [text.split(", full body, ")[1].split(", simple background")[0] for text in texts(dataset)]
    assert kept == ["standing, smile, wristwatch", "standing", "standing"]
    assert dataset.captions[0].pruned == ("green skin", "long black hair", "red boots")
    assert dataset.captions[0].tags == front


def test_a_trait_seen_once_is_kept_unless_the_prompt_names_it(store):
    tags = (("standing", "gold earrings", "blue coat"), ("standing",), ("standing",))
    dataset = caption(store, *tags)
    assert "gold earrings" in texts(dataset)[0] and "blue coat" not in texts(dataset)[0]
    assert dataset.captions[0].pruned == ("blue coat",)


def test_pruning_can_be_switched_off_and_tags_can_be_kept_or_dropped_by_name(store):
    tags = ("standing", "blue coat", "green skin")
    assert "blue coat, green skin" in texts(caption(store, tags, prune=False))[0]
    chosen = texts(caption(store, tags, keep=("Blue coat",), drop=("standing",)))[0]
    assert "blue coat" in chosen and "green skin" not in chosen and "standing" not in chosen


def test_a_tag_to_drop_is_found_however_it_is_spaced_and_one_that_no_view_has_is_said(store):
    tags = ("standing", "blue coat")
    dataset = caption(store, tags, keep=("blue coat", "hatt"), drop=(" Standing ", "scarf"))
    assert "standing" not in texts(dataset)[0] and "blue coat" in texts(dataset)[0]
    assert [warning for warning in dataset.warnings if "no view has" in warning] == [
        "caption.keep: no view has the tag 'hatt', so nothing was changed by it",
        "caption.drop: no view has the tag 'scarf', so nothing was changed by it",
    ]


def test_poses_with_hands_and_held_things_are_not_taken_for_traits(store):
    tags = ("hands on hips", "arms raised", "looking at viewer", "holding cup", "fighting stance")
    for tag in tags:
        assert tag in texts(caption(store, tags))[1]


def test_the_background_tag_tells_the_true_colour(store):
    assert texts(caption(store, (), background=(120, 122, 125)))[0].endswith("simple background, grey background")
    assert background_tags((250, 252, 249)) == ("simple background", "white background")
    assert [colour_name(c) for c in ((30, 200, 40), (20, 30, 200), (8, 8, 8), (230, 40, 30))] == [
        "green",
        "blue",
        "black",
        "red",
    ]


def test_class_noun_and_trigger_given_by_the_user_are_used_and_shown_to_the_captioner(store):
    witness = Witness((), (), ())
    hero = Character(name="A", prompt="a tall figure", class_noun="wraith", trigger="qorvath")
    dataset = caption_views(views(store), hero, CaptionSettings(), witness, store)
    assert texts(dataset)[0].startswith("qorvath, wraith, front view")
    assert witness.hints == ["wraith"] * 3


def test_views_are_shown_all_at_once_to_a_captioner_that_can_see_several(store):
    class Quick(Witness):
        def describe_all(self, images, hint=""):
            self.sizes = [image.size for image in images]
            return [super(Quick, self).describe(image, hint) for image in images]

        def describe(self, image, hint=""):
            raise AssertionError("one by one")

    quick = Quick(("standing",), ("sitting",), ("running",))
    dataset = caption_views(views(store), AYA, CaptionSettings(), quick, store)
    assert quick.sizes == [(128, 384)] * 3
    assert [one.tags for one in dataset.captions] == [("standing",), ("sitting",), ("running",)]


def test_captions_stay_within_75_clip_tokens_and_say_when_they_were_cut(store):
    many = tuple(
        f"ornament number {word}" for word in ("one two three four five six seven eight nine ten " * 3).split()
    )
    many = tuple(f"{tag} {i}" for i, tag in enumerate(many))
    dataset = caption(store, many)
    words = texts(dataset)[0].replace(",", " ,").split()
    assert len(words) <= 75 and texts(dataset)[0].endswith("white background")
    assert "the front caption was cut" in dataset.warnings[0]
    assert len(caption(store, many, max_tags=2).captions[0].text.split("ornament")) == 3


def test_a_captioner_that_sees_another_view_is_reported(store):
    dataset = caption(store, (), facts=({"view": "front"}, {"view": "front"}, {"view": "back"}))
    assert dataset.warnings == ("the captioner takes the side view for a front view: look at the sheet",)


def test_the_digest_follows_the_captions_and_the_pictures(store):
    plain = caption(store, ("standing",))
    assert plain.digest == caption(store, ("standing",)).digest
    assert plain.digest != caption(store, ("sitting",)).digest
    assert plain.digest != caption(store, ("standing",), background=(254, 254, 254)).digest


@pytest.mark.parametrize(
    ("prompt", "tags", "bound"),
    [
        ("an orc woman, her right hand is a hook", (), True),
        ("a pirate with an eye patch", (), True),
        ("a woman in a blue coat", ("standing", "looking left", "facing right"), False),
        ("a woman in a blue coat", ("right hand hook",), True),
        ("a man with two braids", ("front view",), False),
    ],
)
def test_flips_are_forbidden_when_anything_is_bound_to_one_side(prompt, tags, bound):
    assert is_side_bound(prompt, [Description(tags)]) is bound


@pytest.mark.parametrize(
    ("prompt", "noun"),
    [
        ("an orc woman in a blue coat", "orc woman"),
        ("a three-eyed alien monk in robes", "alien monk"),
        ("portrait of an old knight, red cape", "knight"),
        ("fox mask girl with a sword", "girl"),
        ("a small blue robot with one eye", "robot"),
        ("Warrior princess of the north, blonde braids", "warrior princess"),
        ("a woman who hunts goblins", "woman"),
        ("a toaster with legs", "character"),
    ],
)
def test_the_class_noun_is_the_head_of_the_first_phrase_that_names_a_being(prompt, noun):
    assert derive_class_noun(prompt) == noun


@pytest.mark.parametrize(
    "name", ["Aya Brea", "Bob", "Max", "007 Bond", "42", "x", "Grim the Unready", "sword", "A-B_C d"]
)
def test_a_trigger_is_a_rare_word_that_the_settings_accept(name):
    trigger = derive_trigger(name)
    assert TRIGGER_PATTERN.fullmatch(trigger) and 4 <= len(trigger) <= 10
    assert trigger == derive_trigger(name)
    assert trigger not in ("sword", "max", "bond", "brea")


def test_the_trigger_comes_from_the_name_and_differs_between_names():
    names = ["Aya Brea", "Bob", "Grim", "Zoltan", "Miralda", "Kestrel"]
    triggers = [derive_trigger(name) for name in names]
    assert derive_trigger("Aya Brea").startswith("ayab") and len(set(triggers)) == len(names)


def test_of_several_triggers_the_one_with_fewest_tokens_is_taken():
    tried = []

    def count(text):
        tried.append(text)
        return 2 if len(tried) == 8 else 4

    assert derive_trigger("Miralda", count) == tried[7]
    assert len(tried) > 10


@pytest.mark.parametrize(
    ("trigger", "warned"),
    [("woman", True), ("knight", True), ("orc woman", True), ("griqul", False), ("ohwx woman", False)],
)
def test_a_trigger_that_the_base_model_knows_as_a_word_is_warned_of_with_a_rare_one(trigger: str, warned: bool) -> None:
    known = {"woman", "knight", "orc"}
    told = known_word_warnings(trigger, lambda text: 1 if text in known else 2)
    assert bool(told) == warned
    if told:
        rare = told[0].split("--trigger ")[1]
        assert repr(trigger) in told[0] and TRIGGER_PATTERN.fullmatch(rare) and rare not in known


def test_trait_words_are_told_apart():
    assert trait_kinds("long brown hair") == {"hair"}
    assert trait_kinds("glowing blue tattoos") == {"marks"}
    assert trait_kinds("blue coat with brass buttons") == {"outfit:coat", "outfit:button"}
    assert trait_kinds("standing") == frozenset()


def test_a_garment_the_prompt_names_is_pruned_however_the_captioner_words_it(store):
    tags = ("standing", "long navy coat with brass buttons", "light skin", "holding hook")
    dataset = caption(store, tags, ("standing",), ("standing", "light skin"))
    assert dataset.captions[0].pruned == tags[1:]


def test_what_only_the_captioner_sees_on_one_side_forbids_flips_too(store):
    plain = Character(name="Bo", prompt="a robot with a blue body", trigger="bozix")
    assert not caption(store, ("standing",), character=plain).side_bound
    assert caption(store, ("standing", "scar on the left cheek"), character=plain).side_bound


def test_of_the_tags_that_are_kept_the_first_are_written_and_what_was_said_is_recorded_whole(store):
    dataset = caption(store, ("standing", "smiling", "arms crossed", "blue coat"), max_tags=2)
    assert ", standing, smiling, simple background" in texts(dataset)[0]
    assert dataset.captions[0].tags == ("standing", "smiling", "arms crossed", "blue coat")
    assert dataset.captions[0].pruned == ("blue coat",)
