"""The stages one at a time, over files and folders, without Prefect."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charengine import __version__
from charengine.cli.console import listen, say, training_bar
from charengine.cli.run import ProfileOption, SetOption
from charengine.errors import BadInput
from charengine.machine.addresses import use_services
from charengine.machine.environment import apply_defaults
from charengine.machine.home import Home, find_home
from charengine.run.request import RunRequest, check, check_folder

if TYPE_CHECKING:
    from charengine.config import Character, Profile
    from charengine.models import Models
    from charengine.records import AdapterRecord, DatasetRecord
    from charengine.store import Store

Trigger = Annotated[str, typer.Option(help="Word that means the character. Default: from the captions or the name")]
ClassNoun = Annotated[str, typer.Option(help='"woman", "robot"… Default: from the captions or the prompt')]
Seed = Annotated[int, typer.Option(help="Same seed, same machine kind: same files.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (sheet, crop, expand, caption, train, sweep, report):
        app.command()(command)


@dataclass(frozen=True)
class Desk:
    """What a single stage works with."""

    profile: Profile
    models: Models
    store: Store
    home: Home


def sheet(
    prompt: Annotated[str, typer.Argument(help="One sentence saying what the character looks like.")],
    settings: SetOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write.")] = Path("sheet.png"),
    class_noun: ClassNoun = "",
    seed: Seed = 42,
    profile: ProfileOption = "embedded",
) -> None:
    """Draw a sheet: front, side and back of a character."""
    request = RunRequest(prompt, class_noun=class_noun, seed=seed, profile=profile, overrides=tuple(settings))
    desk, character = _desk(request, out.parent)
    from charengine.stages.sheet.draw import draw_sheet

    record = draw_sheet(character, desk.profile.sheet, desk.models.editor, desk.store, captioner=desk.models.captioner)
    say(str(desk.store.export(record.image, out)))
    _warn(record.warnings)


def crop(
    file: Annotated[Path, typer.Argument(help="A sheet (PNG, JPEG, WebP).")],
    settings: SetOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for views, masks and overlay.")] = Path("views"),
    profile: ProfileOption = "embedded",
) -> None:
    """Cut the three views out of a sheet."""
    from charengine.profiles.loading import load_profile
    from charengine.run.folder import write_views
    from charengine.stages.crop import crop_views
    from charengine.stages.sheet.given import take_sheet
    from charengine.store import Store

    listen()
    cut = load_profile(profile, settings).crop
    check_folder(out, "--out")
    store = Store(find_home().create().store)
    taken = take_sheet(file, store)
    views = crop_views(taken, cut, store)
    for path in write_views(views, out, store):
        say(str(path))
    _warn((*taken.warnings, *views.warnings))


def expand(
    folder: Annotated[Path, typer.Argument(help="Folder with front, side and back pictures; gets the new ones.")],
    prompt: Annotated[str, typer.Option(help="What the character looks like: what the edit model is to keep.")],
    settings: SetOption,
    count: Annotated[int, typer.Option(help="How many more views.")] = 5,
    class_noun: ClassNoun = "",
    seed: Seed = 42,
    profile: ProfileOption = "embedded",
) -> None:
    """Draw more views (close-up, three-quarter, expression, pose, background); keep those that are the character."""
    _must_exist(folder)
    overrides = (f"expand.count={count}", *settings)
    request = RunRequest(prompt, class_noun=class_noun, seed=seed, profile=profile, overrides=overrides)
    desk, character = _desk(request, folder)
    from charengine.dataset.reading import read_views
    from charengine.run.folder import write_expansion
    from charengine.stages.expand.expand import expand_views

    views = read_views(folder, desk.store)
    models = desk.models
    record = expand_views(views, character, desk.profile.expand, models.editor, models.embedder, desk.store)
    for path in write_expansion(record, folder, desk.store):
        say(str(path))
    fates = [extra.fate for extra in record.views]
    say(f"of {len(fates)} pictures, {', '.join(f'{fates.count(fate)} {fate}' for fate in dict.fromkeys(fates))}")
    _warn(record.warnings)


def caption(
    folder: Annotated[Path, typer.Argument(help="Folder with front, side and back pictures; gets the .txt files.")],
    name: Annotated[str, typer.Option(help="The character's name.")],
    prompt: Annotated[
        str, typer.Option(help="What the character looks like: its traits are left out of the captions.")
    ],
    settings: SetOption,
    trigger: Trigger = "",
    class_noun: ClassNoun = "",
    profile: ProfileOption = "embedded",
) -> None:
    """Caption the views of a folder; the .txt files may be edited before training."""
    _must_exist(folder)
    request = RunRequest(prompt, name, class_noun, trigger, profile=profile, overrides=tuple(settings))
    desk, character = _desk(request, folder)
    from charengine.dataset.reading import picture_of, read_extras, read_views
    from charengine.stages.caption import caption_views
    from charengine.store import write_atomically

    views, extras = read_views(folder, desk.store), read_extras(folder, desk.store)
    dataset = caption_views(views, character, desk.profile.caption, desk.models.captioner, desk.store, extras)
    for item in dataset.captions:
        path = picture_of(folder, item.view).with_suffix(".txt")
        write_atomically(path, (item.text + "\n").encode())
        say(f"{path}: {item.text}")
    _warn(dataset.warnings)


def train(
    folder: Annotated[Path, typer.Argument(help="Folder with front, side and back pictures and their .txt captions.")],
    settings: SetOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the checkpoints.")] = Path("adapters"),
    trigger: Trigger = "",
    class_noun: ClassNoun = "",
    seed: Seed = 42,
    profile: ProfileOption = "embedded",
) -> None:
    """Train an adapter on a folder of captioned views; a run that was stopped continues."""
    _must_exist(folder)
    desk = _open_desk(profile, settings, out)
    from charengine.dataset.reading import read_dataset

    dataset = read_dataset(folder, desk.store, trigger, class_noun)
    record = _train(desk, dataset, seed)
    last = record.checkpoints[-1]
    for point in record.checkpoints:
        mark = "" if point is last else f"-{point.step:06d}"
        path = desk.store.export(point.adapter, out / f"{record.trigger}{mark}.safetensors")
        say(f"{path}  step {point.step}, loss {point.loss:.4f}")
    _warn(record.warnings)


def _train(desk: Desk, dataset: DatasetRecord, seed: int) -> AdapterRecord:
    import shutil

    from charengine.machine.interrupts import run_stoppable
    from charengine.machine.locks import single_flight
    from charengine.machine.threads import fastest_threads
    from charengine.run.keys import stage_key
    from charengine.run.watching import current_watcher
    from charengine.stages.train.loop import STAGE_VERSION, train_adapter
    from charengine.tracking.open_tracker import open_tracker
    from charengine.tracking.protocol import closing

    settings, diffusion = desk.profile.train, desk.models.diffusion
    key = stage_key(
        "train-alone",
        STAGE_VERSION,
        settings=settings,
        inputs=[dataset.digest],
        models=[diffusion.fingerprint],
        seed=seed,
    )
    state = desk.home.state / key
    tags = {"trigger": dataset.trigger, "profile": desk.profile.name}
    params = settings.model_dump(mode="json")
    tracker = open_tracker(
        desk.home, project="charengine", name=f"{dataset.trigger} train", key=key, params=params, tags=tags
    )
    recipe = {
        "character": {"trigger": dataset.trigger, "class_noun": dataset.class_noun, "seed": seed},
        "profile": desk.profile.model_dump(mode="json"),
        "dataset_digest": dataset.digest,
        "engine_version": __version__,
    }
    with (
        single_flight(desk.home.locks / f"{key}.lock", "the same training runs there"),
        closing(tracker),
        training_bar(),
        fastest_threads(diffusion, desk.home),
    ):
        record = run_stoppable(
            lambda stop: train_adapter(
                dataset,
                settings,
                diffusion,
                desk.store,
                seed=seed,
                state_dir=state,
                tracker=tracker,
                recipe=recipe,
                should_stop=stop,
                on_step=current_watcher(),
            )
        )
    shutil.rmtree(state, ignore_errors=True)
    return record


def sweep(
    adapter: Annotated[Path, typer.Argument(help="An adapter file, or the folder of an earlier run.")],
    settings: SetOption,
    views: Annotated[Path | None, typer.Option(help="Folder with the character's views.")] = None,
    sheet: Annotated[Path | None, typer.Option(help="The character's sheet, instead of views.")] = None,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the results.")] = Path("sweep"),
    trigger: Trigger = "",
    class_noun: ClassNoun = "",
    seed: Seed = 42,
    profile: ProfileOption = "embedded",
) -> None:
    """Try checkpoints at several strengths and pick one."""
    _must_exist(adapter)
    desk = _open_desk(profile, settings, out)
    from charengine.machine.threads import fastest_threads
    from charengine.run.earlier_runs import sweep_inputs
    from charengine.run.folder import write_adapters, write_pictures, write_sweep
    from charengine.stages.sweep.sweep import sweep_adapter

    training, dataset = sweep_inputs(
        adapter, desk.store, desk.profile, views=views, sheet=sheet, trigger=trigger, class_noun=class_noun
    )
    models = desk.models
    with fastest_threads(models.diffusion, desk.home):
        record = sweep_adapter(
            training, dataset, desk.profile.sweep, models.diffusion, models.embedder, desk.store, seed=seed
        )
    write_sweep(record, out)
    for path in (*write_adapters(record, training.trigger, out, desk.store), *write_pictures(record, out, desk.store)):
        say(str(path))
    pick = record.pick
    say(f"pick: step {pick.checkpoint_step} at strength {pick.strength:g}: {'; '.join(pick.reasons)}")
    _warn(record.warnings)


def report(
    run: Annotated[Path, typer.Argument(help="The folder of an earlier run, or its run.json.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write the report of an earlier run again."""
    from charengine.run.folder import read_run
    from charengine.stages.report.page import write_report
    from charengine.store import Store

    listen()
    check_folder(out.parent, "--out")
    store = Store(find_home().create().store)
    say(str(store.export(write_report(read_run(run), store).html, out)))


def _desk(request: RunRequest, out: Path) -> tuple[Desk, Character]:
    """Check a request with a prompt, then what `_open_desk` does; the character is complete."""
    listen()
    checked = check(request, find_home())
    desk = _open_desk(request.profile, list(request.overrides), out)
    from charengine.run.workspace import complete

    return desk, complete(checked.character, desk.models)


def _open_desk(profile: str, settings: list[str], out: Path) -> Desk:
    """Profile and models, with everything cheap checked first."""
    listen()
    from charengine.profiles.loading import load_profile
    from charengine.store import Store

    chosen = load_profile(profile, settings)
    check_folder(out, "--out")
    home = find_home().create()
    apply_defaults(home)
    use_services(home)
    from charengine.models import load

    return Desk(chosen, load(chosen), Store(home.store), home)


def _must_exist(path: Path) -> None:
    """Before models are looked for."""
    if not path.exists():
        raise BadInput(f"{path}: no such file or folder")


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
