"""Whether the tests notice a mistake: each mutant is one wrong edit of the code, and a named test must fail on it.

    make mutants                                    all of them, in minutes
    python tests/mutants.py --only rss-in-bytes     one
    python tests/mutants.py --json mutants.json     the table as JSON too

The edits are made in copies of the tree, never in place. Exit status 1 when a mutant survives, when its old text is not in
the file exactly once, or when its tests fail without it: then the list (mutants.yaml) or the tests have to be mended.

Each trial is a fork of this process, which has imported the heavy libraries once; nothing of the tree is imported here.
"""

from __future__ import annotations

import argparse
import contextlib
import importlib
import importlib.util
import json
import os
import shutil
import signal
import sys
import tempfile
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import yaml

ROOT = Path(__file__).resolve().parent.parent
COPIED = ("charengine", "tasks", "flows", "deployments", "benchmarks", "tests", "pyproject.toml", "prefect.yaml")
WEIGHTS = (".safetensors", ".onnx")  # linked, not copied: no mutant edits them
HEAVY = (
    "numpy",
    "torch",
    "scipy.ndimage",
    "PIL.Image",
    "pydantic",
    "pytest",
    "diffusers.models.unets.unet_2d_condition",
)
PLUGINS = ("-p", "pytest_timeout") if importlib.util.find_spec("pytest_timeout") else ()  # what pyproject.toml sets up
PATIENCE = 300  # seconds for one mutant's tests; one that hangs is noticed too
FAILED, ELSEWHERE = 1, 70  # exit statuses: pytest's when tests failed; ours when the code under test was not the copy's


@dataclass(frozen=True)
class Mutant:
    """One wrong edit.

    Args:
        name: what `--only` takes.
        file: path from the root.
        old: text that is in the file exactly once.
        new: what it becomes.
        tests: node ids, one of which must fail.
    """

    name: str
    file: str
    old: str
    new: str
    tests: tuple[str, ...]


@dataclass(frozen=True)
class Outcome:
    """What became of a mutant: killed, survived, or why it could not be tried."""

    name: str
    file: str
    result: str
    seconds: float = 0.0
    detail: str = ""

    @property
    def noticed(self) -> bool:
        """Whether a test failed on it."""
        return self.result == "killed"


class _Strict(yaml.SafeLoader):
    """YAML in which nothing is said twice."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        keys = [key.value for key, _ in node.value]
        if twice := sorted({key for key in keys if keys.count(key) > 1}):
            raise ValueError(f"line {node.start_mark.line + 1}: {twice[0]} is said twice")
        return super().construct_mapping(node, deep)


def read_list(path: Path) -> list[Mutant]:
    """The mutants of a YAML file: for each file of the tree its wrong edits, and the tests of those that name no others.

    Raises:
        ValueError: two of them have one name, or one says something twice, of which YAML would keep the last alone.
    """
    mutants = [
        Mutant(file=file, **{**edit, "tests": tuple(f"tests/{one}" for one in edit.get("tests") or listed["tests"])})
        for file, listed in yaml.load(path.read_text(), _Strict).items()
        for edit in listed["edits"]
    ]
    names = [mutant.name for mutant in mutants]
    if twice := sorted({name for name in names if names.count(name) > 1}):
        raise ValueError(f"{path} names {', '.join(twice)} twice: give each mutant a name of its own")
    return mutants


def misplaced(mutants: Sequence[Mutant], root: Path) -> list[Outcome]:
    """The mutants whose old text is not in their file exactly once."""
    found = []
    for mutant in mutants:
        path = root / mutant.file
        count = path.read_text().count(mutant.old) if path.is_file() else 0
        if count != 1:
            found.append(Outcome(mutant.name, mutant.file, "misplaced", detail=f"its old text is there {count} times"))
    return found


def try_all(mutants: Sequence[Mutant], root: Path, jobs: int = 1, preload: Sequence[str] = HEAVY) -> list[Outcome]:
    """Each mutant's outcome, in order; the tests are run once without any mutant first."""
    if wrong := misplaced(mutants, root):
        return wrong
    os.environ["OMP_NUM_THREADS"] = "1"  # torch reads it when it is imported; trials share the cores
    for library in preload:
        with contextlib.suppress(ImportError):
            importlib.import_module(library)
    with tempfile.TemporaryDirectory(prefix="mutants-") as place:
        first = _copied(root, Path(place) / "0")
        tests = tuple(dict.fromkeys(test for mutant in mutants for test in mutant.tests))
        whole = _Trial(first, tests, mutated=False, patience=PATIENCE * 10)
        if whole.wait() != 0:
            return [Outcome("(no mutant)", "", "fails", whole.seconds, whole.told())]
        # with the bytecode of the first, which spares every trial the compiling
        others = [Path(shutil.copytree(first, Path(place) / str(n), symlinks=True)) for n in range(1, jobs)]
        return _in_turn(mutants, [first, *others])


def _in_turn(mutants: Sequence[Mutant], trees: list[Path]) -> list[Outcome]:
    """As many trials at once as there are trees."""
    waiting, outcomes = list(mutants), dict[str, Outcome]()
    running: list[tuple[Mutant, _Trial, contextlib.ExitStack]] = []
    while waiting or running:
        while waiting and trees:
            mutant, tree, edit = waiting.pop(0), trees.pop(), contextlib.ExitStack()
            edit.enter_context(_edited(tree / mutant.file, mutant))
            running.append((mutant, _Trial(tree, mutant.tests), edit))
        for one in [one for one in running if one[1].poll() is not None]:
            mutant, trial, edit = one
            edit.close()
            running.remove(one)
            trees.append(trial.tree)
            result = {0: "survived", FAILED: "killed"}.get(trial.wait(), "broken")
            detail = trial.told() if result == "broken" else ""
            outcomes[mutant.name] = Outcome(mutant.name, mutant.file, result, trial.seconds, detail)
            print(f"{result:9} {mutant.name} ({trial.seconds:.1f} s)", file=sys.stderr, flush=True)
        time.sleep(0.02)
    return [outcomes[mutant.name] for mutant in mutants]


@dataclass
class _Trial:
    """pytest on some tests of a tree, in a fork of this process."""

    tree: Path
    tests: Sequence[str]
    mutated: bool = True
    patience: float = PATIENCE
    seconds: float = 0.0
    status: int | None = None
    started: float = field(default_factory=time.monotonic)

    def __post_init__(self) -> None:
        self.output = self.tree / ".told"
        sys.stdout.flush()
        sys.stderr.flush()
        self.child = os.fork()
        if self.child == 0:
            _run_pytest(self.tree, self.tests, self.output, self.mutated)

    def poll(self) -> int | None:
        """pytest's exit status once it has ended; tests that hang have failed."""
        if self.status is None:
            ended, status = os.waitpid(self.child, os.WNOHANG)
            self.seconds = round(time.monotonic() - self.started, 1)
            if ended:
                self.status = os.waitstatus_to_exitcode(status)
            elif self.seconds > self.patience:
                os.kill(self.child, signal.SIGKILL)
                os.waitpid(self.child, 0)
                self.status = FAILED
        return self.status

    def wait(self) -> int:
        """The exit status, waited for."""
        while (status := self.poll()) is None:
            time.sleep(0.02)
        return status

    def told(self) -> str:
        """The end of what pytest said."""
        return "\n".join(self.output.read_text(errors="replace").splitlines()[-15:])


def _run_pytest(tree: Path, tests: Sequence[str], output: Path, mutated: bool) -> None:
    """The child's whole life."""
    status = ELSEWHERE
    try:
        os.setsid()
        with output.open("wb") as file:
            os.dup2(file.fileno(), 1)
            os.dup2(file.fileno(), 2)
        os.chdir(tree)
        # other packages' pytest plugins take longer to load than most tests take
        os.environ |= {"PYTHONPATH": str(tree), "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1"}
        if mutated:  # a mutant's bytecode must not outlive it
            os.environ["PYTHONDONTWRITEBYTECODE"] = "1"
            sys.dont_write_bytecode = True
        sys.path[:] = [
            str(tree),
            *(entry for entry in sys.path if entry and not Path(entry).is_relative_to(ROOT / "tests")),
        ]
        import pytest

        early = "ignore::pytest.PytestAssertRewriteWarning"  # plugins that the heavy libraries imported already
        own = ["--basetemp", str(tree / ".temporary")]  # trials that clear a common one fail over each other's rubbish
        status = int(pytest.main(["-x", "-q", "-p", "no:cacheprovider", *own, *PLUGINS, "-W", early, *tests]))
        loaded = sys.modules.get("charengine")
        if loaded is not None and not Path(str(loaded.__file__)).is_relative_to(tree):
            print(f"tested {loaded.__file__} instead of the copy in {tree}")
            status = ELSEWHERE
    except BaseException:
        traceback.print_exc()
    finally:
        sys.stdout.flush()
        sys.stderr.flush()
        os._exit(status)


@contextmanager
def _edited(path: Path, mutant: Mutant) -> Iterator[None]:
    """The file with the mutant's edit; afterwards as it was, time included, so that no stale bytecode is used."""
    text, before = path.read_text(), path.stat()
    path.write_text(text.replace(mutant.old, mutant.new))
    try:
        yield
    finally:
        path.write_text(text)
        os.utime(path, ns=(before.st_atime_ns, before.st_mtime_ns))


def _copied(root: Path, tree: Path) -> Path:
    tree.mkdir()
    for name in COPIED:
        source = root / name
        if source.is_dir():
            shutil.copytree(source, tree / name, ignore=shutil.ignore_patterns("__pycache__"), copy_function=_copy)
        elif source.is_file():
            shutil.copy2(source, tree / name)
    return tree.resolve()


def _copy(source: str, target: str) -> None:
    if source.endswith(WEIGHTS):
        os.symlink(source, target)
    else:
        shutil.copy2(source, target)


def table(outcomes: Sequence[Outcome]) -> str:
    """The outcomes for people; those that need mending last, with the reason."""
    lines = [f"{'mutant':44} {'file':40} result    seconds"]
    for outcome in sorted(outcomes, key=lambda outcome: not outcome.noticed):
        lines.append(f"{outcome.name:44} {outcome.file:40} {outcome.result:9} {outcome.seconds:7.1f}")
        lines += [f"    {line}" for line in outcome.detail.splitlines()]
    noticed = sum(outcome.noticed for outcome in outcomes)
    return "\n".join([*lines, f"{noticed} of {len(outcomes)} mutants killed"])


def main(arguments: Sequence[str] | None = None) -> int:
    """Try the mutants; the exit status."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--only", action="append", default=[], metavar="NAME", help="this mutant; repeatable")
    parser.add_argument("--jobs", type=int, default=1, help="how many are tried at once, each in a copy of its own")
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the outcomes there too")
    parser.add_argument("--root", type=Path, default=ROOT, help="the tree; its list is tests/mutants.yaml")
    parser.add_argument("--preload", nargs="*", default=HEAVY, metavar="MODULE", help="what is imported once for all")
    options = parser.parse_args(arguments)
    listed = read_list(options.root / "tests/mutants.yaml")
    known = {mutant.name for mutant in listed}
    if unknown := set(options.only) - known:
        parser.error(f"no mutant is called {', '.join(sorted(unknown))}; there are: {', '.join(sorted(known))}")
    chosen = [mutant for mutant in listed if not options.only or mutant.name in options.only]
    outcomes = try_all(chosen, options.root.resolve(), options.jobs, options.preload)
    print(table(outcomes))
    if options.json:
        options.json.write_text(json.dumps([asdict(outcome) for outcome in outcomes], indent=2) + "\n")
    return 0 if all(outcome.noticed for outcome in outcomes) else 1


if __name__ == "__main__":
    sys.exit(main())
