"""The example notebook, executed as a user would, in a folder that holds files with our packages' names."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
from command_line import ROOT, child_environment
from quick_settings import by_section

from charengine.machine.home import Home

NOTEBOOK = ROOT / "examples" / "studio.ipynb"


@pytest.mark.slow
def test_the_notebook_runs_from_top_to_bottom_and_shows_what_was_made(
    home: Home,
    prefect_api: str,
    tiny_settings: tuple[str, ...],
    drawn_sheet: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    import nbformat
    from nbclient import NotebookClient

    notebook = nbformat.read(NOTEBOOK, as_version=4)
    [parameters] = [cell for cell in notebook.cells if "parameters" in cell.metadata.get("tags", [])]
    here_first = "import sys; sys.path.insert(0, '')"  # as Python has it; IPython's kernel searches PYTHONPATH before
    parameters.source = f"{here_first}\nsettings = {by_section(tiny_settings)!r}\nsheet = {str(drawn_sheet)!r}"
    # the whole run besides, where a kernel has an event loop of its own; and the user's files afterwards
    notebook.cells += [
        nbformat.v4.new_code_cell("whole = who.run()\nwhole.cached_stages, whole.adapter == result.adapter"),
        nbformat.v4.new_code_cell("import tasks, flows\ntasks.mine, flows.mine"),
    ]
    work = tmp_path / "work"
    work.mkdir()
    for name in ("tasks", "flows"):
        (work / f"{name}.py").write_text(f"mine = {name!r}\n")
    for name, value in {"OMP_NUM_THREADS": "1", "PREFECT_API_URL": prefect_api, "PYTHONPATH": str(ROOT)}.items():
        monkeypatch.setenv(name, value)

    NotebookClient(notebook, timeout=600, resources={"metadata": {"path": str(work)}}).execute()

    shown = "".join(str(output.get("data", {})) for cell in notebook.cells for output in cell.get("outputs", []))
    assert shown.count("data:image/png;base64,") > 8
    said = [output for cell in notebook.cells for output in cell.get("outputs", []) if output.get("name") == "stderr"]
    # but for tqdm, whose advice is the reader's: a kernel without ipywidgets shows bars as text
    assert [output for output in said if "ipywidgets" not in output["text"]] == []
    assert (work / "runs" / "Grisha".lower() / "report.html").is_file()
    whole, mine = (cell.outputs[-1]["data"]["text/plain"] for cell in notebook.cells[-2:])
    assert whole == "(('sheet', 'crop', 'caption', 'train', 'sweep', 'report'), True)"
    assert mine == "('tasks', 'flows')"


SHOW = """
import ast, json, sys
names = {}
for source in json.load(open(sys.argv[1])):
    *before, last = ast.parse(source).body
    show = isinstance(last, ast.Expr)
    exec(compile(ast.Module([*before, *([] if show else [last])], []), "cell", "exec"), names)
    value = eval(compile(ast.Expression(last.value), "cell", "eval"), names) if show else None
    print(getattr(value, "_repr_html_", lambda: repr(value))())
"""


def test_the_notebooks_cells_before_training_run_in_order_and_show_their_pictures(
    home: Home, tiny_settings: tuple[str, ...], drawn_sheet: Path, tmp_path: Path
) -> None:
    cells = ["".join(one["source"]) for one in json.loads(NOTEBOOK.read_text())["cells"] if one["cell_type"] == "code"]
    quick = cells[: next(number for number, source in enumerate(cells) if "who.train()" in source)]
    assert [source.strip() for source in quick[2:]] == ["who.sheet()", "who.crop()", "who.caption()"]
    quick[0] = f"settings = {by_section(tiny_settings)!r}\nsheet = {str(drawn_sheet)!r}"
    (tmp_path / "cells.json").write_text(json.dumps(quick))
    command = [sys.executable, "-c", SHOW, str(tmp_path / "cells.json")]
    done = subprocess.run(command, capture_output=True, text=True, cwd=tmp_path, env=child_environment(home))
    assert done.returncode == 0, done.stderr[-2000:]
    assert "CharacterRun('Grisha'" in done.stdout and done.stdout.count("data:image/png;base64,") >= 7


def test_the_notebook_is_kept_without_outputs() -> None:
    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert NOTEBOOK.stat().st_size < 20_000
