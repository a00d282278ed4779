"""What a fresh machine gets: pinned versions, a wheel that is complete, the oldest Python that we promise."""

from __future__ import annotations

import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
import zipfile
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, distribution
from pathlib import Path
from typing import Any

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from quick_settings import QUICK

import charengine as engine

ROOT = Path(__file__).parent.parent
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())
DRIVERS = {"torch"}  # its build differs by machine, so it is bounded and not pinned


def requirements() -> list[Requirement]:
    """Everything pyproject.toml asks for, extras and build system included."""
    project = PROJECT["project"]
    lists = [project["dependencies"], *project["optional-dependencies"].values(), PROJECT["build-system"]["requires"]]
    asked = [Requirement(line) for lines in lists for line in lines]
    return [one for one in asked if one.name != project["name"]]  # an extra may name another extra of ours


def pins() -> dict[str, str]:
    """Name and version of every line of constraints.txt that is no comment."""
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    return {canonicalize_name(name): version for name, _, version in (line.partition("==") for line in lines)}


def test_every_dependency_is_pinned_to_a_version_that_its_bounds_allow() -> None:
    pinned = pins()
    asked = [one for one in requirements() if one.name not in DRIVERS]
    assert len(asked) > 20
    assert [one.name for one in asked if canonicalize_name(one.name) not in pinned] == []
    outside = [str(one) for one in asked if not one.specifier.contains(pinned[canonicalize_name(one.name)])]
    assert outside == []


def test_the_pins_hold_no_address_no_hash_and_no_build_of_a_card() -> None:
    lines = [line for line in (ROOT / "constraints.txt").read_text().splitlines() if not line.startswith("#")]
    assert [line for line in lines if not re.fullmatch(r"[A-Za-z0-9._-]+==[0-9][A-Za-z0-9.]*", line)] == []
    cards = {name for name in pins() if re.match(r"(torch|torchvision|triton|cuda-.*|nvidia-.*)$", name)}
    assert cards <= {"nvidia-ml-py"}  # Python over the driver's library: one build for all
    assert len(lines) == len(pins())  # none twice


def test_every_pinned_release_takes_the_oldest_python_that_we_promise() -> None:
    """Where one does not, pip tries all others for minutes and gives up ("resolution-too-deep")."""
    oldest = PROJECT["project"]["requires-python"].removeprefix(">=")
    refused = {}
    for name in pins():
        with suppress(PackageNotFoundError):
            (asked,) = distribution(name).metadata.get_all("Requires-Python") or [""]
            if asked and not SpecifierSet(asked).contains(f"{oldest}.0"):
                refused[name] = asked
    assert refused == {}


def test_make_bounds_torch_as_the_project_does() -> None:
    (bound,) = (str(one) for one in requirements() if one.name == "torch")
    (made,) = re.findall(r"^TORCH := (.+)$", (ROOT / "Makefile").read_text(), re.MULTILINE)
    assert Requirement(made) == Requirement(bound)


def test_the_installed_packages_start_with_the_pinned_prefect_and_mlflow() -> None:
    assert {name: distribution(name).version for name in ("prefect", "mlflow")} == {
        name: pins()[name] for name in ("prefect", "mlflow")
    }


# --- the wheel ---


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The wheel of this checkout, built without the network."""
    out = tmp_path_factory.mktemp("wheel")
    pip("wheel", "--no-build-isolation", "--no-deps", "--no-index", "--wheel-dir", out, ROOT)
    (made,) = out.glob("*.whl")
    return made


def pip(*arguments: object) -> None:
    command = [sys.executable, "-m", "pip", "--quiet", *(str(argument) for argument in arguments)]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


def test_the_wheel_holds_all_that_runs_and_nothing_else(wheel: Path) -> None:
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(f"charengine-{engine.__version__}.dist-info/METADATA").decode()
        commands = archive.read(f"charengine-{engine.__version__}.dist-info/entry_points.txt").decode()
    # the checkout, read from disk: every file of the four packages, weights and profiles too
    packages = ("charengine", "tasks", "flows", "deployments")
    here = {
        str(path.relative_to(ROOT))
        for package in packages
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    information = {name for name in names if name.startswith("charengine-")}
    assert names - information == here | {"deployments/prefect.yaml"}
    assert {"charengine/py.typed", "charengine/profiles/embedded.yaml", "flows/character.py"} <= names
    assert "charengine/embedded/weights/qwen/transformer/diffusion_pytorch_model.safetensors" in names
    assert f"charengine-{engine.__version__}.dist-info/licenses/LICENSE" in names
    assert f"Version: {engine.__version__}\n" in metadata and "License-Expression: Apache-2.0\n" in metadata
    assert "charengine = charengine.cli:main" in commands


@pytest.mark.slow
def test_the_wheel_alone_in_an_empty_environment_makes_a_character(wheel: Path, tmp_path: Path) -> None:
    place, elsewhere = tmp_path / "environment", tmp_path / "elsewhere"
    elsewhere.mkdir()
    subprocess.run([sys.executable, "-m", "venv", "--without-pip", place], check=True)
    python = place / "bin" / "python"
    pip("--python", python, "install", "--no-deps", "--no-index", wheel)
    # the dependencies are seen from where they are installed; a .pth inside that folder (an editable install) is not
    site = next(place.glob("lib/python3*/site-packages"))
    (site / "dependencies.pth").write_text(str(distribution("numpy").locate_file("")))
    kept = {name: value for name, value in os.environ.items() if not name.startswith(("PREFECT_", "MLFLOW_", "PYTHON"))}
    environment = {**kept, "CHARENGINE_HOME": str(tmp_path / "home"), "OMP_NUM_THREADS": "1"}

    def run(*command: object) -> str:
        done = subprocess.run(
            [str(word) for word in command], capture_output=True, text=True, cwd=elsewhere, env=environment, timeout=500
        )
        assert done.returncode == 0, done.stderr
        return done.stdout

    for package in ("charengine", "tasks", "flows", "deployments"):
        assert run(python, "-c", f"import {package}; print({package}.__file__)").startswith(str(place))
    assert run(place / "bin" / "charengine", "--version").split() == ["charengine", engine.__version__]
    assert "profiles" in run(place / "bin" / "charengine", "--help")
    run(python, "-c", "from deployments.set_up import project_file; assert project_file().is_file()")
    settings = [word for setting in QUICK for word in ("--set", setting)]
    run(place / "bin" / "charengine", "demo", *settings)
    (report,) = elsewhere.glob("runs/*/report.html")
    assert report.stat().st_size > 10_000
    assert list(report.parent.rglob("*.safetensors"))


# --- the oldest Python ---


def oldest_python() -> str:
    """The oldest Python on this machine with the minor version of this one (compiled packages fit that alone)."""
    name = f"python3.{sys.version_info.minor}"
    folders = ["/usr/bin", "/usr/local/bin", *os.get_exec_path()]
    found = {sys.executable, *(path for folder in folders if (path := shutil.which(name, path=folder)))}
    say = "import sys; print(*sys.version_info[:3])"
    versions = {}
    for path in found:
        told = subprocess.run([path, "-c", say], capture_output=True, text=True)  # a shim may lead nowhere
        if told.returncode == 0:
            versions[path] = tuple(int(part) for part in told.stdout.split())
    return min(versions, key=lambda path: versions[path])


def test_the_oldest_python_here_imports_every_module_and_answers(tmp_path: Path) -> None:
    code = (
        "import importlib, pathlib, sys\n"
        f"root = pathlib.Path({str(ROOT)!r})\n"
        "assert sys.version_info >= (3, 11)\n"
        "for path in sorted(path for top in ('charengine', 'tasks', 'flows') for path in (root / top).rglob('*.py')):\n"
        "    if path.stem == '__main__': continue\n"
        "    name = '.'.join(path.relative_to(root).with_suffix('').parts)\n"
        "    try: importlib.import_module(name.removesuffix('.__init__'))\n"
        "    except ModuleNotFoundError as error: assert error.name == 'triton', error  # comes with GPU builds\n"
        "from charengine.cli import main\n"
        "sys.argv = ['charengine', 'profiles']\n"
        "main()\n"
    )
    paths = os.pathsep.join([str(ROOT), str(distribution("numpy").locate_file(""))])
    done = subprocess.run(
        [oldest_python(), "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": paths, "CHARENGINE_HOME": str(tmp_path / "home")},
    )
    assert done.returncode == 0, done.stderr
    assert "embedded" in done.stdout


def test_the_project_promises_the_python_that_make_asks_for() -> None:
    assert PROJECT["project"]["requires-python"] == ">=3.11"
    assert "sys.version_info < (3, 11)" in (ROOT / "Makefile").read_text()
    assert PROJECT["tool"]["ruff"]["target-version"] == "py311"
    assert PROJECT["tool"]["mypy"]["python_version"] == "3.11"


# --- version, licence, hooks ---


def test_version_is_told_without_the_heavy_libraries() -> None:
    code = (
        "import sys; sys.argv = ['charengine', '--version']\n"
        "from charengine.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "assert not {'torch', 'prefect', 'mlflow', 'numpy'} & set(sys.modules)\n"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert (done.returncode, done.stdout) == (0, f"charengine {engine.__version__}\n"), done.stderr


def test_the_licence_is_the_whole_of_apache_2_and_the_changelog_knows_this_version() -> None:
    licence = (ROOT / "LICENSE").read_text()
    assert "TERMS AND CONDITIONS FOR USE, REPRODUCTION, AND DISTRIBUTION" in licence
    assert all(f"\n   {number}. " in licence for number in range(1, 10))
    assert "END OF TERMS AND CONDITIONS" in licence
    changes = (ROOT / "CHANGELOG.md").read_text()
    assert re.search(rf"^## \[{re.escape(engine.__version__)}\] - \d{{4}}-\d\d-\d\d$", changes, re.MULTILINE)
    assert changes.index("## [Unreleased]") < changes.index(f"## [{engine.__version__}]")


def hooks() -> dict[str, dict[str, Any]]:
    (repository,) = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())["repos"]
    assert repository["repo"] == "local"
    return {hook["id"]: hook for hook in repository["hooks"]}


def test_the_hooks_before_a_commit_need_no_network() -> None:
    assert {hook["language"] for hook in hooks().values()} == {"system"}
    assert list(hooks()) == ["ruff", "ruff-format", "large-files"]


def test_a_large_file_is_stopped_before_it_is_committed_and_the_weights_are_not(tmp_path: Path) -> None:
    hook = hooks()["large-files"]
    (tmp_path / "small.txt").write_bytes(b"x")
    (tmp_path / "two words.bin").write_bytes(bytes(600 * 1024))
    command = [*shlex.split(hook["entry"]), "small.txt"]
    assert subprocess.run(command, cwd=tmp_path).returncode == 0
    done = subprocess.run([*command, "two words.bin"], cwd=tmp_path, capture_output=True, text=True)
    assert done.returncode == 1 and "two words.bin" in done.stdout
    assert re.search(hook["exclude"], "charengine/embedded/weights/probe.safetensors")
