"""Who may import whom: one list of rows, each of which may import what stands lower, and nothing else."""

from __future__ import annotations

import ast
from functools import cache
from graphlib import CycleError, TopologicalSorter
from pathlib import Path

import pytest
import yaml
from command_line import python

ROOT = Path(__file__).parent.parent
TOP = ("charengine/cli/", "charengine/studio.py")  # the top of the order; they import flows inside functions only

# from the top down; a row may import what stands lower, and names in one row not each other
ROWS = """
cli studio
flows
tasks
gallery
run
stages
dataset
services language likeness
models
embedded
tracking figures
machine adapter charts profiles
store
elsewhere
stage
pictures documents
undecoded
files writing host_memory
config
field_types
wording
mistakes records
errors version misspelt together
""".strip().splitlines()
ROW = {name: number for number, row in enumerate(ROWS) for name in row.split()}
MAKING = "charengine.embedded.making"  # how the embedded family was trained: a script on top, which nothing imports
KNOWN: set[tuple[str, str]] = set()  # violations that are still there; the list only ever gets shorter
LONGEST_MODULE, LONGEST_FUNCTION = 420, 60  # lines


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


@cache
def parsed(path: Path) -> tuple[tuple[ast.stmt, ...], tuple[ast.AST, ...]]:
    """The statements of a file and its imports and functions at any depth, those under `if TYPE_CHECKING` left out; read once for all tests."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    kinds = (ast.Import, ast.ImportFrom, ast.FunctionDef, ast.AsyncFunctionDef)
    return tuple(tree.body), tuple(node for node in ast.walk(tree) if isinstance(node, kinds))


@cache
def imports(path: Path, top_level_only: bool = False) -> frozenset[str]:
    """Modules a file imports, those under `if TYPE_CHECKING` left out."""
    statements, everything = parsed(path)
    nodes = statements if top_level_only else everything
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return frozenset(found) | {
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }


def importers(module: str, *folders: str) -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for path in sources(*folders)
        if any(name == module or name.startswith(f"{module}.") for name in imports(path))
    ]


def room(module: str) -> str | None:
    """What a module belongs to: `run`, `stages.crop`, `flows`…; None for what is not ours, or for the package itself."""
    parts = module.split(".")
    if parts[0] in ("flows", "tasks"):
        return parts[0]
    if parts[0] != "charengine" or len(parts) == 1 or module.startswith(MAKING) or parts[1].startswith("__"):
        return None
    if parts[1:3] == ["services", "gallery"]:
        return "gallery"  # it stands on runs; the other services stand below them
    return ".".join(parts[1:3]) if parts[1] == "stages" and len(parts) > 2 else parts[1]


def imported_rooms(path: Path) -> set[str]:
    """The rooms a file imports; `from charengine.stages import crop` counts as stages.crop."""
    _, nodes = parsed(path)
    names = [
        f"{node.module}.{alias.name}" for node in nodes if isinstance(node, ast.ImportFrom) for alias in node.names
    ]
    names += [alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names]
    return {found for name in names if (found := room(name))}


def upward(mine: str, other: str) -> bool:
    """Whether an import goes up, or sideways."""
    if mine == other:
        return False
    return ROW[mine.split(".")[0]] >= ROW[other.split(".")[0]]


def test_every_import_goes_down_the_list_and_no_stage_imports_another() -> None:
    found = set()
    for path in sources("charengine", "tasks", "flows"):
        mine = room(_module(path))
        found |= {(mine, other) for other in imported_rooms(path) if mine and upward(mine, other)}
    assert found == KNOWN


def test_every_import_says_the_whole_name_so_that_its_room_is_seen() -> None:
    relative = [
        f"{path.relative_to(ROOT)}:{node.lineno}"
        for path in sources("charengine", "tasks", "flows", "deployments")
        for node in parsed(path)[1]
        if isinstance(node, ast.ImportFrom) and node.level
    ]
    assert relative == []


def test_a_violation_is_seen() -> None:
    assert upward("stages.crop", "stages.caption")
    assert upward("store", "machine")
    assert upward("language", "likeness")
    assert not upward("run", "stages.crop")
    assert room("charengine.stages.crop") == "stages.crop"


def imported_modules(path: Path, ours: set[str]) -> set[str]:
    """Those of our modules that a file imports at any depth; `from charengine.stages import crop` is an import of that module."""
    _, nodes = parsed(path)
    named = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    for node in nodes:
        if isinstance(node, ast.ImportFrom) and node.module:
            inside = {alias.name: f"{node.module}.{alias.name}" for alias in node.names}
            named |= {whole if whole in ours else node.module for whole in inside.values()}
    return named & ours


def circle(files: dict[str, Path]) -> list[str]:
    """Modules that import each other in a circle, the first of which is named again at the end; [] where there is none."""
    graph = {name: imported_modules(path, set(files)) - {name} for name, path in files.items()}
    try:
        TopologicalSorter(graph).prepare()
    except CycleError as error:
        return list(error.args[1])
    return []


def test_no_modules_import_each_other_in_a_circle_not_even_inside_functions() -> None:
    files = {_module(path): path for path in sources("charengine", "tasks", "flows", "deployments")}
    assert circle(files) == [], "move what they share down, into a module that both import"


def test_a_circle_is_seen_where_one_import_hides_in_a_function_or_goes_through_a_package(tmp_path: Path) -> None:
    texts = {
        "house": "def door():\n    from house.cellar import stairs",
        "house.cellar": "from house.attic import roof",
        "house.attic": "from house import door",
        "garden": "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import house",
    }
    files = {name: tmp_path / f"{name}.py" for name in texts}
    for name, text in texts.items():
        files[name].write_text(text)
    assert sorted(circle(files)[1:]) == ["house", "house.attic", "house.cellar"]
    files["house.attic"].write_text("roof = 1")
    parsed.cache_clear()
    assert circle(files) == []


def test_nothing_imports_how_the_embedded_family_was_made() -> None:
    importing = [path for path in importers(MAKING, "charengine", "tasks", "flows") if "/making/" not in path]
    assert importing == []


def test_the_engine_imports_neither_prefect_nor_the_layers_above_it() -> None:
    assert importers("prefect", "charengine") == []
    assert importers("tasks", "charengine") == []
    assert [path for path in importers("flows", "charengine") if not path.startswith(TOP)] == []


def test_no_module_is_too_long_to_read_in_one_sitting() -> None:
    lengths = {
        str(path.relative_to(ROOT)): len(path.read_text().splitlines())
        for path in sources("charengine", "tasks", "flows", "deployments", "benchmarks", "tests")
    }
    assert {path: length for path, length in lengths.items() if length > LONGEST_MODULE} == {}


# longer than a screen for a reason: parts of it would have no name
LONG_FUNCTIONS = {"charengine/adapter/metadata.py:adapter_metadata": "one table of keys"}


def long_functions(path: Path) -> set[str]:
    """Functions of a file, methods and coroutines too, that are longer than a screen."""
    functions = [node for node in parsed(path)[1] if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef)]
    return {node.name for node in functions if (node.end_lineno or 0) - node.lineno + 1 > LONGEST_FUNCTION}


def test_a_long_coroutine_is_seen_as_well(tmp_path: Path) -> None:
    for name, kind in (("plain", "def"), ("coroutine", "async def")):
        path = tmp_path / f"{name}.py"
        path.write_text(f"class A:\n    {kind} long(self):\n" + "        pass\n" * LONGEST_FUNCTION)
        assert long_functions(path) == {"long"}


def test_long_functions_are_known_by_name_with_a_reason() -> None:
    found = {
        f"{path.relative_to(ROOT)}:{name}"
        for path in sources("charengine", "tasks", "flows", "deployments")
        for name in long_functions(path)
    }
    assert found == set(LONG_FUNCTIONS), "split it; one that is split leaves the list"


def test_only_functions_of_the_command_line_start_flows() -> None:
    top = [path for path in sources("charengine") if any(name.startswith("flows") for name in imports(path, True))]
    assert top == []


def test_tasks_do_not_import_flows() -> None:
    assert importers("flows", "tasks") == []


def test_three_modules_of_tracking_and_its_server_import_mlflow_and_only_inside_functions() -> None:
    found = importers("mlflow", "charengine", "tasks", "flows", "deployments")
    tracking = [f"charengine/tracking/{name}.py" for name in ("database", "mlflow", "registry")]
    assert found == [*tracking, "deployments/mlflow_server.py"]
    for path in found:
        assert not any(name.startswith("mlflow") for name in imports(ROOT / path, True)), path


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_models_are_touched_only_where_models_live(library: str) -> None:
    allowed = ("charengine/models/", "charengine/embedded/", "charengine/stages/train/")
    found = [path for path in importers(library, "charengine", "tasks", "flows") if not path.startswith(allowed)]
    assert found == []


def test_prefect_yaml_names_flows_that_exist() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert [item["name"] for item in deployments] == ["character", "batch", "sweep"]
    for item in deployments:
        module, _, flow = item["entrypoint"].rpartition(".")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        names = {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}
        made = [node for node in tree.body if isinstance(node, ast.Assign) and isinstance(node.value, ast.Call)]
        names |= {target.id for node in made for target in node.targets if isinstance(target, ast.Name)}
        assert flow in names


def test_help_answers_without_the_heavy_libraries(tmp_path: Path) -> None:
    code = (
        "import sys; sys.argv = ['charengine', '--help']\n"
        "from charengine.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'prefect', 'mlflow', 'diffusers', 'transformers', 'scipy', 'numpy', 'PIL', 'pydantic'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    said = python(code, tmp_path).stdout
    assert "run" in said and "doctor" in said


@pytest.mark.parametrize(
    "module",
    ["charengine.run.export", "charengine.run.cast", "charengine.services.gallery.app", "flows.batch", "flows.pool"],
)
def test_a_process_that_only_submits_reads_or_shows_runs_does_not_import_torch(module: str, tmp_path: Path) -> None:
    code = f"import sys, {module}; heavy = {{'torch', 'diffusers', 'transformers', 'mlflow'}} & set(sys.modules); assert not heavy, heavy"
    python(code, tmp_path)


def test_importing_the_engine_writes_nothing_and_starts_nothing(tmp_path: Path) -> None:
    code = (
        "import threading, importlib, sys\n"
        f"for name in {[_module(path) for path in sources('charengine') if not path.name.startswith('__')]!r}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error: assert error.name == 'triton', error  # comes with GPU builds of torch\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert 'prefect' not in sys.modules and 'mlflow' not in sys.modules\n"
    )
    assert python(code, tmp_path, OMP_NUM_THREADS="1").stdout == ""
    assert [path for path in tmp_path.rglob("*") if "cache" not in str(path).lower()] == []


def _module(path: Path) -> str:
    """Its dotted name; a package is named by its folder."""
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")
