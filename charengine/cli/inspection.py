"""`inspect`, `profiles`, `settings`, `doctor` and `compare`: what there is, without making anything new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from charengine import files
from charengine.cli.command import Command
from charengine.cli.console import listen, say, say_json
from charengine.cli.run import JsonOption, ProfileOption, SetOption

SHOWN = (
    "modelspec.title",
    "ss_base_model_version",
    "ss_sd_model_name",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_steps",
    "ss_training_comment",
)
MOST_PROBLEMS = 5
LONGEST_SHOWN = 300  # characters of a value that somebody else's program wrote
NOWHERE = "nothing known here: its keys are neither kohya's nor diffusers' for an SDXL U-Net"


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("inspect", cls=Command)(inspect_file)
    for command in (profiles, settings, doctor, compare):
        app.command(cls=Command)(command)


def inspect_file(
    file: Annotated[Path, typer.Argument(help="An adapter (.safetensors).")], as_json: JsonOption = False
) -> None:
    """An adapter's recipe, metadata, and where it loads."""
    facts = adapter_facts(file)
    if as_json:
        say_json(facts)
        return
    say(
        f"{file}: {facts['size_mib']:.1f} MiB, {facts['tensors']} tensors, {facts['modules']} modules, {facts['dtype']}"
    )
    say(f"algorithm: {facts['algorithm']}")
    if facts["base"]:
        say(f"base: {facts['base']}, by the width of the text embeddings it reads")
    say(f"loads in: {facts['loads_in']}")
    for problem in facts["problems"]:
        say(f"problem: {problem}")
    for doubt in facts["doubts"]:
        say(f"note: {doubt}")
    for key in SHOWN:
        if key in facts["metadata"]:
            say(f"{key}: {_shown(facts['metadata'][key])}")
    if facts["damaged"]:
        say(f"damaged metadata: {', '.join(facts['damaged'])}")
    if "charengine.recipe" in facts["damaged"]:
        say("recipe: damaged")
    elif facts["recipe"]:
        say("recipe:")
        say(json.dumps(facts["recipe"], indent=2, ensure_ascii=False))
    else:
        say("recipe: none; the file was not made by Character Engine")


def adapter_facts(file: Path) -> dict[str, Any]:
    """Facts of an adapter file's header, and what is wrong with its values.

    Raises:
        BadInput: no such file, or it is cut short.
        UnsafeFile: not a safetensors file.
    """
    from charengine.adapter.files import file_doubts, file_problems
    from charengine.adapter.header import read_header
    from charengine.adapter.loaders import base_of, layers_of, loads_in
    from charengine.adapter.metadata import told_by

    header = read_header(file)
    told = told_by(header.metadata)
    layers, loaders = layers_of(header.tensors), loads_in(header.tensors)
    places = "; ".join(name if part == "all" else f"{name}: {part}" for name, part in loaders.items()) or NOWHERE
    base = base_of(header.tensors)
    of_sdxl = not told.family and base in ("", "SDXL")
    doubtful = file_problems(file, of_sdxl)
    incomplete = [f"{layer.stem} lacks {', '.join(layer.missing)}" for layer in layers if layer.missing]
    if incomplete:
        places = "nowhere as it is meant: the file is incomplete"
    elif doubtful:
        places = "nowhere as it is meant: see the problems"
    elif told.family == "embedded":
        places = f"the embedded family it was trained on; a full-size one with these keys: {places}"
    return {
        "size_mib": files.size(file) / 2**20,
        "tensors": len(header.tensors),
        "modules": len(layers),
        "algorithm": ", ".join(sorted({layer.algorithm or layer.other or "none" for layer in layers})) or "none",
        "base": base,
        "dtype": ", ".join(sorted({entry.dtype for entry in header.tensors.values()})),
        "loads_in": places,
        "loaders": loaders,
        "problems": (doubtful or incomplete)[:MOST_PROBLEMS],
        "doubts": [] if doubtful else file_doubts(file, of_sdxl),
        "metadata": {key: value for key, value in header.metadata.items() if key != "charengine.recipe"},
        "recipe": told.recipe,
        "damaged": list(told.damaged),
    }


def _shown(text: str) -> str:
    """One line without control characters, which could move a terminal's cursor."""
    plain = "".join(letter if letter.isprintable() else " " for letter in text[:LONGEST_SHOWN])
    return plain if len(text) <= LONGEST_SHOWN else f"{plain}…"


def profiles() -> None:
    """The shipped profiles: models and settings for a kind of machine."""
    from charengine.profiles.loading import load_profile, profile_names

    for name in profile_names():
        say(f"{name:12} {load_profile(name).description}")


def settings(
    section: Annotated[str, typer.Argument(help="A section (train), or one setting (train.steps). Default: all")] = "",
    profile: ProfileOption = "embedded",
    as_json: JsonOption = False,
) -> None:
    """Every setting: what a profile sets it to, its default, what is allowed, and what it does."""
    from charengine.profiles.listing import chosen_groups
    from charengine.profiles.loading import load_profile

    groups, chosen = chosen_groups(section), load_profile(profile)
    if as_json:
        say_json([one.as_dict(chosen) for group in groups for one in group.settings])
        return
    for group in groups:
        say(f"{group.title}: {group.about}\n")
        for one in group.settings:
            say("\n      ".join(one.lines(chosen)) + "\n")


def doctor(settings: SetOption, profile: ProfileOption = "embedded", as_json: JsonOption = False) -> None:
    """What this machine can run, which model files were found, what is missing and how to get it."""
    listen()
    from charengine.run.paths import profile_as_named
    from charengine.run.request import profile_problems
    from charengine.services.doctor import examine

    chosen = profile_as_named(profile, settings)
    report = examine(chosen, profile, profile_problems(chosen))
    say_json(report.as_dict()) if as_json else say(str(report))
    if not report.ready:
        raise typer.Exit(3)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of earlier runs, or their run.json.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("compare.html"),
    as_json: JsonOption = False,
) -> None:
    """What differs between runs: settings, pick, identity, adherence, curves and pictures; a table and a page."""
    from charengine.machine.home import find_home, in_work_folder
    from charengine.machine.ledger import write_own
    from charengine.machine.places import check_file
    from charengine.machine.shared import open_store
    from charengine.run.earlier_runs import still_there
    from charengine.run.folder import read_run
    from charengine.stages.report.compare import compare_html, compare_text, comparison

    out = in_work_folder(str(out))
    place = check_file(out, "--out", rewritten=out.parent / "compare.html")
    records = [read_run(run) for run in runs]
    with still_there(*runs):
        page = compare_html(records, open_store(find_home()))
    write_own(place.parent, {place: page.encode()})
    if as_json:
        say_json({"runs": comparison(records), "page": str(out.absolute())})
        return
    say(compare_text(records))
    say(f"page: {out.absolute()}")
