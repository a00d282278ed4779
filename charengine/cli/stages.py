"""The stages one at a time, over files and folders, without Prefect: the same declarations, run by the same function."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from charengine import files
from charengine.cli.command import Command
from charengine.cli.console import listen, say, training_bar
from charengine.cli.run import ProfileOption, ReferenceOption, SetOption
from charengine.errors import BadInput, ConfigError
from charengine.machine.environment import apply_defaults
from charengine.machine.home import find_home, in_work_folder
from charengine.machine.ledger import write_own
from charengine.machine.shared import open_store
from charengine.wording import file_stem, never_taught

if TYPE_CHECKING:
    from charengine.config import Character, Profile
    from charengine.machine.home import Home
    from charengine.records import DatasetRecord
    from charengine.run.request import RunRequest
    from charengine.run.workspace import Workspace
    from charengine.store import Store

Trigger = Annotated[str, typer.Option(help="Word that means the character. Default: from the captions or the name")]
ClassNoun = Annotated[str, typer.Option(help='"woman", "robot"… Default: from the captions or the prompt')]
Seed = Annotated[int, typer.Option(help="Same seed, same machine kind: same files.")]


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    for command in (sheet, crop, expand, caption, train, sweep, report):
        app.command(cls=Command)(command)


def sheet(
    settings: SetOption,
    prompt: Annotated[
        str, typer.Argument(help="One sentence saying what the character looks like; may be left out with --reference.")
    ] = "",
    out: Annotated[Path, typer.Option("--out", "-o", help="The picture to write.")] = Path("sheet.png"),
    class_noun: ClassNoun = "",
    seed: Seed = 42,
    profile: ProfileOption = "embedded",
    reference: ReferenceOption = "",
) -> None:
    """Draw a sheet: front, side and back of a character."""
    from charengine.machine.places import check_file
    from charengine.run.request import RunRequest

    request = RunRequest(
        prompt, class_noun=class_noun, seed=seed, profile=profile, overrides=tuple(settings), reference=reference
    )
    if out.suffix.lower() not in ("", ".png"):
        raise BadInput(f"--out {out}: the sheet is a PNG picture; let the name end in .png")
    out = check_file(in_work_folder(str(out)), "--out", inputs=[in_work_folder(reference)] if reference else [])
    workspace = _workspace_for(request, out.parent)
    from charengine.run.running import run
    from charengine.stages.sheet.draw import DRAWN_SHEET

    record = run(DRAWN_SHEET, workspace, *workspace.drawn_from)
    say(str(write_own(out.parent, {out: record.image}, workspace.store)[0]))
    _warn(record.warnings)


def crop(
    file: Annotated[Path, typer.Argument(help="A sheet (PNG, JPEG, WebP).")],
    settings: SetOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for views, masks and overlay.")] = Path("views"),
    profile: ProfileOption = "embedded",
) -> None:
    """Cut the three views out of a sheet."""
    _must_exist(file)
    out = in_work_folder(str(out))
    chosen, store = _opened(profile, settings, out)
    from charengine.run.folder import write_views
    from charengine.run.outputs import check_names, views_files
    from charengine.run.running import run
    from charengine.stages.crop import CROP
    from charengine.stages.sheet.given import GIVEN_SHEET

    check_names(out, views_files(), [file])
    workspace = _workspace(_whoever(), chosen)
    taken = run(GIVEN_SHEET, workspace, file)
    views = run(CROP, workspace, taken)
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
    from charengine.run.request import RunRequest

    _must_be_folder(folder)
    overrides = (f"expand.count={count}", *settings)
    request = RunRequest(prompt, class_noun=class_noun, seed=seed, profile=profile, overrides=overrides)
    workspace = _workspace_for(request, folder)
    from charengine.dataset.folder import extra_files
    from charengine.dataset.reading import read_views
    from charengine.run.folder import write_expansion
    from charengine.run.outputs import check_names, expansion_files
    from charengine.run.running import run
    from charengine.stages.expand.stage import EXPAND

    earlier = [str(path.relative_to(folder)) for path in extra_files(folder)]  # a damaged note of them is said, too
    check_names(folder, dict.fromkeys((*earlier, *expansion_files(workspace.profile.expand))), label="")
    views = read_views(folder, workspace.store)
    _warn(views.warnings)
    record = run(EXPAND, workspace, views)
    for path in write_expansion(record, folder, workspace.store):
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
    from charengine.run.request import RunRequest

    _must_be_folder(folder)
    request = RunRequest(prompt, name, class_noun, trigger, profile=profile, overrides=tuple(settings))
    workspace = _workspace_for(request, folder)
    from charengine.dataset.folder import saying
    from charengine.dataset.reading import picture_of, read_extras, read_views
    from charengine.records import VIEWS, DatasetRecord
    from charengine.run.outputs import check_captions
    from charengine.run.running import key_of, run
    from charengine.stages.caption import CAPTION

    store = workspace.store
    extras = read_extras(folder, store)
    views = read_views(folder, store)
    _warn(views.warnings)
    pictures = (views, *extras)
    named = (*VIEWS, *(extra.view for extra in extras))
    places = {view: picture_of(folder, view).with_suffix(".txt") for view in named}
    known = store.result(key_of(CAPTION, workspace, *pictures), DatasetRecord)
    check_captions(folder, places, known)
    dataset = run(CAPTION, workspace, *pictures)
    texts = {places[item.view]: item.text for item in dataset.captions}
    write_own(folder, {path: f"{text}\n".encode() for path, text in texts.items()}, kept=saying(texts))
    for path, text in texts.items():
        say(f"{path}: {text}")
    _warn(dataset.warnings)


def train(
    folder: Annotated[Path, typer.Argument(help="Folder with front, side and back pictures and their .txt captions.")],
    settings: SetOption,
    out: Annotated[Path, typer.Option("--out", "-o", help="Folder for the checkpoints.")] = Path("adapters"),
    prompt: Annotated[
        str, typer.Option(help="What the character looks like: the base model draws lessons from it (train.distill).")
    ] = "",
    trigger: Trigger = "",
    class_noun: ClassNoun = "",
    seed: Seed = 42,
    profile: ProfileOption = "embedded",
) -> None:
    """Train an adapter on a folder of captioned views; a run that was stopped continues."""
    _must_exist(folder)
    out = in_work_folder(str(out))
    chosen, store = _opened(profile, settings, out)
    from charengine.dataset.reading import read_dataset
    from charengine.run.outputs import check_names, checkpoint_files, earlier_checkpoints, training_files
    from charengine.run.starting_files import check_starting_files

    check_starting_files(chosen)
    dataset = read_dataset(folder, store, trigger, class_noun)
    start = [Path(chosen.train.continue_from)] if chosen.train.continue_from else []
    check_names(out, training_files(dataset.trigger, chosen.train), start)
    _warn((*dataset.views.warnings, *dataset.warnings))
    with training_bar():
        workspace = _workspace(_character_of(dataset, seed, prompt), chosen)
        _warn(of_the_prompt(prompt, workspace))
        from charengine.run.running import run
        from charengine.run.whole_recipe import with_base_name
        from charengine.stages.train.stage import TRAIN
        from charengine.tracking.protocol import closing

        with closing(workspace.track()):
            record = run(TRAIN, workspace, dataset)
    names = checkpoint_files(record.trigger, [point.step for point in record.checkpoints])
    adapters = [with_base_name(point.adapter, workspace) for point in record.checkpoints]
    content = {out / name: adapter for name, adapter in zip(names, adapters, strict=True)}
    for path, point in zip(write_own(out, content, store), record.checkpoints, strict=True):
        say(f"{path}  step {point.step}, loss {point.loss:.4f}")
    earlier = [f"{path} is of an earlier training" for path in earlier_checkpoints(out, record.trigger, names)]
    _warn((*record.warnings, *earlier))


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
    out = in_work_folder(str(out))
    chosen, store = _opened(profile, settings, out)
    from charengine.run.before_the_sweep import sweep_problems
    from charengine.run.earlier_runs import description, sweep_inputs
    from charengine.run.folder import adapter_files, write_adapters, write_pictures, write_sweep
    from charengine.run.outputs import check_names, sweep_files
    from charengine.run.running import run
    from charengine.stages.sweep.stage import SWEEP
    from charengine.tracking.protocol import closing

    if problems := sweep_problems(chosen):
        raise ConfigError(problems)
    training, dataset = sweep_inputs(
        adapter, store, chosen, views=views, sheet=sheet, trigger=trigger, class_noun=class_noun
    )
    trained = {adapter_files(training.trigger)[0]: training.checkpoints[-1].adapter.sha256}
    inputs = [path for path in (adapter, sheet) if path and files.is_file(path)]
    check_names(out, sweep_files(training.trigger), inputs, trained)
    _warn(dataset.views.warnings if views or sheet else ())
    workspace = _workspace(_character_of(dataset, seed, description(adapter)), chosen)
    with closing(workspace.track()):
        record = run(SWEEP, workspace, training, dataset)
    write_sweep(record, out)
    for path in (*write_adapters(record, training.trigger, out, store), *write_pictures(record, out, store)):
        say(str(path))
    pick = record.pick
    say(f"pick: step {pick.checkpoint_step} at strength {pick.strength:g}: {'; '.join(pick.reasons)}")
    if record.words:
        say(f"say {record.words.recommended_prompt!r} in a prompt")
    if record.verdict:
        say(record.verdict.line)
    _warn(record.warnings)


def report(
    run: Annotated[Path, typer.Argument(help="The folder of an earlier run, or its run.json.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("report.html"),
) -> None:
    """Write the report of an earlier run again."""
    from charengine.machine.places import check_file
    from charengine.run.earlier_runs import still_there
    from charengine.run.folder import REPORT, folder_of, read_run
    from charengine.stages.report.page import write_report

    listen()
    out = check_file(in_work_folder(str(out)), "--out", rewritten=folder_of(run) / REPORT)
    record = read_run(run)
    store = open_store(find_home())
    with still_there(run):
        page = write_report(record, store).html
    say(str(write_own(out.parent, {out: page}, store)[0]))


def _workspace_for(request: RunRequest, out: Path) -> Workspace:
    """The workspace of a request with a prompt, with everything cheap checked first."""
    from charengine.run.request import check

    listen()
    checked = check(replace(request, out=str(in_work_folder(str(out)))), find_home(), whole=False)
    home = _ready_home()
    from charengine.run.opening import open_workspace

    return open_workspace(checked, home)


def _opened(profile: str, settings: list[str], out: Path) -> tuple[Profile, Store]:
    """Profile and store, with everything cheap checked first."""
    listen()
    from charengine.machine.places import check_folder, space_problems
    from charengine.run.paths import profile_as_named

    home = find_home()
    chosen = profile_as_named(profile, settings)
    check_folder(out, "--out")
    if problems := space_problems({out.absolute(), home.root}, chosen.models.family):
        raise BadInput(problems[0])
    return chosen, open_store(home)


def _workspace(character: Character, profile: Profile) -> Workspace:
    home = _ready_home()
    from charengine.run.workspace import Workspace

    return Workspace(character, profile, home)


def _ready_home() -> Home:
    from charengine.machine.addresses import use_services

    home = find_home().create()
    apply_defaults(home)
    use_services(home)
    return home


def _character_of(dataset: DatasetRecord, seed: int, prompt: str = "") -> Character:
    """Whom a folder of captioned views shows: named by the trigger, which may be a phrase ("ohwx woman") that another trainer used.

    `prompt` is what the character looks like, where that is known.
    """
    from charengine.run.request import checked_character

    character = checked_character(
        {
            "name": file_stem(dataset.trigger),
            "prompt": prompt or f"{dataset.trigger} {dataset.class_noun}",
            "class_noun": dataset.class_noun,
            "seed": seed,
        }
    )
    return character.model_copy(update={"trigger": dataset.trigger})


def _whoever() -> Character:
    """For stages that read nothing of the character."""
    from charengine.config import Character

    return Character(name="somebody", prompt="a character", class_noun="character", trigger="somebody")


def of_the_prompt(prompt: str, workspace: Workspace) -> tuple[str, ...]:
    """What a training will not take from its prompt, of which the base model draws lessons."""
    if prompt and not workspace.profile.train.distill:
        return ("--prompt is read by lessons alone, and train.distill is 0: the training is as without it",)
    return never_taught(workspace.models.editor.unknown_words(prompt), "--prompt")


def _must_exist(path: Path) -> None:
    """Before models are looked for."""
    if not files.exists(path):
        raise BadInput(f"{path}: no such file or folder")
    if not files.is_file(path) and not files.is_dir(path):
        raise BadInput(f"{path} is neither a file nor a folder")


def _must_be_folder(path: Path) -> None:
    _must_exist(path)
    if not files.is_dir(path):
        raise BadInput(f"{path} is not a folder; give one with front, side and back pictures")


def _warn(warnings: tuple[str, ...]) -> None:
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)
