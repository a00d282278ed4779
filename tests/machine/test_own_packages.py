"""Files named tasks.py, flows.py or deployments where the user stands: neither hide ours nor are hidden."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from command_line import ROOT, python

from charengine.machine.home import Home

USERS = {
    "tasks.py": "mine = 'tasks of the user'\n",
    "flows.py": "mine = 'flows of the user'\n",
    "deployments/__init__.py": "raise RuntimeError('deployments of the user')\n",
}


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where a user stands, with such files."""
    for name, text in USERS.items():
        (tmp_path / name).parent.mkdir(exist_ok=True)
        (tmp_path / name).write_text(text)
    return tmp_path


def test_a_users_program_keeps_its_own_modules_before_and_after(folder: Path) -> None:
    code = (
        "import sys\n"
        "import flows\n"
        "from charengine.machine.own_packages import own_packages\n"
        "seen = []\n"
        "for _ in range(2):\n"
        "    with own_packages():\n"
        "        import tasks, deployments, flows as ours\n"
        f"        assert all(m.__file__.startswith({str(ROOT)!r}) for m in (tasks, deployments, ours))\n"
        "        from tasks import __path__\n"
        "        seen.append(tasks)\n"
        "    assert flows is sys.modules['flows'] and flows.mine == 'flows of the user'\n"
        "    assert 'deployments' not in sys.modules\n"
        "assert seen[0] is seen[1], 'imported once'\n"
        "import tasks\n"
        "assert tasks.mine == 'tasks of the user'\n"
    )
    python(code, folder)


def test_nothing_is_touched_where_nobody_has_the_names(tmp_path: Path) -> None:
    code = (
        "import sys\n"
        "from charengine.machine.own_packages import own_packages\n"
        "with own_packages():\n"
        "    import tasks\n"
        "import tasks as later\n"
        "assert later is tasks\n"
    )
    python(code, tmp_path)


def test_prefect_imports_our_flow_by_its_entrypoint_where_the_user_has_tasks(folder: Path) -> None:
    """A flow run's process: Prefect searches its current folder first. And the program that makes the deployments."""
    code = (
        "import sys\n"
        "from prefect.flows import load_flow_from_entrypoint\n"
        "{first}\n"
        "flow = load_flow_from_entrypoint('flows.character.character', use_placeholder_flow=False)\n"
        "assert flow.name == 'character'\n"
        f"assert sys.modules['tasks.train'].__file__.startswith({str(ROOT)!r})\n"
    )
    (folder / "flows.py").unlink()
    python(code.replace("{first}", ""), folder)
    (folder / "flows.py").write_text(USERS["flows.py"])
    take = "from charengine.machine.own_packages import take_own_packages; take_own_packages()"
    python(code.replace("{first}", take), folder)


def test_the_commands_run_where_a_user_has_such_files(
    charengine: Callable[..., subprocess.CompletedProcess[str]], prefect_api: str, home: Home, folder: Path
) -> None:
    from sheet_samples import photo

    photo().save(folder / "photo.png")
    done = charengine("run", "an orc", "--sheet", "photo.png", PREFECT_API_URL=prefect_api)
    assert done.returncode == 2, done.stderr  # it reached our stages: they say what is wrong with a photo
    assert "store/rejected" in done.stderr and "Error" not in done.stderr


def test_our_servers_are_found_where_a_user_has_such_files(folder: Path) -> None:
    from charengine.machine.environment import for_children
    from charengine.machine.processes import PYTHON_MODULE

    for module in ("deployments.server", "deployments.set_up"):
        code = ["import runpy, sys; sys.argv = ['server', '--help']", f"runpy.run_module({module!r})"]
        command = [*PYTHON_MODULE[:-1], "-c", "; ".join(code)]
        done = subprocess.run(command, capture_output=True, text=True, cwd=folder, env=for_children())
        assert done.returncode == 0, done.stderr
