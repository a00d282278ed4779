"""More views with the embedded models, and as a command."""

from __future__ import annotations

import math
from pathlib import Path

import pytest
import torch
from expansion_samples import GRISHA, Witness, captioned
from PIL import Image
from run_samples import WHITE, sample_dataset

from charengine.config import ExpandSettings
from charengine.dataset.reading import read_dataset
from charengine.embedded.shape import PICTURE_SIZE
from charengine.models import load
from charengine.profiles.loading import load_profile
from charengine.records import ExpansionRecord, ViewsRecord
from charengine.run.folder import write_views
from charengine.stages.expand.expand import expand_views
from charengine.stages.expand.identity_rule import IdentityRule
from charengine.store import Store


def test_what_the_embedded_edit_model_cannot_be_asked_for_is_left_out_and_said(views, store) -> None:
    models = load(load_profile("embedded"))
    settings = ExpandSettings(count=2, kinds=("expression",), candidates=1, steps=1, guidance=1.0)
    found = expand_views(views, GRISHA, settings, models.editor, models.embedder, store)
    assert found.views == ()
    assert found.warnings == ("more views: the embedded edit model was not taught expression",)
    guided = ExpandSettings(
        count=2, kinds=("expression",), candidates=1, guidance=2.0, negative_prompt="blurry, a tuba"
    )
    zeppelin = GRISHA.model_copy(update={"prompt": f"{GRISHA.prompt} on a zeppelin"})
    never = "the model was never taught these words and ignores them: "
    told = expand_views(views, zeppelin, guided, models.editor, models.embedder, store).warnings
    assert told[:-1] == (f"{never}zeppelin", f"expand.negative_prompt: {never}blurry, tuba")


# --- real models ------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="module")
def world():
    """Pictures of three characters as the embedded world renders them: (character, yaw, pose, zoom) -> image."""
    from charengine.embedded.traits import sample_indices
    from charengine.embedded.world import render

    indices = sample_indices(3, torch.Generator().manual_seed(5))

    def picture(who: int, yaw: float, size=(192, 192), pose=0, framing=1.0) -> tuple[Image.Image, Image.Image]:
        made = render(
            indices[who : who + 1],
            yaw=torch.tensor([yaw]),
            pose=torch.tensor([pose]),
            background=torch.tensor([0]),
            size=size,
            framing=framing,
        )
        pixels = (made.image[0].permute(1, 2, 0) * 255).round().byte().numpy()
        return Image.fromarray(pixels), Image.fromarray((made.alpha[0, 0] * 255).round().byte().numpy())

    return picture


def test_the_embedded_embedder_keeps_the_character_turned_posed_and_close_and_refuses_others(world, store) -> None:
    from charengine.pictures import png
    from charengine.records import VIEWS, ViewRecord

    records = []
    for name, yaw in zip(VIEWS, (0.0, math.pi / 2, math.pi), strict=True):
        image, alpha = world(0, yaw, size=(128, 384))
        refs = store.put(png(image), f"{name}.png"), store.put(png(alpha), f"{name}_mask.png")
        records.append(
            ViewRecord(view=name, image=refs[0], alpha=refs[1], width=128, height=384, source_box=(0, 0, 128, 384))
        )
    views = ViewsRecord(views=tuple(records), background=WHITE, overlay=records[0].image)
    rule = IdentityRule(views, load(load_profile("embedded")).embedder, store)
    own = [world(0, math.pi / 4)[0], world(0, 0.0, pose=1)[0], world(0, 0.0, pose=4)[0]]
    others = [world(who, yaw)[0] for who in (1, 2) for yaw in (0.0, math.pi / 4)]
    assert min(rule.identity(image, "full body") for image in own) >= rule.least("full body")
    assert max(rule.identity(image, "full body") for image in others) < rule.least("full body")
    faces = [world(who, 0.0, framing=3.2)[0] for who in (0, 1, 2)]
    same, *strange = [rule.identity(face, "close-up") for face in faces]
    assert same >= rule.least("close-up") > max(strange)


def test_the_embedded_edit_model_draws_in_its_own_words_and_size_and_is_held_to_the_rule(views, store) -> None:
    models = load(load_profile("embedded"))
    settings = ExpandSettings(count=3, kinds=("pose", "close-up"), candidates=1, steps=2, guidance=1.0)
    found = expand_views(views, GRISHA, settings, models.editor, models.embedder, store)
    assert len(found.views) == 3
    assert all((view.identity >= view.threshold) == (view.fate != "refused") for view in found.views)
    assert {(view.width, view.height) for view in found.views} == {PICTURE_SIZE}
    assert found.views[0].instruction.startswith("the same orc as in the picture: pointing, meadow, full body: ")
    assert [view.tags for view in found.views] == [
        ("full body",),
        ("front view", "close-up"),
        ("front view", "full body"),
    ]
    dataset = captioned(views, store, found, Witness())
    assert {caption.view for caption in dataset.captions} == {"front", "side", "back", *(v.view for v in found.kept)}


@pytest.mark.parametrize("command", [("expand",), ("caption", "--name", "Grisha")], ids=lambda command: command[0])
def test_as_a_process_too_the_stage_refuses_a_folder_that_is_none(charengine, command: tuple[str, ...]) -> None:
    done = charengine(*command, "nowhere", "--prompt", GRISHA.prompt)
    assert done.returncode == 2 and "nowhere" in done.stderr and "Traceback" not in done.stderr


def test_the_single_stage_reads_and_writes_a_folder_that_caption_and_train_read_too(
    cli, tiny_settings, tmp_path: Path
) -> None:
    store, folder = Store(tmp_path / "own"), tmp_path / "views"
    write_views(sample_dataset(store).views, folder, store)
    sets = [part for setting in (*tiny_settings, "expand.steps=1", "expand.margin=0.5") for part in ("--set", setting)]
    done = cli("expand", folder, "--prompt", GRISHA.prompt, "--count", 2, *sets)
    assert done.returncode == 0, done.stderr
    record = ExpansionRecord.model_validate_json((folder / "expansion.json").read_bytes())
    assert len({extra.view for extra in record.views}) == 2
    assert f"of {len(record.views)} pictures, " in done.stdout
    for extra in record.views:
        assert f"{extra.view}, seed {extra.seed}: identity {extra.identity:.3f}" in done.stderr
    kept = {str(path) for path in folder.rglob("*.png") if path.stem in {extra.view for extra in record.kept}}
    assert set(done.stdout.splitlines()[:-1]) == kept
    captions = cli("caption", folder, "--prompt", GRISHA.prompt, "--name", "Grisha", *sets)
    assert captions.returncode == 0, captions.stderr
    texts = {path.stem for path in folder.rglob("*.txt")}
    assert texts == {"front", "side", "back", *(extra.view for extra in record.kept)}
    dataset = read_dataset(folder, store)
    assert dataset.extras and [extra.fate for extra in dataset.extras] == [extra.fate for extra in record.kept]
    assert [caption.view for caption in dataset.captions][3:] == [extra.view for extra in record.kept]
