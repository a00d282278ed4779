"""A sweep that was killed goes on with the cells it has, and ends as if nothing had happened."""

from __future__ import annotations

import pytest
from sweep_samples import SETTINGS, Eye, Notebook, Painter, trained

from charengine.config import SweepSettings
from charengine.records import SweepRecord
from charengine.stages.sweep import sweep
from charengine.stages.sweep.cells import UnitRecord
from charengine.store import Store

pytestmark = pytest.mark.usefixtures("known_adapter")
KEY = "sweep-0123"
RACE = SETTINGS.model_copy(update={"design": "race", "pictures": 36, "seeds": 3})


class Killed(BaseException):
    """The process is gone."""


class Mortal(Painter):
    """Draws so many cells and dies."""

    left: int = 10**6

    def sample(self, *args, **kwargs):
        if not self.left:
            raise Killed
        self.left -= 1
        return super().sample(*args, **kwargs)


def swept(store: Store, dataset, painter: Painter, settings: SweepSettings = SETTINGS, **more) -> SweepRecord:
    training = trained(store, 100, 200)
    return sweep.sweep_adapter(training, dataset, settings, painter, Eye(), store, seed=7, key=KEY, **more)


def killed_after(store: Store, dataset, cells: int, settings: SweepSettings) -> list[tuple]:
    painter = Mortal()
    painter.left = cells
    with pytest.raises(Killed):
        swept(store, dataset, painter, settings)
    return painter.drawn


@pytest.mark.parametrize("settings", [SETTINGS, RACE], ids=["grid", "race"])
def test_killed_again_and_again_a_sweep_draws_no_finished_cell_twice_and_ends_byte_equal(
    store, dataset, settings: SweepSettings
) -> None:
    calm = Painter()
    undisturbed = sweep.sweep_adapter(trained(store, 100, 200), dataset, settings, calm, Eye(), store, seed=7)
    drawn: list[tuple] = []
    for _ in range(3):
        drawn += killed_after(store, dataset, 3, settings)
    painter = Painter()
    found = swept(store, dataset, painter, settings)
    assert found.model_dump_json() == undisturbed.model_dump_json()
    again = len(drawn) + len(painter.drawn) - len(calm.drawn)
    assert 0 <= again <= 3, "at most the cell that was in hand at each kill is drawn again"
    assert set(drawn + painter.drawn) == set(calm.drawn)


def test_a_sweep_killed_before_its_conclusion_draws_nothing_and_has_the_same_runs_in_mlflow(store, dataset) -> None:
    first, second, painter = Notebook(), Notebook(), Painter()
    whole = swept(store, dataset, Painter(), tracker=first)
    assert swept(store, dataset, painter, tracker=second) == whole
    assert painter.drawn == []
    assert first.children.keys() == second.children.keys()
    assert {key: run.metrics for key, run in first.children.items()} == {
        key: run.metrics for key, run in second.children.items()
    }


@pytest.mark.parametrize(
    "damage", ["picture gone", "picture changed", "numbers gone", "record unreadable", "base gone"]
)
def test_a_finished_cell_that_is_not_whole_any_more_is_drawn_again(store, dataset, damage: str) -> None:
    whole = swept(store, dataset, Painter())
    name, place = f"{KEY}/100-0.5-7-8", (100, 0.5, (7, 8) * 3)
    if damage == "base gone":
        name, place = f"{KEY}/0-0-7-8", (0, 0.0, (7, 8) * 3)
    record = store.result(name, UnitRecord)
    assert record is not None
    ref = record.numbers if damage == "numbers gone" else next(iter(record.images.values()))
    blob = store.root + f"/sha256/{ref.sha256[:2]}/{ref.sha256}"
    if damage == "picture changed":
        with open(blob, "wb") as file:
            file.write(b"x" * ref.size)
    elif damage == "record unreadable":
        store.fs.pipe_file(f"{store.root}/results/{name}.json", b"{")
    elif damage == "base gone":
        store.fs.rm_file(f"{store.root}/results/{name}.json")
    else:
        store.drop(ref)
    painter = Painter()
    assert swept(store, dataset, painter) == whole
    assert place in painter.drawn and len(painter.drawn) <= 2, (
        "equal pictures are one file: another cell may lose it too"
    )


def test_cells_of_another_sweep_are_not_taken(store, dataset) -> None:
    swept(store, dataset, Painter())
    painter, training = Painter(), trained(store, 100, 200)
    sweep.sweep_adapter(training, dataset, SETTINGS, painter, Eye(), store, seed=7, key="sweep-4567")
    assert len(painter.drawn) == 9
