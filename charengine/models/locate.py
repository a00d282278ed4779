"""Finds the model files a profile needs: where it says, in the Hugging Face cache, and in ComfyUI folders.

Names narrow the search, headers decide: a file is taken for what its keys say it is.
"""

from __future__ import annotations

import logging
import os
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from charengine.config import ModelSettings
from charengine.errors import BadInput, ConfigError, EngineError, MissingDependency
from charengine.models.catalogue import EDIT, NEEDS, SDXL, VAE, VL, Need
from charengine.models.files import UNSAFE_SUFFIXES, read_header, refuse_unsafe
from charengine.models.identify import Identity, expect

log = logging.getLogger(__name__)

COMFY_FOLDERS = ("diffusion_models", "unet", "text_encoders", "clip", "vae", "checkpoints", "loras")
SUFFIXES = (".safetensors", ".gguf")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]  # of a hub repository: nothing that can carry code


@dataclass(frozen=True)
class Found:
    """A model file or folder, what it is, and how it was come by ("set in the profile", "Hugging Face cache", a folder)."""

    need: Need
    path: Path
    identity: Identity
    origin: str


@dataclass(frozen=True)
class Missing:
    """What was not found; `problem` says why, when there is more to say than that it is not there."""

    need: Need
    problem: str = ""

    def describe(self) -> str:
        """What it is, how big, under which licence, and how to get it."""
        need = self.need
        why = f" ({self.problem})" if self.problem else ""
        return f"models.{need.field}: no {need.title} found{why}; {need.size}, {need.licence}. Get it: {need.advice}"


@dataclass(frozen=True)
class Inventory:
    """Everything found and everything missing, by the setting's name."""

    found: dict[str, Found]
    missing: dict[str, Missing]

    def path(self, field: str) -> Path | None:
        """The path found for a setting."""
        return self.found[field].path if field in self.found else None


def take_stock(settings: ModelSettings, *, roomy: bool = False) -> Inventory:
    """Look for all the full-size family needs.

    Args:
        settings: `models` of a profile.
        roomy: the budget holds a bf16 transformer (40 GiB), so that is preferred to a packed one.

    Raises:
        BadInput: a file named in the profile is the wrong thing, damaged or unsafe; several mistakes together.
    """
    found: dict[str, Found] = {}
    missing: dict[str, Missing] = {}
    problems: list[str] = []
    for need in NEEDS:
        try:
            result = _look_for(need, settings, found, roomy)
        except BadInput as error:
            if getattr(settings, need.field):
                problems.append(str(error))
                continue
            result = Missing(need, str(error))
        except MissingDependency as error:
            result = Missing(need, str(error))
        if isinstance(result, Found):
            found[need.field] = result
        elif result is not None:
            missing[need.field] = result
    if len(problems) > 1:
        raise ConfigError(problems)
    if problems:
        raise BadInput(problems[0])
    return Inventory(found, missing)


def _look_for(need: Need, settings: ModelSettings, found: dict[str, Found], roomy: bool) -> Found | Missing | None:
    given = getattr(settings, need.field)
    if given:
        return _given(need, str(given), settings)
    if need in (VL, VAE):
        inside = _inside_edit_folder(need, settings, found)
        if inside is not None:
            return inside
    candidates = list(_candidates(need, settings))
    if need is SDXL and len(candidates) > 1:
        candidates = _one_sdxl(candidates)
    if candidates:
        return max(candidates, key=lambda candidate: _preference(candidate, roomy))
    if settings.allow_downloads and need.hubs and need.required:
        return _download(need, need.hubs[0], settings)
    return Missing(need)


def _given(need: Need, text: str, settings: ModelSettings) -> Found:
    path = Path(text).expanduser()
    if path.exists():
        return Found(need, path, expect(path, need.kinds, f"models.{need.field}"), "set in the profile")
    if path.suffix.lower() in UNSAFE_SUFFIXES:
        refuse_unsafe(path)
    if HUB_ID.match(text) and path.suffix.lower() not in SUFFIXES:
        return _download(need, text, settings)
    near = [str(file) for _, file in _files(settings) if file.name == path.name]
    hint = f"; a file of that name is at {near[0]}" if near else ""
    raise BadInput(
        f"models.{need.field}: {text!r} is neither a file nor a folder here, nor a hub id like org/name{hint}"
    )


def _inside_edit_folder(need: Need, settings: ModelSettings, found: dict[str, Found]) -> Found | None:
    """The edit model's own encoder or VAE, when it came as a whole diffusers folder (or `edit_config` is one)."""
    folders = [found["edit"].path] if "edit" in found and found["edit"].identity.kind == "qwen-image-edit" else []
    if settings.edit_config:
        folders.append(Path(settings.edit_config).expanduser())
    for folder in folders:
        inner = folder / ("text_encoder" if need is VL else "vae")
        if any(inner.glob("*.safetensors")):
            return Found(need, inner, expect(inner, need.kinds, f"models.{need.field}"), f"in {folder.name}")
    return None


def _candidates(need: Need, settings: ModelSettings) -> Iterator[Found]:
    for hub in need.hubs:
        folder = cached_snapshot(hub, settings)
        if folder is not None and (identity := _is(folder, need)):
            yield Found(need, folder, identity, "Hugging Face cache")
    for root, file in _files(settings):
        if all(word in file.name.lower() for word in need.words) and (identity := _is(file, need)):
            yield Found(need, file, identity, str(root))
    for root in roots(settings):
        for folder in _model_folders(root):
            if all(word in folder.name.lower() for word in need.words) and (identity := _is(folder, need)):
                yield Found(need, folder, identity, str(root))


def _is(path: Path, need: Need) -> Identity | None:
    """What a found file is, if it is of use; damaged files met while searching are named in the log and passed over."""
    try:
        return expect(path, need.kinds, f"models.{need.field}")
    except EngineError as error:
        log.debug("passed over: %s", error)
        return None


def _preference(candidate: Found, roomy: bool) -> tuple[int, int, int]:
    """Newer first, then the precision that suits the budget, then what the profile's folders hold before the cache."""
    name, identity = str(candidate.path).lower(), candidate.identity
    newest = 3 if "2511" in name or "2511" in identity.note else 2 if "2509" in name or "Plus" in identity.note else 1
    if candidate.need is not EDIT:
        newest = -next((i for i, hub in enumerate(candidate.need.hubs) if hub.split("/")[1] in str(candidate.path)), 0)
    packed = candidate.path.is_file() and _is_packed(candidate.path)
    return newest, int(packed != roomy) + int(packed and "fp8" in name), int(candidate.origin != "Hugging Face cache")


def _is_packed(path: Path) -> bool:
    header = read_header(path)
    return header.format == "gguf" or "F8_E4M3" in header.dtypes()


def _one_sdxl(candidates: list[Found]) -> list[Found]:
    """SDXL base if it is there; several fine-tunes are the user's choice, not ours."""
    base = [c for c in candidates if "sd_xl_base_1.0" in c.path.name or "stable-diffusion-xl-base-1.0" in str(c.path)]
    if base:
        return base
    names = ", ".join(sorted({str(candidate.path) for candidate in candidates})[:8])
    raise MissingDependency(f"{len(candidates)} SDXL checkpoints were found; set models.sdxl to one of: {names}")


# --- places ----------------------------------------------------------------------------------------------------------


def roots(settings: ModelSettings) -> list[Path]:
    """Folders looked in: the profile's, then ComfyUI's usual places; only those that exist, each once."""
    usual = [os.environ.get("COMFYUI_PATH", ""), "~/ComfyUI", "~/comfyui", "~/Documents/ComfyUI"]
    given = [Path(folder).expanduser() for folder in settings.folders]
    places = given + [Path(folder).expanduser() / "models" for folder in usual if folder]
    return list(dict.fromkeys(place for place in places if place.is_dir()))


def missing_folders(settings: ModelSettings) -> list[Path]:
    """Folders the profile names that are not there."""
    return [path for path in (Path(folder).expanduser() for folder in settings.folders) if not path.is_dir()]


def _files(settings: ModelSettings) -> Iterator[tuple[Path, Path]]:
    for root in roots(settings):
        inner = [root / name for name in COMFY_FOLDERS if (root / name).is_dir()]
        for folder in inner or [root]:
            for file in sorted(folder.rglob("*")):
                if file.suffix.lower() in SUFFIXES and file.is_file() and "-of-0" not in file.name:
                    yield root, file


def _model_folders(root: Path) -> Iterator[Path]:
    for depth in ("*", "*/*"):
        for folder in sorted(root.glob(depth)):
            if folder.is_dir() and ((folder / "model_index.json").is_file() or (folder / "config.json").is_file()):
                yield folder


def hub_caches(settings: ModelSettings) -> list[Path]:
    """Hugging Face caches: the environment's, then folders of the profile that look like one."""
    home = os.environ.get("HF_HOME") or "~/.cache/huggingface"
    cache = os.environ.get("HF_HUB_CACHE") or os.environ.get("HUGGINGFACE_HUB_CACHE") or f"{home}/hub"
    places = [Path(cache).expanduser(), *[Path(folder).expanduser() for folder in settings.folders]]
    return [place for place in places if place.is_dir() and any(place.glob("models--*"))]


def cached_snapshot(hub: str, settings: ModelSettings) -> Path | None:
    """The newest complete-looking snapshot of a hub repository in a cache, without asking the network."""
    for cache in hub_caches(settings):
        folder = cache / f"models--{hub.replace('/', '--')}"
        main = folder / "refs" / "main"
        named = folder / "snapshots" / main.read_text().strip() if main.is_file() else None
        snapshots = [named] if named and named.is_dir() else sorted(folder.glob("snapshots/*"))
        for snapshot in snapshots:
            if (snapshot / "model_index.json").is_file() or (snapshot / "config.json").is_file():
                return snapshot
    return None


def _download(need: Need, hub: str, settings: ModelSettings) -> Found:
    field = f"models.{need.field}"
    cached = cached_snapshot(hub, settings)
    if cached is not None:
        return Found(need, cached, expect(cached, need.kinds, field), "Hugging Face cache")
    if not settings.allow_downloads:
        raise MissingDependency(
            f"{field}: {hub} is not in the Hugging Face cache, and downloads are off; {need.size}, {need.licence}. "
            f"Set models.allow_downloads: true, or: hf download {hub}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        log.info("downloading %s (%s, %s)", hub, need.size, need.licence)
        folder = Path(snapshot_download(hub, allow_patterns=WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, OSError) as error:
        raise MissingDependency(
            f"{field}: {hub} could not be downloaded ({type(error).__name__}: {str(error).splitlines()[0][:160]}). "
            "Is this machine online? A gated model needs its licence accepted on its page and `hf auth login`"
        ) from error
    return Found(need, folder, expect(folder, need.kinds, field), "downloaded")


# --- tokenizers ------------------------------------------------------------------------------------------------------


def tokenizer_folder(
    settings: ModelSettings, given: list[Path], inner: tuple[str, ...], comfy: str, hubs: tuple[str, ...]
) -> Path | None:
    """A folder with a BPE tokenizer's files.

    Args:
        settings: `models` of a profile.
        given: model folders looked in first.
        inner: names of its tokenizer's subfolders.
        comfy: where ComfyUI's own source has one.
        hubs: repositories that have one.
    """
    folders = [folder / name for folder in given for name in inner]
    folders += [root.parent / "comfy" / comfy for root in roots(settings)]
    for hub in hubs:
        for cache in hub_caches(settings):
            for snapshot in sorted((cache / f"models--{hub.replace('/', '--')}").glob("snapshots/*")):
                folders += [snapshot, *[snapshot / name for name in inner]]
    return next((folder for folder in folders if _has_tokenizer(folder)), None)


def _has_tokenizer(folder: Path) -> bool:
    pair = (folder / "vocab.json").is_file() and (folder / "merges.txt").is_file()
    return pair or (folder / "tokenizer.json").is_file()
