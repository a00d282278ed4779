"""A gallery whose store is on S3: what it asks for, any machine can make."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import fsspec
import pytest
from gallery_samples import Visit
from PIL import Image
from run_samples import doll, png
from sheet_samples import Sheet, paint

from charengine.machine import shared
from charengine.run.handing_over import found

SENT = "/start"
GOOD = {"prompt": "a knight in red armour", "name": "Ann"}


@pytest.fixture(autouse=True)
def elsewhere(monkeypatch: pytest.MonkeyPatch) -> None:
    """The store is in memory, which no machine has as a folder."""
    fsspec.filesystem("memory").store.clear()
    shared._opened.cache_clear()
    monkeypatch.setenv(shared.STORE, "memory://studio/store")


@pytest.fixture
def studio(elsewhere: None, visit: Visit) -> Visit:
    assert not visit.gallery.store.local
    return visit


def sent(field: str, image: Image.Image, name: str) -> dict[str, Any]:
    return {field: (name, png(image), "image/png")}


@pytest.mark.parametrize(
    ("field", "parameter", "image"), [("picture", "sheet", paint(Sheet())), ("reference", "reference", doll())]
)
def test_an_uploaded_picture_goes_through_the_store_to_whoever_makes_the_character(
    studio: Visit, field: str, parameter: str, image: Image.Image
) -> None:
    studio.post(SENT, GOOD, sent(field, image, "Tavern keeper.png"))
    [asked] = studio.prefect.started
    place = asked["parameters"][parameter]
    assert re.fullmatch(r"store:[0-9a-f]{64}/Tavern_keeper\.png", place) and asked["parameters"]["out"] == ""
    assert Path(found(place, studio.gallery.store)).read_bytes() == png(image)


@pytest.mark.parametrize(
    ("field", "parameter", "image"), [("picture", "sheet", paint(Sheet())), ("reference", "reference", doll())]
)
def test_a_picture_need_not_be_sent_again_when_something_else_was_wrong(
    studio: Visit, field: str, parameter: str, image: Image.Image
) -> None:
    page = studio.post(SENT, {**GOOD, "seed": "x"}, sent(field, image, "me.png"), status=422).text
    [kept] = re.findall(rf'name="kept_{field}" value="([0-9a-f]{{64}})"', page)
    assert studio.client.get(f"/picture/{kept}").content == png(image)
    studio.post(SENT, {**GOOD, f"kept_{field}": kept, "reference_name": "me.png"})
    assert kept in studio.prefect.started[0]["parameters"][parameter]


@pytest.mark.parametrize("field", ["picture", "reference"])
def test_a_picture_that_the_store_does_not_have_is_asked_for_again(studio: Visit, field: str) -> None:
    page = studio.post(SENT, {**GOOD, f"kept_{field}": "0" * 64}, status=422).text
    assert "choose it again" in page and studio.prefect.started == []


def test_the_pictures_that_a_cast_names_go_through_the_store(studio: Visit) -> None:
    (studio.work / "me.png").write_bytes(png(doll()))
    cast = b"name,prompt,reference\nAnn,a knight,me.png\nBen,a wizard,\n"
    page = studio.post("/cast", {"profile": "embedded"}, {"cast": ("cast.csv", cast)}, 200).text
    form = re.findall(r'<form method="post" action="/cast/start".*?</form>', page, re.DOTALL)[0]
    fields = dict(re.findall(r'name="(\w+)" value="([^"]*)"', form))
    studio.client.post("/cast/start", data=fields, files={"nothing": ("", b"")})
    asked = [one["parameters"] for one in studio.prefect.started]
    assert [one["name"] for one in asked] == ["Ann", "Ben"] and {one["out"] for one in asked} == {""}
    assert asked[0]["reference"].startswith("store:") and asked[1]["reference"] == ""
