"""What a logged model says about itself, in MLflow's description and beside the file."""

from __future__ import annotations

import logging
import shutil
from collections.abc import Callable, Mapping
from pathlib import Path

from charengine.adapter.card import model_card

log = logging.getLogger(__name__)

WEIGHTS = "adapter_weights"  # the folder of a logged model that its file lies in


def write_model(
    folder: Path,
    name: str,
    data: bytes,
    facts: Mapping[str, str],
    save: Callable[[Path, Path, str, dict[str, str]], None],
) -> Path:
    """The adapter in a form that MLflow loads, or the file alone where it has no base model or MLflow refuses it.

    Args:
        folder: an empty one.
        name: of the file, without its ending.
        data: its bytes.
        facts: of its card; `base_model` among them.
        save: makes a model of (the folder of the file, a folder to be made, the base model, the facts).
    """
    weights, whole = folder / WEIGHTS, folder / "model"
    weights.mkdir()
    (weights / f"{name}.safetensors").write_bytes(data)
    (weights / "README.md").write_text(f"# {name}\n\n{model_card(facts)}\n", encoding="utf-8")
    if base := facts.get("base_model"):
        try:
            save(weights, whole, base, dict(facts))
            return whole
        except Exception as error:  # another program's file, or a package that MLflow misses
            log.warning("%s is kept as a plain file: %s", name, (str(error).splitlines() or [""])[0][:300])
            shutil.rmtree(whole, ignore_errors=True)
    return folder


def is_better(champion: Mapping[str, str], other: Mapping[str, str]) -> bool:
    """Whether the registered champion beats another pick of the same character.

    The same character is the same trigger learnt from the same data set: a later sweep of an earlier run says another prompt. Scores of
    different data sets are measured against different views, so the newer pick is taken there.
    """
    same = all(champion.get(name) == other.get(name) for name in ("trigger", "dataset"))
    return same and "score" in champion and "score" in other and float(champion["score"]) > float(other["score"])
