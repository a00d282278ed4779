"""The run's folder: each file holds what its name says."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from run_samples import doll, png, sample_run

from charengine import files
from charengine.errors import BadInput
from charengine.records import ExpansionRecord, ExtraView, ReportRecord, RunRecord, RunResult
from charengine.run import folder
from charengine.store import Store


@pytest.fixture(scope="module")
def store(tmp_path_factory: pytest.TempPathFactory) -> Store:
    return Store(tmp_path_factory.mktemp("store"))


@pytest.fixture(scope="module")
def run(store: Store) -> RunRecord:
    return sample_run(store)


def test_views_masks_and_the_found_boxes_are_told_apart(run: RunRecord, store: Store, tmp_path: Path) -> None:
    paths = folder.write_views(run.views, tmp_path, store)
    assert [path.name for path in paths] == ["front.png", "side.png", "back.png"]
    assert (tmp_path / "overlay.png").read_bytes() == store.get(run.views.overlay)
    for view in run.views.views:
        assert (tmp_path / f"{view.view}.png").read_bytes() == store.get(view.image)
        assert (tmp_path / f"{view.view}.alpha.png").read_bytes() == store.get(view.alpha)


def test_both_adapters_and_both_pictures_stand_under_their_own_names(
    run: RunRecord, store: Store, tmp_path: Path
) -> None:
    trained, recommended = folder.write_adapters(run.sweep, "zorgax", tmp_path, store)
    assert (trained.name, trained.read_bytes()) == ("zorgax.safetensors", b"adapter")
    assert (recommended.name, recommended.read_bytes()) == ("zorgax_recommended.safetensors", b"recommended")
    assert run.sweep.plot is not None
    sheet, plot = folder.write_pictures(run.sweep, tmp_path, store)
    assert (sheet.name, sheet.read_bytes()) == ("contact_sheet.png", store.get(run.sweep.contact_sheet))
    assert (plot.name, plot.read_bytes()) == ("trade_off.png", store.get(run.sweep.plot))


def test_more_views_lie_where_their_fate_says(run: RunRecord, store: Store, tmp_path: Path) -> None:
    views = run.views.views

    def extra(name: str, fate: str, index: int) -> ExtraView:
        return ExtraView.model_validate(
            {
                "view": name,
                "kind": "pose",
                "instruction": "walking",
                "tags": (),
                "seed": 9,
                "fate": fate,
                "identity": 0.9,
                "threshold": 0.8,
                "copying": 0.1,
                "image": views[index].image,
                "alpha": views[index].alpha,
                "width": 96,
                "height": 192,
                "background": None,
            }
        )

    found = ExpansionRecord(
        views=(extra("pose-1", "trained", 0), extra("pose-2", "held out", 1), extra("pose-3", "refused", 2))
    )
    paths = folder.write_expansion(found, tmp_path, store)
    assert [str(path.relative_to(tmp_path.resolve())) for path in paths] == ["pose-1.png", "held_out/pose-2.png"]
    assert (tmp_path / "pose-1.png").read_bytes() == store.get(views[0].image)
    assert (tmp_path / "pose-1.alpha.png").read_bytes() == store.get(views[0].alpha)
    assert (tmp_path / "held_out/pose-2.png").read_bytes() == store.get(views[1].image)
    assert (tmp_path / "refused/pose-3-9.png").read_bytes() == store.get(views[2].image)
    assert ExpansionRecord.model_validate_json((tmp_path / "expansion.json").read_bytes()) == found


def test_the_record_is_read_back_as_it_was_and_the_page_lies_beside_it(
    run: RunRecord, store: Store, tmp_path: Path
) -> None:
    report = ReportRecord(html=store.put(b"<html>the page</html>", "report.html"))
    path = folder.write_report(report, run, tmp_path, store)
    assert path.name == "report.html" and path.read_bytes() == b"<html>the page</html>"
    assert folder.read_run(tmp_path) == folder.read_run(tmp_path / "run.json") == run
    with pytest.raises(BadInput, match=r"run\.json"):
        folder.read_run(tmp_path / "elsewhere")
    for value in (5, "scale", None, [], {"scale": []}):
        data = json.loads(run.model_dump_json())
        data["dataset"]["views"]["views"][0].pop("scale", None)
        data["dataset"]["views"]["views"][0]["facts"] = data["sweep"]["cells"][0]["detail"] = value
        (tmp_path / "run.json").write_text(json.dumps(data))
        with pytest.raises(BadInput, match="is not the record of a run: .*; give a run's folder"):
            folder.read_run(tmp_path)


def test_captions_are_written_in_view_order_and_an_edit_is_taken_back(
    run: RunRecord, store: Store, tmp_path: Path
) -> None:
    paths = folder.write_dataset(run.dataset, tmp_path, store, "caption-1")
    assert [path.read_text() for path in paths] == [
        "zorgax, orc, front view, full body\n",
        "zorgax, orc, side view, full body\n",
        "zorgax, orc, back view, full body\n",
    ]
    assert folder.take_edits(run.dataset, tmp_path, "caption-1") == run.dataset
    paths[1].write_text("zorgax, orc, side view, smiling\n")
    edited = folder.take_edits(run.dataset, tmp_path, "caption-1")
    assert [caption.edited for caption in edited.captions] == [False, True, False]
    assert edited.captions[1].text == "zorgax, orc, side view, smiling"
    assert edited.digest != run.dataset.digest


def test_captions_edited_for_an_earlier_stage_are_set_aside_and_not_trained_on(
    run: RunRecord, store: Store, tmp_path: Path
) -> None:
    paths = folder.write_dataset(run.dataset, tmp_path, store, "caption-00000001")
    paths[1].write_text("edited for the earlier one\n")
    assert folder.take_edits(run.dataset, tmp_path, "caption-2") == run.dataset
    [aside] = [path for path in tmp_path.iterdir() if path.name.startswith("dataset-")]
    assert [path.read_text() for path in aside.rglob("side.txt")] == ["edited for the earlier one\n"]
    assert not (tmp_path / "dataset").exists()


@pytest.mark.parametrize("same", [True, False])
def test_a_caption_edited_in_a_copy_without_hidden_files_is_not_lost(
    run: RunRecord, store: Store, tmp_path: Path, same: bool
) -> None:
    [_, side, _] = folder.write_dataset(run.dataset, tmp_path, store, "caption-1")
    (tmp_path / "run.json").write_text(run.model_dump_json())
    (tmp_path / "dataset" / folder.MARKER).unlink()
    assert folder.take_edits(run.dataset, tmp_path, "caption-1") is run.dataset
    side.write_text("zorgax, orc, side view, smiling\n")
    front = run.dataset.captions[0].model_copy(update={"text": "zorgax, orc, another text"})
    now = run.dataset if same else run.dataset.model_copy(update={"captions": (front, *run.dataset.captions[1:])})
    taken = folder.take_edits(now, tmp_path, "caption-1")
    if same:
        assert taken.captions[1].text == "zorgax, orc, side view, smiling"
        return
    assert taken is now
    assert [path.read_text() for path in tmp_path.glob("dataset-*/*/side.txt")] == ["zorgax, orc, side view, smiling\n"]


def test_untouched_captions_of_an_earlier_stage_are_simply_replaced(
    run: RunRecord, store: Store, tmp_path: Path
) -> None:
    folder.write_dataset(run.dataset, tmp_path, store, "caption-1")
    assert folder.take_edits(run.dataset, tmp_path, "caption-2") == run.dataset
    assert (tmp_path / "dataset").is_dir()


def test_the_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    result = RunResult(
        name="Zorga",
        trigger="zorgax",
        recommended_prompt="zorgax orc",
        sheet=tmp_path / "sheet.png",
        views=(tmp_path / "front.png",),
        captions=(tmp_path / "front.txt",),
        adapter=tmp_path / "a.safetensors",
        recommended_adapter=tmp_path / "b.safetensors",
        checkpoint_step=200,
        strength=0.6,
        report=tmp_path / "report.html",
        mlflow_run_id="run",
        prefect_flow_run_id=None,
        cached_stages=("sheet",),
        warnings=("Zörga is grün",),
        seconds={"sheet": 0.1},
    )
    folder.write_result(result, tmp_path)
    assert folder.read_result(tmp_path) == result
    told = json.loads((tmp_path / "result.json").read_text())
    assert (told["strength"], told["checkpoint_step"], told["adapter"]) == (0.6, 200, str(tmp_path / "a.safetensors"))


def test_the_picture_that_a_sheet_was_drawn_from_lies_beside_it(run: RunRecord, store: Store, tmp_path: Path) -> None:
    given = store.put(png(doll((64, 192))), "reference.png")
    folder.write_sheet(run.sheet.model_copy(update={"reference": given}), tmp_path / "with", store)
    folder.write_sheet(run.sheet, tmp_path / "without", store)
    assert (tmp_path / "with" / "reference.png").read_bytes() == png(doll((64, 192)))
    assert [path.name for path in files.shown(tmp_path / "without")] == ["sheet.png"]


def test_a_run_json_that_says_nothing_is_kept_beside_the_runs_own(run: RunRecord, store: Store, tmp_path: Path) -> None:
    (tmp_path / "run.json").write_text("[1")
    folder.write_report(ReportRecord(html=store.put(b"page", "report.html")), run, tmp_path, store)
    assert (tmp_path / "run-damaged.json").read_text() == "[1"
    assert folder.read_run(tmp_path).name == run.name
