"""Finds the model files a profile needs: where it says, in the Hugging Face cache, and in ComfyUI folders.

Names narrow the search, headers decide: a file is taken for what its keys say it is.
"""

from __future__ import annotations

import logging
import re
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from charengine import files
from charengine.config import ModelSettings
from charengine.errors import BadInput, ConfigError, EngineError, MissingDependency
from charengine.models.catalogue import EDIT, LIGHTNING, NEEDS, SDXL, VAE, VL, Need
from charengine.models.classes import packaged_config
from charengine.models.files import UNSAFE_SUFFIXES, holds_weights, read_header, refuse_unsafe
from charengine.models.fit import Configurations, check_fit
from charengine.models.identify import QWEN_IMAGE_21, RELATIVES, Identity, expect, identify_path, with_article
from charengine.models.lightning import base_of, fused_steps, steps_of
from charengine.models.places import (
    SUFFIXES,
    cached_snapshot,
    missing_folders,
    model_files,
    model_folders,
    named_folders,
    roots,
)
from charengine.models.vocabularies import has_tokenizer

__all__ = ["missing_folders", "roots"]

log = logging.getLogger(__name__)

PACKAGED = {"edit": "qwen-image-edit", "sdxl": "sdxl"}
PARTS = ("transformer", "unet", "text_encoder", "vae", "scheduler", "tokenizer", "processor")
HUB_ID = re.compile(r"^[A-Za-z0-9][\w.-]*/[\w.-]+$")
WANTED = ["*.json", "*.safetensors", "*.txt", "*.model"]  # of a hub repository: nothing that can carry code


@dataclass(frozen=True)
class FoundModel:
    """A model file or folder, what it is, and how it was come by ("set in the profile", "Hugging Face cache", a folder)."""

    need: Need
    path: Path
    identity: Identity
    origin: str


@dataclass(frozen=True)
class Rejected:
    """A file that has the name of what is needed and was not taken, with the reason."""

    need: Need
    path: Path
    reason: str

    def describe(self) -> str:
        """One line; the path is named once."""
        return self.reason if str(self.path) in self.reason else f"{self.path}: {self.reason}"


@dataclass(frozen=True)
class Missing:
    """What was not found; `problem` says why, when there is more to say than that it is not there."""

    need: Need
    problem: str = ""
    rejected: tuple[Rejected, ...] = ()

    def describe(self) -> str:
        """What it is, how big, under which licence, how to get it, and what was looked at in vain."""
        need = self.need
        why = f" ({self.problem})" if self.problem else ""
        line = f"models.{need.field}: no {need.title} found{why}; {need.size}, {need.licence}. Get it: {need.advice}"
        return "; ".join([line, *(f"not taken: {one.describe()}" for one in self.rejected)])


@dataclass(frozen=True)
class Inventory:
    """Everything found and everything missing, by the setting's name; and what was passed over."""

    found: dict[str, FoundModel]
    missing: dict[str, Missing]
    rejected: tuple[Rejected, ...] = ()

    def path(self, field: str) -> Path | None:
        """The path found for a setting."""
        return self.found[field].path if field in self.found else None


@dataclass(frozen=True)
class Preferences:
    """What decides between several files that would all do.

    Args:
        roomy: the budget holds a bf16 transformer (40 GiB), so that is preferred to a packed one.
        draft_steps: steps of a sheet's drafts; the Lightning LoRA of the nearest number is taken.
    """

    roomy: bool = False
    draft_steps: int = 8


def take_stock(settings: ModelSettings, preferences: Preferences = Preferences()) -> Inventory:
    """Look for all the full-size family needs; every file is checked by its header before it is taken.

    Raises:
        BadInput: a file named in the profile is the wrong thing, damaged or unsafe; several mistakes together.
    """
    named_folders(settings)  # what cannot be asked is said before anything is looked for
    found: dict[str, FoundModel] = {}
    missing: dict[str, Missing] = {}
    rejected: list[Rejected] = []
    problems: list[str] = []
    for need in NEEDS:
        search = _Search(need, settings, found, preferences)
        try:
            result = search.run()
        except BadInput as error:
            if getattr(settings, need.field):
                problems += getattr(error, "problems", None) or [str(error)]
                continue
            result = Missing(need, str(error))
        except MissingDependency as error:
            result = Missing(need, str(error))
        if isinstance(result, FoundModel):
            found[need.field] = result
            rejected += search.rejected
        else:
            missing[need.field] = Missing(need, result.problem, tuple(search.rejected))
    if len(problems) > 1:
        raise ConfigError(problems)
    if problems:
        raise BadInput(problems[0])
    return Inventory(found, missing, tuple(rejected))


class _Search:
    """The search for one need, with what was found for those before it."""

    def __init__(
        self, need: Need, settings: ModelSettings, found: dict[str, FoundModel], preferences: Preferences
    ) -> None:
        self.need, self.settings, self.found, self.preferences = need, settings, found, preferences
        self.rejected: list[Rejected] = []
        self.configurations = configurations(settings, found)

    def run(self) -> FoundModel | Missing:
        """The file or folder to use."""
        need, settings = self.need, self.settings
        given = getattr(settings, need.field)
        if given:
            return self._checked(_given(need, str(given), settings))
        if need in (VL, VAE):
            inside = _inside_edit_folder(need, settings, self.found)
            if inside is not None:
                return self._checked(inside)
        candidates = sorted(self._candidates(), key=lambda one: _preference(one, self.preferences), reverse=True)
        if need is SDXL and len(candidates) > 1:
            candidates = _one_sdxl(candidates)
        for candidate in candidates:
            try:
                return self._checked(candidate)
            except BadInput as error:
                self._reject(candidate.path, str(error))
        if settings.allow_downloads and need.hubs and need.required:
            return self._checked(_download(need, need.hubs[0], settings))
        return Missing(need)

    def _checked(self, found: FoundModel) -> FoundModel:
        check_fit(found.path, found.identity, self.configurations)
        return found

    def _candidates(self) -> Iterator[FoundModel]:
        need, settings = self.need, self.settings
        for hub in need.hubs:
            folder = cached_snapshot(hub, settings)
            if folder is not None and (identity := self._is(folder)):
                yield FoundModel(need, folder, identity, "Hugging Face cache")
        for root, file in model_files(settings):
            if self._named(file) and (identity := self._is(file)):
                yield FoundModel(need, file, identity, str(root))
        for root in roots(settings):
            for folder in model_folders(root):
                if self._named(folder) and (identity := self._is(folder)):
                    yield FoundModel(need, folder, identity, str(root))

    def _named(self, path: Path) -> bool:
        relative = self.need is EDIT and RELATIVES.search(path.name) is not None  # told by name why it is not taken
        return relative or all(word in path.name.lower() for word in self.need.words)

    def _is(self, path: Path) -> Identity | None:
        """What a file is, if it is of use here; one that only has the name is remembered with the reason."""
        try:
            identity = identify_path(path)
        except EngineError as error:
            self._reject(path, str(error))
            return None
        if identity.kind not in self.need.kinds:
            if identity.kind == "other":
                self._reject(path, f"is {with_article(identity.title)}")
            return None
        reason = self._unsuitable(path, identity)
        if reason:
            self._reject(path, reason)
        return None if reason else identity

    def _unsuitable(self, path: Path, identity: Identity) -> str:
        """Why a file of the right kind is not taken by a search, though it may be named in the profile."""
        if self.need is EDIT and fused_steps(path.name):
            return "has a Lightning LoRA fused in; name it in models.edit to draw in its few steps"
        if self.need is LIGHTNING and "edit" in self.found and identity.layout == "qwen-image":
            wanted = base_of(name_of(self.found["edit"]))
            if base_of(path.name) != wanted:
                return f"was made for {base_of(path.name)}, and the edit model is {wanted}"
        return ""

    def _reject(self, path: Path, reason: str) -> None:
        log.debug("passed over %s: %s", path, reason)
        if self.need.words or "SDXL" in reason:  # every file has the name of an SDXL checkpoint
            self.rejected.append(Rejected(self.need, path, reason))


def configurations(settings: ModelSettings, found: dict[str, FoundModel]) -> Configurations:
    """The folders whose configurations describe single files: the profile's, the edit folder's own, or the packaged ones."""
    edit = found.get("edit")
    own = edit.path if edit is not None and edit.identity.kind == "qwen-image-edit" else None
    qwen, sdxl = (_configured(settings, f"{name}_config", packaged) for name, packaged in PACKAGED.items())
    return Configurations(own or qwen, sdxl)


def _configured(settings: ModelSettings, field: str, packaged: str) -> Path:
    given = getattr(settings, field)
    folder = files.expanded(given) if given else packaged_config(packaged)
    if not has_tokenizer(folder) and not any(files.is_dir(folder / part) for part in PARTS):
        raise BadInput(
            f"models.{field}: {given!r} is no folder of configurations; give a diffusers folder, or leave it empty"
        )
    return folder


def _given(need: Need, text: str, settings: ModelSettings) -> FoundModel:
    path = files.expanded(text)
    if files.exists(path):
        return FoundModel(need, path, expect(path, need.kinds, f"models.{need.field}"), "set in the profile")
    if path.suffix.lower() in UNSAFE_SUFFIXES:
        refuse_unsafe(path)
    if HUB_ID.match(text) and path.suffix.lower() not in SUFFIXES:
        return _download(need, text, settings)
    near = [str(file) for _, file in model_files(settings) if file.name == path.name]
    hint = f"; a file of that name is at {near[0]}" if near else ""
    raise BadInput(
        f"models.{need.field}: {text!r} is neither a file nor a folder here, nor a hub id like org/name{hint}"
    )


def _inside_edit_folder(need: Need, settings: ModelSettings, found: dict[str, FoundModel]) -> FoundModel | None:
    """The edit model's own encoder or VAE, when it came as a whole diffusers folder (or `edit_config` is one)."""
    folders = [found["edit"].path] if "edit" in found and found["edit"].identity.kind == "qwen-image-edit" else []
    if settings.edit_config:
        folders.append(files.expanded(settings.edit_config))
    for folder in folders:
        inner = folder / ("text_encoder" if need is VL else "vae")
        if holds_weights(inner):
            return FoundModel(need, inner, expect(inner, need.kinds, f"models.{need.field}"), f"in {folder.name}")
    return None


def name_of(found: FoundModel) -> str:
    """Everything that may name a version: the file's or folder's name and what its header and configuration say."""
    path = found.path
    hub = (
        path.parent.parent.name if path.parent.name == "snapshots" else ""
    )  # the Hugging Face cache's folders are hashes
    return f"{hub} {path.name} {found.identity.note}"


def _preference(candidate: FoundModel, preferences: Preferences) -> tuple[int, int, int]:
    """Newer first, then the precision that suits the budget, then what the profile's folders hold before the cache."""
    name, identity, need = str(candidate.path).lower(), candidate.identity, candidate.need
    local = int(candidate.origin != "Hugging Face cache")
    if need is LIGHTNING:
        return -abs(steps_of(candidate.path.name) - preferences.draft_steps), 0, local
    if need is EDIT:
        newest = (
            3 if "2511" in name or "2511" in identity.note else 2 if "2509" in name or "Plus" in identity.note else 1
        )
    else:
        newest = -next((i for i, hub in enumerate(need.hubs) if hub.split("/")[1] in str(candidate.path)), 0)
    packed = files.is_file(candidate.path) and _is_packed(candidate.path)
    return newest, int(packed != preferences.roomy) + int(packed and "fp8" in name), local


def _is_packed(path: Path) -> bool:
    header = read_header(path)
    return header.format == "gguf" or not header.dtypes().keys().isdisjoint(("F8_E4M3", "F8_E5M2", "I8"))


def _one_sdxl(candidates: list[FoundModel]) -> list[FoundModel]:
    """SDXL base if it is there; several fine-tunes are the user's choice, not ours."""
    base = [c for c in candidates if "sd_xl_base_1.0" in c.path.name or "stable-diffusion-xl-base-1.0" in str(c.path)]
    if base:
        return base
    names = ", ".join(sorted({str(candidate.path) for candidate in candidates})[:8])
    raise MissingDependency(f"{len(candidates)} SDXL checkpoints were found; set models.sdxl to one of: {names}")


def _download(need: Need, hub: str, settings: ModelSettings) -> FoundModel:
    field = f"models.{need.field}"
    if RELATIVES.search(hub):
        raise BadInput(f"{field}: {hub} is {QWEN_IMAGE_21}")
    size, licence = (need.size, need.licence) if hub in need.hubs else ("its size", "its licence: see its page")
    cached = cached_snapshot(hub, settings)
    if cached is not None:
        return FoundModel(need, cached, expect(cached, need.kinds, field), "Hugging Face cache")
    if not settings.allow_downloads:
        raise MissingDependency(
            f"{field}: {hub} is not in the Hugging Face cache, and downloads are off; {size}, {licence}. "
            f"Set models.allow_downloads: true, or: hf download {hub}"
        )
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled

    try:
        log.info("downloading %s (%s, %s)", hub, size, licence)
        folder = Path(snapshot_download(hub, allow_patterns=WANTED))
    except (HfHubHTTPError, LocalEntryNotFoundError, OfflineModeIsEnabled, ConnectionError, OSError) as error:
        raise MissingDependency(
            f"{field}: {hub} could not be downloaded ({type(error).__name__}: {str(error).splitlines()[0][:160]}). "
            "Is this machine online, and its proxy (if it has one) an http:// or https:// one? A gated model needs its licence accepted on its page and `hf auth login`"
        ) from error
    return FoundModel(need, folder, expect(folder, need.kinds, field), "downloaded")
