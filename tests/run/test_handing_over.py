"""Where machines share a store alone, a run's folder comes to who asked for it, whole and with what was edited there."""

from __future__ import annotations

from pathlib import Path

import fsspec
import pytest
from run_samples import sample_dataset

from charengine.errors import BadInput
from charengine.machine.ledger import LEDGER
from charengine.records import RunResult
from charengine.run import folder
from charengine.run.handing_over import HandedOver, fetch, found, hand_over, lent
from charengine.store import Store


@pytest.fixture
def store() -> Store:
    """One that is on no machine."""
    fsspec.filesystem("memory").store.clear()
    return Store("memory://studio/store")


@pytest.fixture
def made(store: Store, tmp_path: Path) -> Path:
    """A finished folder on the machine that made it."""
    out = tmp_path / "m2" / "runs" / "zorga"
    folder.write_dataset(sample_dataset(store), out, store, "caption-1")
    (out / "sheet.png").write_bytes(b"sheet")
    (out / ".charengine-run.json").write_text('{"name": "Zorga", "prompt": "an orc"}')
    (out / ".sheet.png.abc123-7-00000000.tmp").write_bytes(b"half")
    paths = dict.fromkeys(("sheet", "adapter", "recommended_adapter", "report"), out / "sheet.png")
    captions = tuple(sorted((out / "dataset").rglob("*.txt")))
    more = {"views": (out / "sheet.png",), "captions": captions, "cached_stages": (), "warnings": (), "seconds": {}}
    numbers = {"checkpoint_step": 3, "strength": 0.5, "mlflow_run_id": None, "prefect_flow_run_id": "f"}
    folder.write_result(RunResult(name="Zorga", trigger="z", recommended_prompt="z", **paths, **more, **numbers), out)
    return out


def test_the_folder_comes_whole_with_paths_of_the_machine_it_came_to(made: Path, store: Store, tmp_path: Path) -> None:
    here = tmp_path / "m1" / "runs" / "zorga"
    hand_over(made, "f", store)
    result = fetch("f", here, store)
    names = {path.relative_to(made) for path in made.rglob("*") if path.is_file() and path.suffix != ".tmp"}
    assert {path.relative_to(here) for path in here.rglob("*") if path.is_file()} == names
    assert all(path.is_file() and here in path.parents for path in (result.sheet, *result.captions, *result.views))
    assert folder.read_result(here) == result
    own = (folder.RESULT, LEDGER)  # each machine's
    assert all((here / name).read_bytes() == (made / name).read_bytes() for name in names if name.name not in own)


def test_captions_that_were_edited_where_it_comes_to_stay(
    made: Path, store: Store, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    here = tmp_path / "m1" / "runs" / "zorga"
    hand_over(made, "f", store)
    edited, other = fetch("f", here, store).captions[:2]
    edited.write_text("my own words")
    other.unlink()
    fetch("f", here, store)
    assert edited.read_text() == "my own words" and str(edited) in caplog.text
    assert other.is_file()


def test_a_run_of_which_nothing_is_kept_says_what_to_do(store: Store, tmp_path: Path) -> None:
    with pytest.raises(BadInput, match="run the character again"):
        fetch("f", tmp_path / "zorga", store)


def test_nothing_is_written_outside_of_the_folder(made: Path, store: Store, tmp_path: Path) -> None:
    hand_over(made, "f", store)
    kept = store.result("folder-f", HandedOver)
    assert kept
    evil = kept.model_copy(update={"files": {**kept.files, "../evil.png": kept.files["sheet.png"]}})
    store.put_result("folder-f", evil)
    with pytest.raises(BadInput, match="outside of its folder"):
        fetch("f", tmp_path / "m1" / "zorga", store)
    assert not (tmp_path / "m1" / "evil.png").exists()


@pytest.fixture
def temporary(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """The temporary folder of the machine that makes a character."""
    monkeypatch.setattr("tempfile.gettempdir", lambda: str(tmp_path / "tmp"))
    return tmp_path / "tmp"


def test_a_picture_that_a_run_is_given_is_found_on_another_machine_under_its_own_name(
    store: Store, tmp_path: Path, temporary: Path
) -> None:
    """Its name stands in the record of the sheet, so it must be the same wherever the character is made."""
    picture = tmp_path / "my sheet.png"
    picture.write_bytes(b"picture")
    there = Path(found(lent(str(picture), store), store))
    assert there.read_bytes() == b"picture" and there.name == picture.name and temporary in there.parents


def test_no_picture_and_a_path_of_this_machine_stay_as_they_are(store: Store) -> None:
    assert (lent("", store), found("", store), found("/a/sheet.png", store)) == ("", "", "/a/sheet.png")


@pytest.mark.parametrize(
    "picture", [f"store:{'0' * 64}/../../evil.png", "store:../a.png", f"store:{'0' * 64}/", "store:0/a"]
)
def test_a_place_that_is_none_of_the_stores_is_refused_and_nothing_written(
    store: Store, picture: str, temporary: Path
) -> None:
    with pytest.raises(BadInput, match="store:SHA256/NAME"):
        found(picture, store)
    assert not temporary.exists()


def test_a_picture_that_has_gone_from_the_store_says_what_to_do(store: Store, temporary: Path) -> None:
    with pytest.raises(BadInput, match="ask for the character again"):
        found(f"store:{'0' * 64}/a.png", store)
