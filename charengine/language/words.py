"""Word lists of the sheet and caption stages: what names a character's kind, what is a trait, what is never one."""

from __future__ import annotations

import re


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


PEOPLE = _words("""woman man girl boy lady gentleman guy child kid teenager person human female male baby toddler elder
    grandmother grandfather mother father mage wizard witch sorceress sorcerer warlock necromancer knight paladin pirate
    captain warrior soldier fighter barbarian ranger archer hunter huntress thief rogue assassin ninja samurai monk nun
    priest priestess cleric druid shaman bard king queen prince princess emperor empress duke duchess noble butler maid
    detective cowboy cowgirl sheriff pilot astronaut scientist doctor nurse engineer mechanic chef farmer fisherman
    sailor blacksmith merchant student teacher dancer singer musician athlete boxer gladiator viking superhero hero
    heroine villain clown wanderer traveler traveller explorer adventurer mercenary guard bandit survivor gunslinger
    alchemist inventor courier messenger oracle fairy""")
CREATURES = _words("""elf orc goblin dwarf troll ogre giant halfling gnome hobbit robot android droid cyborg mech golem automaton skeleton
    zombie undead ghost vampire werewolf demon devil angel alien martian extraterrestrial monster dragon dragonborn lizard
    lizardman kobold tiefling faun satyr centaur minotaur mermaid merman harpy nymph dryad imp gremlin catfolk catgirl
    cat dog fox wolf bear rabbit bunny mouse rat bird owl raven crow frog turtle tiger lion panda pig boar shark slime
    dinosaur unicorn phoenix mummy scarecrow doll puppet creature beast mascot insectoid kenku tabaxi""")
KINDS = PEOPLE | CREATURES

# A noun phrase ends before one of these.
PHRASE_ENDS = _words("""with in wearing who whose that which of and or holding carrying has having from on at by as is but dressed clad
    riding standing wielding made covered made's for to under over near""")

COLOURS = _words("""white black grey gray silver red crimson scarlet blue navy azure teal cyan turquoise green emerald olive yellow
    golden gold purple violet lavender brown chestnut tan beige orange amber pink magenta blonde blond pale dark light
    bronze copper ivory cream aqua multicolored""")

# Kind of trait to the words that name it.
TRAIT_WORDS: dict[str, frozenset[str]] = {
    "hair": _words("""hair haired ponytail braid braids bun twintails pigtails mohawk bald bangs ahoge curls afro dreadlocks beard
        bearded mustache moustache stubble sideburns hairless"""),
    "eyes": _words("eyes eye eyed heterochromia pupils eyelashes eyebrows"),
    "face": _words("nose freckles fangs tusks snout muzzle scar scars mole wrinkles beak teeth lips"),
    "skin": _words("skin skinned fur furry scales complexion feathers"),
    "body": _words("""ears ear horns horn tail wings wing claws antlers antennae halo hooves muscular muscles abs build breasts
        tentacles fins prosthesis prosthetic mechanical hook hooks"""),
    "marks": _words("tattoo tattoos runes markings warpaint facepaint bodypaint"),
    "kind": KINDS,
    "outfit": _words("""shirt blouse sweater coat jacket overcoat cloak cape armour armor breastplate tunic jerkin vest waistcoat robe
        robes dress gown trousers pants jeans skirt kilt shorts boots shoes sneakers sandals barefoot belt sash gloves
        gauntlets gauntlet pauldron pauldrons scarf hood hat helmet helm crown tiara cap headband circlet goggles glasses
        monocle eyepatch patch mask necklace pendant earring earrings bracelet ring corset bodice apron uniform suit tie
        bodysuit leggings stockings thighhighs socks kimono hoodie bandana turban shawl poncho jumpsuit overalls collar
        sleeves buttons buckle spikes feather chainmail plate leather"""),
    "items": _words("""sword blade dagger knife axe hammer mace spear staff wand bow quiver arrow arrows shield lantern lamp torch
        gun pistol rifle book scroll bag satchel backpack pouch holster scabbard sheath weapon instrument"""),
}

# Of these kinds a character has several: seeing boots says nothing about a hat.
NAMED_ONE_BY_ONE = frozenset({"outfit", "items", "face", "body"})

# Things that sit on one side even when the prompt names no side: a mirrored character is a different one.
ONE_SIDED = re.compile(
    r"\b(eye ?patch|monocle|hook|pegleg|peg leg|wooden leg|prosthe\w+|mechanical arm|robotic arm|metal arm|cyber arm|"
    r"sword|lantern|shield|staff|axe|pauldron|scar|one[ -](?:eye|arm|leg|hand|horn)\w*|asymmetr\w+)\b"
)

# What a picture shows that is not the character: never pruned.
SCENE = re.compile(
    r"\b(view|from (?:the )?(?:side|front|behind|back|above|below)|profile|facing|viewer|background|backdrop|standing|"
    r"walking|running|sitting|seated|kneeling|jumping|leaping|waving|dancing|pointing|crouching|lying|pose|posing|stance|"
    r"arms|hands? (?:on|up|raised)|looking|gaze|smil\w+|frown\w*|grin\w*|expression|mouth|full body|upper body|portrait|"
    r"cowboy shot|close-?up|solo|1girl|1boy|1other|simple|indoors|outdoors|sky|night|day|sunset|forest|city|beach|"
    r"meadow|desert|illustration|render|photo|sketch|style|lighting|monochrome|fighting)\b"
)
VIEW_TAG = re.compile(
    r"\b(front view|side view|back view|rear view|three-quarter view|profile|from (?:the )?(?:side|front|behind|back)|"
    r"facing (?:the )?(?:viewer|away)|straight-on)\b"
)
FRAMING_TAG = re.compile(
    r"\b(full body|upper body|cowboy shot|portrait|close-?up|head ?shot|lower body|feet out of frame)\b"
)
BACKGROUND_TAG = re.compile(r"\b(background|backdrop)\b")

# Short words that a trigger must not be: names and words that every text encoder knows.
COMMON_NAMES = _words("""anna maria john james mary david peter paul laura sarah emma julia alex max leo lena nina sofia luna mia eva adam
    noah liam jack mike tom tim sam ben dan kate jane rose lily ivy aria zara kira mila nora ella olga ivan igor hugo felix
    oscar axel rex lux alexa siri""")
