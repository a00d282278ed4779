"""The gallery in a real browser, on everything that `charengine up` starts: from nothing to an adapter, with the mouse alone."""

from __future__ import annotations

import io
import os
import signal
import subprocess
import sys
import time
import urllib.request
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from chromium import Page, chromium, program
from command_line import child_environment
from services.test_up import free_port

from charengine.machine.home import Home
from charengine.services.up import remembered_ports

pytestmark = [
    pytest.mark.long,
    pytest.mark.skipif(program() is None, reason="needs Chromium"),
]

PATIENCE = 480.0
TEXT = "document.body.innerText"
BADGE = "document.querySelector('.live .badge')?.textContent"


@contextmanager
def up(home: Home, *ports: object) -> Iterator[str]:
    """Everything, until left; the gallery's address."""
    command = [sys.executable, "-m", "charengine.cli", "up", *map(str, ports)]
    folder = home.root.parent
    with (folder / "up.log").open("w", encoding="utf-8") as log:
        process = subprocess.Popen(command, env=child_environment(home), cwd=folder, stdout=log, stderr=log)
    try:
        deadline = time.monotonic() + PATIENCE
        while not home.services_file.exists():
            assert process.poll() is None and time.monotonic() < deadline, (folder / "up.log").read_text(
                encoding="utf-8"
            )
            time.sleep(0.2)
        yield f"http://127.0.0.1:{remembered_ports(home)['gallery']}"
    finally:
        os.kill(process.pid, signal.SIGINT)
        process.wait(PATIENCE)


@pytest.mark.timeout(1500)
def test_from_an_empty_gallery_to_an_adapter_and_new_pictures_of_it(
    tmp_path: Path, tiny_settings: tuple[str, ...], drawn_sheet: Path
) -> None:
    home = Home(tmp_path / "home").create()
    ports = [part for name in ("gallery", "prefect", "mlflow") for part in (f"--{name}-port", free_port())]
    with chromium() as page:
        with up(home, *ports) as address:
            page.open(address)
            assert "No character yet" in page.run(TEXT)
            _start(page, tiny_settings, drawn_sheet)
            _stop_and_continue(page)
            _take_away(page, address)
            _try_another_strength(page)
            _start_a_cast(page, address, tmp_path, tiny_settings)
            _narrow_and_dark(page, address)
        with up(home) as again:
            assert again == address  # links go on working
            page.open(again)
            assert "Ann" in page.run(TEXT) and "Download" in page.run(TEXT)
        elsewhere = {url for url in page.requested if not url.startswith((address, "data:", "about:"))}
        assert elsewhere == set()
        assert [said for said in page.said if "422" not in said and "ERR_CONNECTION_REFUSED" not in said] == []


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
    page.until(f"{BADGE} === 'made'", PATIENCE)


def _take_away(page: Page, address: str) -> None:
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
        seen.append(page.run("document.querySelector('[data-shown]').src"))
    assert seen[0] == page.run("document.querySelector('[data-base]').src") and len(set(seen)) == 3
    assert "strength 1" in page.run("document.querySelector('#strength-slider').getAttribute('aria-valuetext')")
    page.run("document.querySelector('details.panel').open = true")
    page.fill("#strengths", "0.7")
    page.fill(".fields [name=prompt]", "asleep in a tent")
    page.click("form[action$='/sweep'] button")
    page.until("[...document.querySelectorAll('#strength option')].some((one) => one.value === '0.7')", PATIENCE)
    assert "asleep in a tent" in page.run("document.querySelector('#what').textContent")


def _start_a_cast(page: Page, address: str, folder: Path, settings: tuple[str, ...]) -> None:
    cast = folder / "cast.yaml"
    cast.write_text("- {name: Ben, prompt: a knight}\n- {name: Cid, prompt: a wizard}\n", encoding="utf-8")
    page.open(f"{address}/cast")
    page.choose_file("#cast", cast)
    page.click("form.fields button.first")
    assert "2 characters in cast.yaml" in page.run(TEXT)
    page.click("form[action='/cast/start'] button")
    page.until("['Ben', 'Cid'].every((name) => document.body.innerText.includes(name))")


def _narrow_and_dark(page: Page, address: str) -> None:
    page.open(f"{address}/")
    pages = [f"{address}/", f"{address}/start", f"{address}/cast"]
    pages.append(page.run("[...document.querySelectorAll('.card h2 a')].find((one) => one.textContent === 'Ann').href"))
    for width, dark in ((390, True), (390, False), (1400, True)):
        page.look(width, dark=dark)
        for url in pages:
            page.open(url)
            assert page.run("document.documentElement.scrollWidth") <= width, (url, width)
            light = page.run("getComputedStyle(document.body).backgroundColor.match(/\\d+/g).map(Number)[0]")
            assert (light < 60) is dark
