"""More views: their captions, and the folder they lie in."""

from __future__ import annotations

import numpy as np
import pytest
from expansion_samples import Witness, captioned, expand, shifted, stranger
from PIL import Image

from charengine import files
from charengine.dataset.digest import dataset_digest
from charengine.dataset.folder import export_dataset, with_edits
from charengine.dataset.reading import read_extras
from charengine.errors import BadInput
from charengine.records import ExpansionRecord, ExtraView
from charengine.run.folder import write_expansion, write_views

# --- captions and files -----------------------------------------------------------------------------------------------


def test_captions_say_view_framing_and_background_and_leave_out_the_characters_own_traits(views, store) -> None:
    found, _ = expand(views, store, shifted, count=3, kinds=("three-quarter", "pose"), margin=0.1)
    witness = Witness(("blue coat", "walking", "white background"))
    dataset = captioned(views, store, found, witness)
    texts = {caption.view: caption.text for caption in dataset.captions}
    plain = "simple background, white background"
    assert texts["three-quarter-1"] == f"zorgax, orc, three-quarter view, full body, walking, {plain}"
    assert texts["three-quarter-2"] == f"zorgax, orc, three-quarter view, from behind, full body, walking, {plain}"
    assert texts["pose-1"] == f"zorgax, orc, front view, full body, walking, {plain}"
    assert all("blue coat" in caption.pruned for caption in dataset.captions)


def test_a_caption_says_what_is_seen_when_the_edit_model_drew_another_view(views, store) -> None:
    found, _ = expand(views, store, shifted, kinds=("three-quarter",))
    dataset = captioned(views, store, found, Witness(view="side"))
    assert dataset.captions[-1].text.startswith("zorgax, orc, from side, profile, full body, ")


def test_a_scene_is_captioned_as_the_captioner_calls_it(views, store) -> None:
    noise = np.random.default_rng(0).integers(0, 255, (128, 128, 3)).astype(np.uint8)
    found, painter = expand(
        views, store, lambda *_: Image.fromarray(noise), kinds=("background",), margin=0.5, holdout=0
    )
    [scene] = found.views
    assert scene.background is None and "Plain" not in painter.told[0]["prompt"]
    kept = ExpansionRecord(views=(scene.model_copy(update={"fate": "trained"}),))
    text = (
        captioned(views, store, kept, Witness(("forest background",), background="forest background")).captions[-1].text
    )
    assert text == "zorgax, orc, front view, full body, forest background"


def test_more_views_change_no_other_caption_and_no_digest_but_their_own(views, store) -> None:
    witness = Witness(("standing", "green skin"))
    without = captioned(views, store, ExpansionRecord(views=()), witness)
    with_more = captioned(views, store, expand(views, store, shifted, count=3)[0], witness)
    assert with_more.captions[:3] == without.captions and len(with_more.captions) == 6
    assert with_more.digest != without.digest
    swapped = tuple(_fate(extra, "held out" if extra.fate == "trained" else "trained") for extra in with_more.extras)
    assert dataset_digest(views, with_more.captions, swapped) != with_more.digest


def _fate(extra: ExtraView, fate: str) -> ExtraView:
    return extra.model_copy(update={"fate": fate})


def test_a_trainer_that_reads_the_folder_never_meets_what_is_held_out(views, store, tmp_path) -> None:
    dataset = captioned(views, store, expand(views, store, shifted, count=4)[0], Witness())
    export_dataset(dataset, tmp_path / "out", store)
    subset = {path.stem for path in (tmp_path / "out" / "10_zorgax orc").glob("*.png")}
    assert subset == {"front", "side", "back", *(extra.view for extra in dataset.trained_extras)}
    [held_out] = dataset.held_out
    sidecar = tmp_path / "out" / "held_out" / f"{held_out.view}.txt"
    assert with_edits(dataset, tmp_path / "out") is dataset
    sidecar.write_text("zorgax, orc, waving")
    assert with_edits(dataset, tmp_path / "out").captions[-4:] != dataset.captions[-4:]


def test_more_views_of_an_earlier_run_are_gone_from_the_folder_when_there_are_none(views, store, tmp_path) -> None:
    first = captioned(views, store, expand(views, store, shifted, count=4)[0], Witness())
    export_dataset(first, tmp_path / "out", store)
    export_dataset(captioned(views, store, ExpansionRecord(views=()), Witness()), tmp_path / "out", store)
    left = sorted(str(path.relative_to(tmp_path / "out")) for path in files.below(tmp_path / "out"))
    place = "10_zorgax orc"
    assert left == sorted(
        name for view in ("front", "side", "back") for name in (f"{place}/{view}.png", f"{place}/{view}.txt", f"masks/{view}.png")
    )  # fmt: skip


def test_a_folder_is_read_back_as_it_was_written_less_what_was_deleted_by_hand(views, store, tmp_path) -> None:
    found, _ = expand(views, store, shifted, count=4)
    write_views(views, tmp_path / "views", store)
    paths = write_expansion(found, tmp_path / "views", store)
    assert read_extras(tmp_path / "views", store) == tuple(
        extra.model_copy(update={"alpha": extra.alpha.model_copy(update={"name": f"{extra.view}.alpha.png"})})
        for extra in found.kept
    )
    paths[0].unlink()
    assert [extra.view for extra in read_extras(tmp_path / "views", store)] == [extra.view for extra in found.kept[1:]]
    with pytest.raises(BadInput, match="expansion.json is damaged"):
        (tmp_path / "views" / "expansion.json").write_text("{")
        read_extras(tmp_path / "views", store)


@pytest.mark.parametrize("name", ["front", "overlay"])
def test_an_expansion_that_names_a_view_of_the_sheet_is_refused_and_deletes_nothing(
    views, store, tmp_path, name: str
) -> None:
    found, _ = expand(views, store, shifted)
    write_views(views, tmp_path, store)
    write_expansion(found, tmp_path, store)
    (tmp_path / "expansion.json").write_text(found.model_dump_json().replace(found.kept[0].view, name))
    before = sorted(tmp_path.rglob("*"))
    with pytest.raises(BadInput, match="expansion.json is damaged"):
        write_expansion(found, tmp_path, store)
    assert sorted(tmp_path.rglob("*")) == before


def test_refused_pictures_can_be_looked_at_and_are_not_read_back(views, store, tmp_path) -> None:
    found, _ = expand(views, store, stranger, candidates=2)
    assert write_expansion(found, tmp_path, store) == []
    assert len(list((tmp_path / "refused").glob("pose-1-*.png"))) == 2
    assert read_extras(tmp_path, store) == ()
    write_expansion(ExpansionRecord(views=()), tmp_path, store)
    assert list((tmp_path / "refused").iterdir()) == []
