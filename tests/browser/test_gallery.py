"""The gallery in a real browser, on everything that `charengine up` starts: from nothing to an adapter, with the mouse alone.

One `up` serves all tests; what several need is made once. Each test is bounded, with what is made for it.
"""

from __future__ import annotations

import csv
import io
import json
import os
import signal
import time
import urllib.request
import warnings
import zipfile
from collections.abc import Iterator
from pathlib import Path
from statistics import median
from typing import Any

import pytest
from axe import script, serious
from chromium import Page, chromium, program
from prefect_samples import Server
from quick_settings import QUICK
from site_samples import PATIENCE, Site, one_figure, up

from charengine.machine.home import Home
from charengine.machine.processes import any_free_port

needs_chromium = pytest.mark.skipif(program() is None, reason="needs Chromium")
pytestmark = [pytest.mark.long, pytest.mark.timeout(600)]

TEXT = "document.body.innerText"
BADGE = "document.querySelector('.live .badge')?.textContent"


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory, tiny_settings: tuple[str, ...], drawn_sheet: Path) -> Iterator[Site]:
    """Everything that `up` starts, on a home of its own without any character."""
    folder = tmp_path_factory.mktemp("site")
    site = Site(Home(folder / "home").create(), folder, tiny_settings, drawn_sheet)
    ports = [part for name in ("gallery", "prefect", "mlflow") for part in (f"--{name}-port", any_free_port())]
    with up(site.home, *ports) as site.address:
        yield site


@pytest.fixture
def page(site: Site) -> Iterator[Page]:
    """A browser that asks nobody but the gallery, and has nothing to say in its console."""
    with chromium() as opened:
        opened.look(1400)
        yield opened
        elsewhere = {url for url in opened.requested if not url.startswith((site.address, "data:", "about:"))}
        assert elsewhere == set()
        assert [said for said in opened.said if "422" not in said] == []


@pytest.fixture(scope="module")
def ann(site: Site) -> str:
    """A character that was started, stopped, continued and made by the page; its address."""
    with chromium() as page:
        page.look(1400)
        page.open(site.address)
        assert "No character yet" in page.run(TEXT)
        _start(page, site.settings, site.sheet)
        _stop_and_continue(page)
        return str(page.run("location.href"))


@needs_chromium
@pytest.mark.timeout(1200)  # with everything that the others use too
def test_a_character_is_started_mended_followed_stopped_continued_and_made(ann: str, page: Page) -> None:
    page.open(ann)
    assert page.run(BADGE) == "made" and page.run("document.querySelector('h1').textContent") == "Ann"


@needs_chromium
def test_its_words_are_copied_and_its_adapter_is_taken_away(ann: str, page: Page) -> None:
    page.open(ann)
    _take_away(page)


@needs_chromium
def test_another_strength_is_looked_at_and_new_pictures_are_drawn(ann: str, page: Page) -> None:
    page.open(ann)
    _try_another_strength(page)


@pytest.fixture(scope="module")
def cast(site: Site) -> None:
    """Ben and Cid, asked for by the page."""
    with chromium() as page:
        page.look(1400)
        _start_a_cast(page, site)


@needs_chromium
def test_a_cast_is_shown_then_started_and_made(site: Site, cast: None, page: Page) -> None:
    for name in ("Ben", "Cid"):
        page.open(f"{site.address}/")
        page.open(
            page.run(f"[...document.querySelectorAll('.card h2 a')].find((a) => a.textContent === '{name}').href")
        )
        page.until(f"{BADGE} === 'made'", PATIENCE)


@needs_chromium
def test_two_are_compared_by_keyboard_here_and_in_mlflow(site: Site, ann: str, cast: None, page: Page) -> None:
    page.open(site.address)
    page.until("document.querySelectorAll('.card input').length >= 3", PATIENCE)
    for name in ("Ann", "Ben"):
        label = f"[...document.querySelectorAll('.card label')].find((one) => one.textContent.includes('{name}'))"
        page.run(f"{label}.control.focus()")
        page.press(" ", 32)
    page.run(
        "swap(document.querySelector('[data-part]'), document.querySelector('[data-part]').innerHTML + '<i data-piece>')"
    )
    assert page.run("document.querySelectorAll('.card :checked').length") == 2  # a card that came unticks none
    page.run("document.querySelector('#compare button').focus(); window.stays = true")
    page.press("Enter", 13)
    page.until("window.stays === undefined && document.querySelectorAll('.charts svg').length === 3")
    assert "train.steps" in page.run(TEXT)
    links = page.run("[...document.querySelectorAll('a.button')].map((one) => one.href)")
    _narrow_and_dark(page, [page.run("location.href")])
    page.open(f"{ann.partition('#')[0]}/report")
    page.click("nav a[href^='/character/']")
    assert page.run("document.querySelector('h1').textContent") == "Ann"
    for link, words in zip(links, (["Ann", "Ben"], ["Ann train", "Ben train"]), strict=True):
        with chromium() as mlflow:
            mlflow.look(1400)
            mlflow.open(link)
            mlflow.until(f"{json.dumps(['Comparing 2 Runs', *words])}.every((one) => {TEXT}.includes(one))", 120)


@needs_chromium
def test_every_page_fits_a_telephone_and_a_dark_room(site: Site, ann: str, page: Page) -> None:
    page.open(site.address)
    shown = page.run("[...document.querySelectorAll('.card h2 a')].find((one) => one.textContent === 'Ann').href")
    _narrow_and_dark(page, [*(f"{site.address}/{path}" for path in ("", "start", "cast")), shown])


@needs_chromium
def test_every_page_is_there_within_a_second(site: Site, ann: str, page: Page) -> None:
    """The best of three: what else the machine does meanwhile is no matter of the page."""
    for url in (
        f"{site.address}/",
        f"{site.address}/start",
        f"{site.address}/cast",
        ann,
        f"{ann.partition('#')[0]}/report",
    ):
        page.open(url)
        took = []
        for _ in range(3):
            began = time.monotonic()
            page.open(url)
            took.append(time.monotonic() - began)
        assert min(took) <= 1.0, (url, took)


@needs_chromium
def test_a_character_is_made_from_one_picture(site: Site, page: Page) -> None:
    picture = site.folder / "My Hero.png"
    one_figure(picture)
    page.open(f"{site.address}/start")
    page.choose_file("#reference", picture)
    page.fill("#prompt", "an orc woman in a blue coat")
    page.fill("#name", "Dot")
    page.fill(
        "#more_settings", "\n".join([*QUICK, "sheet.candidates=1"])
    )  # the shipped models, which can look at a picture
    page.click("form#start button.first")
    assert page.run("document.querySelector('h1').textContent") == "Dot", page.run(TEXT)
    given = "document.querySelector('img[src*=\"/file/reference\"]')"
    page.until(f"{given} && {given}.complete && {given}.naturalWidth > 0", PATIENCE)
    page.until(f"{BADGE} === 'made'", PATIENCE)
    broken = "[...document.images].filter((one) => one.complete && !one.naturalWidth).map((one) => one.src)"
    assert page.run(broken) == [] and page.run(f"{given} !== null")
    assert page.run("document.querySelector('a[download]').textContent") == "Download the adapter (.zip)"


@needs_chromium
def test_mlflows_page_opens_with_the_strengths_of_all_cells_and_their_pictures(site: Site, ann: str) -> None:
    with chromium() as page:
        page.look(1400)
        _click_at_the_top(page, site.address, "Compare strengths")
        page.until(f"['strength vs. identity', 'strength vs. adherence'].every((name) => {TEXT}.includes(name))", 120)
        page.until(f"{TEXT}.includes('300 × 1 Ann sweep')", 120)


@needs_chromium
def test_the_loss_curves_of_trainings_and_the_settings_in_which_they_differ_are_one_click_away(
    site: Site, ann: str
) -> None:
    with chromium() as page:
        page.look(1400, 2400)  # MLflow draws what is in the window
        _click_at_the_top(page, site.address, "Compare trainings")
        page.until(
            f"['Ann train', 'train/smoothed_loss', 'validation/loss'].every((name) => {TEXT}.includes(name))", 120
        )
        page.until(f"{TEXT}.includes('Show differences only')", 120)


@needs_chromium
def test_a_schedule_that_is_switched_on_has_upcoming_runs_and_fires(site: Site) -> None:
    prefect = site.prefect
    batch = prefect.deployment("batch")
    [nightly] = batch["schedules"]
    cast = site.folder / "night.json"
    entry = {"name": "Eve", "prompt": "a bard", "sheet": str(site.sheet), "overrides": list(site.settings)}
    cast.write_text(json.dumps([entry]), encoding="utf-8")  # JSON is YAML too
    cast = cast.rename(cast.with_suffix(".yaml"))
    schedule = f"deployments/{batch['id']}/schedules/{nightly['id']}"
    prefect.patch(f"deployments/{batch['id']}", {"parameters": {"file": str(cast), "workers": True}})
    prefect.patch(schedule, {"schedule": {"cron": "* * * * *", "timezone": "UTC"}})
    wanted = {"flow_runs": {"deployment_id": {"any_": [batch["id"]]}}}
    try:
        _switch_on(site, batch["id"])
        fired = _until(
            lambda: [
                one for one in prefect.post("flow_runs/filter", wanted) if one["state_type"] in ("RUNNING", "COMPLETED")
            ]
        )
    finally:
        prefect.patch(schedule, {"active": False})
    assert all(one["auto_scheduled"] for one in fired)
    ended = _until(lambda: _ended(prefect, fired[0]["id"]))
    assert ended["state_type"] == "COMPLETED", ended["state"]
    assert (site.folder / "runs" / "eve" / "run.json").is_file()


def test_the_champion_is_loaded_from_the_registry_of_the_running_mlflow_and_draws(
    site: Site, ann: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    import mlflow
    import numpy as np
    from torch import Generator

    monkeypatch.setenv("MLFLOW_TRACKING_URI", site.mlflow)
    with warnings.catch_warnings(action="ignore"):  # MLflow's, of how it calls diffusers
        mlflow.pyfunc.load_model("models:/character-ann@champion")
        draw = mlflow.diffusers.load_model("models:/character-ann@champion").load_pipeline()

    def drawn() -> Any:
        how = {"width": 64, "height": 64, "num_inference_steps": 1, "generator": Generator().manual_seed(1)}
        return np.asarray(draw("a woman", **how).images[0]).astype(int)

    with_the_adapter = drawn()
    draw.disable_lora()
    assert abs(with_the_adapter - drawn()).max() > 0


@needs_chromium
def test_after_a_restart_everything_is_there_at_the_same_address(site: Site, ann: str) -> None:
    """The last one: it ends what the others use, and begins it again."""
    batch = site.prefect.deployment("batch")
    [nightly] = batch["schedules"]
    yearly = {"active": True, "schedule": {"cron": "0 3 1 1 *", "timezone": "UTC"}}
    site.prefect.patch(f"deployments/{batch['id']}/schedules/{nightly['id']}", yearly)
    os.kill(json.loads(site.home.services_file.read_text())["pid"], signal.SIGINT)
    _until(lambda: not site.home.services_file.exists())
    _until(lambda: not _answers(site.address))
    with up(site.home) as again, chromium() as page:
        assert again == site.address  # links go on working
        [kept] = site.prefect.deployment("batch")["schedules"]
        assert kept["active"] and kept["schedule"]["cron"] == "0 3 1 1 *"
        page.look(1400)
        page.open(ann)
        assert page.run(BADGE) == "made" and "Download the adapter" in page.run(TEXT)
        with urllib.request.urlopen(f"{ann.partition('#')[0]}/adapter.zip", timeout=60) as response:
            names = zipfile.ZipFile(io.BytesIO(response.read())).namelist()
        assert any(name.endswith("_recommended.safetensors") for name in names)
        page.open(
            page.run("[...document.querySelectorAll('.live a')].find((a) => a.textContent.includes('MLflow')).href")
        )
        page.until(f"{TEXT}.includes('character-ann')", 120)  # the pick stands in the registry


def _switch_on(site: Site, deployment: str) -> None:
    """With the mouse, in Prefect's page, until that shows a run to come."""
    tab = "[...document.querySelectorAll('li.p-tab')].filter((one) => one.textContent.trim() === 'Upcoming')"
    with chromium() as page:
        page.look(1400)
        page.open(f"{site.prefect.url.removesuffix('/api')}/deployments/deployment/{deployment}")
        page.until("document.querySelector('[role=switch]')?.getAttribute('aria-checked') === 'false'")
        page.run("document.querySelector('[role=switch]').click()")
        page.until("document.querySelector('[role=switch]').getAttribute('aria-checked') === 'true'")
        page.until(f"{tab}.length > 0")
        page.until(f"({tab}.forEach((one) => one.click()), {TEXT}.includes('Scheduled for'))", 120)


def _click_at_the_top(page: Page, address: str, name: str) -> None:
    """Follow a link of the gallery's head."""
    page.open(address)
    found = f"[...document.querySelectorAll('.others a')].find((one) => one.textContent === {json.dumps(name)})"
    page.open(page.run(f"{found}.href"))


def _until(ask: Any, seconds: float = PATIENCE) -> Any:
    deadline = time.monotonic() + seconds
    while not (found := ask()):
        assert time.monotonic() < deadline
        time.sleep(0.5)
    return found


def _answers(address: str) -> bool:
    try:
        urllib.request.urlopen(f"{address}/health", timeout=2).close()
    except OSError:
        return False
    return True


def _ended(prefect: Server, run_id: str) -> dict[str, Any] | None:
    run: dict[str, Any] = prefect.get(f"flow_runs/{run_id}")
    return run if run["state_type"] in ("COMPLETED", "FAILED", "CRASHED", "CANCELLED") else None


def _start(page: Page, settings: tuple[str, ...], sheet: Path) -> None:
    page.click('a[href="/start"].first')
    page.fill("#prompt", "an orc woman in a blue coat")
    page.fill("#name", "a/b")
    page.choose_file("#picture", sheet)
    page.fill(
        "#more_settings",
        "\n".join([*(one for one in settings if not one.startswith("train.steps")), "sweep.design=grid"]),
    )
    page.fill("[name='train.steps']", "300")
    page.click("form#start button.first")
    assert "One thing has to be mended; nothing was started" in page.run(TEXT)
    assert page.run("document.activeElement.id") == "problems"
    assert page.run("document.querySelector('#name').getAttribute('aria-invalid')") == "true"
    page.fill("#name", "Ann")  # the picture need not be sent again
    page.click("form#start button.first")
    assert page.run("document.querySelector('h1').textContent") == "Ann"


def _stop_and_continue(page: Page) -> None:
    page.until("/step \\d+ of 300, loss [0-9.]+, .* left/.test(document.querySelector('.live').innerText)", PATIENCE)
    page.click("form[action$='/cancel'] button")
    page.until(f"{BADGE} === 'stopped'", PATIENCE)
    page.click("form[action$='/resume'] button")
    page.until(f"{BADGE} === 'being made'", PATIENCE)
    gaps = _between_news_of_training(page)
    assert median(gaps) <= 2.0, gaps  # all of them, where the machine has nothing else to do
    page.until(f"{BADGE} === 'made'", PATIENCE)


def _between_news_of_training(page: Page) -> list[float]:
    """Seconds from one line about the training to the next, as a reader of the page sees them."""
    line = "(document.querySelector('.live .bar b')?.textContent === 'train' && document.querySelector('.live .bar .numbers')?.textContent) || ''"
    page.until(line, PATIENCE)
    said, when, gaps = page.run(line), time.monotonic(), []
    while now := page.run(line):
        if now != said:
            gaps.append(time.monotonic() - when)
            said, when = now, time.monotonic()
        time.sleep(0.05)
    return gaps


def _take_away(page: Page) -> None:
    assert page.run("document.querySelector('#trigger').textContent").isalnum()
    page.run("document.querySelector('button.copy').click()")
    page.until("document.querySelector('#said').textContent.startsWith('Copied: ')")
    link = page.run("document.querySelector('a[download]').href")
    with urllib.request.urlopen(link, timeout=60) as response, zipfile.ZipFile(io.BytesIO(response.read())) as archive:
        assert sum(name.endswith(".safetensors") for name in archive.namelist()) == 2


def _try_another_strength(page: Page) -> None:
    seen = []
    for place in ("0", "1", "2"):  # strengths 0, 0.5 and 1
        page.fill("#strength-slider", place)
        seen.append(page.run("document.querySelector('[data-shown]').src.split('/')[4]"))
    assert seen[0] == page.run("document.querySelector('[data-base]').src.split('/')[4]") and len(set(seen)) == 3
    assert "strength 1" in page.run("document.querySelector('#strength-slider').getAttribute('aria-valuetext')")
    page.run("document.querySelector('details.panel').open = true")
    page.fill("#strengths", "0.7")
    page.fill(".fields [name=prompt]", "asleep in a tent")
    page.click("form[action$='/sweep'] button")
    page.until("[...document.querySelectorAll('#strength option')].some((one) => one.value === '0.7')", PATIENCE)
    assert "asleep in a tent" in page.run("document.querySelector('#what').textContent")


def _start_a_cast(page: Page, site: Site) -> None:
    cast = site.folder / "cast.csv"
    with cast.open("w", encoding="utf-8", newline="") as file:
        rows = csv.writer(file)
        rows.writerow(["name", "prompt", "sheet", "overrides"])
        for name, prompt in (("Ben", "a knight"), ("Cid", "a wizard, old")):
            rows.writerow([name, prompt, site.sheet, ";".join(site.settings)])
    page.open(f"{site.address}/cast")
    page.choose_file("#cast", cast)
    page.click("form.fields button.first")
    assert "2 characters in cast.csv" in page.run(TEXT), page.run(TEXT)
    page.click("form[action='/cast/start'] button")
    page.until("['Ben', 'Cid'].every((name) => document.body.innerText.includes(name))")


def _narrow_and_dark(page: Page, pages: list[str]) -> None:
    for width, dark in ((390, True), (390, False), (1400, True)):
        page.look(width, dark=dark)
        for url in pages:
            page.open(url)
            assert page.run("document.documentElement.scrollWidth") <= width, (url, width)
            assert script() is None or serious(page) == [], (url, width, dark)
            light = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
            assert (light < 60) is dark
