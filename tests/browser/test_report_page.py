"""The report in a real browser: wide and narrow, light and dark, by mouse and by keyboard, asking nobody for anything."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path

import pytest
from axe import script, serious
from chromium import Page, chromium, program
from run_samples import sample_run, with_words

from charengine.stages.report.page import render
from charengine.store import Store

pytestmark = [pytest.mark.long, pytest.mark.skipif(program() is None, reason="needs Chromium")]

LOOKS = [(1400, False), (1400, True), (390, False), (390, True)]


@pytest.fixture(scope="module")
def report(tmp_path_factory: pytest.TempPathFactory) -> str:
    folder = tmp_path_factory.mktemp("runs")
    store = Store(folder / "store")
    run = with_words(sample_run(store), store)
    points = tuple(point.model_copy(update={"samples": (run.sheet.image,)}) for point in run.training.checkpoints)
    run = run.model_copy(update={"training": run.training.model_copy(update={"checkpoints": points})})
    path: Path = folder / "it's here" / "report.html"
    path.parent.mkdir()
    path.write_text(render(run, store), encoding="utf-8")
    return path.as_uri()


@pytest.fixture
def page(report: str) -> Iterator[Page]:
    with chromium() as opened:
        opened.look(1400)
        opened.open(report)
        yield opened


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_it_fits_asks_nobody_and_keeps_the_picked_column_in_view(
    page: Page, report: str, width: int, dark: bool
) -> None:
    page.look(width, dark=dark)
    page.requested.clear()
    page.open(report)
    assert [address for address in page.requested if not address.endswith("/report.html")] == []
    assert page.said == []
    assert page.run("document.documentElement.scrollWidth") == width
    for end in (0, 100_000):  # scrolled to either end, the pick is there, and whole
        left, right, of = page.run(
            f"(() => {{ const t = document.querySelector('.cells').parentElement; t.scrollLeft = {end};"
            "const p = t.querySelector('td.pinned').getBoundingClientRect(), w = t.getBoundingClientRect();"
            "return [p.left - w.left, p.right - w.left, w.width] })()"
        )
        assert -1 <= left < right <= of + 1
    narrowest = page.run(
        "Math.min(...[...document.querySelectorAll('.side img, .cells img, .scenes img')].map(i => i.clientWidth))"
    )
    assert narrowest >= 100


@pytest.mark.parametrize(("width", "dark"), LOOKS)
def test_axe_finds_nothing_serious(page: Page, width: int, dark: bool) -> None:
    if script() is None:
        pytest.skip("axe-core comes from npm")
    page.look(width, dark=dark)
    assert serious(page) == []


def test_every_control_has_a_name_and_every_scrolled_region_takes_the_keyboard(page: Page) -> None:
    unnamed = page.run(
        "[...document.querySelectorAll('button, a, input, summary')].filter(e => e.offsetParent && !(e.innerText.trim()"
        " || e.labels?.[0]?.innerText.trim() || e.querySelector('img')?.alt)).map(e => e.outerHTML.slice(0, 80))"
    )
    assert unnamed == []
    deaf = page.run(
        "[...document.querySelectorAll('*')].filter(e => e.scrollWidth > e.clientWidth + 1 && e.tabIndex < 0"
        " && getComputedStyle(e).overflowX === 'auto').map(e => e.className)"
    )
    assert deaf == []


def test_the_sliders_show_the_chosen_cells_own_pictures_and_numbers(page: Page) -> None:
    shown = "document.querySelector('#slid figure[data-prompt=\"1\"] img').src"
    cell = 'document.querySelector(\'.cells td[data-step="{}"][data-strength="{}"][data-prompt="1"] img\').src'
    place = "[document.getElementById('said-step').innerText, document.getElementById('said-strength').innerText]"
    assert page.run(place) == ["step 300", "0.6"]  # it opens at the pick
    page.run("document.getElementById('slide-strength').focus()")
    page.press("ArrowRight", 39)
    assert page.run(place) == ["step 300", "0.8"]
    assert page.run(f"{shown} === {cell.format(300, 0.8)} && {shown} !== {cell.format(300, 0.6)}")
    told = page.run("document.getElementById('chosen').innerText")
    page.run("document.getElementById('slide-step').focus()")
    page.press("ArrowLeft", 37)
    assert page.run(place) == ["step 200", "0.8"]
    assert page.run("document.getElementById('chosen').innerText") != told
    page.run("document.getElementById('slide-strength').focus()")
    page.press("Home", 36)
    assert page.run(place) == ["step 200", "0"]
    assert page.run(f"{shown} === {cell.format(0, 0)}")


def test_a_picture_is_enlarged_with_its_prompt_seed_and_settings_and_escape_closes_it(page: Page) -> None:
    page.run("document.querySelectorAll('.mosaic button')[1].focus()")
    page.press("Enter", 13)
    assert page.run("document.getElementById('large').open")
    assert page.run("document.querySelector('#large p').innerText") == (
        "zorgax orc, running, desert. Seed 42, checkpoint step 300, strength 0.6."
    )
    assert page.run("document.querySelector('#large img').clientWidth") > 400
    page.press("Escape", 27)
    assert not page.run("document.getElementById('large').open")
    assert page.run("document.activeElement === document.querySelectorAll('.mosaic button')[1]")


def test_the_words_are_copied_and_the_command_names_the_pages_own_folder(page: Page) -> None:
    page.call("Browser.grantPermissions", permissions=["clipboardReadWrite", "clipboardSanitizedWrite"])
    for place, wanted in (("say", "zorgax orc"), ("another", "charengine sweep '")):
        page.run(f"document.querySelector('[data-copies={place}]').click()")
        page.run("new Promise(done => setTimeout(done, 200))")
        assert page.run(f"document.querySelector('[data-copies={place}]').innerText") == "Copied"
        copied = page.run("navigator.clipboard.readText()")
        assert copied.startswith(wanted)
    assert "it'\\''s here' --profile embedded" in copied


def test_the_browser_refuses_whatever_the_page_might_ask(page: Page) -> None:
    refused = page.run(
        "new Promise(done => { document.addEventListener('securitypolicyviolation', e => done(e.blockedURI));"
        "fetch('http://127.0.0.1:9/').catch(() => {}) })"
    )
    assert refused == "http://127.0.0.1:9/"
