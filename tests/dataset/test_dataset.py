"""The dataset in kohya's layout, and captions edited by hand."""

import pytest
from PIL import Image

from charengine.dataset.digest import dataset_digest
from charengine.dataset.folder import export_dataset, with_edits
from charengine.errors import BadInput
from charengine.pictures import png
from charengine.records import VIEWS, CaptionRecord, DatasetRecord, ViewRecord, ViewsRecord


@pytest.fixture
def dataset(store):
    records = []
    for k, name in enumerate(VIEWS):
        image = store.put(png(Image.new("RGB", (64, 128), (k, 0, 0))), f"{name}.png")
        alpha = store.put(png(Image.new("L", (64, 128), 100 + k)), f"{name}_mask.png")
        records.append(ViewRecord(view=name, image=image, alpha=alpha, width=64, height=128, source_box=(0, 0, 9, 9)))
    views = ViewsRecord(views=tuple(records), background=(255, 255, 255), overlay=records[0].image)
    captions = tuple(CaptionRecord(view=name, text=f"ayabrix, orc, {name} view") for name in VIEWS)
    digest = dataset_digest(views, captions)
    return DatasetRecord(trigger="ayabrix", class_noun="orc/woman", views=views, captions=captions, digest=digest)


def test_the_folder_is_one_that_kohya_trains_on(dataset, store, tmp_path):
    paths = export_dataset(dataset, tmp_path / "out", store)
    names = sorted(str(path.relative_to(tmp_path / "out")) for path in paths)
    assert names == [
        "10_ayabrix orc woman/back.png",
        "10_ayabrix orc woman/back.txt",
        "10_ayabrix orc woman/front.png",
        "10_ayabrix orc woman/front.txt",
        "10_ayabrix orc woman/side.png",
        "10_ayabrix orc woman/side.txt",
        "masks/back.png",
        "masks/front.png",
        "masks/side.png",
    ]
    place = tmp_path / "out" / "10_ayabrix orc woman"
    assert (place / "side.txt").read_text() == "ayabrix, orc, side view\n"
    assert Image.open(place / "side.png").getpixel((0, 0)) == (1, 0, 0)
    assert Image.open(tmp_path / "out" / "masks" / "side.png").getpixel((0, 0)) == 101


def test_captions_that_nobody_touched_leave_the_record_as_it_was(dataset, store, tmp_path):
    export_dataset(dataset, tmp_path / "out", store)
    assert with_edits(dataset, tmp_path / "out") is dataset
    assert with_edits(dataset, tmp_path / "nowhere") is dataset


def test_an_edited_caption_wins_and_changes_the_digest(dataset, store, tmp_path):
    export_dataset(dataset, tmp_path / "out", store)
    sidecar = tmp_path / "out" / "10_ayabrix orc woman" / "back.txt"
    sidecar.write_text("ayabrix, orc,\n from behind, night  \n")
    edited = with_edits(dataset, tmp_path / "out")
    assert [one.text for one in edited.captions] == [
        "ayabrix, orc, front view",
        "ayabrix, orc, side view",
        "ayabrix, orc, from behind, night",
    ]
    assert [one.edited for one in edited.captions] == [False, False, True]
    assert edited.digest != dataset.digest == dataset_digest(dataset.views, dataset.captions)
    assert edited.digest == dataset_digest(edited.views, edited.captions)
    sidecar.write_text("ayabrix, orc, back view\n")
    assert with_edits(dataset, tmp_path / "out").digest == dataset.digest


def test_an_edited_caption_without_the_trigger_is_a_warning(dataset, store, tmp_path):
    export_dataset(dataset, tmp_path / "out", store)
    (tmp_path / "out" / "10_ayabrix orc woman" / "front.txt").write_text("an orc")
    assert "does not hold the trigger 'ayabrix'" in with_edits(dataset, tmp_path / "out").warnings[0]


@pytest.mark.parametrize(
    ("content", "words"), [(b"", "empty"), (b"\xff\xfe\x00", "UTF-8"), (b"a" * 2001, "2001 characters")]
)
def test_a_caption_file_that_is_no_caption_is_refused_by_name(content, words, dataset, store, tmp_path):
    export_dataset(dataset, tmp_path / "out", store)
    (tmp_path / "out" / "10_ayabrix orc woman" / "side.txt").write_bytes(content)
    with pytest.raises(BadInput, match=words) as refusal:
        with_edits(dataset, tmp_path / "out")
    assert "side.txt" in str(refusal.value)


def test_an_earlier_triggers_folder_beside_it_does_not_count(dataset, store, tmp_path):
    earlier = dataset.model_copy(update={"trigger": "oldword"})
    export_dataset(earlier, tmp_path / "out", store)
    (tmp_path / "out" / "10_oldword orc woman" / "front.txt").write_text("oldword, orc, edited")
    export_dataset(dataset, tmp_path / "out", store)
    assert with_edits(dataset, tmp_path / "out") is dataset


def test_two_captions_for_one_view_are_refused(dataset, tmp_path):
    for name in ("one", "two"):
        (tmp_path / "mine" / name).mkdir(parents=True)
        (tmp_path / "mine" / name / "front.txt").write_text("another")
    with pytest.raises(BadInput, match=r"2 captions named front\.txt"):
        with_edits(dataset, tmp_path / "mine")


def test_the_digest_ignores_file_names_and_quality_numbers(dataset):
    renamed = dataset.views.views[0].model_copy(
        update={"image": dataset.views.views[0].image.model_copy(update={"name": "x.png"}), "facts": {"scale": 2.0}}
    )
    views = dataset.views.model_copy(update={"views": (renamed, *dataset.views.views[1:]), "warnings": ("odd",)})
    assert dataset_digest(views, dataset.captions) == dataset.digest
