"""Replays a Dockerfile's layers in a clean root, for machines without Docker: `python tests/dockerfiles.py FILE ROOT [options] [-- ARGUMENTS]`.

`debootstrap` makes what `FROM debian:…` stands for, each `RUN` is run by `chroot` in a mount namespace of its own (as root, on Linux), and at
the end the entry point is run as `USER` with the arguments that follow `--`. What it cannot tell: how Docker's own storage, network and GPU
hook behave.
"""

from __future__ import annotations

import argparse
import fnmatch
import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

ROOT = Path(__file__).parent.parent
KNOWN = ("FROM", "RUN", "ENV", "ARG", "WORKDIR", "COPY", "USER", "VOLUME", "ENTRYPOINT", "CMD")
SYSTEM_PATH = "/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"
BASE = re.compile(r"debian:(\w+)-slim")
RUN_IN_ROOT = """
set -e
mount --rbind /dev "$ROOT/dev"
for folder in "$@"; do
  mkdir -p "$ROOT$folder"
  mount --bind "$folder" "$ROOT$folder"
  mount -o remount,ro,bind "$ROOT$folder"
done
mount -t proc proc "$ROOT/proc"
exec chroot --userspec="$WHO" "$ROOT" /usr/bin/env -i $VALUES sh -c "$LINE"
"""


@dataclass(frozen=True)
class Instruction:
    name: str
    text: str
    line: int


@dataclass
class State:
    """What the instructions so far have set."""

    variables: dict[str, str] = field(default_factory=lambda: {"PATH": SYSTEM_PATH, "HOME": "/root"})
    folder: str = "/"
    user: str = "root"
    entry: list[str] = field(default_factory=list)
    default: list[str] = field(default_factory=list)


def instructions(text: str) -> list[Instruction]:
    """A Dockerfile's instructions, continued lines joined, comments left out.

    Raises:
        ValueError: an instruction that is not replayed here.
    """
    found: list[Instruction] = []
    begun, start = "", 0
    for number, line in enumerate(text.splitlines(), start=1):
        if line.lstrip().startswith("#") or not (begun or line.strip()):
            continue
        start = start if begun else number
        begun += line.strip().removesuffix("\\").rstrip() + " "
        if line.rstrip().endswith("\\"):
            continue
        name, _, rest = begun.strip().partition(" ")
        if name not in KNOWN:
            raise ValueError(f"line {start}: {name} is not replayed; known are {', '.join(KNOWN)}")
        found.append(Instruction(name, rest.strip(), start))
        begun = ""
    return found


def copied(instruction: Instruction, context: Path = ROOT) -> list[tuple[Path, str]]:
    """Source and target of each thing that a COPY takes from the context; none of what `.dockerignore` leaves out."""
    *sources, target = shlex.split(instruction.text)
    ignored = (context / ".dockerignore").read_text(encoding="utf-8").split()
    return [(context / source, target) for source in sources if _is_sent(source, ignored)]


def _is_sent(source: str, ignored: list[str]) -> bool:
    """Whether a path at the context's top reaches the builder: the last pattern that fits it, or a folder it stands in, decides."""
    top, sent = Path(source).parts[0], True
    for pattern in ignored:
        if fnmatch.fnmatch(top, pattern.removeprefix("!")):
            sent = pattern.startswith("!")
    return sent


def replay(dockerfile: Path, root: Path, binds: list[str], given: dict[str, str], arguments: list[str]) -> int:
    """Run every layer; returns the exit status of the entry point."""
    state = State()
    state.variables |= {name: value for name, value in os.environ.items() if name.startswith("PIP_")}
    for instruction in instructions(dockerfile.read_text(encoding="utf-8")):
        begun = time.monotonic()
        print(f"[{instruction.line}] {instruction.name} {instruction.text[:100]}", flush=True)
        _do(instruction, state, root, binds, given)
        if instruction.name in ("RUN", "FROM"):
            print(f"      {time.monotonic() - begun:.1f} s", flush=True)
    command = state.entry + (arguments or state.default)
    print(f"[run as {state.user} in {state.folder}] {shlex.join(command)}", flush=True)
    return _chroot(shlex.join(command), state, root, binds)


def _do(instruction: Instruction, state: State, root: Path, binds: list[str], given: dict[str, str]) -> None:
    name, text = instruction.name, instruction.text
    if name == "FROM":
        _make_base(text, root)
    elif name == "RUN":
        if status := _chroot(text, state, root, binds):
            raise SystemExit(f"line {instruction.line}: RUN ended with {status}")
    elif name == "ENV":
        for part in shlex.split(text):
            key, _, value = part.partition("=")
            state.variables[key] = re.sub(r"\$(\w+)", lambda found: state.variables.get(found[1], ""), value)
    elif name == "ARG":
        key, _, value = text.partition("=")
        if value := given.get(key, value):
            state.variables[key] = value
    elif name == "WORKDIR":
        state.folder = text
        (root / text.lstrip("/")).mkdir(parents=True, exist_ok=True)
    elif name == "COPY":
        for source, target in copied(instruction):
            _copy(source, root / state.folder.lstrip("/") / target)
    elif name == "USER":
        state.user, state.variables["HOME"] = text, f"/home/{text}"
    elif name in ("ENTRYPOINT", "CMD"):
        setattr(state, "entry" if name == "ENTRYPOINT" else "default", json.loads(text))


def _make_base(text: str, root: Path) -> None:
    if not (release := BASE.fullmatch(text)):
        raise SystemExit(f"FROM {text}: only Debian's slim images are made here")
    if not (root / "etc/debian_version").exists():
        subprocess.run(
            ["debootstrap", "--variant=minbase", release[1], str(root)], check=True, stdout=subprocess.DEVNULL
        )
    shutil.copy("/etc/resolv.conf", root / "etc/resolv.conf")


def _copy(source: Path, target: Path) -> None:
    if source.is_dir():
        shutil.copytree(source, target, ignore=shutil.ignore_patterns("__pycache__"), dirs_exist_ok=True)
        return
    into = target / source.name if target.is_dir() else target
    into.parent.mkdir(parents=True, exist_ok=True)
    shutil.copy(source, into)


def _chroot(line: str, state: State, root: Path, binds: list[str]) -> int:
    """The exit status of a shell line in the root, in namespaces that vanish with it."""
    values = " ".join(f"{name}={shlex.quote(value)}" for name, value in state.variables.items())
    who = state.user if state.user == "root" else "1000:1000"
    script = RUN_IN_ROOT.replace("$VALUES", values)
    call = ["unshare", "--mount", "--pid", "--fork", "--kill-child", "sh", "-c", script, "sh", *binds]
    environment = {
        "PATH": SYSTEM_PATH,
        "ROOT": str(root),
        "WHO": who,
        "LINE": f"cd {shlex.quote(state.folder)} && {line}",
    }
    return subprocess.run(call, env=environment).returncode


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("dockerfile", type=Path)
    parser.add_argument("root", type=Path, help="an empty or missing folder; what is made stays there")
    parser.add_argument(
        "--bind", action="append", default=[], help="a folder of this machine to show inside: local indexes"
    )
    parser.add_argument("--pip-config", type=Path, help="a pip.conf to use while the layers are made")
    parser.add_argument("--build-arg", action="append", default=[], help="NAME=VALUE")
    words = sys.argv[1:]
    place = words.index("--") if "--" in words else len(words)
    options = parser.parse_args(words[:place])
    for variable, source in (("PIP_CONFIG_FILE", options.pip_config), ("PIP_CERT", os.environ.get("PIP_CERT"))):
        if source:
            inside = f"/mnt/{Path(source).name}"
            (options.root / "mnt").mkdir(parents=True, exist_ok=True)
            shutil.copy(source, options.root / inside.lstrip("/"))
            os.environ[variable] = inside
    given = dict(argument.partition("=")[::2] for argument in options.build_arg)
    return replay(options.dockerfile, options.root.absolute(), options.bind, given, words[place + 1 :])


if __name__ == "__main__":
    sys.exit(main())
