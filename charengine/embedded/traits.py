"""The closed vocabulary of the embedded world: traits, views, poses, backgrounds, and the held-out split.

Words are read where nothing is drawn, so torch is imported by what works with it alone.
"""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from collections.abc import Iterable, Sequence

    import torch

COLOURS = ("white", "black", "grey", "red", "blue", "green", "yellow", "purple", "brown", "orange")
ITEMS = ("none", "hook", "mechanical arm", "sword", "lantern", "shield", "staff", "axe", "eye patch")

# "none" marks a trait that does not apply (the hair colour of a bald head) or is absent (no headgear).
TRAITS: dict[str, tuple[str, ...]] = {
    "species": ("woman", "man", "girl", "robot", "elf", "orc", "goblin", "skeleton", "alien", "catfolk"),
    "build": ("average", "slim", "stocky", "tall"),
    "skin": ("pale", "tan", "brown", "dark", "green", "blue", "grey", "white", "red"),
    "hair_style": ("bald", "short", "long", "ponytail", "mohawk", "bun", "braids", "curly"),
    "hair_colour": ("none", "black", "brown", "blonde", "red", "white", "blue", "green", "pink"),
    "top": ("shirt", "coat", "armour", "tunic", "vest", "robe", "dress"),
    "top_colour": COLOURS,
    "pattern": ("plain", "striped", "dotted", "checked"),
    "bottom": ("none", "trousers", "skirt", "shorts"),
    "bottom_colour": ("none", *COLOURS),
    "footwear": ("barefoot", "boots", "shoes"),
    "footwear_colour": ("none", "black", "brown", "red", "white", "blue"),
    "headgear": ("none", "hat", "pointed hat", "hood", "crown", "horns", "helmet"),
    "headgear_colour": ("none", "red", "blue", "green", "black", "brown", "purple", "white"),
    "right_item": ITEMS,
    "left_item": ITEMS,
    "tattoo": ("none", "blue", "green", "red"),
}
TRAIT_NAMES = tuple(TRAITS)
COLUMN = {name: i for i, name in enumerate(TRAIT_NAMES)}

VIEWS = ("front", "side", "back")
"""Front faces the camera; side is a profile facing the image's RIGHT (the character's right side is near); back."""

POSES = (
    "standing",
    "walking",
    "running",
    "waving",
    "arms raised",
    "sitting",
    "kneeling",
    "fighting stance",
    "pointing",
    "jumping",
    "hands on hips",
    "dancing",
)

BACKGROUNDS = (
    "plain white background",
    "desert in daylight",
    "rainy city at night",
    "forest",
    "snowy mountains",
    "beach at sunset",
    "castle hall",
    "starry night",
    "meadow",
    "lava cave",
    "stormy sea",
    "underwater",
)

NATURAL_SKINS: dict[str, tuple[str, ...]] = {
    "woman": ("pale", "tan", "brown", "dark"),
    "man": ("pale", "tan", "brown", "dark"),
    "girl": ("pale", "tan", "brown", "dark"),
    "robot": ("grey", "white", "blue", "red"),
    "elf": ("pale", "tan", "dark", "blue"),
    "orc": ("green", "grey", "brown", "red"),
    "goblin": ("green", "grey", "blue", "tan"),
    "skeleton": ("white", "grey"),
    "alien": ("green", "grey", "blue", "red"),
    "catfolk": ("tan", "brown", "grey", "white", "dark"),
}
COLOURED_HEADGEAR = ("hat", "pointed hat", "hood")
ONE_PIECE_TOPS = ("robe", "dress")
# A hat, hood or helmet squashes a mohawk, a bun or curls: such a head is drawn (and sampled) with another style.
HAIR_UNDER: dict[str, tuple[str, ...]] = {
    "hat": ("bald", "short", "long", "ponytail", "braids"),
    "pointed hat": ("bald", "short", "long", "ponytail", "braids"),
    "hood": ("bald", "short", "long"),
    "helmet": ("bald", "short", "long", "ponytail", "braids"),
}
_SPLIT_MODULUS, _UNTOUCHED_MODULUS = 10, 4
_SHARES = {"train": 0.85, "heldout": 0.05, "untouched": 0.016, "all": 1.0}  # a little less than each split has


@dataclass(frozen=True)
class Traits:
    """One character: a value of `TRAITS` per field."""

    species: str
    build: str
    skin: str
    hair_style: str
    hair_colour: str
    top: str
    top_colour: str
    pattern: str
    bottom: str
    bottom_colour: str
    footwear: str
    footwear_colour: str
    headgear: str
    headgear_colour: str
    right_item: str
    left_item: str
    tattoo: str

    def __post_init__(self) -> None:
        for field in fields(self):
            value = getattr(self, field.name)
            if value not in TRAITS[field.name]:
                allowed = ", ".join(TRAITS[field.name])
                raise ValueError(f"{field.name} is {value!r}; allowed: {allowed}. Choose one of these.")

    def to_dict(self) -> dict[str, str]:
        """Trait name to value, in `TRAITS` order."""
        return {name: getattr(self, name) for name in TRAIT_NAMES}

    @classmethod
    def from_dict(cls, values: dict[str, str]) -> Traits:
        """The character with these values; every trait must be named."""
        return cls(**values)

    @classmethod
    def from_indices(cls, row: Sequence[int] | torch.Tensor) -> Traits:
        """The character of one row of `sample_indices`."""
        return cls(*(TRAITS[name][int(i)] for name, i in zip(TRAIT_NAMES, row, strict=True)))


def as_indices(characters: Iterable[Traits]) -> torch.Tensor:
    """Trait values as positions in `TRAITS`: LongTensor (n, n_traits)."""
    import torch

    rows = [[TRAITS[name].index(getattr(c, name)) for name in TRAIT_NAMES] for c in characters]
    return torch.tensor(rows, dtype=torch.long).reshape(-1, len(TRAIT_NAMES))


def from_indices(indices: torch.Tensor) -> list[Traits]:
    """Inverse of `as_indices`."""
    return [Traits.from_indices(row) for row in indices.tolist()]


def is_heldout(indices: torch.Tensor) -> torch.Tensor:
    """True where (species, hair colour, top, top colour) is a combination that training never saw: BoolTensor (n,)."""
    return (_mixed(indices) >> 12) % _SPLIT_MODULUS == 0


def is_untouched(indices: torch.Tensor) -> torch.Tensor:
    """True for the quarter of those that building and tuning never see either: BoolTensor (n,).

    They are for committed tables alone: what was chosen by looking at "heldout" is not measured on it.
    """
    return is_heldout(indices) & ((_mixed(indices) >> 22) % _UNTOUCHED_MODULUS == 0)


def _mixed(indices: torch.Tensor) -> torch.Tensor:
    species, hair, top, colour = (indices[:, COLUMN[name]] for name in ("species", "hair_colour", "top", "top_colour"))
    code = ((species * 9 + hair) * 7 + top) * 10 + colour
    return (code * 2654435761) % 4294967296  # Knuth's multiplicative hash: stable everywhere


def sample_indices(
    n: int, generator: torch.Generator, split: str = "train", device: str | torch.device = "cpu"
) -> torch.Tensor:
    """Draw characters of a split.

    Args:
        n: how many.
        generator: the only source of randomness; it lives on the CPU.
        split: "train", "heldout" (trait combinations that "train" never contains), "untouched" (combinations that are in
            neither) or "all".
        device: where the result goes.

    Returns:
        LongTensor (n, n_traits), columns in `TRAIT_NAMES` order.
    """
    import torch

    if split not in _SHARES:
        raise ValueError(f"split is {split!r}; allowed: {', '.join(_SHARES)}.")
    kept = torch.empty(0, len(TRAIT_NAMES), dtype=torch.long)
    while len(kept) < n:
        drawn = _draw(int((n - len(kept)) / _SHARES[split]) + 16, generator)
        if split == "untouched":
            drawn = drawn[is_untouched(drawn)]
        elif split != "all":
            drawn = drawn[(is_heldout(drawn) == (split == "heldout")) & ~is_untouched(drawn)]
        kept = torch.cat([kept, drawn])
    return kept[:n].to(device)


def sample_traits(n: int, generator: torch.Generator, split: str = "train") -> list[Traits]:
    """`sample_indices` as `Traits`."""
    return from_indices(sample_indices(n, generator, split))


def normalise(indices: torch.Tensor) -> torch.Tensor:
    """Make dependent traits agree (a bald head has no hair colour, a robe no bottom, …); same shape, a copy."""
    import torch

    out = indices.clone()

    def column(name: str) -> torch.Tensor:
        return out[:, COLUMN[name]]

    def is_any(name: str, values: Iterable[str]) -> torch.Tensor:
        wanted = torch.tensor([TRAITS[name].index(v) for v in values], device=out.device)
        return torch.isin(column(name), wanted)

    for headgear, styles in HAIR_UNDER.items():
        squashed = is_any("headgear", [headgear]) & ~is_any("hair_style", styles)
        column("hair_style")[squashed] = TRAITS["hair_style"].index("short")
    _settle(column("hair_colour"), absent=is_any("hair_style", ["bald"]))
    column("bottom")[is_any("top", ONE_PIECE_TOPS)] = 0
    needs_bottom = ~is_any("top", ONE_PIECE_TOPS) & (column("bottom") == 0)
    column("bottom")[needs_bottom] = TRAITS["bottom"].index("trousers")
    _settle(column("bottom_colour"), absent=column("bottom") == 0)
    _settle(column("footwear_colour"), absent=is_any("footwear", ["barefoot"]))
    _settle(column("headgear_colour"), absent=~is_any("headgear", COLOURED_HEADGEAR))
    both_patched = is_any("right_item", ["eye patch"]) & is_any("left_item", ["eye patch"])
    column("left_item")[both_patched] = 0
    return out


def visible(trait: str, traits: Traits, view: str | None) -> bool:
    """Whether a trait can be read off a picture of this character from this side (None: over all views)."""
    return view is None or _is_visible(trait, getattr(traits, trait), traits.headgear, view)


def visible_mask(indices: torch.Tensor, views: torch.Tensor) -> torch.Tensor:
    """`visible` for a batch.

    Args:
        indices: LongTensor (n, n_traits).
        views: LongTensor (n,) of positions in `VIEWS`.

    Returns:
        BoolTensor (n, n_traits).
    """
    import torch

    headgear = indices[:, COLUMN["headgear"]]
    mask = torch.ones_like(indices, dtype=torch.bool)
    for name, values in TRAITS.items():
        table = [
            [[_is_visible(name, value, gear, view) for view in VIEWS] for gear in TRAITS["headgear"]]
            for value in values
        ]
        mask[:, COLUMN[name]] = torch.tensor(table, device=indices.device)[indices[:, COLUMN[name]], headgear, views]
    return mask


def _is_visible(trait: str, value: str, headgear: str, view: str) -> bool:
    if value == "none":
        return True
    if trait == "right_item":
        return value != "eye patch" or view != "back"
    if trait == "left_item":  # the far side of the profile view
        return view == "front" or (view == "back" and value != "eye patch")
    under_helmet = headgear == "helmet" and view == "front"
    if trait == "hair_style":
        if headgear == "hood" or (view == "front" and value == "ponytail"):
            return False
        return not under_helmet or value in ("long", "braids")
    if trait == "hair_colour":  # a hood leaves a fringe
        return not under_helmet and (headgear != "hood" or view == "front")
    return True


def _settle(colour: torch.Tensor, absent: torch.Tensor) -> None:
    """In place: "none" (0) where the coloured thing is absent, the first real colour where it is there without one."""
    colour[absent] = 0
    colour[~absent & (colour == 0)] = 1


def _pick(n: int, weights: Sequence[float], generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.multinomial(torch.tensor(weights, dtype=torch.float32), n, replacement=True, generator=generator)


def _uniform(n: int, low: int, high: int, generator: torch.Generator) -> torch.Tensor:
    import torch

    return torch.randint(low, high, (n,), generator=generator)


def _draw(n: int, generator: torch.Generator) -> torch.Tensor:
    """Characters of both splits: mostly uniform, skin mostly natural for the species, half of the hands empty."""
    import torch

    drawn: dict[str, torch.Tensor] = {}
    for name, values in TRAITS.items():
        first = 1 if values[0] == "none" else 0
        drawn[name] = _uniform(n, first, len(values), generator)
    natural = torch.zeros(len(TRAITS["species"]), len(TRAITS["skin"]))
    for i, species in enumerate(TRAITS["species"]):
        for skin in NATURAL_SKINS[species]:
            natural[i, TRAITS["skin"].index(skin)] = 1.0
    natural_skin = torch.multinomial(natural[drawn["species"]], 1, generator=generator)[:, 0]
    keep_natural = torch.rand(n, generator=generator) < 0.8
    drawn["skin"] = torch.where(keep_natural, natural_skin, drawn["skin"])
    drawn["hair_style"] = _pick(n, (1, 1.6, 1.6, 1.5, 1.5, 1.2, 1.3, 1.3), generator)
    drawn["pattern"] = _pick(n, (3, 1, 1, 1), generator)
    drawn["headgear"] = _pick(n, (6, 1, 1, 1, 1, 1, 1), generator)
    drawn["right_item"] = _pick(n, (6, *[1.0] * 8), generator)
    drawn["left_item"] = _pick(n, (7, *[1.0] * 8), generator)
    drawn["tattoo"] = _pick(n, (3, 1, 1, 1), generator)
    return normalise(torch.stack([drawn[name] for name in TRAIT_NAMES], dim=1))
