"""A character's page in Prefect: made when the run starts, written again by every stage."""

from __future__ import annotations

import re
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path

from charengine.records import RunRecord
from charengine.run.request import STAGES
from charengine.run.workspace import Workspace
from charengine.stages.report.cast import as_text
from tasks.live import LiveText

_page: ContextVar[CharacterPage | None] = ContextVar("page", default=None)


class CharacterPage:
    """Progress, pictures, links, the pick and warnings of one run, as one Markdown artifact under the character's name.

    Args:
        workspace: of the run; its MLflow run is open.
        out: folder of the results.
    """

    def __init__(self, workspace: Workspace, out: Path) -> None:
        self._workspace, self._out = workspace, out
        self._stages = {stage: "" for stage in STAGES if stage != "expand" or workspace.profile.expand.count}
        self._pictures: dict[str, str] = {}
        self._run: RunRecord | None = None
        self._ended = ""
        self._live = LiveText(workspace.slug, workspace.character.name)
        self.show()

    def stage(self, name: str, said: str) -> None:
        """How a stage is."""
        self._stages[name] = said
        self.show()

    def picture(self, name: str, url: str) -> None:
        """A picture that MLflow serves; shown from the next change on."""
        self._pictures[name] = url

    def done(self, run: RunRecord) -> None:
        """What was picked and why."""
        self._run = run
        self.show()

    def ended(self, said: str) -> None:
        """Why the run ended before it was done."""
        self._ended = said
        self.show()

    def show(self) -> None:
        """Write the page again."""
        self._live.show(self.text())

    def text(self) -> str:
        """The page as it is now."""
        from tasks.artifacts import summary

        character = self._workspace.character
        head = [summary(self._run)] if self._run else [f"# {as_text(character.name)}", f"> {as_text(character.prompt)}"]
        ended = [f"**{as_text(self._ended)}**"] if self._ended else []
        rows = [f"| {stage} | {said or 'waits'} |" for stage, said in self._stages.items()]
        progress = "\n".join(["| stage | |", "| --- | --- |", *rows])
        pictures = [f"![{name}]({url})" for name, url in self._pictures.items()]
        return "\n\n".join([*head, *ended, *self._links(), progress, *pictures])

    def _links(self) -> list[str]:
        tracker = self._workspace.tracker
        served = {
            "Download the adapter": tracker.adapter_url,
            "Report": tracker.picture_url("report/report.html") if self._run else "",
            "The run in MLflow": tracker.url,
            "Strength against identity and adherence": tracker.strengths_url,
        }
        links = " · ".join(f"[{words}]({url})" for words, url in served.items() if url)
        report = f"; report: `{self._out / 'report.html'}`" if self._run else ""
        return [*([links] if links else []), f"Folder: `{self._out}`{report}"]


@contextmanager
def showing(workspace: Workspace, out: Path) -> Iterator[None]:
    """Until left, stages write on the character's page; an error is said there in one sentence."""
    page = CharacterPage(workspace, out)
    token = _page.set(page)
    try:
        yield
    except Exception as error:
        page.ended(f"Failed: {in_form_words(str(error))}")
        raise
    except BaseException:
        page.ended("Stopped; the same run continues from where it was")
        raise
    finally:
        _page.reset(token)


def current_page() -> CharacterPage | None:
    """The page of the run that this is called in, if it has one."""
    return _page.get()


def in_form_words(text: str) -> str:
    """A message that names options of the command line, with the names that the form's fields have."""
    return re.sub(r"--(refresh|sheet|out|profile|name|trigger|seed)\b", r"\1", text.replace("--set", "overrides"))
