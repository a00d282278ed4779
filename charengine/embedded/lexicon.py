"""The words of the embedded world: what people may call each trait value. The first phrase is the usual one."""

from __future__ import annotations

import re

from charengine.embedded.traits import TRAITS

COLOUR_WORDS: dict[str, tuple[str, ...]] = {
    "white": ("white", "ivory", "cream", "snowy"),
    "black": ("black", "ebony", "jet", "raven"),
    "grey": ("grey", "gray", "silver", "charcoal"),
    "red": ("red", "crimson", "scarlet", "ruby"),
    "blue": ("blue", "navy", "azure", "cobalt"),
    "green": ("green", "emerald", "olive", "lime"),
    "yellow": ("yellow", "golden", "mustard"),
    "purple": ("purple", "violet", "lilac"),
    "brown": ("brown", "chestnut", "chocolate"),
    "orange": ("orange", "amber"),
    "blonde": ("blonde", "blond", "golden"),
    "pink": ("pink", "magenta", "rose"),
}

SPECIES_WORDS: dict[str, tuple[str, ...]] = {
    "woman": ("woman", "lady", "female", "woman warrior", "female knight", "female pirate"),
    "man": ("man", "guy", "male", "gentleman"),
    "girl": ("girl", "child", "kid", "boy"),
    "robot": ("robot", "android", "droid", "cyborg"),
    "elf": ("elf", "elven ranger", "elven"),
    "orc": ("orc", "orc warrior", "ogre", "orc woman", "orc man"),
    "goblin": ("goblin", "gremlin", "imp"),
    "skeleton": ("skeleton", "undead", "skeleton warrior"),
    "alien": ("alien", "extraterrestrial", "martian"),
    "catfolk": ("catfolk", "cat person", "cat girl", "catgirl", "cat"),
}

# What a role means when the prompt names no species.
ROLE_WORDS: dict[str, str] = {
    **dict.fromkeys(("heroine", "sorceress", "witch", "princess", "queen"), "woman"),
    **dict.fromkeys(("hero", "wizard", "pirate", "knight", "king", "warrior", "ranger"), "man"),
}

BUILD_PHRASES: dict[str, tuple[str, ...]] = {
    "average": ("average",),
    "slim": ("slim", "thin", "slender", "lean"),
    "stocky": ("stocky", "chubby", "burly", "heavy", "fat", "muscular"),
    "tall": ("tall", "lanky", "towering"),
}

SKIN_WORDS: dict[str, tuple[str, ...]] = {
    "pale": ("pale", "fair", "light"),
    "tan": ("tan", "tanned", "bronze"),
    "brown": ("brown",),
    "dark": ("dark", "deep brown"),
    "green": ("green",),
    "blue": ("blue",),
    "grey": ("grey", "gray", "metal", "steel"),
    "white": ("white", "bone white"),
    "red": ("red", "crimson"),
}

HAIR_PHRASES: dict[str, tuple[str, ...]] = {
    "bald": ("bald", "hairless"),
    "short": ("short {c} hair", "{c} short hair"),
    "long": ("long {c} hair", "{c} long hair", "flowing {c} hair"),
    "ponytail": ("{c} ponytail", "{c} pony tail"),
    "mohawk": ("{c} mohawk",),
    "bun": ("{c} bun", "{c} hair bun", "{c} topknot"),
    "braids": ("{c} braids", "{c} pigtails", "{c} twin braids"),
    "curly": ("curly {c} hair", "{c} curly hair", "{c} afro", "{c} curls"),
}

GARMENT_WORDS: dict[str, tuple[str, ...]] = {
    "shirt": ("shirt", "blouse", "sweater"),
    "coat": ("coat", "jacket", "overcoat"),
    "armour": ("armour", "armor", "breastplate"),
    "tunic": ("tunic", "jerkin"),
    "vest": ("vest", "waistcoat", "sleeveless vest"),
    "robe": ("robe", "long robe", "robes"),
    "dress": ("dress", "gown"),
    "trousers": ("trousers", "pants", "jeans"),
    "skirt": ("skirt", "kilt"),
    "shorts": ("shorts", "short pants"),
    "boots": ("boots", "high boots", "leather boots"),
    "shoes": ("shoes", "sneakers"),
    "barefoot": ("barefoot", "bare feet"),
}

PATTERN_WORDS: dict[str, tuple[str, ...]] = {
    "striped": ("striped", "stripes"),
    "dotted": ("dotted", "dots", "polka dots", "spots"),
    "checked": ("checked", "checks", "squares"),
}

HEADGEAR_PHRASES: dict[str, tuple[str, ...]] = {
    "hat": ("hat", "brimmed hat", "wide hat"),
    "pointed hat": ("pointed hat", "wizard hat", "witch hat"),
    "hood": ("hood",),
    "crown": ("crown", "gold crown", "golden crown", "tiara"),
    "horns": ("horns", "curved horns"),
    "helmet": ("helmet", "steel helmet", "helm"),
}

ITEM_PHRASES: dict[str, tuple[str, ...]] = {
    "hook": ("hook", "metal hook"),
    "mechanical arm": ("mechanical arm", "robotic arm", "metal arm", "prosthetic arm", "cyber arm"),
    "sword": ("sword", "blade", "long sword"),
    "lantern": ("lantern", "lamp", "glowing lantern"),
    "shield": ("shield", "round shield"),
    "staff": ("staff", "wooden staff", "magic staff"),
    "axe": ("axe", "battle axe", "ax"),
    "eye patch": ("eye patch", "eyepatch"),
}

# {noun} has an article, {bare} has none, {p} is the possessive pronoun.
SIDE_ITEM_FORMS: dict[str, tuple[str, ...]] = {
    "hook": (
        "{p} {side} hand is {noun}",
        "{noun} for a {side} hand",
        "{noun} instead of {p} {side} hand",
        "{side} hand {bare}",
    ),
    "mechanical arm": ("{p} {side} arm is {noun}", "with a {side} {bare}", "{side} {bare}"),
    "eye patch": ("{noun} on the {side} eye", "{noun} over {p} {side} eye", "{side} {bare}"),
    "held": (
        "holding {noun} in {p} {side} hand",
        "{noun} in the {side} hand",
        "with {noun} in {p} {side} hand",
        "carrying {noun} with the {side} hand",
        "{side} hand {bare}",
    ),
}

VIEW_PHRASES: dict[str, tuple[str, ...]] = {
    "front": ("front view", "from the front", "facing the viewer", "seen from the front"),
    "side": ("side view", "from the side", "in profile", "seen from the side"),
    "back": ("back view", "from behind", "from the back", "seen from behind", "rear view"),
}

POSE_PHRASES: dict[str, tuple[str, ...]] = {
    "standing": ("standing", "standing still", "standing upright"),
    "walking": ("walking", "strolling", "taking a walk"),
    "running": ("running", "sprinting", "on the run"),
    "waving": ("waving", "waving a hand", "waving hello"),
    "arms raised": ("arms raised", "raised arms", "cheering", "with both arms raised", "hands up"),
    "sitting": ("sitting", "seated", "sitting down"),
    "kneeling": ("kneeling", "down on one knee", "on one knee"),
    "fighting stance": ("fighting stance", "in a fighting stance", "fighting", "ready to fight", "battle stance"),
    "pointing": ("pointing", "pointing ahead", "pointing forward"),
    "jumping": ("jumping", "leaping", "jumping in the air"),
    "hands on hips": ("hands on hips", "with hands on the hips", "hands on the hips"),
    "dancing": ("dancing", "doing a dance"),
}

BACKGROUND_PHRASES: dict[str, tuple[str, ...]] = {
    "plain white background": ("plain white background", "white background", "on white", "simple background"),
    "desert in daylight": ("desert in daylight", "in the desert", "sand dunes", "desert", "sunny desert"),
    "rainy city at night": (
        "rainy city at night",
        "in a city at night in the rain",
        "city at night",
        "rainy street at night",
        "rainy city",
        "night city",
        "city",
    ),
    "forest": ("forest", "in the forest", "in the woods", "woods", "jungle", "among trees"),
    "snowy mountains": ("snowy mountains", "in the mountains", "mountains", "snowy peaks", "in the snow", "snow"),
    "beach at sunset": (
        "beach at sunset",
        "on the beach",
        "on a beach at sunset",
        "beach",
        "sunset",
        "seaside at sunset",
    ),
    "castle hall": ("castle hall", "in a castle", "in a castle hall", "castle", "throne room"),
    "starry night": (
        "starry night",
        "under the stars",
        "night sky",
        "starry sky",
        "moonlit night",
        "in space",
        "space",
    ),
    "meadow": ("meadow", "in a meadow", "flower field", "green field", "grassland", "park"),
    "lava cave": ("lava cave", "in a cave with lava", "cave with lava", "cave", "volcano", "lava"),
    "stormy sea": ("stormy sea", "at sea in a storm", "storm at sea", "in a storm", "on a stormy sea", "ocean"),
    "underwater": ("underwater", "under water", "under the sea", "at the bottom of the sea"),
}

_GRAMMAR_WORDS = """
a an the of in on at and with for is as by from his her its three views same front side back full body plain white
background hidden picture right left hand arm eye wearing dressed holding carrying instead over hair build skin skinned
glowing tattoos tattoo runes haired hairdo haircut character photo view both arms hands
"""


def _colour_adjectives() -> dict[str, tuple[str, str]]:
    adjectives = {word: ("colour", colour) for colour, words in reversed(COLOUR_WORDS.items()) for word in words}
    adjectives |= {word: ("pattern", value) for value, words in PATTERN_WORDS.items() for word in words}
    adjectives |= {word: ("length", word) for word in ("short", "long", "curly")} | {"flowing": ("length", "long")}
    adjectives |= {word: ("build", value) for value, words in BUILD_PHRASES.items() for word in words}
    tones = {w: v for v, words in SKIN_WORDS.items() for w in words if w not in adjectives}
    return adjectives | {word: ("tone", value) for word, value in tones.items()}


def _vocabulary() -> frozenset[str]:
    tables = (
        COLOUR_WORDS, SPECIES_WORDS, BUILD_PHRASES, SKIN_WORDS, HAIR_PHRASES, GARMENT_WORDS, PATTERN_WORDS,
        HEADGEAR_PHRASES, ITEM_PHRASES, SIDE_ITEM_FORMS, VIEW_PHRASES, POSE_PHRASES, BACKGROUND_PHRASES,
    )  # fmt: skip
    text = " ".join(phrase for table in tables for phrases in table.values() for phrase in phrases)
    values = " ".join(value for values in TRAITS.values() for value in values)
    roles = " ".join(ROLE_WORDS)
    return frozenset(re.findall(r"[a-z]+", f"{re.sub(r'{.*?}', ' ', text)} {values} {roles} {_GRAMMAR_WORDS}"))


ADJECTIVES = _colour_adjectives()
VOCABULARY = _vocabulary()
