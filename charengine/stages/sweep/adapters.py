"""Adapter files into a sweep and out of it: any file as something to sweep, the pick as a file of its own."""

from __future__ import annotations

import json
import logging
from pathlib import Path
from typing import Any

from charengine.adapter.files import check_values, load_adapter, read_adapter, save_adapter
from charengine.adapter.header import header_of, with_metadata
from charengine.adapter.metadata import recipe_after, told_by
from charengine.adapter.rescaling import rescale
from charengine.errors import BadInput, ConfigError
from charengine.records import AdapterRecord, CellMetrics, CheckpointRecord
from charengine.store import Store
from charengine.wording import composed, noun_problem, phrase_problem

log = logging.getLogger(__name__)

UNTOLD = 1  # step of a file that does not say its own: 0 is the base model's, which no adapter is put on
UNTOLD_SAID = (
    "{path} does not say after how many steps of training it was saved: it is called step 1 here and in the report, whatever it was. "
    "Nothing else depends on that"
)
GIVE = {  # what a file does not say: how it is said on the command line, and the field in Prefect's page
    "trigger": "--trigger (the field trigger), e.g. --trigger griqul",
    "class noun": "--class-noun (the field class_noun), e.g. --class-noun woman",
}


def training_from_file(path: Path, store: Store, *, trigger: str = "", class_noun: str = "") -> AdapterRecord:
    """A sweepable record of an adapter file from an earlier run or another trainer; its step and trigger come from its metadata (step 1 where it says none).

    Raises:
        BadInput: not a readable adapter, damaged, or its trigger or class noun is neither in the file nor given.
        ConfigError: its trigger or class noun cannot be one.
    """
    data = read_adapter(path)
    told = told_by(header_of(data).metadata)
    trigger, class_noun = composed(trigger or told.trigger), composed(class_noun or told.class_noun)
    missing = [word for word, value in (("trigger", trigger), ("class noun", class_noun)) if not value]
    if missing:
        give = " and ".join(GIVE[word] for word in missing)
        raise BadInput(f"{path} does not say its {' and '.join(missing)}: give {give}")
    wrong = {"trigger": phrase_problem(trigger), "class noun": noun_problem(class_noun)}
    problems = [f"{path}: {problem}; give {GIVE[word]}" for word, problem in wrong.items() if problem]
    if problems:
        raise ConfigError(problems)
    try:
        check_values(load_adapter(data)[0])
    except BadInput as error:
        raise BadInput(f"{path}: {error}") from error
    step = told.steps or UNTOLD
    checkpoint = CheckpointRecord(step=step, adapter=store.put(data, path.name))
    return AdapterRecord(
        checkpoints=(checkpoint,),
        steps=step,
        trigger=trigger,
        class_noun=class_noun,
        dataset_digest=told.dataset_digest,
        warnings=() if told.steps else (UNTOLD_SAID.format(path=path),),
    )


def recommended(data: bytes, picked: CellMetrics, recipe: dict[str, Any] | None) -> tuple[bytes, tuple[str, ...]]:
    """The picked checkpoint with its strength as the new 1.0, the pick in its metadata; and a warning where that cannot be.

    Nothing that goes wrong here is worth losing a finished sweep for.
    """
    doubts: tuple[str, ...] = ()
    try:
        data = rescale(data, picked.strength)
    except Exception as error:
        if not isinstance(error, BadInput):  # DoRA is expected; the rest is a defect, said and survived
            log.exception("the adapter could not be rescaled")
        doubts = (f"the recommended adapter is not rescaled, use it at strength {picked.strength:g}: {error}",)
        data = save_adapter(*load_adapter(data))  # in the form that other programs read, as a rescaled one is
    more = {"charengine.pick": picked.model_dump_json(exclude={"mlflow_run_id"})}
    if recipe is not None:
        before = told_by(header_of(data).metadata).recipe
        more["charengine.recipe"] = json.dumps(recipe_after(before, recipe), sort_keys=True)
    return with_metadata(data, more), doubts
