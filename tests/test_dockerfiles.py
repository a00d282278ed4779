"""The Dockerfiles hold together with the package; that their layers really run is shown by `python tests/dockerfiles.py` (as root)."""

from __future__ import annotations

import re
import shlex
import tomllib

import pytest
from dockerfiles import ROOT, Instruction, copied, instructions

FILES = sorted((ROOT / "deployments").glob("Dockerfile.*"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def named(text: str, name: str) -> list[Instruction]:
    return [one for one in instructions(text) if one.name == name]


@pytest.fixture(params=FILES, ids=lambda path: path.suffix[1:])
def text(request: pytest.FixtureRequest) -> str:
    found: str = request.param.read_text(encoding="utf-8")
    return found


def test_there_is_one_for_a_cpu_and_one_for_cuda() -> None:
    assert [path.suffix for path in FILES] == [".cpu", ".cuda"]


def test_what_is_copied_is_there_and_reaches_the_builder(text: str) -> None:
    taken = [pair for one in named(text, "COPY") for pair in copied(one)]
    assert len(taken) == sum(len(shlex.split(one.text)) - 1 for one in named(text, "COPY"))
    assert all(source.exists() for source, _ in taken)
    needed = {
        "pyproject.toml",
        "constraints.txt",
        "README.md",
        "LICENSE",
        "prefect.yaml",
        "charengine",
        "tasks",
        "flows",
        "deployments",
    }
    assert needed <= {source.name for source, _ in taken}


def test_torch_has_the_bounds_of_the_package_and_the_rest_the_versions_that_were_tested(text: str) -> None:
    (wanted,) = [line for line in PROJECT["dependencies"] if line.startswith("torch>")]
    runs = " ".join(one.text for one in named(text, "RUN"))
    assert re.findall(r'"(torch[<>=][^"]*)"', runs) == [wanted]
    assert "--constraint constraints.txt" in runs


def test_what_is_made_lies_in_the_volume_and_belongs_to_somebody_who_is_not_root(text: str) -> None:
    values = " ".join(one.text for one in named(text, "ENV"))
    (volume,), (user,) = named(text, "VOLUME"), named(text, "USER")
    assert f"CHARENGINE_HOME={volume.text}/" in values and user.text != "root"
    assert all(one.line < user.line for one in named(text, "RUN"))


def test_the_entry_point_is_the_packages_command(text: str) -> None:
    (entry,) = named(text, "ENTRYPOINT")
    assert entry.text == '["charengine"]' and "charengine" in PROJECT["scripts"]


def test_the_one_for_cuda_can_compile_what_triton_makes_and_asks_for_the_gpu() -> None:
    text = (ROOT / "deployments" / "Dockerfile.cuda").read_text(encoding="utf-8")
    assert {"gcc", "libc6-dev", "python3-dev"} <= set(text.split())
    assert '".[gpu,machines]"' in text and "NVIDIA_DRIVER_CAPABILITIES=compute,utility" in text


def test_no_secret_is_passed_while_building(text: str) -> None:
    assert {one.text.partition("=")[0] for one in named(text, "ARG")} <= {"TORCH_INDEX"}


def test_lines_are_joined_and_an_instruction_that_cannot_be_replayed_is_refused() -> None:
    text = "# a\nFROM x\nRUN a \\\n    # why\n    && b\nCOPY one two there/\n"
    assert [(one.name, one.text, one.line) for one in instructions(text)] == [
        ("FROM", "x", 2),
        ("RUN", "a && b", 3),
        ("COPY", "one two there/", 6),
    ]
    with pytest.raises(ValueError, match="line 1: HEALTHCHECK"):
        instructions("HEALTHCHECK CMD true")
    assert copied(Instruction("COPY", "tests there", 1)) == []  # .dockerignore leaves it out
