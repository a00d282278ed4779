"""The example notebook, executed as a user would, in a folder that holds files with our packages' names."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import ROOT
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


def test_the_notebook_is_kept_without_outputs() -> None:
    import json

    cells = json.loads(NOTEBOOK.read_text())["cells"]
    assert [cell for cell in cells if cell.get("outputs") or cell.get("execution_count")] == []
    assert NOTEBOOK.stat().st_size < 20_000
