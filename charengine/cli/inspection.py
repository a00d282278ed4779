"""`inspect`, `profiles`, `doctor` and `compare`: what there is, without making anything new."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Annotated, Any

import typer

from charengine.cli.console import listen, say, say_json
from charengine.cli.run import JsonOption, ProfileOption, SetOption
from charengine.run.request import check_folder

SHOWN = (
    "modelspec.title",
    "ss_base_model_version",
    "ss_network_dim",
    "ss_network_alpha",
    "ss_steps",
    "ss_training_comment",
)
LOADERS = {
    "original": "ComfyUI, AUTOMATIC1111, Forge, kohya's scripts and diffusers (load_lora_weights)",
    "diffusers": "diffusers (load_lora_weights) and ComfyUI",
    "unknown": "nothing known here: its keys are neither kohya's nor diffusers' for an SDXL U-Net",
}


def register(app: typer.Typer) -> None:
    """Add this module's commands."""
    app.command("inspect")(inspect_file)
    for command in (profiles, doctor, compare):
        app.command()(command)


def inspect_file(
    file: Annotated[Path, typer.Argument(help="An adapter (.safetensors).")],
    as_json: JsonOption = False,
) -> None:
    """An adapter's recipe, metadata, and where it loads."""
    facts = adapter_facts(file)
    if as_json:
        say_json(facts)
        return
    say(
        f"{file}: {facts['size_mib']:.1f} MiB, {facts['tensors']} tensors, {facts['modules']} modules, {facts['dtype']}"
    )
    say(f"loads in: {facts['loads_in']}")
    for key in SHOWN:
        if key in facts["metadata"]:
            say(f"{key}: {facts['metadata'][key]}")
    if facts["recipe"]:
        say("recipe:")
        say(json.dumps(facts["recipe"], indent=2, ensure_ascii=False))
    else:
        say("recipe: none; the file was not made by Character Engine")


def adapter_facts(file: Path) -> dict[str, Any]:
    """Header facts of an adapter file; no tensor is read.

    Raises:
        BadInput: no such file.
        UnsafeFile: not a safetensors file.
    """
    from charengine.adapter.files import read_metadata

    metadata = read_metadata(file)
    with file.open("rb") as opened:
        header = json.loads(opened.read(int.from_bytes(opened.read(8), "little")))
    header.pop("__metadata__", None)
    recipe = json.loads(metadata.get("charengine.recipe", "{}"))
    loads_in = LOADERS[_layout(set(header))]
    if recipe.get("profile", {}).get("models", {}).get("family") == "embedded":
        loads_in = f"the embedded family it was trained on; a full-size one with these keys: {loads_in}"
    return {
        "size_mib": file.stat().st_size / 2**20,
        "tensors": len(header),
        "modules": len({key.split(".")[0] if key.startswith("lora_") else key.rsplit(".", 2)[0] for key in header}),
        "dtype": ", ".join(sorted({entry["dtype"] for entry in header.values()})),
        "loads_in": loads_in,
        "metadata": {key: value for key, value in metadata.items() if key != "charengine.recipe"},
        "recipe": recipe,
    }


def _layout(keys: set[str]) -> str:
    blocks = ("lora_unet_input_blocks_", "lora_unet_middle_block_", "lora_unet_output_blocks_")
    if any(key.startswith(blocks) for key in keys):
        return "original"
    return "diffusers" if any(key.startswith(("unet.", "lora_unet_down_blocks_")) for key in keys) else "unknown"


def profiles() -> None:
    """The shipped profiles: models and settings for a kind of machine."""
    from charengine.profiles.loading import load_profile, profile_names

    for name in profile_names():
        say(f"{name:12} {load_profile(name).description}")


def doctor(settings: SetOption, profile: ProfileOption = "embedded", as_json: JsonOption = False) -> None:
    """What this machine can run, which model files were found, what is missing and how to get it."""
    listen()
    from charengine.profiles.loading import load_profile
    from charengine.services.doctor import examine

    report = examine(load_profile(profile, settings))
    say_json(report.as_dict()) if as_json else say(str(report))
    if not report.ready:
        raise typer.Exit(3)


def compare(
    runs: Annotated[list[Path], typer.Argument(help="Folders of earlier runs, or their run.json.")],
    out: Annotated[Path, typer.Option("--out", "-o", help="The page to write.")] = Path("compare.html"),
    as_json: JsonOption = False,
) -> None:
    """What differs between runs: settings, pick, identity, adherence, curves and pictures; a table and a page."""
    from charengine.machine.home import find_home
    from charengine.run.folder import read_run
    from charengine.stages.report.compare import compare_html, compare_text, comparison
    from charengine.store import Store, write_atomically

    check_folder(out.parent, "--out")
    records = [read_run(place) for place in runs]
    write_atomically(out, compare_html(records, Store(find_home().store)).encode())
    if as_json:
        say_json({"runs": comparison(records), "page": str(out.absolute())})
        return
    say(compare_text(records))
    say(f"page: {out.absolute()}")
