"""Who may import whom: prefect.yaml → flows → tasks → charengine → torch, diffusers, transformers, lycoris."""

from __future__ import annotations

import ast
import subprocess
import sys
from pathlib import Path

import pytest
import yaml

ROOT = Path(__file__).parent.parent
COMMANDS = "charengine/commands/"  # the command line is the top of the order, inside functions only


def sources(*folders: str) -> list[Path]:
    return sorted(path for folder in folders for path in (ROOT / folder).rglob("*.py"))


def imports(path: Path, top_level_only: bool = False) -> set[str]:
    """Modules a file imports, those under `if TYPE_CHECKING` left out."""
    tree = ast.parse(path.read_text())
    for node in ast.walk(tree):
        if isinstance(node, ast.If) and isinstance(node.test, ast.Name) and node.test.id == "TYPE_CHECKING":
            node.body = [ast.Pass()]
    nodes = tree.body if top_level_only else list(ast.walk(tree))
    found = {alias.name for node in nodes if isinstance(node, ast.Import) for alias in node.names}
    return found | {
        node.module for node in nodes if isinstance(node, ast.ImportFrom) and node.module and not node.level
    }


def importers(module: str, *folders: str) -> list[str]:
    return [
        str(path.relative_to(ROOT))
        for path in sources(*folders)
        if any(name == module or name.startswith(f"{module}.") for name in imports(path))
    ]


def test_the_engine_imports_neither_prefect_nor_the_layers_above_it() -> None:
    assert importers("prefect", "charengine") == []
    assert importers("tasks", "charengine") == []
    assert [path for path in importers("flows", "charengine") if not path.startswith(COMMANDS)] == []


def test_only_functions_of_the_command_line_start_flows() -> None:
    top = [path for path in sources("charengine") if any(name.startswith("flows") for name in imports(path, True))]
    assert top == []


def test_tasks_do_not_import_flows() -> None:
    assert importers("flows", "tasks") == []


def test_one_module_imports_mlflow_and_only_inside_functions() -> None:
    assert importers("mlflow", "charengine", "tasks", "flows", "deployments") == ["charengine/tracking_mlflow.py"]
    assert not any(name.startswith("mlflow") for name in imports(ROOT / "charengine/tracking_mlflow.py", True))


@pytest.mark.parametrize("library", ["diffusers", "transformers"])
def test_models_are_touched_only_where_models_live(library: str) -> None:
    allowed = ("charengine/models/", "charengine/embedded/", "charengine/training/", "charengine/evaluation/")
    found = [path for path in importers(library, "charengine", "tasks", "flows") if not path.startswith(allowed)]
    assert found == []


def test_prefect_yaml_names_flows_that_exist() -> None:
    deployments = yaml.safe_load((ROOT / "prefect.yaml").read_text())["deployments"]
    assert [item["name"] for item in deployments] == ["character", "batch", "sweep"]
    for item in deployments:
        module, _, flow = item["entrypoint"].rpartition(".")
        tree = ast.parse((ROOT / f"{module.replace('.', '/')}.py").read_text())
        assert flow in {node.name for node in tree.body if isinstance(node, ast.FunctionDef)}


def test_help_answers_without_the_heavy_libraries() -> None:
    code = (
        "import sys; sys.argv = ['charengine', '--help']\n"
        "from charengine.cli import main\n"
        "try: main()\n"
        "except SystemExit as end: assert end.code == 0\n"
        "heavy = {'torch', 'prefect', 'mlflow', 'diffusers', 'transformers', 'scipy', 'numpy', 'PIL'} & set(sys.modules)\n"
        "assert not heavy, heavy"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "run" in done.stdout and "doctor" in done.stdout


def test_importing_the_engine_writes_nothing_and_starts_nothing(tmp_path: Path) -> None:
    code = (
        "import threading, importlib, sys\n"
        f"for name in {[_module(path) for path in sources('charengine') if not path.name.startswith('__')]!r}:\n"
        "    try: importlib.import_module(name)\n"
        "    except ModuleNotFoundError as error: assert error.name == 'triton', error  # comes with GPU builds of torch\n"
        "assert threading.active_count() == 1, threading.enumerate()\n"
        "assert 'prefect' not in sys.modules and 'mlflow' not in sys.modules\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={"PATH": "/usr/bin:/bin", "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"},
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout == ""
    assert [path for path in tmp_path.rglob("*") if "cache" not in str(path).lower()] == []


def _module(path: Path) -> str:
    return ".".join(path.relative_to(ROOT).with_suffix("").parts)
