"""The full-size family: Qwen-Image-Edit, Qwen2.5-VL, SDXL, CLIP and DINOv2 from the files a machine has."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path

import torch

from charengine import files
from charengine.config import Profile
from charengine.errors import BadInput, ConfigError, EngineError, MissingDependency
from charengine.machine.home import find_home
from charengine.models.base_names import base_metadata
from charengine.models.captioners import QwenCaptioner
from charengine.models.classes import packaged_config
from charengine.models.edit_loras import EditLoras
from charengine.models.embedders import ClipEmbedder, DinoEmbedder, PairEmbedder
from charengine.models.file_parts import QwenFiles, SDXLFiles
from charengine.models.files import file_digest, fingerprint, weight_files
from charengine.models.lightning import USUAL_STEPS, fused_steps
from charengine.models.llama_names import files_of_text_encoder
from charengine.models.loading import resolve_device
from charengine.models.locate import FoundModel, Inventory, configurations, missing_folders
from charengine.models.memory import MemoryPlan, TakingTurns, cap_memory
from charengine.models.onlookers import AskingOnlooker
from charengine.models.prediction import prediction_of
from charengine.models.prediction_probe import measured_prediction
from charengine.models.protocols import Embedder, Models
from charengine.models.qwen_edit import LIGHTNING_STEPS, QwenEdit
from charengine.models.readers import AskingReader
from charengine.models.sdxl import SDXL
from charengine.models.survey import Survey, edit_variant, replacement_vae, roomy_host, survey
from charengine.models.tagger import WD14Captioner
from charengine.models.vocabularies import as_folder, own_tokenizers

log = logging.getLogger(__name__)
TOLD = (".json", ".txt")  # of a diffusers folder

NATIVE_AREA = 1024 * 1024  # pixels SDXL was trained on


def load(profile: Profile) -> Models:
    """The full-size family; files are found and their headers checked, a memory plan is made.

    No weights are loaded, but once for each SDXL checkpoint of which no file says whether it predicts epsilon or v: its U-Net
    is asked then, before anything else uses the GPU, and the answer remembered.

    Raises:
        MissingDependency: one or more files are not there; names each, its size, its licence, and how to get it.
        BadInput: a file is not what the profile says it is, or does not fit its class.
        OutOfBudget: a stage cannot fit the budget; says the smallest that would do.
    """
    device = resolve_device(profile.models.device)
    found = survey(profile)
    gone = missing_folders(profile.models)  # first: what lies in a folder whose name is misspelt need not be fetched
    if found.missing:
        raise MissingDependency("\n".join([*gone, *found.missing]))
    for line in gone:
        log.warning("%s", line)
    _raise(found.problems)
    for note in found.notes:
        log.info("%s", note)
    cap_memory(device, profile.budget_gib)
    dtype = compute_dtype(device)
    editor, captioner = _qwen(profile, found, device, dtype)
    return Models(
        editor=editor,
        captioner=_tagger(profile) if profile.caption.captioner == "wd14" else captioner,
        diffusion=_sdxl(profile, found, device, dtype),
        embedder=_embedder(found.stock, device, dtype),
        reader=AskingReader(captioner),
        onlooker=AskingOnlooker(captioner),
    )


def _raise(problems: Sequence[EngineError]) -> None:
    """The only problem as it is, or all mistakes of the input together."""
    wrong = [str(problem) for problem in problems if isinstance(problem, BadInput)]
    if len(wrong) > 1:
        raise ConfigError(wrong)
    if problems:
        raise next((problem for problem in problems if isinstance(problem, BadInput)), problems[0])


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the GPU has it, float16 on older ones, float32 on a CPU."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if device.type != "cuda" or torch.cuda.is_bf16_supported() else torch.float16


def _qwen(profile: Profile, found: Survey, device: torch.device, dtype: torch.dtype) -> tuple[QwenEdit, QwenCaptioner]:
    stock, loras = found.stock, found.loras
    edit, vl, vae = (stock.found[name] for name in ("edit", "vl", "vae"))
    placement, tokenizer = found.plan, found.tokenizers.qwen
    assert placement is not None and tokenizer is not None  # the survey has seen to it
    whole = edit.identity.kind == "qwen-image-edit"
    parts = QwenFiles(
        edit.path / "transformer" if whole else edit.path,
        vl.path,
        vae.path,
        configurations(profile.models, stock.found).qwen,
        as_folder(tokenizer, find_home().root),
        device,
        dtype,
        placement,
        zero_cond_t="2511" in edit.identity.note,
        roomy_host=roomy_host(placement),
    )
    told = _told(parts.config)
    rivals = frozenset() if placement.together else frozenset({"text_encoder", "transformer"})
    loaded = TakingTurns(rivals, parts.release, parts.drop)
    encoder = files_of_text_encoder(vl.path)
    editor = QwenEdit(
        parts,
        device,
        _fingerprint(edit.path, *encoder, vae.path, *loras.files, told=told)
        + _strengths(loras)
        + _reading(edit, loras),
        variant=edit_variant(edit),
        lightning=loras.lightning,
        lightning_steps=loras.lightning_steps or LIGHTNING_STEPS,
        fused_steps=fused_steps(edit.path.name),
        loras=loras.own,
        loaded=loaded,
    )
    captioner = QwenCaptioner(
        parts,
        device,
        _fingerprint(*encoder, told=told),
        loaded=loaded,
        room=_room(placement, device),
        recorded=profile.models.cuda_graphs == "auto",
    )
    return editor, captioner


def _strengths(loras: EditLoras) -> str:
    """Of the user's own LoRAs; of several, each with its file's digest: `fingerprint` knows no order of files."""
    if len(loras.own) < 2:
        return "".join(f"|{strength:g}" for _, strength in loras.own)
    return "".join(f"|{file_digest(file, _memory())[:16]}@{strength:g}" for file, strength in loras.own)


def _reading(edit: FoundModel, loras: EditLoras) -> str:
    """How the names of the files say that these weights are drawn with, where that is not as 2511 with a Lightning of 4 steps is."""
    variant, fused = edit_variant(edit), fused_steps(edit.path.name)
    told = variant if variant == "edit" else "" if "2511" in edit.identity.note else "2509"
    steps = loras.lightning_steps if loras.lightning and loras.lightning_steps != USUAL_STEPS else 0
    return "".join(
        f"|{part}" for part in (told, f"{steps} steps" if steps else "", f"in {fused}" if fused else "") if part
    )


def _room(placement: MemoryPlan, device: torch.device) -> int | None:
    return placement.encoder_room if device.type == "cuda" else None


def _sdxl(profile: Profile, found: Survey, device: torch.device, dtype: torch.dtype) -> SDXL:
    checkpoint, vae = found.stock.found["sdxl"].path, replacement_vae(profile)
    tokenizer = found.tokenizers.clip
    folder = None if own_tokenizers(checkpoint) or tokenizer is None else as_folder(tokenizer, find_home().root)
    config = configurations(profile.models, found.stock.found).sdxl
    parts = SDXLFiles(checkpoint, config, folder, vae, device, dtype)
    weights = _fingerprint(checkpoint, *([vae] if vae else []), told=_told(parts.config))
    prediction = found.prediction
    if prediction is None:
        measured = measured_prediction(parts, device, weights, find_home())
        prediction = prediction_of(checkpoint, profile.models, measured)
    names = base_metadata(checkpoint, _memory())
    return SDXL(
        parts, device, dtype, NATIVE_AREA, weights, prediction=prediction, usage=found.usage, base_names=names,
        recorded=profile.models.cuda_graphs == "auto",
    )  # fmt: skip


def _embedder(stock: Inventory, device: torch.device, dtype: torch.dtype) -> Embedder:
    clip, dino = stock.found["clip"].path, stock.path("dino")
    adherence = ClipEmbedder(clip, device, dtype, _fingerprint(clip))
    return adherence if dino is None else PairEmbedder(DinoEmbedder(dino, device, dtype, _fingerprint(dino)), adherence)


def _tagger(profile: Profile) -> WD14Captioner:
    folder = files.expanded(profile.models.tagger)
    weights = [file for file in (folder / "model.onnx", folder / "selected_tags.csv") if files.is_file(file)]
    return WD14Captioner(folder, fingerprint(weights, _memory()), threshold=profile.caption.threshold)


def _fingerprint(*paths: Path, told: Sequence[Path] = ()) -> str:
    return fingerprint([*(file for path in paths for file in weight_files(path)), *told], _memory())


def _told(folder: Path) -> list[Path]:
    """What a folder says beside weights that changes what is drawn: configurations, schedules, tokenizers.

    Nothing of the packaged folders, which change with this program alone.
    """
    if folder.is_relative_to(packaged_config("sdxl").parent):
        return []
    inside = [folder, *filter(files.is_dir, files.entries(folder))]
    return [file for one in inside for file in files.entries(one) if file.suffix in TOLD and files.is_file(file)]


def _memory() -> Path:
    return find_home().root / "fingerprints.json"
