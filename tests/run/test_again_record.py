"""Whether a folder's record is of what was found again: if not, the run is the flow's."""

from __future__ import annotations

import pytest
from run_samples import sample_run

from charengine.records import RunRecord, StageFact
from charengine.run.again import ToDo, _same
from charengine.store import Store


@pytest.fixture
def earlier(store: Store) -> RunRecord:
    facts = (StageFact(stage="sheet", key="sheet-1", cached=False, seconds=9.0),)
    return sample_run(store).model_copy(
        update={"stages": facts, "mlflow_run_id": "m", "prefect_flow_run_id": "p", "config": {"profile": {"a": 1e-4}}}
    )


def found(earlier: RunRecord, key: str = "sheet-1", **changed: object) -> RunRecord:
    facts = (StageFact(stage="sheet", key=key, cached=True, seconds=0.01),)
    untold = {"stages": facts, "mlflow_run_id": None, "prefect_flow_run_id": None}
    return earlier.model_copy(update={**untold, **changed})


def test_the_same_record_stays_with_its_times_and_whom_it_was_told(earlier: RunRecord) -> None:
    read = RunRecord.model_validate_json(earlier.model_dump_json())  # as from the folder
    assert _same(found(earlier), read) == earlier


@pytest.mark.parametrize("changed", [{"warnings": ("pale",)}, {"config": {"profile": {"a": 2e-4}}}, {"key": "sheet-2"}])
def test_another_one_is_the_flows(earlier: RunRecord, changed: dict[str, object]) -> None:
    with pytest.raises(ToDo):
        _same(found(earlier, **changed), earlier)  # type: ignore[arg-type]
