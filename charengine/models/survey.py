"""Everything that can be known about a profile's full-size models before anything runs: `doctor` shows it, `load` acts on it.

Headers and what lies beside them; no model is loaded, nothing written.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, TypeVar

import psutil

from charengine import files
from charengine.config import ModelSettings, Profile
from charengine.errors import BadInput, EngineError, OutOfBudget
from charengine.models.catalogue import CLIP_TOKENIZER, QWEN_TOKENIZER
from charengine.models.classes import described, flow_schedule, sdxl_schedule
from charengine.models.edit_loras import EditLoras, edit_loras
from charengine.models.files import Header, read_header, read_header_of_folder
from charengine.models.fit import check_fit
from charengine.models.identify import expect
from charengine.models.lightning import base_of, fused_steps
from charengine.models.llama_names import renamed_header
from charengine.models.locate import FoundModel, Inventory, Preferences, configurations, name_of, take_stock
from charengine.models.memory import MemoryPlan, plan
from charengine.models.prediction import Prediction, prediction_of
from charengine.models.qwen_edit import Variant
from charengine.models.usage import Usage, usage_of
from charengine.models.vocabularies import Tokenizers, find_tokenizers, own_tokenizers
from charengine.together import steps_of_drafts

R = TypeVar("R")
ROOMY_GIB = 48.0  # from here on the bf16 transformer is preferred to a packed one
SPARE_HOST_GIB = 6.0  # host memory left to everything else when weights are kept there
NO_LORAS, AS_SDXL = EditLoras(), Usage()
TAGGER_FILES = ("model.onnx", "selected_tags.csv")


@dataclass(frozen=True)
class Survey:
    """What was found and decided.

    Args:
        stock: the files.
        tokenizers: where they come from.
        missing: one line for each thing the profile cannot do without.
        problems: what else stands in the way, each as it is raised.
        plan: how the sheet's models fit the budget; None without their files or where they do not fit.
        loras: on the edit model.
        prediction: of the SDXL checkpoint; None = no file says, so it is measured before the sheet.
        usage: how the checkpoint is prompted and sampled.
        notes: decisions worth a line in the log.
    """

    stock: Inventory
    tokenizers: Tokenizers
    missing: tuple[str, ...]
    problems: tuple[EngineError, ...]
    plan: MemoryPlan | None = None
    loras: EditLoras = NO_LORAS
    prediction: Prediction | None = None
    usage: Usage = AS_SDXL
    notes: tuple[str, ...] = ()


@dataclass
class _Findings:
    problems: list[EngineError] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def survey(profile: Profile) -> Survey:
    """Look at a profile's files.

    Raises:
        BadInput: a file that the profile names is the wrong thing, damaged, unsafe, or does not fit; several together.
    """
    settings = profile.models
    preferences = Preferences(profile.budget_gib >= ROOMY_GIB, steps_of_drafts(profile.sheet))
    stock = take_stock(settings, preferences)
    tokenizers = find_tokenizers(settings, *(stock.path(name) for name in ("edit", "vl", "sdxl", "clip")))
    findings = _Findings()
    loras = NO_LORAS
    for check in (_check_vl, _check_sdxl, _check_tagger):
        _collect(findings, check, profile, stock)
    _collect(findings, _check_beside, settings, stock, tokenizers)
    placement = prediction = None
    usage = AS_SDXL
    if "edit" in stock.found:
        loras = _collect(findings, edit_loras, settings, stock) or loras
        findings.notes += _notes_on_edit(stock.found["edit"], loras)
    if "edit" in stock.found and "vl" in stock.found:
        placement = _collect(findings, plan_for, profile, stock, loras)
    if "sdxl" in stock.found:
        checkpoint = stock.found["sdxl"].path
        prediction = _collect(findings, _prediction, checkpoint, settings, findings.notes)
        usage = usage_of(checkpoint, settings)
        findings.notes += usage.describe()
    missing = what_is_missing(profile, stock, tokenizers)
    return Survey(
        stock,
        tokenizers,
        tuple(missing),
        tuple(findings.problems),
        placement,
        loras,
        prediction,
        usage,
        tuple(findings.notes),
    )


def _collect(findings: _Findings, check: Callable[..., R], *args: Any) -> R | None:
    """The check's result; its error among the findings."""
    try:
        return check(*args)
    except EngineError as error:
        findings.problems.append(error)
        return None


def what_is_missing(profile: Profile, stock: Inventory, tokenizers: Tokenizers) -> list[str]:
    """One line for each thing the profile cannot do without."""
    lines = [missing.describe() for missing in stock.missing.values() if missing.need.required]
    if tokenizers.qwen is None:
        lines.append(f"models.edit_config: no tokenizer found: {QWEN_TOKENIZER}")
    if tokenizers.clip is None:
        lines.append(f"models.sdxl_config: no tokenizer found: {CLIP_TOKENIZER}")
    if profile.caption.captioner == "wd14" and not profile.models.tagger:
        lines.append(
            "models.tagger: caption.captioner is 'wd14' and no folder is named; 0.4 GB, Apache-2.0. Get it: hf download "
            "SmilingWolf/wd-convnext-tagger-v3 model.onnx selected_tags.csv; or set caption.captioner=vl"
        )
    return lines


def _check_vl(profile: Profile, stock: Inventory) -> None:
    vl = stock.found.get("vl")
    if vl is not None and vl.identity.note == "no lm_head" and profile.caption.captioner == "vl":
        raise BadInput(
            f"models.vl: {vl.path} has no lm_head, so it can encode prompts but not caption: use another file, or caption.captioner=wd14"
        )


def _check_sdxl(profile: Profile, stock: Inventory) -> None:
    vae = replacement_vae(profile)
    if vae is not None:
        identity = expect(vae, ("sdxl-vae", "sdxl"), "models.sdxl_vae")
        check_fit(vae, identity, configurations(profile.models, stock.found))
    elif "sdxl" in stock.found and stock.found["sdxl"].identity.note == "no vae":
        raise BadInput(
            f"models.sdxl: {stock.found['sdxl'].path} holds no VAE: name one in models.sdxl_vae, e.g. sdxl_vae.safetensors"
        )


def _check_tagger(profile: Profile, _stock: Inventory) -> None:
    if profile.caption.captioner != "wd14" or not profile.models.tagger:
        return
    folder = files.expanded(profile.models.tagger)
    lacking = [name for name in TAGGER_FILES if not files.is_file(folder / name)]
    if lacking:
        raise BadInput(
            f"models.tagger: {folder} has no {' and no '.join(lacking)}; a WD14 v3 tagger's folder holds both"
        )


def _check_beside(settings: ModelSettings, stock: Inventory, tokenizers: Tokenizers) -> None:
    """What is read late: schedules and tokenizers."""
    from transformers import CLIPTokenizer, Qwen2Tokenizer

    told, sdxl = configurations(settings, stock.found), stock.path("sdxl")
    own: list[Path | None] = [sdxl / "tokenizer", sdxl / "tokenizer_2"] if sdxl and own_tokenizers(sdxl) else []
    if "edit" in stock.found:
        flow_schedule(told.qwen)
    if sdxl:
        sdxl_schedule(sdxl if files.is_dir(sdxl) else told.sdxl)
    clips = [(CLIPTokenizer, folder) for folder in own or [tokenizers.clip]]
    for kind, folder in [*clips, (Qwen2Tokenizer, tokenizers.qwen)]:
        if folder and files.is_dir(folder):
            with described(folder):
                window = kind.from_pretrained(folder, local_files_only=True).model_max_length
                if folder in own and window != 77:
                    raise ValueError(f"model_max_length is {window}; allowed is 77, SDXL's")


def replacement_vae(profile: Profile) -> Path | None:
    """The VAE used instead of the SDXL checkpoint's own."""
    return files.expanded(profile.models.sdxl_vae) if profile.models.sdxl_vae else None


def _notes_on_edit(edit: FoundModel, loras: EditLoras) -> list[str]:
    fused = fused_steps(edit.path.name)
    if fused:
        return [f"{edit.path.name} has a Lightning LoRA fused in: sheets are drawn in {fused} steps without guidance"]
    return loras.describe(base_of(name_of(edit)))


def _prediction(checkpoint: Path, settings: ModelSettings, notes: list[str]) -> Prediction | None:
    found = prediction_of(checkpoint, settings)
    as_v = found or prediction_of(checkpoint, settings, Prediction("v_prediction"))
    unknown = "no file says whether it predicts epsilon or v: measured once, before the first sheet; epsilon or "
    notes.append(f"SDXL: {'' if found else unknown}{as_v and as_v.describe()}")
    return found


# --- memory ----------------------------------------------------------------------------------------------------------


def header_of(path: Path, prefix: str = "") -> Header:
    """The header of a weight file, of a folder of shards, of a pipeline folder's transformer, or of a GGUF's two files.

    Args:
        path: the model.
        prefix: of the keys that count, where a file holds more than one model.
    """
    if files.is_dir(path):
        inner = path / "transformer"
        return read_header_of_folder(inner if files.is_dir(inner) else path)
    header = read_header(path)
    if prefix:
        kept = {key: tensor for key, tensor in header.tensors.items() if key.startswith(prefix)}
        return Header(path, header.format, kept, header.metadata)
    return header


def plan_for(profile: Profile, stock: Inventory, loras: EditLoras = NO_LORAS) -> MemoryPlan:
    """The memory plan of a profile over the files that were found.

    Raises:
        OutOfBudget: a stage does not fit the GPU's budget, or what is streamed does not fit the host.
    """
    vl, edit = stock.found["vl"], stock.found["edit"]
    placement = plan(
        profile.budget_gib,
        renamed_header(vl.path) if vl.identity.layout == "gguf" else header_of(vl.path),
        header_of(edit.path, edit.identity.prefix),
        sheet=(profile.sheet.width, profile.sheet.height),
        adapter_bytes=loras.nbytes,
    )
    roomy_host(placement)
    return placement


def roomy_host(placement: MemoryPlan) -> bool:
    """Whether host memory holds whole models page-locked, or only what is streamed.

    Raises:
        OutOfBudget: not even that.
    """
    free: float = psutil.virtual_memory().available / 2**30
    if placement.least_host_gib > free:
        raise OutOfBudget(
            f"{placement.least_host_gib:.1f} GiB of weights do not fit the GPU and must wait in host memory, of which {free:.1f} "
            "are free: close other programs, or use a smaller file (GGUF Q4)"
        )
    return free > placement.host_gib + SPARE_HOST_GIB


def edit_variant(found: FoundModel) -> Variant:
    """Which pipeline a transformer belongs to; its keys do not tell, so a single file's name must."""
    text = name_of(found).lower()
    return "edit_plus" if any(word in text for word in ("plus", "2509", "2511", "rapid")) else "edit"
