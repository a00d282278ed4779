"""Held by reading the source: text is read and written as UTF-8 whatever the machine's locale, and paths are asked kindly."""

from __future__ import annotations

import ast
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
FOLDERS = ("charengine", "flows", "tasks", "deployments")
ASKED = (
    "models",
    "run",
    "cli",
    "dataset",
    "profiles",
    "stages",
    "pictures.py",
    "undecoded.py",
    "documents.py",
    "config.py",
)  # read users' paths
ASKING = {"exists", "is_file", "is_dir", "is_symlink", "stat", "lstat", "rglob", "glob", "iterdir"}
OWN = {  # paths that the engine made itself
    "charengine/stages/train/state.py": "resumable state in the home folder",
    "charengine/profiles/loading.py": "the package's own profiles (importlib.resources)",
    "charengine/models/files.py": "size and time, asked through files.asked",
    "charengine/models/fit.py": "likewise",
    "charengine/models/embedded_known.py": "likewise",
    "charengine/models/vocabularies.py": "likewise, and names in caches that were found to be there",
    "charengine/models/places.py": "names in folders that were found to be there",
    "charengine/dataset/folder.py": "expansion.json's pictures, removed from the folder it stands in",
}


def calls(path: Path) -> list[ast.Call]:
    return [node for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))) if isinstance(node, ast.Call)]


def name_of(call: ast.Call) -> str:
    return call.func.attr if isinstance(call.func, ast.Attribute) else getattr(call.func, "id", "")


def is_text_without_encoding(call: ast.Call) -> bool:
    name, keywords = name_of(call), {keyword.arg for keyword in call.keywords}
    if "encoding" in keywords:
        return False
    if name == "read_text":
        return not call.args or not isinstance(call.func, ast.Attribute)
    if name == "write_text":
        return len(call.args) < 2
    if name != "open" or (
        isinstance(call.func, ast.Attribute)
        and _module(call.func) in ("Image", "pil", "os", "tarfile", "archive", "webbrowser", "urlopen")
    ):
        return False
    given = call.args[0 if isinstance(call.func, ast.Attribute) else 1 :][:1]
    given += [keyword.value for keyword in call.keywords if keyword.arg == "mode"]
    mode = given[0].value if given and isinstance(given[0], ast.Constant) else "r"
    return isinstance(mode, str) and "b" not in mode


def _module(function: ast.Attribute) -> str:
    return getattr(function.value, "id", getattr(function.value, "attr", ""))


def sources(*folders: str) -> list[Path]:
    found = [ROOT / folder for folder in folders]
    return sorted(path for place in found for path in ([place] if place.is_file() else place.rglob("*.py")))


def test_text_is_utf8_everywhere() -> None:
    found = [
        f"{path.relative_to(ROOT)}:{call.lineno}"
        for path in sources(*FOLDERS)
        for call in calls(path)
        if is_text_without_encoding(call)
    ]
    assert found == []


def test_users_paths_are_asked_through_charengine_files() -> None:
    found = {
        f"{path.relative_to(ROOT)}"
        for path in sources(*(f"charengine/{place}" for place in ASKED))
        for call in calls(path)
        if isinstance(call.func, ast.Attribute) and call.func.attr in ASKING and _module(call.func) != "files"
    }
    assert found == set(OWN)


@pytest.mark.parametrize(
    ("code", "wrong"),
    [
        ("path.read_text()", True),
        ("path.read_text(encoding='utf-8')", False),
        ("path.write_text(x)", True),
        ("open(x)", True),
        ("open(x, 'rb')", False),
        ("path.open('a')", True),
        ("path.open('wb')", False),
        ("open(x, mode='w')", True),
        ("Image.open(x)", False),
    ],
)
def test_a_text_without_encoding_is_seen(code: str, wrong: bool) -> None:
    (call,) = (node for node in ast.walk(ast.parse(code)) if isinstance(node, ast.Call))
    assert is_text_without_encoding(call) == wrong
