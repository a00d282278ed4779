"""Packed weights: what was packed comes out again, on every Python that is supported, and nothing lands elsewhere."""

from __future__ import annotations

import io
import tarfile
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from charengine.embedded.making.pack import lay_flat, open_packed, pack, unpack
from charengine.embedded.probe import Probe
from charengine.errors import BadInput


def test_what_was_packed_comes_out_again(tmp_path: Path) -> None:
    built = tmp_path / "built"
    built.mkdir()
    content = {
        "clip.safetensors": b"clip" * 100,
        "probe.safetensors": b"",
        "qwen_vae.json": b"{}",
        "log.txt": b"step 1",
    }
    for name, data in content.items():
        (built / name).write_bytes(data)
    pack(built, tmp_path / "packed")
    opened = open_packed(tmp_path / "packed", tmp_path / "opened")
    assert {path.name: path.read_bytes() for path in opened.iterdir()} == content


def test_packs_open_without_the_extraction_filter_that_python_3_11_4_brought(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def extractall(
        self: tarfile.TarFile, path: str = ".", members: object = None, *, numeric_owner: bool = False
    ) -> None:
        raise AssertionError("unfiltered extraction")

    monkeypatch.setattr(tarfile.TarFile, "extractall", extractall)
    test_what_was_packed_comes_out_again(tmp_path)


def test_the_probe_is_laid_out_in_bytes_and_comes_back_for_training_to_their_rounding(tmp_path: Path) -> None:
    state = {name: value.half() for name, value in Probe((16, 16, 16, 16)).state_dict().items()}
    save_file(state, tmp_path / "probe.safetensors")
    unpack(tmp_path, tmp_path / "weights", tiny=True)
    laid = tmp_path / "weights" / "probe.safetensors"
    assert laid.stat().st_size < 0.7 * (tmp_path / "probe.safetensors").stat().st_size
    back = load_file(lay_flat(tmp_path / "weights", tmp_path / "flat") / "probe.safetensors")
    assert set(back) == set(state)
    for name, value in state.items():
        rows = value.float().reshape(len(value), -1) if value.ndim > 1 else value.float().reshape(1, -1)
        room = rows.abs().amax(1, keepdim=True) / 250 if value.ndim > 1 else torch.zeros(1, 1)
        assert ((back[name].float().reshape(rows.shape) - rows).abs() <= room).all(), name


def member(name: str, **fields: object) -> tarfile.TarInfo:
    made = tarfile.TarInfo(name)
    for field, value in fields.items():
        setattr(made, field, value)
    return made


@pytest.mark.parametrize(
    "bad",
    [
        member("../out.safetensors", size=4),
        member("/tmp/out.safetensors", size=4),
        member("sub/out.safetensors", size=4),
        member("..", size=4),
        member("", size=4),
        member("out.safetensors", type=tarfile.SYMTYPE, linkname="/etc/passwd"),
        member("out.safetensors", type=tarfile.LNKTYPE, linkname="../secret"),
        member("out.safetensors", type=tarfile.FIFOTYPE),
        member("out.safetensors", type=tarfile.DIRTYPE),
    ],
    ids=lambda bad: f"{bad.name or 'empty'}-{bad.type.decode()}",
)
def test_a_member_that_is_no_plain_file_of_the_folder_is_refused(tmp_path: Path, bad: tarfile.TarInfo) -> None:
    packed = tmp_path / "packed"
    packed.mkdir()
    with tarfile.open(packed / "evil.tar", "w") as tar:
        tar.addfile(bad, io.BytesIO(b"evil"))
    before = {path for path in tmp_path.rglob("*")}
    with pytest.raises(BadInput, match="plain file"):
        open_packed(packed, tmp_path / "opened")
    assert {path for path in tmp_path.rglob("*")} - before <= {tmp_path / "opened"}


def test_a_link_is_not_followed_by_a_file_of_the_same_name(tmp_path: Path) -> None:
    packed, opened, target = tmp_path / "packed", tmp_path / "opened", tmp_path / "target"
    packed.mkdir()
    target.write_bytes(b"mine")
    with tarfile.open(packed / "evil.tar", "w") as tar:
        tar.addfile(member("out.safetensors", type=tarfile.SYMTYPE, linkname=str(target)))
        tar.addfile(member("out.safetensors", size=4), io.BytesIO(b"evil"))
    with pytest.raises(BadInput):
        open_packed(packed, opened)
    assert target.read_bytes() == b"mine"
