from __future__ import annotations

import json
from pathlib import Path

import pytest
from models import hollow

from charengine.config import ModelSettings, Profile
from charengine.profiles.loading import load_profile
from charengine.services import doctor
from charengine.services.doctor import examine

pytestmark = pytest.mark.usefixtures("bare_machine")


def full(**models: object) -> Profile:
    return load_profile("sdxl-12gb").model_copy(update={"models": ModelSettings(family="sdxl", **models)})  # type: ignore[arg-type]


def test_a_bare_machine_is_told_every_file_its_size_its_licence_and_where_to_get_it() -> None:
    report = examine(full())
    assert not report.ready
    fields = [line.split(":")[0] for line in report.missing]
    assert fields == [
        "models.edit",
        "models.vl",
        "models.vae",
        "models.sdxl",
        "models.clip",
        "models.edit_config",
        "models.sdxl_config",
    ]
    text = str(report)
    for words in ("20.4 GB", "Apache-2.0", "huggingface.co", "no GPU is seen", "torch 2.", "is not ready"):
        assert words in text, words


def test_what_is_found_is_listed_with_place_and_size(tmp_path: Path) -> None:
    file = tmp_path / "models" / "vae" / "qwen_image_vae.safetensors"
    hollow.write(file, hollow.shapes_of(hollow.states()["vae"], "BF16"))
    report = examine(full(folders=(str(tmp_path / "models"), str(tmp_path / "gone"))))
    assert [(file.field, file.origin) for file in report.found] == [("vae", str(tmp_path / "models"))]
    assert report.found[0].gib == pytest.approx(0.236, rel=0.01)
    assert f"models.folders: {tmp_path / 'gone'} does not exist" in report.problems


def test_the_report_is_json_too(tmp_path: Path) -> None:
    data = json.loads(json.dumps(examine(full()).as_dict()))
    assert data["ready"] is False and data["machine"]["libraries"]["diffusers"]


def test_a_gpu_smaller_than_the_budget_is_a_problem_with_its_cure(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(doctor, "_gpu", lambda: ("Tiny GPU", 8.0, 7.5))
    report = examine(full())
    assert any("--set budget_gib=8" in problem for problem in report.problems)


def test_downloads_off_means_the_network_is_not_even_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(*_: object, **__: object) -> None:
        raise AssertionError("the network was tried")

    monkeypatch.setattr(doctor.socket, "create_connection", refuse)
    assert examine(full()).machine.network.startswith("not used")


def test_a_wrong_file_is_a_problem_not_a_crash(tmp_path: Path) -> None:
    (tmp_path / "x.ckpt").write_bytes(b"x")
    report = examine(full(sdxl=str(tmp_path / "x.ckpt")))
    assert any("can run code" in problem for problem in report.problems)
