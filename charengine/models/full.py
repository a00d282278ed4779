"""The full-size family: Qwen-Image-Edit, Qwen2.5-VL, SDXL, CLIP and DINOv2 from the files a machine has."""

from __future__ import annotations

import logging
from dataclasses import dataclass
from pathlib import Path

import psutil
import torch

from charengine.config import ModelSettings, Profile
from charengine.errors import BadInput, MissingDependency, OutOfBudget
from charengine.machine.home import find_home
from charengine.models import Captioner, Embedder, Models
from charengine.models.base_names import base_metadata
from charengine.models.captioners import QwenCaptioner
from charengine.models.catalogue import CLIP_TOKENIZER, QWEN_TOKENIZER
from charengine.models.embedders import ClipEmbedder, DinoEmbedder, PairEmbedder
from charengine.models.file_parts import QwenFiles, SDXLFiles, packaged_config
from charengine.models.files import Header, fingerprint, read_header, read_header_of_folder, weight_files
from charengine.models.identify import expect
from charengine.models.loading import resolve_device
from charengine.models.locate import Found, Inventory, take_stock, tokenizer_folder
from charengine.models.memory import Plan, TakingTurns, cap_memory, plan
from charengine.models.qwen_edit import QwenEdit, Variant
from charengine.models.sdxl import SDXL
from charengine.models.tagger import WD14Captioner

log = logging.getLogger(__name__)

NATIVE_AREA = 1024 * 1024  # pixels SDXL was trained on
ROOMY_GIB = 48.0  # from here on the bf16 transformer is preferred to a packed one
SPARE_HOST_GIB = 6.0  # host memory left to everything else when weights are kept there


@dataclass(frozen=True)
class Tokenizers:
    """Folders of the two tokenizers; None = not found."""

    qwen: Path | None
    clip: Path | None


def load(profile: Profile) -> Models:
    """The full-size family; files are found and their headers checked, a memory plan is made, no weights are loaded.

    Raises:
        MissingDependency: one or more files are not there; names each, its size, its licence, and how to get it.
        BadInput: a file is not what the profile says it is.
        OutOfBudget: a stage cannot fit the budget; says the smallest that would do.
    """
    settings = profile.models
    device = resolve_device(settings.device)
    stock = take_stock(settings, roomy=profile.budget_gib >= ROOMY_GIB)
    tokenizers = find_tokenizers(settings, stock)
    lacking = what_is_missing(profile, stock, tokenizers)
    if lacking:
        raise MissingDependency("\n".join(lacking))
    cap_memory(device, profile.budget_gib)
    dtype = compute_dtype(device)
    editor, captioner = _qwen(profile, stock, tokenizers, device, dtype)
    return Models(
        editor=editor,
        captioner=_tagger(profile) if profile.caption.captioner == "wd14" else captioner,
        diffusion=_sdxl(profile, stock, tokenizers, device, dtype),
        embedder=_embedder(stock, device, dtype),
    )


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


def find_tokenizers(settings: ModelSettings, stock: Inventory) -> Tokenizers:
    """Both tokenizers: beside the models, in ComfyUI's own source, or in a cache."""

    def given(*places: Path | None) -> list[Path]:
        return [place for place in places if place is not None and place.is_dir()]

    edit, sdxl, vl = stock.path("edit"), stock.path("sdxl"), stock.path("vl")
    edit_config, sdxl_config = (
        Path(text).expanduser() if text else None for text in (settings.edit_config, settings.sdxl_config)
    )
    qwen = tokenizer_folder(
        settings,
        given(edit_config, edit, vl),
        ("tokenizer", "processor", "."),
        "text_encoders/qwen25_tokenizer",
        (
            "Qwen/Qwen-Image-Edit-2511",
            "Qwen/Qwen-Image-Edit-2509",
            "Qwen/Qwen-Image-Edit",
            "Qwen/Qwen2.5-VL-7B-Instruct",
        ),
    )
    clip = tokenizer_folder(
        settings,
        given(sdxl_config, sdxl, stock.path("clip")),
        ("tokenizer", "."),
        "sd1_tokenizer",
        ("stabilityai/stable-diffusion-xl-base-1.0", "openai/clip-vit-large-patch14"),
    )
    return Tokenizers(qwen, clip)


def compute_dtype(device: torch.device) -> torch.dtype:
    """bfloat16 where the GPU has it, float16 on older ones, float32 on a CPU."""
    if device.type == "cpu":
        return torch.float32
    return torch.bfloat16 if device.type != "cuda" or torch.cuda.is_bf16_supported() else torch.float16


def header_of(path: Path) -> Header:
    """The header of a weight file, of a folder of shards, or of a pipeline folder's transformer."""
    if path.is_file():
        return read_header(path)
    inner = path / "transformer"
    return read_header_of_folder(inner if inner.is_dir() else path)


def plan_for(profile: Profile, stock: Inventory) -> Plan:
    """The memory plan of a profile over the files that were found."""
    lightning = stock.path("lightning")
    return plan(
        profile.budget_gib,
        header_of(stock.found["vl"].path),
        header_of(stock.found["edit"].path),
        sheet=(profile.sheet.width, profile.sheet.height),
        adapter_bytes=2 * sum(_elements(read_header(lightning))) if lightning else 0,
    )


def edit_variant(found: Found) -> Variant:
    """Which pipeline a transformer belongs to; its keys do not tell, so a single file's name must."""
    text = f"{found.identity.note} {found.path.name}".lower()
    return "edit_plus" if any(word in text for word in ("plus", "2509", "2511")) else "edit"


def _elements(header: Header) -> list[int]:
    return list(header.dtypes().values())


def _qwen(
    profile: Profile, stock: Inventory, tokenizers: Tokenizers, device: torch.device, dtype: torch.dtype
) -> tuple[QwenEdit, Captioner]:
    settings = profile.models
    edit, vl, vae = (stock.found[name] for name in ("edit", "vl", "vae"))
    if vl.identity.note == "no lm_head" and profile.caption.captioner == "vl":
        raise BadInput(
            f"models.vl: {vl.path} has no lm_head, so it can encode prompts but not caption: use another file, or caption.captioner=wd14"
        )
    placement = plan_for(profile, stock)
    whole = edit.identity.kind == "qwen-image-edit"
    config = (
        edit.path
        if whole
        else Path(settings.edit_config).expanduser()
        if settings.edit_config
        else packaged_config("qwen-image-edit")
    )
    assert tokenizers.qwen is not None  # what_is_missing has seen to it
    parts = QwenFiles(
        edit.path / "transformer" if whole else edit.path,
        vl.path,
        vae.path,
        config,
        tokenizers.qwen,
        device,
        dtype,
        placement,
        zero_cond_t="2511" in edit.identity.note,
        roomy_host=_roomy_host(placement),
    )
    rivals = frozenset() if placement.together else frozenset({"text_encoder", "transformer"})
    loaded = TakingTurns(rivals, parts.release, parts.drop)
    lightning = _lightning(stock)
    editor = QwenEdit(
        parts,
        device,
        _fingerprint(edit.path, vl.path, vae.path, *([lightning] if lightning else [])),
        variant=edit_variant(edit),
        lightning=lightning,
        loaded=loaded,
    )
    room = placement.encoder_room if device.type == "cuda" else None
    return editor, QwenCaptioner(parts, device, _fingerprint(vl.path), loaded=loaded, room=room)


def _roomy_host(placement: Plan) -> bool:
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


def _lightning(stock: Inventory) -> Path | None:
    found = stock.found.get("lightning")
    if found is None:
        return None
    if found.identity.layout != "qwen-image":
        raise BadInput(
            f"models.lightning: {found.path} is a {found.identity.title}; it must be a Qwen-Image(-Edit) Lightning LoRA"
        )
    return found.path


def _sdxl(profile: Profile, stock: Inventory, tokenizers: Tokenizers, device: torch.device, dtype: torch.dtype) -> SDXL:
    settings, checkpoint = profile.models, stock.found["sdxl"]
    vae = Path(settings.sdxl_vae).expanduser() if settings.sdxl_vae else None
    if vae is not None:
        expect(vae, ("sdxl-vae", "sdxl"), "models.sdxl_vae")
    elif checkpoint.identity.note == "no vae":
        raise BadInput(
            f"models.sdxl: {checkpoint.path} holds no VAE: name one in models.sdxl_vae, e.g. sdxl_vae.safetensors"
        )
    config = Path(settings.sdxl_config).expanduser() if settings.sdxl_config else packaged_config("sdxl")
    whole = (checkpoint.path / "tokenizer_2").is_dir()
    parts = SDXLFiles(checkpoint.path, config, None if whole else tokenizers.clip, vae, device, dtype)
    digest = _fingerprint(checkpoint.path, *([vae] if vae else []))
    names = base_metadata(checkpoint.path, _memory())
    return SDXL(parts, device, dtype, NATIVE_AREA, digest, base_names=names)


def _embedder(stock: Inventory, device: torch.device, dtype: torch.dtype) -> Embedder:
    clip, dino = stock.found["clip"].path, stock.path("dino")
    adherence = ClipEmbedder(clip, device, dtype, _fingerprint(clip), letterbox=True)
    return adherence if dino is None else PairEmbedder(DinoEmbedder(dino, device, dtype, _fingerprint(dino)), adherence)


def _tagger(profile: Profile) -> WD14Captioner:
    folder = Path(profile.models.tagger).expanduser()
    files = [file for file in (folder / "model.onnx", folder / "selected_tags.csv") if file.is_file()]
    return WD14Captioner(folder, fingerprint(files, _memory()), threshold=profile.caption.threshold)


def _fingerprint(*paths: Path) -> str:
    return fingerprint([file for path in paths for file in weight_files(path)], _memory())


def _memory() -> Path:
    return find_home().root / "fingerprints.json"
