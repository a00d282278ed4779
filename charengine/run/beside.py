"""What lies beside a run's adapters: model card, preview pictures, and the sidecars of other programs; one set of facts for all.

adapters/README.md  adapters/scene-1.webp…  adapters/NAME.preview.png  NAME.civitai.info  NAME.json
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterable
from pathlib import Path

from charengine.adapter.card import LICENCES, Shown, civitai_info, pick_facts, readme, webui_json
from charengine.adapter.header import STRENGTH, header_of
from charengine.config import ModelSettings
from charengine.errors import UnsafeFile
from charengine.machine.ledger import digest_of_content, foreign, write_own
from charengine.models.embedded_folders import base_folder
from charengine.models.usage import FAMILY_NAMES
from charengine.pictures import open_image, png
from charengine.records import DatasetRecord, Ref, RunRecord, SweepRecord
from charengine.store import Store
from charengine.wording import file_stem

log = logging.getLogger(__name__)

SDXL_BASE = re.compile(r"(?:^|[/\\])(?:sd_xl_base_1\.0|stable-diffusion-xl-base-1\.0)", re.IGNORECASE)
HUB_BASE = "stabilityai/stable-diffusion-xl-base-1.0"


def facts_of(
    name: str, prompt: str, dataset: DatasetRecord, sweep: SweepRecord, models: ModelSettings, rescaled: bool
) -> dict[str, str]:
    """What is said of a pick wherever it is kept: MLflow, the model card, the sidecars.

    Args:
        name: the character's.
        prompt: what it was made from.
        dataset: trained on.
        sweep: with the pick.
        models: which base model it was made for.
        rescaled: see `is_rescaled`.
    """
    pick, subject = sweep.pick, f"{dataset.trigger} {dataset.class_noun}"
    shares = sweep.words.shares if sweep.words else {}
    return {
        "character": name,
        "prompt": prompt,
        "trigger": dataset.trigger,
        "class_noun": dataset.class_noun,
        "recommended_prompt": sweep.words.recommended_prompt if sweep.words else subject,
        **({"traits": ", ".join(f"{words} {share:.0%}" for words, share in shares.items())} if shares else {}),
        **pick_facts(pick.checkpoint_step, pick.strength, rescaled),
        "dataset": f"{dataset.trigger} {dataset.digest}",
        **base_facts(models),
    }


def is_rescaled(sweep: SweepRecord, store: Store) -> bool:
    """Whether the recommended file says that its own strength 1.0 is the pick's; DoRA cannot be."""
    try:
        metadata = header_of(store.get(sweep.recommended_adapter)).metadata
    except UnsafeFile:
        return False
    return metadata.get(STRENGTH) == str(sweep.pick.strength)


def base_facts(models: ModelSettings) -> dict[str, str]:
    """The base model: where it is, what its adapters fit, and its licence where that is known for sure."""
    if models.family == "embedded":
        return {
            "base_model": str(base_folder(models)),
            "base_family": "the embedded toy family alone",
            "base_licence": LICENCES["apache-2.0"],
            "licence": "apache-2.0",
        }
    family = next((name for name, pattern in FAMILY_NAMES.items() if pattern.search(models.sdxl)), "")
    facts = {
        "base_model": models.sdxl,
        "base_family": f"SDXL checkpoints of the {family} family" if family else "SDXL checkpoints",
        "civitai_base": family if family in ("Illustrious", "NoobAI", "Pony") else "SDXL 1.0",
    }
    if SDXL_BASE.search(models.sdxl):
        facts |= {"hub_base": HUB_BASE, "licence": "openrail++", "base_licence": LICENCES["openrail++"]}
    return facts


def write_beside(run: RunRecord, folder: Path, store: Store) -> list[Path]:
    """Model card, preview and sidecars of both adapters; the paths written.

    Args:
        run: the finished run.
        folder: where its adapters are.
        store: where its pictures are.
    """
    models = ModelSettings.model_validate(run.config["profile"].get("models", {}))
    facts = facts_of(run.name, run.prompt, run.dataset, run.sweep, models, is_rescaled(run.sweep, store))
    if models.family == "embedded":
        facts["base_model"] = "embedded"  # a folder of this machine says nothing to whoever gets the files
    pictures = _scenes(run.sweep)
    recommended = f"{file_stem(run.trigger)}_recommended.safetensors"
    content: dict[str, Ref | bytes] = {shown.path: ref for shown, ref in pictures}
    content["README.md"] = readme(recommended, facts, [shown for shown, _ in pictures]).encode()
    picture = _preview(run.sweep)
    preview_png = png(open_image(store.get(picture))) if picture else b""
    as_trained = {**facts, "recommended_strength": f"{run.sweep.pick.strength:g}"}
    for name, ref, own in (
        (recommended, run.sweep.recommended_adapter, facts),
        (f"{file_stem(run.trigger)}.safetensors", run.sweep.adapter, as_trained),
    ):
        stem = name.removesuffix(".safetensors")
        preview = f"{stem}.preview.png"
        told = {
            **({preview: preview_png} if preview_png else {}),
            f"{stem}.civitai.info": civitai_info(name, ref.sha256, ref.size, own, preview).encode(),
            f"{stem}.json": webui_json(own).encode(),
        }
        wanted = {folder / name: digest_of_content(data) for name, data in told.items()}
        for path in (changed := foreign(wanted, wanted)):
            log.info("%s was changed by somebody, and stays as it is", path)
        content |= {name: data for name, data in told.items() if folder / name not in changed}
    write_own(folder, {folder / name: data for name, data in content.items()}, store)
    return [folder / name for name in content]


def left_behind(paths: Iterable[Path], trigger: str) -> list[Path]:
    """Those of files beside a run's adapters that were written for an earlier trigger of it, and are as they were written.

    What a user put there, or changed, is not among them.
    """
    own = tuple(f"{file_stem(trigger)}{ending}." for ending in ("", "_recommended"))
    others = [path for path in paths if not path.name.startswith(own) and not foreign([path], {})]
    stems = tuple(f"{path.stem}." for path in others if path.suffix == ".safetensors")
    return [path for path in others if stems and path.name.startswith(stems)]


def _scenes(sweep: SweepRecord) -> list[tuple[Shown, Ref]]:
    """The four scenes with their whole prompts; none for a sweep of an earlier version."""
    if sweep.words is None:
        return []
    prompts = [template.replace("{subject}", sweep.words.recommended_prompt) for template in sweep.words.scenes]
    return [(Shown(ref.name, prompt), ref) for prompt, ref in zip(prompts, sweep.words.drawn, strict=True)]


def _preview(sweep: SweepRecord) -> Ref | None:
    """The picture on an adapter's card."""
    if sweep.words:
        return sweep.words.drawn[0]
    return next((ref for row in range(len(sweep.prompts)) if (ref := sweep.picture(sweep.pick.metrics, row))), None)
