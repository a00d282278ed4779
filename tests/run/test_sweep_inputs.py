"""What a sweep of something older compares with is said once, and what is given in vain is refused."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from run_samples import sample_run

from charengine.adapter.files import save_adapter
from charengine.errors import BadInput, ConfigError
from charengine.profiles.loading import load_profile
from charengine.run.earlier_runs import sweep_inputs
from charengine.store import Store

PROFILE = load_profile("embedded")


@pytest.fixture
def adapter(tmp_path: Path) -> Path:
    """A file of another program, which says neither trigger nor class noun."""
    path = tmp_path / "foreign.safetensors"
    path.write_bytes(save_adapter({"lora_unet_x.alpha": torch.tensor(8.0)}, {}))
    return path


def refusal(tmp_path: Path, source: Path, **given: Any) -> str:
    with pytest.raises(BadInput) as caught:
        sweep_inputs(source, Store(tmp_path / "store"), PROFILE, **given)
    return str(caught.value)


def test_views_and_a_sheet_at_once_are_refused(tmp_path: Path, adapter: Path) -> None:
    told = refusal(tmp_path, adapter, views=tmp_path / "views", sheet=tmp_path / "sheet.png")
    assert "--views" in told and "--sheet" in told and "leave one out" in told


@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"views": Path("views")}, "--views given"),
        ({"sheet": Path("sheet.png"), "trigger": "griqul"}, "--sheet, --trigger given"),
        ({"class_noun": "woman"}, "--class-noun given"),
    ],
)
def test_what_a_run_has_of_its_own_is_not_given_in_vain(tmp_path: Path, given: dict[str, Any], named: str) -> None:
    run = tmp_path / "run.json"
    run.write_text(sample_run(Store(tmp_path / "store")).model_dump_json(), encoding="utf-8")
    told = refusal(tmp_path, run, **given)
    assert named in told and str(run) in told and "leave them out" in told
    sweep_inputs(run, Store(tmp_path / "store"), PROFILE)


def test_a_file_that_does_not_say_its_words_is_answered_with_the_options_and_the_fields(
    tmp_path: Path, adapter: Path
) -> None:
    told = refusal(tmp_path, adapter, views=tmp_path)
    assert "does not say its trigger and class noun" in told
    assert (
        "--trigger (the field trigger)" in told
        and "--class-noun (the field class_noun), e.g. --class-noun woman" in told
    )
    told = refusal(tmp_path, adapter, views=tmp_path, trigger="griqul")
    assert "--class-noun" in told and "--trigger" not in told
    with pytest.raises(ConfigError, match=r"class noun 'a/b' is not allowed.*; give --class-noun"):
        sweep_inputs(adapter, Store(tmp_path / "store"), PROFILE, views=tmp_path, trigger="griqul", class_noun="a/b")
