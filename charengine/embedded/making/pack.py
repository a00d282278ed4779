"""Packs trained weights into a few files, and lays them out as Hugging Face folders."""

from __future__ import annotations

import json
import shutil
import tarfile
from collections.abc import Callable
from itertools import accumulate
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file

from charengine.embedded.eight_bits import opened
from charengine.embedded.eight_bits import packed as in_bytes
from charengine.errors import BadInput

Change = Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]
WEIGHTS = Path(__file__).resolve().parent.parent / "weights"
PACKS = {
    "qwen_transformer.tar": ("qwen_transformer.safetensors",),
    "qwen_rest.tar": ("qwen_vae.safetensors", "qwen_vae.json", "qwen_text_encoder.safetensors"),
    "sdxl_unet.tar": ("sdxl_unet.safetensors",),
    "sdxl_rest.tar": (
        "sdxl_vae.safetensors", "sdxl_vae.json", "sdxl_text_encoder.safetensors", "sdxl_text_encoder_2.safetensors",
    ),
    "clip_probe.tar": ("clip.safetensors", "probe.safetensors"),
}  # fmt: skip
LOGS = "logs_samples.tar"
THIN = 5  # of the points of a training log, one is kept
# file in a build folder: where it belongs under weights/
PLACES = {
    "qwen_transformer": "qwen/transformer/diffusion_pytorch_model.safetensors",
    "qwen_vae": "qwen/vae/diffusion_pytorch_model.safetensors",
    "qwen_text_encoder": "qwen/text_encoder/model.safetensors",
    "sdxl_unet": "sdxl/unet/diffusion_pytorch_model.safetensors",
    "sdxl_vae": "sdxl/vae/diffusion_pytorch_model.safetensors",
    "sdxl_text_encoder": "sdxl/text_encoder/model.safetensors",
    "sdxl_text_encoder_2": "sdxl/text_encoder_2/model.safetensors",
    "clip": "clip/model.safetensors",
    "probe": "probe.safetensors",
}
IN_BYTES = ("probe",)  # read by the package's own loader alone, which opens them


def pack(folder: Path, out: Path) -> list[Path]:
    """Write at most seven tar files of what `folder` holds; parts that are missing are left out."""
    out.mkdir(parents=True, exist_ok=True)
    made = []
    logs = [p.name for p in sorted(folder.iterdir()) if p.suffix in (".jsonl", ".png", ".txt", ".json")]
    for name, members in {**PACKS, LOGS: tuple(logs)}.items():
        present = [m for m in members if (folder / m).is_file()]
        if not present:
            continue
        path = out / name
        with tarfile.open(path, "w") as tar:
            for member in present:
                tar.add(folder / member, member)
        made.append(path)
    return made


def open_packed(packed: Path, folder: Path) -> Path:
    """Undo `pack`: all files, flat, in `folder`.

    Raises:
        BadInput: a member is not a plain file, or its name would leave the folder.
    """
    folder.mkdir(parents=True, exist_ok=True)
    for path in sorted(packed.glob("*.tar")):
        with tarfile.open(path) as tar:
            for member in tar:
                _take_out(path, tar, member, folder)
    return folder


def _take_out(path: Path, tar: tarfile.TarFile, member: tarfile.TarInfo, folder: Path) -> None:
    # by hand: `extractall(filter="data")` needs Python 3.11.4, and without the filter a member may be written anywhere
    data = tar.extractfile(member) if member.isfile() else None
    flat = Path(member.name).name == member.name and member.name not in ("", "..") and "\\" not in member.name
    if data is None or not flat:
        raise BadInput(f"{path}: {member.name!r} is not a plain file of a flat pack; make the pack again")
    with data, (folder / member.name).open("wb") as out:
        shutil.copyfileobj(data, out)


def unpack(packed: Path, weights: Path, *, tiny: bool = False) -> None:
    """Lay trained weights over a freshly built family: configs and tokenizers come from the code, tensors from the files.

    Args:
        packed: folder of `pack`'s files, or of loose safetensors.
        weights: gets `qwen/`, `sdxl/`, `clip/`, `probe.safetensors`, and `training/` with logs.
        tiny: the weights are of the tests' sizes.
    """
    from charengine.embedded.making.family import build_random_family

    loose = open_packed(packed, packed / "opened") if list(packed.glob("*.tar")) else packed
    weights.mkdir(parents=True, exist_ok=True)
    if not (weights / "qwen" / "model_index.json").is_file():
        build_random_family(weights, 0, tiny=tiny)
    for name, place in PLACES.items():
        source = loose / f"{name}.safetensors"
        if source.is_file():
            (weights / place).parent.mkdir(parents=True, exist_ok=True)
            _copy_weights(source, weights / place, in_bytes if name in IN_BYTES else None)
    _set_latent_statistics(loose, weights)
    for path in weights.rglob("tokenizer.json"):  # written with an indent, it takes more than twice the room
        path.write_text(
            json.dumps(json.loads(path.read_text(encoding="utf-8")), separators=(",", ":")), encoding="utf-8"
        )
    logs = weights / "training"
    logs.mkdir(exist_ok=True)
    for path in loose.glob("*.jsonl"):
        _append(path.read_text(encoding="utf-8"), logs / path.name)


def lay_flat(weights: Path, folder: Path) -> Path:
    """Undo `unpack`: the shipped tensors and latent statistics as `--from` reads them, flat, in `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    for name, place in PLACES.items():
        if (weights / place).is_file():
            _copy_weights(weights / place, folder / f"{name}.safetensors", opened if name in IN_BYTES else None)
    qwen = json.loads((weights / "qwen/vae/config.json").read_text(encoding="utf-8"))
    sdxl = json.loads((weights / "sdxl/vae/config.json").read_text(encoding="utf-8"))
    (folder / "qwen_vae.json").write_text(
        json.dumps({"mean": qwen["latents_mean"], "std": qwen["latents_std"]}), encoding="utf-8"
    )
    (folder / "sdxl_vae.json").write_text(
        json.dumps({"mean": [0.0], "std": [1 / sdxl["scaling_factor"]]}), encoding="utf-8"
    )
    return folder


def _copy_weights(source: Path, target: Path, change: Change | None) -> None:
    if change is None:
        shutil.copyfile(source, target)
    else:
        save_file(change(load_file(source)), target, metadata={"format": "pt"})


def _set_latent_statistics(loose: Path, weights: Path) -> None:
    if (loose / "qwen_vae.json").is_file():
        facts = json.loads((loose / "qwen_vae.json").read_text(encoding="utf-8"))
        _edit(weights / "qwen/vae/config.json", latents_mean=facts["mean"], latents_std=facts["std"])
    if (loose / "sdxl_vae.json").is_file():
        facts = json.loads((loose / "sdxl_vae.json").read_text(encoding="utf-8"))
        _edit(weights / "sdxl/vae/config.json", scaling_factor=1 / facts["std"][0])


def thinned(text: str) -> str:
    """Logs with one in `THIN` of each run's points, its last, and all events, without the share of the time, which the seconds say:
    a curve needs no more, and logs travel with the weights."""
    told = [json.loads(row) for row in text.splitlines()]
    points = ["event" not in row for row in told]
    rows = [json.dumps({k: v for k, v in row.items() if k != "progress"}, separators=(",", ":")) for row in told]
    ends = [point and not following for point, following in zip(points, [*points[1:], False], strict=True)]
    number = accumulate(points)  # of points up to a row, from 1
    kept = zip(rows, points, ends, number, strict=True)
    return "".join(f"{row}\n" for row, point, end, n in kept if not point or end or n % THIN == 1)


def _append(text: str, log: Path) -> None:
    """Add a run to a part's log, once, thinned."""
    text = thinned(text)
    earlier = log.read_text(encoding="utf-8") if log.is_file() else ""
    if text not in earlier:
        log.write_text(earlier + text, encoding="utf-8")


def _edit(path: Path, **values: Any) -> None:
    config = json.loads(path.read_text(encoding="utf-8"))
    path.write_text(json.dumps(config | values, indent=2, sort_keys=True) + "\n", encoding="utf-8")
