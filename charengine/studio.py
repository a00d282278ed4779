"""The engine from Python: a studio has models and settings; a character in it goes through the stages one by one, or all at once.

    import charengine as ce

    studio = ce.Studio("embedded", train={"steps": 100})
    who = studio.character("an orc woman with red hair and a blue coat", name="Grisha")
    sheet = who.sheet()   # a notebook shows it
    sweep = who.sweep()   # the stages before it are run when they have not been
    sweep.pick
    result = who.run()    # the whole run, as `charengine run` does it

Keys, kept results, trigger and bytes are those of the command: both call `charengine.run.running.run`.
"""

from __future__ import annotations

import logging
from collections.abc import Iterable, Iterator, Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar, cast

from charengine.config import Profile
from charengine.documents import as_value
from charengine.errors import BadInput, ConfigError
from charengine.machine.addresses import use_services
from charengine.machine.environment import (
    apply_defaults,
    lost_defaults,
    quieten_console,
    quieten_libraries,
    unknown_variables,
)
from charengine.machine.home import Home, find_home
from charengine.machine.known_runs import note_run
from charengine.machine.own_packages import own_packages
from charengine.machine.threads import one_caller
from charengine.profiles.listing import sections, settings_in
from charengine.profiles.loading import load_profile
from charengine.run.paths import absolute_override, absolute_profile
from charengine.run.request import CheckedRun, RunRequest, check

if TYPE_CHECKING:
    from charengine.records import (
        AdapterRecord,
        DatasetRecord,
        ExpansionRecord,
        Record,
        ReportRecord,
        RunRecord,
        RunResult,
        SheetRecord,
        SweepRecord,
        ViewsRecord,
    )
    from charengine.run.keys import Input
    from charengine.run.workspace import Workspace
    from charengine.stage import Stage
    from charengine.stages.report.notebook import Shown

    R = TypeVar("R", bound=Record)

log = logging.getLogger(__name__)


class Studio:
    """Models and settings, in which characters are made.

    Make it before torch, Prefect or MLflow are imported: they read the engine's defaults (threads, no telemetry) when they are. A
    studio that is made later says in a warning what is lost.

    Args:
        profile: name of a shipped profile (`charengine profiles` lists them), or a YAML file.
        settings: what is to differ from it: sections as dicts, `train={"steps": 100}`, or a setting of the profile itself,
            `budget_gib=8`. `charengine settings` lists them all.

    Raises:
        ConfigError: unknown profile, section or setting, or a value out of range; every problem at once.
    """

    def __init__(self, profile: str | Path = "embedded", **settings: object) -> None:
        self._source = absolute_profile(str(profile))
        self._overrides = tuple(absolute_override(text) for text in _overrides(settings))
        self.profile: Profile = load_profile(self._source, self._overrides)
        self._home = find_home()
        for problem in unknown_variables():
            log.warning("%s", problem)
        lost = lost_defaults()
        apply_defaults(self._home)
        quieten_libraries()
        if lost:
            log.warning(
                "imported before the studio was made, so the engine's defaults come too late for %s. "
                "Make the studio first, in a fresh process",
                "; ".join(lost),
            )

    def character(
        self,
        prompt: str = "",
        name: str = "",
        *,
        class_noun: str = "",
        trigger: str = "",
        seed: int = 42,
        sheet: str | Path | None = "",
        reference: str | Path | None = "",
        out: str | Path | None = "",
        refresh: Iterable[str] | None = (),
    ) -> CharacterRun:
        """A character to be made; nothing is drawn or trained yet.

        Args:
            prompt: one sentence saying what the character looks like; may be empty with a reference, which then says it.
            name: letters, digits, spaces, _ and -; empty: taken from the prompt, else from the reference's file name.
            class_noun: "woman", "robot"…; empty: taken from the prompt, else seen in the reference.
            trigger: rare word that will mean the character; empty: derived from the name.
            seed: same seed, same machine kind: same files.
            sheet: a sheet that exists already (PNG, JPEG, WebP); empty: one is drawn.
            reference: one picture of the character, in any pose and place, from which the sheet is drawn; empty: from the prompt alone.
            out: folder that `save` and `run` write; empty: runs/NAME.
            refresh: a stage, or several, to run even if its result is kept.

        Raises:
            ConfigError: everything that is wrong with it, one line each.
        """
        problems: list[str] = []
        request = RunRequest(
            prompt,
            name,
            class_noun,
            trigger,
            seed,
            self._source,
            self._overrides,
            _path("sheet", sheet, problems),
            _path("out", out, problems),
            _stages(refresh, problems),
            _path("reference", reference, problems),
        )
        if isinstance(seed, bool):  # which counts as 1 or 0
            problems.append(f"seed: got {seed}; give a whole number, e.g. 42")
        if problems:
            raise ConfigError(problems)
        # `save` looks at its folder: until then nothing is written there
        return CharacterRun(check(request, self._home, writes_run=False), self._home)

    def __repr__(self) -> str:
        return f"Studio({', '.join([repr(self.profile.name), *self._overrides])})"


class CharacterRun:
    """One character on its way from prompt to report; made by `Studio.character`.

    Each step runs the steps before it when they are missing, takes results that are kept, and remembers what it made. What it
    returns is the stage's record (`charengine.records`), which a notebook shows with its pictures; `.record` is the bare record.
    Every step raises EngineError: MissingDependency, BadInput, SheetRejected, OutOfBudget… (`charengine.errors`). Threads of one
    process take turns.

    Args:
        checked: what was asked for.
        home: where results are kept.
    """

    def __init__(self, checked: CheckedRun, home: Home) -> None:
        self._checked = checked
        self._home = home
        self._made: dict[str, Record] = {}
        self._workspace: Workspace | None = None

    def __getstate__(self) -> dict[str, object]:
        """For pickle and copy: models and MLflow's run are found again."""
        return {**self.__dict__, "_workspace": None}

    @property
    def workspace(self) -> Workspace:
        """Character, settings, models and store; asked for the first time, every model file is looked for.

        Of a given sheet that was edited meanwhile it is another run's.
        """
        with one_caller():
            models = self._workspace.models if self._workspace else None
            if self._workspace is None or self._workspace.has_another_sheet():
                use_services(self._home)
                from charengine.run.opening import open_workspace

                self._workspace = open_workspace(self._checked, self._home, models=models)
            return self._workspace

    @property
    def trigger(self) -> str:
        """The word that means the character."""
        return self.workspace.character.trigger

    def sheet(self) -> Shown[SheetRecord]:
        """The sheet, drawn or the given file: front, side and back."""
        return self._shown(self._sheet())

    def crop(self) -> Shown[ViewsRecord]:
        """The three views, cut out of the sheet."""
        return self._shown(self._views())

    def expand(self) -> Shown[ExpansionRecord]:
        """More views, drawn from the three.

        Raises:
            BadInput: the settings ask for none.
        """
        expansion = self._expansion()
        if expansion is None:
            raise BadInput('expand.count is 0, so there are no more views; make the studio with expand={"count": 5}')
        return self._shown(expansion)

    def caption(self) -> Shown[DatasetRecord]:
        """Views and captions, with what was edited in the run's folder."""
        return self._shown(self._dataset())

    def train(self) -> Shown[AdapterRecord]:
        """The adapter and its checkpoints; one that was interrupted continues."""
        return self._shown(self._training())

    def sweep(self) -> Shown[SweepRecord]:
        """Checkpoints at several strengths, and the pick."""
        return self._shown(self._sweep())

    def report(self) -> Shown[ReportRecord]:
        """The report: one page with everything on it."""
        return self._shown(self._report(self._record()))

    def save(self) -> RunResult:
        """Write the folder that `charengine run` writes, after what is missing has been made; where the files are."""
        from charengine.run import folder
        from charengine.run.claim import claim
        from charengine.run.outputs import check_run
        from charengine.run.result import Written, run_result

        check_run(self._checked, self.workspace.character)
        run, store = self._record(), self.workspace.store
        self._checked = claim(self._checked)
        out = self._checked.out
        page = self._report(run)
        run = run.model_copy(update={"stages": tuple(self.workspace.facts)})
        if run.expansion:
            folder.write_expansion(run.expansion, out / "extra_views", store)
        adapter, recommended = folder.write_adapters(run.sweep, run.trigger, out, store)
        folder.write_pictures(run.sweep, out, store)
        written = Written(
            sheet=folder.write_sheet(run.sheet, out, store),
            views=folder.write_views(run.views, out / "views", store),
            captions=folder.write_dataset(run.dataset, out, store, self._captioned()[1]),
            adapter=adapter,
            recommended_adapter=recommended,
            report=folder.write_report(page, run, out, store),
        )
        result = run_result(run, written)
        folder.write_result(result, out)
        note_run(self._home, out, [fact.key for fact in run.stages])
        return result

    def run(self) -> RunResult:
        """The whole run through the Prefect flow, as `charengine run` does it; files go to the character's folder."""
        quieten_console()
        from charengine.run.opening import open_workspace
        from charengine.services.prefect_server import reach_prefect

        with one_caller(), own_packages():
            prefect_is_up = reach_prefect(self._home)
            workspace = open_workspace(self._checked, self._home)
            prefect_is_up()
            from flows.character import start

            return start(self._checked, workspace)

    def __repr__(self) -> str:
        character = self._checked.character
        return f"CharacterRun({character.name!r}, {character.prompt!r}, out={str(self._checked.out)!r})"

    def _run(self, stage: Stage[R], workspace: Workspace, /, *inputs: Input) -> R:
        """The stage's record: remembered while its files are whole, kept in the store, or made now."""
        from charengine.run.running import key_of, lost_files, run
        from charengine.tracking.protocol import closing

        with one_caller():
            key = key_of(stage, workspace, *inputs)
            made = self._made.get(key)
            if made is None or lost_files(made, workspace.store):
                workspace.facts[:] = [fact for fact in workspace.facts if fact.stage != stage.name]
                with closing(workspace.track()) if stage.long else nullcontext():
                    self._made[key] = run(stage, workspace, *inputs)
            return cast("R", self._made[key])

    def _shown(self, record: R) -> Shown[R]:
        from charengine.stages.report.notebook import Shown

        return Shown(record, self.workspace.store)

    def _sheet(self) -> SheetRecord:
        from charengine.run import steps

        return steps.sheet(self._run, self.workspace)

    def _views(self) -> ViewsRecord:
        from charengine.run import steps

        return steps.views(self._run, self.workspace, self._sheet())

    def _expansion(self) -> ExpansionRecord | None:
        from charengine.run import steps

        return steps.expansion(self._run, self.workspace, self._views())

    def _captioned(self) -> tuple[DatasetRecord, str]:
        """The captions with what was edited in the run's folder, and their stage's key."""
        from charengine.run import steps

        expansion = self._expansion()
        extras = expansion.kept if expansion else ()
        return steps.dataset(self._run, self.workspace, self._views(), extras, self._checked.out)

    def _dataset(self) -> DatasetRecord:
        return self._captioned()[0]

    def _training(self) -> AdapterRecord:
        from charengine.run import steps

        return steps.training(self._run, self.workspace, self._dataset())

    def _sweep(self) -> SweepRecord:
        from charengine.stages.sweep.stage import SWEEP

        return self._run(SWEEP, self.workspace, self._training(), self._dataset())

    def _record(self) -> RunRecord:
        from charengine.run.result import run_record
        from charengine.run.whole_recipe import with_whole_recipe

        sweep = with_whole_recipe(self._sweep(), self.workspace)
        training, dataset = self._training(), self._dataset()
        return run_record(self.workspace, self._sheet(), self._expansion(), dataset, training, sweep)

    def _report(self, run: RunRecord) -> ReportRecord:
        from charengine.run import steps

        return steps.report(self._run, self.workspace, run)


def _overrides(settings: Mapping[str, object]) -> Iterator[str]:
    """The settings as `section.key=value`, as the command's --set takes them.

    Raises:
        ConfigError: a section that is no dict.
    """
    for name, value in settings.items():
        if isinstance(value, Mapping):
            yield from (_override(f"{name}.{key}", item) for key, item in value.items())
        elif name in sections():
            first = settings_in("", sections()[name])[0]
            raise ConfigError(
                f"{name}: a section, got {value!r}; give its settings as a dict, e.g. {name}={{{first.name!r}: {first.default!r}}}. "
                f"`charengine settings {name}` lists them"
            )
        else:
            yield _override(name, value)


def _override(name: str, value: object) -> str:
    try:
        return f"{name}={as_value(value)}"
    except ConfigError as error:
        raise ConfigError(f"{name}: got {error}") from error


def _path(name: str, given: object, problems: list[str]) -> str:
    """A path that was given, as text; anything else is a problem: a folder of its name would be made."""
    if given is None:
        return ""
    if isinstance(given, str | Path):
        return str(given)
    problems.append(f"{name}: got {given!r}; give a path, as text or a Path, or leave it out")
    return ""


def _stages(given: object, problems: list[str]) -> tuple[str, ...]:
    """The names of stages that were given: one, or several."""
    if not given or isinstance(given, str):
        return (given,) if isinstance(given, str) and given else ()
    found = tuple(given) if isinstance(given, Iterable) else (None,)
    if all(isinstance(one, str) for one in found):
        return cast("tuple[str, ...]", found)
    problems.append(f"refresh: got {given!r}; give the name of a stage, or a list of some, e.g. ['train', 'sweep']")
    return ()
