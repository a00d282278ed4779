"""Every command, setting, file and Python line that the manual shows exists: nothing is run here."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from manual import (
    LANGUAGES,
    ROOT,
    Block,
    blocks,
    command_names,
    commands_in,
    inline_code,
    is_ours,
    pages,
    parse_command,
)

from charengine.config import Profile
from charengine.profiles.loading import load_profile, profile_names, setting_names
from charengine.run.cast import read_cast
from charengine.run.request import STAGES

ALL = [block for page in pages() for block in blocks(page)]
SHELL = [block for block in ALL if block.language in ("bash", "bat")]
FILES = [block for block in ALL if block.file]
SECTIONS = tuple(Profile.model_fields)
SETTING = re.compile(rf"^(?:--set )?'?((?:{'|'.join(SECTIONS)})\.[a-z_0-9]+)(?:=(.*?))?'?$")
FILE_ENDINGS = ("json", "yaml", "html", "py", "png", "md", "txt", "jpg")


def test_every_block_names_a_language_that_is_tested() -> None:
    assert [f"{block}: {block.language or 'none'}" for block in ALL if block.language not in LANGUAGES] == []


def test_no_page_has_leftovers_of_a_merge() -> None:
    marks = ("<<<<<<<", ">>>>>>>")
    assert [
        page.name for page in pages() if any(line.startswith(marks) for line in page.read_text().splitlines())
    ] == []


def test_a_block_that_is_not_run_says_why() -> None:
    assert [str(block) for block in ALL if block.language == "bat" and block.quick] == []
    assert all(len(block.parse_only) > 10 for block in ALL if block.parse_only)


@pytest.mark.parametrize("block", SHELL, ids=str)
def test_commands_and_their_options_exist(block: Block) -> None:
    for text in (block.text, *block.first):
        for words in commands_in(text.replace("\\", "/") if block.language == "bat" else text):
            if is_ours(words):
                _check_ours(words, block)
            elif words[0] == "make":
                assert re.search(rf"^{words[1]}:", (ROOT / "Makefile").read_text(), re.MULTILINE), words
            elif words[:2] == ["pip", "install"]:
                _check_extras(" ".join(words))


def _check_ours(words: list[str], block: Block) -> None:
    said = parse_command(words)
    profile = said.get("profile", "embedded")
    if profile not in profile_names():
        assert profile in {other.file for other in ALL if other.page == block.page}, f"{profile} is not on {block.page}"
        profile = "sdxl-12gb"
    load_profile(profile, said.get("settings") or [])
    assert set(said.get("refresh") or []) <= set(STAGES)


def _check_extras(command: str) -> None:
    extras = re.findall(r"\[(\w+)\]", command)
    for extra in extras if "mlflow[" not in command else []:
        assert re.search(rf"^{extra} = \[", (ROOT / "pyproject.toml").read_text(), re.MULTILINE), command


@pytest.mark.parametrize("page", pages(), ids=lambda page: page.relative_to(ROOT).as_posix())
def test_settings_and_commands_named_in_the_text_exist(page: Path) -> None:
    for code in inline_code(page):
        setting = SETTING.match(code)
        if setting and setting[1].rsplit(".", 1)[1] not in FILE_ENDINGS:
            assert setting[1] in setting_names(), code
            if setting[2]:
                load_profile("embedded", [f"{setting[1]}={setting[2]}"])
        if re.match(r"charengine [a-z]+( |$)", code):
            assert code.split()[1] in command_names(), code


@pytest.mark.parametrize("block", FILES, ids=str)
def test_files_shown_are_what_the_engine_reads(block: Block, tmp_path: Path) -> None:
    path = tmp_path / block.file
    path.write_text(block.text)
    if block.file.startswith("cast"):
        assert read_cast(path)
    else:
        assert load_profile(str(path)).models.family == "sdxl"


@pytest.mark.parametrize("block", [b for b in ALL if b.language == "python"], ids=str)
def test_python_blocks_are_python(block: Block) -> None:
    compile(block.text, str(block), "exec")
