"""A character's page in Prefect: made when the run starts, written again by every stage."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from pathlib import Path
from typing import Any

from prefect.client.schemas.objects import State
from prefect.states import Failed

from charengine.errors import EngineError
from charengine.machine.error_log import keep_traceback
from charengine.machine.home import find_home
from charengine.records import RunRecord
from charengine.run.request import STAGES
from charengine.run.workspace import Workspace
from charengine.stages.report.cast import as_text
from charengine.tracking.protocol import Tracker
from charengine.wording import slug
from tasks.live import Aside, LiveText
from tasks.summary import summary

_page: ContextVar[CharacterPage | None] = ContextVar("page", default=None)


class CharacterPage:
    """Progress, pictures, links, the pick and warnings of one run, as one Markdown artifact under the character's name.

    Args:
        name: of the character.
        prompt: of the character.
    """

    def __init__(self, name: str, prompt: str) -> None:
        self._name, self._prompt = name, prompt
        self._workspace: Workspace | None = None
        self._out = Path()
        self._stages: dict[str, str] = {}
        self._pictures: dict[str, str] = {}
        self._run: RunRecord | None = None
        self._ended: tuple[str, ...] = ()
        self._live = Aside(LiveText(slug(name), name))
        self.show()

    def begin(self, workspace: Workspace, out: Path) -> None:
        """What is asked for is checked, and the stages follow.

        Args:
            workspace: of the run.
            out: folder of the results.
        """
        self._workspace, self._out = workspace, out
        self._name, self._prompt = workspace.character.name, workspace.character.prompt
        self._stages = {stage: "" for stage in STAGES if stage != "expand" or workspace.profile.expand.count}
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

    def ended(self, said: str, log_file: Path | None = None) -> None:
        """Why the run ended before it was done, and the file with the whole traceback."""
        self._ended = (f"**{as_text(said)}**", *([f"The whole traceback: `{log_file}`"] if log_file else []))
        self.show()

    def close(self) -> None:
        """Wait until it is shown."""
        self._live.close()

    def show(self) -> None:
        """Write the page again."""
        self._live.show(self.text())

    def text(self) -> str:
        """The page as it is now."""
        head = [summary(self._run)] if self._run else [f"# {as_text(self._name)}", f"> {as_text(self._prompt)}"]
        if self._workspace is None:
            return "\n\n".join([*head, *(self._ended or ("Models and settings are being looked at.",))])
        rows = [f"| {stage} | {said or 'waits'} |" for stage, said in self._stages.items()]
        progress = "\n".join(["| stage | |", "| --- | --- |", *rows])
        pictures = [f"![{name}]({url})" for name, url in self._pictures.items()]
        return "\n\n".join([*head, *self._ended, *self._links(self._workspace.tracker), progress, *pictures])

    def _links(self, tracker: Tracker) -> list[str]:
        served = {
            "Download the adapter (.safetensors)": tracker.adapter_url,
            "Report": tracker.picture_url("report/report.html") if self._run else "",
            "The run in MLflow": tracker.url,
            "Strength against identity and adherence": tracker.strengths_url,
        }
        links = " · ".join(f"[{words}]({url})" for words, url in served.items() if url)
        report = f"; report: `{self._out / 'report.html'}`" if self._run else ""
        return [*([links] if links else []), f"Folder: `{self._out}`{report}"]


@contextmanager
def showing(name: str, prompt: str) -> Iterator[CharacterPage]:
    """The character's page, there at once; until left, stages write on it, and an error is said there in one sentence."""
    page = CharacterPage(name, prompt)
    token = _page.set(page)
    try:
        yield page
    except Exception as error:
        page.ended(f"Failed: {in_form_words(str(error))}", keep_traceback(error, find_home(), slug(name)))
        raise
    except BaseException:
        page.ended("Stopped; the same run continues from where it was")
        raise
    finally:
        _page.reset(token)
        page.close()


def failed_state(error: EngineError, about: str) -> State[Any]:
    """How a flow ends that the engine refused: one sentence in the form's words, and the file with the whole traceback.

    Returned, not raised: Prefect would put two tracebacks around the sentence.

    Args:
        error: that ended the run; whoever calls the flow gets it.
        about: whose run it was.
    """
    log_file = keep_traceback(error, find_home(), slug(about))
    said = in_form_words(str(error)) + (f" (the whole traceback: {log_file})" if log_file else "")
    return Failed(message=said, data=error)


def current_page() -> CharacterPage | None:
    """The page of the run that this is called in, if it has one."""
    return _page.get()


def stage_line(stage: str) -> Callable[[str], None]:
    """Says on the page of the run that this is called in, if it has one, how a stage is."""
    page = current_page()
    return lambda said: page.stage(stage, said) if page else None


def in_form_words(text: str) -> str:
    """A message that names options of the command line, with the names that the form's fields have."""
    return re.sub(r"--(refresh|sheet|out|profile|name|trigger|seed)\b", r"\1", text.replace("--set", "overrides"))
