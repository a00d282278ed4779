"""A cast: read and checked as a whole, made one by one, and never stopped by one of its characters."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from sheet_samples import photo

from charengine.errors import BadInput, ConfigError
from charengine.run.cast import check_cast, read_cast

SAMPLES = Path(__file__).parent.parent.parent / "deployments" / "samples"


@pytest.mark.parametrize("name", ["cast.yaml", "cast.csv"])
def test_the_shipped_samples_are_good_casts(name: str) -> None:
    from charengine.config import Character
    from charengine.profiles.loading import load_profile

    cast = read_cast(SAMPLES / name)
    assert [request.name for request in cast][:2] == ["Grisha", "Tin Tom"]
    assert len({request.out for request in cast}) == len(cast)
    for request in cast:
        assert load_profile(request.profile, request.overrides).train.steps == 300
        Character(name=request.name, prompt=request.prompt, seed=request.seed)


def test_yaml_and_csv_say_the_same(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "- {name: Aya, prompt: an orc, seed: 7, overrides: [train.steps=9, train.rank=4]}\n"
    )
    (tmp_path / "a.csv").write_text('name,prompt,seed,overrides\nAya,an orc,7,"train.steps=9; train.rank=4"\n')
    assert read_cast(tmp_path / "a.yaml") == read_cast(tmp_path / "a.csv")


def test_an_entry_wins_over_the_defaults_of_the_file(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "defaults: {profile: sdxl-12gb, seed: 1}\ncharacters:\n- {prompt: an orc}\n- {prompt: a robot, seed: 2}\n"
    )
    assert [(entry.profile, entry.seed) for entry in read_cast(tmp_path / "a.yaml")] == [
        ("sdxl-12gb", 1),
        ("sdxl-12gb", 2),
    ]


def test_all_mistakes_of_a_cast_are_reported_together(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text(
        "- {name: Aya, prompt: an orc, colour: red}\n- {name: aya, prompt: a robot, seed: many}\n- {name: Bea}\n"
    )
    with pytest.raises(ConfigError) as caught:
        read_cast(tmp_path / "a.yaml")
    text = "\n".join(caught.value.problems)
    assert len(caught.value.problems) == 4
    assert "a.yaml, entry 1 (Aya): no such field: colour" in text and "entry 2 (aya): seed" in text
    assert "entry 3 (Bea): prompt is missing" in text and "'aya' is used twice, in entry 1 and entry 2" in text


def test_two_characters_cannot_share_a_folder(tmp_path: Path) -> None:
    (tmp_path / "a.yaml").write_text("- {name: A, prompt: an orc, out: x}\n- {name: B, prompt: an elf, out: x}\n")
    with pytest.raises(
        ConfigError, match="x' is used twice, in entry 1 and entry 2; give each character a folder of its own"
    ):
        read_cast(tmp_path / "a.yaml")
    for outs, told in (
        (("x/run", "x/run/dataset"), "x/run/dataset' .entry 2. lies in another character's folder"),
        (("x/run", "x/Run/b"), "lies in another"),
        (("x/Run", "x/run"), "run' is used twice"),
        (("caf\u00e9", "cafe\u0301"), "is used twice"),
    ):
        rows = "".join(f"- {{name: {'AB'[i]}, prompt: an orc, out: {out}}}\n" for i, out in enumerate(outs))
        (tmp_path / "a.yaml").write_text(rows, encoding="utf-8")
        with pytest.raises(ConfigError, match=told):
            read_cast(tmp_path / "a.yaml")
    (tmp_path / "a.yaml").write_text(
        "- {name: A, prompt: an orc, out: x/run, class_noun: NULL}\n- {name: B, prompt: an elf, out: x/run-2}\n"
    )
    assert [one.class_noun for one in read_cast(tmp_path / "a.yaml")] == ["", ""]
    (tmp_path / "a.yaml").write_text("- {name: A, prompt: an orc}\n- {name: B, prompt: an elf, out: runs/x/../a}\n")
    assert [Path(one.out).name for one in read_cast(tmp_path / "a.yaml")] == ["a-2", "a"]


@pytest.mark.parametrize(
    ("name", "content", "told"),
    [
        ("a.yaml", "[]", "0 characters"),
        ("a.yaml", "just words", "list of characters"),
        ("a.yaml", "[unclosed", "not valid YAML"),
        ("a.yaml", "!!python/object/apply:os.system ['true']", "not valid YAML"),
        ("a.txt", "Aya", ".yaml, .yml or .csv"),
    ],
)
def test_a_file_that_is_no_cast_is_refused(tmp_path: Path, name: str, content: str, told: str) -> None:
    (tmp_path / name).write_text(content)
    with pytest.raises(BadInput, match=told):
        read_cast(tmp_path / name)


def test_ten_thousand_and_one_characters_are_too_many() -> None:
    with pytest.raises(BadInput, match="10001"):
        check_cast([{"prompt": "an orc"}] * 10_001)


def test_one_failure_never_stops_the_others(
    prefect: str, tiny_settings: tuple[str, ...], drawn_sheet: Path, tmp_path: Path
) -> None:
    from flows.batch import batch

    common: dict[str, Any] = {"sheet": str(drawn_sheet), "overrides": list(tiny_settings)}
    photo().save(tmp_path / "photo.png")  # a picture like any other, until the crop looks for figures
    cast = [
        {"name": "Aya", "prompt": "an orc woman", "out": str(tmp_path / "aya"), **common},
        {
            **common,
            "name": "Nix",
            "prompt": "an orc",
            "out": str(tmp_path / "nix"),
            "sheet": str(tmp_path / "photo.png"),
        },
        {"name": "Tom", "prompt": "a robot", "out": str(tmp_path / "tom"), **common},
    ]
    result = batch(characters=cast)
    assert result["failed"] == ["Nix"]
    assert [outcome["name"] for outcome in result["characters"]] == ["Aya", "Nix", "Tom"]
    assert "store/rejected" in result["characters"][1]["error"]
    assert (tmp_path / "tom" / "report.html").exists() and not (tmp_path / "nix" / "report.html").exists()

    page = Path(result["summary"]).read_text()
    assert page.count("data:image/jpeg;base64,") == 2
    assert 'href="aya/report.html"' in page and "store/rejected" in page
    assert "| Nix |" in result["table"]
