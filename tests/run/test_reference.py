"""A run that starts from one picture: what the picture says is known before a key is made, and counts in every key that it should."""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from PIL import Image
from run_samples import doll

from charengine.errors import BadInput, ConfigError
from charengine.machine.home import Home
from charengine.models import Sight
from charengine.run import reference as run_reference
from charengine.run import workspace as run_workspace
from charengine.run.cast import check_cast, read_cast
from charengine.run.claim import claim, owner_of
from charengine.run.opening import open_workspace
from charengine.run.request import RunRequest, check, usual_name
from charengine.run.running import NotKept, kept, key_of
from charengine.run.workspace import Workspace
from charengine.stages.sheet.draw import DRAWN_SHEET
from charengine.stages.sheet.reference import LOOK

ORC = Sight(1, "full body", "orc woman", "an orc woman in a blue coat")


@dataclass
class Witness:
    """An onlooker that counts how often it is asked."""

    sight: Sight = ORC
    asked: int = 0
    fingerprint: str = "witness"

    def look(self, image: Image.Image) -> Sight:
        self.asked += 1
        return self.sight

    def unload(self) -> None:
        pass


@dataclass
class World:
    """A home and models that are fingerprints, but for the onlooker."""

    folder: Path
    witness: Witness = field(default_factory=Witness)
    loads: int = 0

    def picture(self, name: str = "tavern keeper.png", coat: tuple[int, int, int] = (40, 90, 180)) -> Path:
        path = self.folder / name
        path.parent.mkdir(parents=True, exist_ok=True)
        doll(coat=coat).save(path)
        return path

    def load(self, _profile: object) -> Any:
        self.loads += 1
        named = {
            name: SimpleNamespace(fingerprint=name, unload=lambda: None)
            for name in ("editor", "captioner", "embedder", "reader")
        }
        diffusion = SimpleNamespace(fingerprint="sdxl", count_tokens=len, device=None)
        return SimpleNamespace(**named, diffusion=diffusion, onlooker=self.witness)

    def open(self, *, prompt: str = "", **asked: Any) -> Workspace:
        asked.setdefault("reference", str(self.picture()))
        home = Home(self.folder / "home")
        return open_workspace(check(RunRequest(prompt, **asked), home), home)


@pytest.fixture
def world(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> World:
    monkeypatch.chdir(tmp_path)
    made = World(tmp_path)
    monkeypatch.setattr(run_workspace, "load", made.load)
    return made


def sheet_key(workspace: Workspace) -> str:
    return key_of(DRAWN_SHEET, workspace, *workspace.drawn_from)


# --- who it is --------------------------------------------------------------------------------------------------------


def test_without_a_sentence_the_picture_says_what_it_looks_like_and_what_it_is(world: World) -> None:
    character = world.open().character
    assert (character.prompt, character.class_noun) == ("an orc woman in a blue coat", "orc woman")
    assert character.name == "tavern-keeper" and character.trigger.startswith("tav")


def test_a_sentence_stays_as_it_is_and_names_the_class_noun_where_it_can(world: World) -> None:
    said = world.open(prompt="a robot with a hook").character
    assert (said.prompt, said.class_noun) == ("a robot with a hook", "robot")
    assert world.open(prompt="somebody with a hook").character.class_noun == "orc woman"
    assert world.open(class_noun="warrior").character.class_noun == "warrior"


def test_a_picture_that_was_looked_at_is_known_again_without_a_look(world: World) -> None:
    home, request = Home(world.folder / "home"), RunRequest("", reference=str(world.picture()))
    known = world.load(None)
    with pytest.raises(NotKept):
        open_workspace(check(request, home), home, models=known, by=kept)
    before = world.open()
    again = open_workspace(check(request, home), home, models=known, by=kept)
    assert (again.character, again.key, sheet_key(again)) == (before.character, before.key, sheet_key(before))
    assert (world.witness.asked, world.loads) == (1, 2)  # once by this test


def test_a_picture_that_cannot_be_described_needs_a_sentence(world: World) -> None:
    world.witness.sight = Sight(1)
    with pytest.raises(BadInput, match="say it in a sentence too"):
        world.open()
    assert world.open(prompt="an orc").character.prompt == "an orc"


def test_what_is_refused_by_the_model_is_bad_input_and_leaves_no_folder(world: World) -> None:
    world.witness.sight = Sight(1, "face", "orc", "an orc")
    with pytest.raises(BadInput, match="a face alone") as refused:
        world.open()
    assert refused.value.exit_status == 2 and not (world.folder / "runs").exists()


@pytest.mark.parametrize(
    ("prompt", "reference", "name"),
    [
        ("an orc in blue", "x.png", "orc-blue"),
        ("", "/a/Tavern keeper.png", "tavern-keeper"),
        (" ", "IMG_2034.JPG", "img-2034"),
        ("", "", "character"),
    ],
)
def test_who_is_given_no_name_is_called_after_the_sentence_else_after_the_file(
    prompt: str, reference: str, name: str
) -> None:
    assert usual_name(prompt, reference) == name


# --- keys -------------------------------------------------------------------------------------------------------------


def test_another_picture_is_another_sheet_and_another_run_and_the_same_one_is_not(world: World) -> None:
    first = world.open(name="Aya")
    same = world.open(name="Aya", reference=str(world.picture("elsewhere/other.png")))
    other = world.open(name="Aya", reference=str(world.picture("red.png", coat=(200, 40, 30))))
    without = world.open(name="Aya", prompt="an orc woman in a blue coat", class_noun="orc woman", reference="")
    assert sheet_key(first) == sheet_key(same) and first.key == same.key
    assert len({sheet_key(one) for one in (first, other, without)}) == 3
    assert len({one.key for one in (first, other, without)}) == 3


def test_what_the_picture_was_seen_to_show_counts_too(world: World) -> None:
    before = world.open(prompt="an orc")
    world.witness.sight = Sight(1, "full body", "orc woman", "an orc woman in a red coat")
    world.witness.fingerprint = "another"
    assert sheet_key(world.open(prompt="an orc")) != sheet_key(before)


def test_a_picture_is_looked_at_once_by_each_model(world: World) -> None:
    first, again = world.open(), world.open()
    assert world.witness.asked == 1
    assert [(fact.stage, fact.cached) for fact in (*first.facts, *again.facts)] == [
        ("reference", False),
        ("reference", True),
    ]
    world.witness.fingerprint = "another"
    world.open()
    assert world.witness.asked == 2


def test_the_looking_depends_on_the_picture_and_the_model_alone() -> None:
    assert (LOOK.character, LOOK.settings, LOOK.seeded, LOOK.models) == ((), "", False, ("onlooker",))


def test_recipe_and_parameters_say_which_picture_it_was(world: World) -> None:
    workspace = world.open()
    assert workspace.reference is not None
    digest = workspace.reference.image.sha256
    assert workspace.recipe()["reference"] == digest and workspace.params()["character.reference"] == digest
    assert "reference" not in world.open(prompt="an orc", reference="").recipe()


# --- how it is asked for ----------------------------------------------------------------------------------------------


def test_a_request_for_a_picture_goes_to_a_worker_as_it_was_asked(world: World) -> None:
    picture = world.picture()
    request = RunRequest("", out=str(world.folder / "out"), reference="tavern keeper.png")
    checked = check(request, Home(world.folder / "home"))
    assert checked.reference == picture and not checked.said
    told = checked.parameters()
    assert (told["prompt"], told["reference"], told["name"]) == ("", str(picture), "tavern-keeper")
    again = check(RunRequest(**{**told, "overrides": (), "refresh": ()}), Home(world.folder / "home"))
    assert again.character == checked.character and again.parameters() == told


def test_two_pictures_of_one_name_do_not_share_a_folder(world: World) -> None:
    home = Home(world.folder / "home")
    first = claim(check(RunRequest("", "Aya", reference=str(world.picture())), home))
    same = claim(check(RunRequest("", "Aya", reference=str(world.picture("copy.png"))), home))
    other = claim(check(RunRequest("", "Aya", reference=str(world.picture("red.png", coat=(200, 40, 30)))), home))
    assert first.out == same.out == world.folder / "runs" / "aya"
    assert other.out == world.folder / "runs" / "aya-2"
    owner = owner_of(first.out)
    assert owner is not None and owner[1].startswith("picture ")


def test_a_sheet_and_a_reference_are_not_taken_together(world: World, drawn_sheet: Path) -> None:
    with pytest.raises(ConfigError, match="leave one out"):
        world.open(sheet=str(drawn_sheet))


def test_every_mistake_beside_a_wrong_picture_is_said_with_it(world: World) -> None:
    with pytest.raises(ConfigError) as wrong:
        world.open(prompt="an orc", name="a/b", reference="nowhere.png", overrides=("train.rank=0",))
    assert len(wrong.value.problems) == 3 and wrong.value.problems[0].startswith("--reference")
    with pytest.raises(ConfigError) as wrong:
        world.open(reference="nowhere.png", overrides=("train.rank=0",))
    assert len(wrong.value.problems) == 2


def test_a_cast_takes_pictures_instead_of_sentences(world: World) -> None:
    world.picture()
    (world.folder / "cast.csv").write_text("name,prompt,reference\nAya,,tavern keeper.png\n,an elf,\n")
    (world.folder / "cast.yaml").write_text(json.dumps([{"reference": "tavern keeper.png"}]))
    aya, elf = read_cast(world.folder / "cast.csv")
    assert (aya.prompt, aya.reference, aya.name) == ("", "tavern keeper.png", "Aya")
    assert (elf.prompt, elf.reference, elf.name) == ("an elf", "", "elf")
    [keeper] = read_cast(world.folder / "cast.yaml")
    assert keeper.name == "tavern-keeper"
    with pytest.raises(ConfigError, match="name a picture of it in reference"):
        check_cast([{"name": "Bea"}])


def test_the_picture_is_looked_at_with_the_models_that_draw(world: World) -> None:
    workspace = world.open()
    assert workspace.models.onlooker is world.witness and world.loads == 1
    assert run_reference.LOOK.gpu, "it waits for its turn on the GPU as every stage does"
