"""The manual as its tests read it: pages, code blocks, and what the comment above a block says about testing it.

A comment stands on the line above a block, and is seen by whoever reads the source:

    <!-- test: quick -->                        run with small settings (QUICK) added to every command that takes --set
    <!-- test: first: COMMAND -->               run this before the block; may be repeated
    <!-- test: file NAME -->                    the block is a file of that name, which later blocks of the page use
    <!-- test: parse only, REASON -->           never run: it needs a GPU, servers, an installation…

Several are separated by `; `. A YAML block whose first line is `# NAME.yaml` is a file of that name too. The blocks of a page
are run in order in one empty folder.
"""

from __future__ import annotations

import re
import shlex
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import typer
from markdown_it import MarkdownIt
from quick_settings import QUICK as QUICK

from charengine.cli.main import app

ROOT = Path(__file__).parent.parent
LANGUAGES = ("bash", "bat", "python", "yaml", "text")
COMMENT = re.compile(r"<!-- test: (.+?) -->\s*$", re.DOTALL)
SEPARATORS = ("&&", "||", ";", "|", ">", ">>", "(", ")", "do", "then")


@dataclass(frozen=True)
class Block:
    """One fenced block: where it starts, its language, its text and what its comment says."""

    page: str
    line: int
    language: str
    text: str
    quick: bool = False
    first: tuple[str, ...] = ()
    file: str = ""
    parse_only: str = ""

    def __str__(self) -> str:
        return f"{self.page}:{self.line}"


def pages() -> list[Path]:
    """README, CONTRIBUTING and everything in docs/."""
    manual = [path for path in (ROOT / "docs").rglob("*.md") if "_build" not in path.parts]
    return [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted(manual)]


def blocks(page: Path) -> list[Block]:
    """The code blocks of a page in order; directives of the site (`{toctree}`) are not code."""
    name, found, comment = page.relative_to(ROOT).as_posix(), [], ""
    for token in MarkdownIt("commonmark").enable("table").parse(page.read_text()):
        if token.type == "html_block":
            said = COMMENT.search(token.content)
            comment = said[1] if said else ""
            continue
        if token.type in ("fence", "code_block") and not token.info.startswith("{"):
            assert token.map
            found.append(_block(name, token.map[0] + 1, token.info.strip(), token.content, comment))
        if token.type not in ("bullet_list_open", "list_item_open", "ordered_list_open"):
            comment = ""
    return found


def _block(page: str, line: int, language: str, text: str, comment: str) -> Block:
    said: dict[str, Any] = {"first": ()}
    for item in filter(None, (part.strip() for part in re.split(r";\s+(?=quick|first:|file |parse only)", comment))):
        if item == "quick":
            said["quick"] = True
        elif item.startswith("first: "):
            said["first"] = (*said["first"], item.removeprefix("first: "))
        elif item.startswith("file "):
            said["file"] = item.removeprefix("file ")
        elif item.startswith("parse only, "):
            said["parse_only"] = item.removeprefix("parse only, ")
        else:
            raise ValueError(f"{page}:{line}: no such instruction: {item!r}")
    named = re.match(r"# ([\w-]+\.yaml)\n", text)
    if language == "yaml" and named:
        said["file"] = named[1]
    return Block(page, line, language, text, **said)


def inline_code(page: Path) -> list[str]:
    """What stands between single backticks."""
    tokens = MarkdownIt("commonmark").enable("table").parse(page.read_text())
    return [child.content for token in tokens for child in token.children or [] if child.type == "code_inline"]


def commands_in(text: str) -> list[list[str]]:
    """The simple commands of a shell text as words."""
    found: list[list[str]] = []
    for line in text.replace("\\\n", " ").splitlines():
        lexer = shlex.shlex(line, posix=True, punctuation_chars=True)
        lexer.whitespace_split = True
        words: list[str] = []
        for word in [*lexer, ";"]:
            if word in SEPARATORS:
                found += [words] if words else []
                words = []
            else:
                words.append(word)
    return found


def command_names() -> list[str]:
    """What can stand after `charengine`."""
    group: Any = typer.main.get_command(app)
    return list(group.commands)


def parse_command(words: list[str]) -> dict[str, Any]:
    """The parameters of a `charengine …` line as its own option parser reads them; its errors are raised."""
    group: Any = typer.main.get_command(app)
    name, *rest = words[1:]
    if name.startswith("-"):
        return {}
    assert name in group.commands, f"no such command: charengine {name}"
    return dict(group.commands[name].make_context(name, rest).params)


def is_ours(words: list[str]) -> bool:
    """Whether it calls charengine."""
    return Path(words[0].replace("\\", "/")).name == "charengine"
