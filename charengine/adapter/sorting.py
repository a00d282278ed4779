"""The keys of an adapter file sorted: which layer and which part of its adapter each one is, and what is no layer at all.

A key is a layer's name (in one of `known_stems`' spellings) and a part, "….lora_down.weight". Parts of LoRA, LoCon, LoHa, LoKr and
DoRA are read. What belongs to a text encoder, an embedding or a norm is left out with a word; a layer adapted in another way
(OFT, GLoRA, …) cannot be left out without being another adapter, so the file is refused and the way named.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

TEXT_ENCODER = (
    *("lora_te", "text_encoder", "te1_", "te2_", "te1.", "te2.", "lycoris_text", "lycoris_te", "conditioner."),
    *("clip_l.", "clip_g.", "base_model.model.text_", "base_model.model.conditioner."),
)
EMBEDDING = ("bundle_emb.", "bundle_emb_", "emb_params", "string_to_param")

NEEDED = "a LoRA, LoCon, LoHa, LoKr or DoRA for SDXL is needed"
MOST_VALUE = 10_000  # of a factor: a larger one is no adapter's
LORA = ("lora_down.weight", "lora_up.weight")
LOHA = ("hada_w1_a", "hada_w1_b", "hada_w2_a", "hada_w2_b")

_READ = (
    r"alpha|dora_scale|lora_(?:down|up|mid)\.weight|hada_[wt][12](?:_[ab])?|lokr_[wt][12](?:_[ab])?"
    r"|lora_[AB](?:\.\w+)?\.weight|lora(?:_linear_layer)?\.(?:down|up)\.weight|lora_magnitude_vector(?:\.\w+)?(?:\.weight)?"
)
_NORM = r"[wb]_norm"
_DIFFERENCE = r"diff(?:_b)?"
_OTHERS = {
    "OFT": r"oft_\w+(?:\.\w+)*|boft_\w+(?:\.\w+)*|rescale",
    "GLoRA": r"[ab][12]\.weight|bm[12]\.weight",
    "IA3": r"on_input|ia3_l(?:\.\w+)*",
    "T-LoRA before its export": r"[pq]_layer\.weight|lambda_layer|base_(?:p|q|lambda)",
    "LoRA with biases": r"lora_[AB](?:\.\w+)?\.bias|lora_(?:down|up)\.bias",
    "VeRA": r"vera_\w+(?:\.\w+)*",
    "replaced weights": r"set_weight|reshape_weight|modules_to_save(?:\.\w+)*",
}
_PART = re.compile(
    rf"\.(?:(?P<read>{_READ})|(?P<norm>{_NORM})|(?P<difference>{_DIFFERENCE})"
    + "".join(rf"|(?P<o{i}>{pattern})" for i, pattern in enumerate(_OTHERS.values()))
    + r")\Z"
)
_OLD_PROCESSOR = re.compile(r"\.processor\.to_(q|k|v|out)_lora\.(down|up)\.weight\Z")
_SPELLINGS = (
    (("lora_A", "lora.down", "lora_linear_layer.down"), "lora_down.weight"),
    (("lora_B", "lora.up", "lora_linear_layer.up"), "lora_up.weight"),
    (("lora_magnitude_vector",), "dora_scale"),
)


@dataclass
class SortedKeys:
    """What the keys of a file are; the lists hold keys."""

    layers: dict[str, dict[str, str]] = field(default_factory=dict)  # diffusers module name → part → key
    text_encoder: list[str] = field(default_factory=list)
    embeddings: list[str] = field(default_factory=list)
    norms: list[str] = field(default_factory=list)
    others: list[str] = field(default_factory=list)  # neither a layer's nor anything known
    unknown_layers: list[str] = field(default_factory=list)  # an adapter's parts, of a layer that this U-Net has not
    doubled: list[str] = field(default_factory=list)  # a layer's part that another key is already
    unsupported: dict[str, list[str]] = field(default_factory=dict)  # way of adapting → keys
    turned_round: list[str] = field(
        default_factory=list
    )  # alphas below 0; their values are looked at by whoever has them

    def left_out(self) -> tuple[str, ...]:
        """One sentence for each kind of tensor that is not applied, and for alphas that turn layers round."""
        kinds = (
            (self.text_encoder, "text-encoder tensors", "only the U-Net is adapted"),
            (self.embeddings, "tensors of embeddings", "load them as embeddings beside it"),
            (self.norms, "tensors of trained norms (w_norm, b_norm)", "they are not supported"),
            (self.others, "tensors that belong to no layer", "nothing is known about them"),
        )
        ignored = (
            f"{len(keys)} {what} of the adapter are ignored: {why} (e.g. {shown(keys)})"
            for keys, what, why in kinds
            if keys
        )
        return (*ignored, *([turned_round_told(self.turned_round)] if self.turned_round else []))

    def refused(self) -> str:
        """Why a file of ways of adapting that are not supported is not drawn with; empty where there are none."""
        kinds = (f"{kind}: {len(keys)} tensors, e.g. {shown(keys)}" for kind, keys in self.unsupported.items())
        told = "; ".join(kinds)
        return f"the adapter adapts layers in a way that is not supported ({told}); {NEEDED}" if told else ""


def turned_round_told(keys: list[str]) -> str:
    """What alphas below 0 do; ComfyUI, kohya's scripts, A1111 and diffusers multiply by alpha / rank with its sign."""
    return (
        f"{len(keys)} alphas of the adapter are negative: what these layers learned is taken away instead of added, as in other "
        f"programs (e.g. {shown(keys)})"
    )


def sort_keys(keys: Iterable[str], stems: Mapping[str, str], norms: frozenset[str] = frozenset()) -> SortedKeys:
    """Every key in its place.

    Args:
        keys: of the file.
        stems: every spelling of a layer → its diffusers name, as `known_stems` gives it.
        norms: the diffusers names that are norms, where a difference of weights is a trained norm.
    """
    found = SortedKeys()
    spelt: dict[str, str] = {}  # layer → its stem: programs would take parts under two for two layers, or pass one over
    for key in keys:
        stem, part, kind = split_key(key)
        name = stems.get(stem)
        if stem.startswith(TEXT_ENCODER):
            found.text_encoder.append(key)
        elif stem.startswith(EMBEDDING):
            found.embeddings.append(key)
        elif kind == "norm" or (kind == "difference" and name in norms):
            found.norms.append(key)
        elif kind == "difference":
            found.unsupported.setdefault("whole differences of weights (.diff)", []).append(key)
        elif kind not in ("", "read"):
            found.unsupported.setdefault(kind, []).append(key)
        elif kind == "read" and name is None:
            found.unknown_layers.append(key)
        elif kind == "read" and (
            part in found.layers.get(name or "", {}) or spelt.setdefault(name or "", stem) != stem
        ):
            found.doubled.append(key)
        elif kind == "read" and name is not None:
            found.layers.setdefault(name, {})[part] = key
        elif any(before in stems for before in _before_dots(key)):
            found.unsupported.setdefault("parts that are not known here", []).append(key)
        else:
            found.others.append(key)
    return found


def split_key(key: str) -> tuple[str, str, str]:
    """(stem, part, kind) of a key: kind "read", "norm", "difference", the name of a way that is not supported, or "".

    Parts that are read have LyCORIS' names whatever program wrote them: `lora_A` is "lora_down.weight".
    """
    key = _OLD_PROCESSOR.sub(lambda m: f".to_{'out.0' if m[1] == 'out' else m[1]}.lora.{m[2]}.weight", key)
    match = _PART.search(key)
    if not match or match.lastgroup is None:
        return key, "", ""
    part, kind = match[match.lastgroup], match.lastgroup
    if kind == "read":
        part = next((own for starts, own in _SPELLINGS if part.startswith(starts)), part)
    elif kind.startswith("o"):
        kind = list(_OTHERS)[int(kind[1:])]
    return key[: match.start()], part, kind


def algorithm_of(parts: Iterable[str]) -> str:
    """ "LoRA", "LoHa" or "LoKr", with "DoRA " before it where there are norms; "" when no matrix says it.

    Raises:
        ValueError: two of them at once.
    """
    starts = {part[:4] for part in parts}
    kinds = [name for start, name in (("lora", "LoRA"), ("hada", "LoHa"), ("lokr", "LoKr")) if start in starts]
    if len(kinds) > 1:
        raise ValueError(f"is adapted by {' and '.join(kinds)} at once")
    return ("DoRA " if "dora_scale" in parts and kinds else "") + "".join(kinds)


def missing_of(parts: Iterable[str]) -> tuple[str, ...]:
    """Parts without which these mean nothing."""
    given = set(parts)
    kind = algorithm_of(given).removeprefix("DoRA ")
    if kind == "LoRA":
        return tuple(part for part in LORA if part not in given)
    if kind == "LoHa":
        wanted = (*LOHA, *(("hada_t1", "hada_t2") if given & {"hada_t1", "hada_t2"} else ()))
        return tuple(part for part in wanted if part not in given)
    if kind == "LoKr":
        return (*_missing_side("lokr_w1", given), *_missing_side("lokr_w2", given))
    return ("its matrices",)


def shown(keys: list[str]) -> str:
    """One key for a message."""
    return repr(keys[0] if len(keys[0]) <= 120 else keys[0][:117] + "...")


def _before_dots(key: str) -> Iterable[str]:
    return (key[:place] for place, letter in enumerate(key) if letter == ".")


def _missing_side(side: str, given: set[str]) -> tuple[str, ...]:
    factors = (f"{side}_a", f"{side}_b")
    if side in given:
        return ()
    lacking = tuple(factor for factor in factors if factor not in given)
    return (side,) if len(lacking) == 2 else lacking
