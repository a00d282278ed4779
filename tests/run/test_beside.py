"""What lies beside the adapters says what the run found, in the fields that other programs read."""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

import pytest
import torch
import yaml
from PIL import Image
from run_samples import sample_run, with_words

from charengine.adapter.card import LABELS, model_card
from charengine.adapter.files import save_adapter
from charengine.adapter.header import STRENGTH
from charengine.config import ModelSettings
from charengine.pictures import open_image
from charengine.records import RunRecord
from charengine.run.beside import base_facts, facts_of, is_rescaled, write_beside
from charengine.store import Store

ALPHA = {"lora_unet_x.alpha": torch.tensor(8.0)}
SAID = "zorgax orc, black boots, hook for a right hand"


@pytest.fixture
def run(store: Store) -> RunRecord:
    """A run whose recommended file says that it is rescaled."""
    run = with_words(sample_run(store), store)
    own = {STRENGTH: str(run.sweep.pick.strength)}
    file = store.put(save_adapter(ALPHA, own), "zorgax_recommended.safetensors")
    return run.model_copy(update={"sweep": run.sweep.model_copy(update={"recommended_adapter": file})})


@pytest.fixture
def folder(run: RunRecord, store: Store, tmp_path: Path) -> Path:
    write_beside(run, tmp_path / "adapters", store)
    return tmp_path / "adapters"


def front_matter(folder: Path) -> dict[str, Any]:
    _, front, _ = (folder / "README.md").read_text(encoding="utf-8").split("---\n", 2)
    found: dict[str, Any] = yaml.safe_load(front)
    return found


def test_the_model_card_has_the_hubs_front_matter_and_every_picture_it_names_is_there(
    folder: Path, run: RunRecord, store: Store
) -> None:
    front = front_matter(folder)
    assert front["instance_prompt"] == SAID and front["pipeline_tag"] == "text-to-image"
    assert {"lora", "template:sd-lora", "stable-diffusion-xl"} <= set(front["tags"])
    assert run.sweep.words is not None
    assert [item["text"] for item in front["widget"]] == [
        scene.replace("{subject}", SAID) for scene in run.sweep.words.scenes
    ]
    for item, ref in zip(front["widget"], run.sweep.words.drawn, strict=True):
        assert (folder / item["output"]["url"]).read_bytes() == store.get(ref)
    text = (folder / "README.md").read_text(encoding="utf-8")
    assert "load `zorgax_recommended.safetensors` at strength 1.0" in text
    assert "black boots 0%" in text and "blue coat 100%" in text


def test_the_webui_fills_a_prompt_with_the_recommended_words_and_weight(folder: Path, run: RunRecord) -> None:
    recommended = json.loads((folder / "zorgax_recommended.json").read_text(encoding="utf-8"))
    assert recommended["activation text"] == SAID
    assert (recommended["preferred weight"], recommended["sd version"]) == (1.0, "SDXL")
    assert set(recommended) >= {"description", "negative text", "notes"}
    as_trained = json.loads((folder / "zorgax.json").read_text(encoding="utf-8"))
    assert as_trained["preferred weight"] == run.sweep.pick.strength


def test_the_civitai_sidecar_names_words_file_and_its_digest(folder: Path, run: RunRecord, store: Store) -> None:
    info = json.loads((folder / "zorgax_recommended.civitai.info").read_text(encoding="utf-8"))
    assert info["trainedWords"] == [SAID, "zorgax orc"]
    assert info["model"]["type"] == "LORA" and info["skeleton_file"] is True
    [file] = info["files"]
    digest = hashlib.sha256(store.get(run.sweep.recommended_adapter)).hexdigest().upper()
    assert file["name"] == "zorgax_recommended.safetensors" and file["hashes"]["SHA256"] == digest
    assert (folder / info["images"][0]["url"]).is_file()


def test_the_preview_is_a_png_of_the_first_scene(folder: Path, run: RunRecord, store: Store) -> None:
    preview = Image.open(folder / "zorgax_recommended.preview.png")
    assert preview.format == "PNG" and run.sweep.words is not None
    assert preview.tobytes() == open_image(store.get(run.sweep.words.drawn[0])).tobytes()


def test_a_file_that_could_not_be_rescaled_is_recommended_at_the_picks_strength(
    run: RunRecord, store: Store, tmp_path: Path
) -> None:
    plain = run.sweep.model_copy(update={"recommended_adapter": store.put(save_adapter(ALPHA, {}), "a.safetensors")})
    write_beside(run.model_copy(update={"sweep": plain}), tmp_path, store)
    recommended = json.loads((tmp_path / "zorgax_recommended.json").read_text(encoding="utf-8"))
    assert recommended["preferred weight"] == run.sweep.pick.strength


def test_a_run_of_an_earlier_version_gets_its_sidecars_with_trigger_and_class_noun(
    run: RunRecord, store: Store, tmp_path: Path
) -> None:
    old = run.model_copy(update={"sweep": run.sweep.model_copy(update={"words": None})})
    write_beside(old, tmp_path, store)
    assert front_matter(tmp_path)["instance_prompt"] == "zorgax orc"
    assert "widget" not in front_matter(tmp_path)
    assert (tmp_path / "zorgax_recommended.preview.png").is_file()


def test_mlflow_and_the_card_are_told_the_same(run: RunRecord, folder: Path, store: Store) -> None:
    facts = facts_of(run.name, run.prompt, run.dataset, run.sweep, ModelSettings(), is_rescaled(run.sweep, store))
    assert set(facts) <= {*LABELS, "class_noun", "licence", "hub_base", "civitai_base"}
    card = (folder / "README.md").read_text(encoding="utf-8")
    assert [line for line in model_card(facts).splitlines() if line not in card and "Base model" not in line] == []
    assert facts["base_model"] not in card  # a folder of this machine


@pytest.mark.parametrize(
    ("sdxl", "licence", "hub", "civitai"),
    [
        ("/models/sd_xl_base_1.0.safetensors", "openrail++", "stabilityai/stable-diffusion-xl-base-1.0", "SDXL 1.0"),
        ("stabilityai/stable-diffusion-xl-base-1.0", "openrail++", "stabilityai/stable-diffusion-xl-base-1.0", "SDXL 1.0"),
        ("/models/ponyDiffusionV6XL.safetensors", None, None, "Pony"),
        ("/models/noobaiXL_v1.safetensors", None, None, "NoobAI"),
        ("/models/myMerge.safetensors", None, None, "SDXL 1.0"),
    ],
)  # fmt: skip
def test_a_licence_is_named_only_where_the_file_is_known(
    sdxl: str, licence: str | None, hub: str | None, civitai: str
) -> None:
    facts = base_facts(ModelSettings(family="sdxl", sdxl=sdxl))
    assert (facts.get("licence"), facts.get("hub_base"), facts["civitai_base"]) == (licence, hub, civitai)


def test_what_a_program_changed_beside_an_adapter_stays_and_keeps_nothing_back(
    folder: Path, run: RunRecord, store: Store
) -> None:
    for name in ("zorgax.json", "zorgax_recommended.preview.png", "zorgax.civitai.info"):
        (folder / name).write_text("mine")
    (folder / "zorgax_recommended.json").unlink()
    write_beside(run, folder, store)
    assert {path.name for path in folder.iterdir() if path.read_bytes() == b"mine"} == {
        "zorgax.json",
        "zorgax_recommended.preview.png",
        "zorgax.civitai.info",
    }
    assert json.loads((folder / "zorgax_recommended.json").read_text(encoding="utf-8"))["activation text"] == SAID
