"""What the pages show: every character in its state, with what belongs to it and nothing else."""

from __future__ import annotations

import io
import os
import platform
import re
import sys
import time
import zipfile
from pathlib import Path
from subprocess import PIPE, Popen

import pytest
import yaml
from command_line import ROOT
from gallery_samples import Visit, claimed, made, running
from run_samples import doll, png

from charengine.machine.ledger import write_own
from charengine.records import RunRecord
from charengine.run.handing_over import lent_as
from charengine.services.gallery.characters import join
from charengine.services.gallery.folders import MOST_WHOLE, _whole
from charengine.services.gallery.pages import MOST_SHOWN
from charengine.stages.report.page import render

Sample = tuple[RunRecord, Path]


def cards(page: str) -> dict[str, str]:
    """Name to card."""
    found = re.findall(r'<li class="card[^"]*" data-piece="[^"]*">.*?</p>\s*</div>\s*</li>', page, re.DOTALL)
    return {re.findall(r">([^<]+)</a> <span class=\"badge", card)[0]: card for card in found}


def test_an_empty_gallery_says_how_to_begin(visit: Visit) -> None:
    page = visit.get("/")
    assert "No character yet" in page and 'href="/start"' in page


def test_a_finished_character_shows_sheet_drawings_at_the_pick_words_to_copy_and_what_to_take_away(
    visit: Visit, sample: Sample
) -> None:
    run = sample[0]
    made(visit, run)
    card = cards(visit.get("/"))["Zorga"]
    address = visit.address("Zorga")
    assert "<figcaption>the sheet<" in (page := visit.get(address)) and "<figcaption>front<" in page
    assert "made" in card and f"/picture/{run.sheet.image.sha256}/zorga-sheet?w=640" in card
    for prompt in range(3):
        drawn = run.sweep.picture(run.sweep.pick.metrics, prompt)
        assert drawn and f"/picture/{drawn.sha256}/zorga-{prompt + 1}?w=160" in card
    assert 'data-copy="zorgax"' in card and 'data-copy="zorgax orc"' in card
    assert f"<dd>{run.sweep.pick.reasons[0]}</dd>" in card
    assert f"{address}/adapter.zip" in card and f"{address}/report" in card
    assert "http://127.0.0.1:5000/#/experiments/7/runs/" not in card  # the sample's id is none of MLflow's
    assert visit.client.get(f"{address}/file/sheet?w=160").headers["content-type"] == "image/webp"
    assert visit.client.get(f"/picture/{drawn.sha256}").content.startswith(b"\x89PNG")


def test_a_picture_that_is_saved_has_its_characters_name(visit: Visit, sample: Sample) -> None:
    made(visit, sample[0])
    pages = visit.get("/") + visit.get(visit.address("Zorga"))
    for address in re.findall(r'src="(/(?:picture|character)/[^"]+)"', pages) + ["/picture/{}/..%22%0d%0aZorga"]:
        answer = visit.client.get(address.format(sample[0].sheet.image.sha256))
        assert re.fullmatch(r'inline; filename="zorga(-\w+)?\.(png|webp)"', answer.headers["content-disposition"])


def test_the_run_in_prefect_and_in_mlflow_are_one_click_away(visit: Visit, sample: Sample) -> None:
    made(visit, sample[0].model_copy(update={"mlflow_run_id": "cd" * 16, "prefect_flow_run_id": "an-id"}))
    card = cards(visit.get("/"))["Zorga"]
    assert f'href="http://127.0.0.1:5000/#/experiments/7/runs/{"cd" * 16}?workflowType=machine_learning"' in card
    assert 'href="http://127.0.0.1:4200/runs/flow-run/an-id"' in card
    page = visit.get("/")  # overfit runs against strength sweeps, and loss curves: one link each
    for name, view in (("Compare strengths", "charengine-strength"), ("Compare trainings", "charengine-losses")):
        assert re.search(rf'href="[^"]*viewStateShareKey={view}">{name}</a>', page)


def test_what_waits_and_what_is_made_stands_before_what_is_there_each_in_its_state(
    visit: Visit, sample: Sample
) -> None:
    made(visit, sample[0])
    visit.prefect.runs = [
        running("Wait", "SCHEDULED"),
        running("Now"),
        running("Broken", "FAILED", message="the sheet is empty", out=str(visit.work / "runs" / "broken")),
        running("Gone", "CANCELLED"),
    ]
    page = visit.get("/")
    found = cards(page)
    assert list(found)[:2] == ["Now", "Wait"]
    states = {name: re.findall(r'class="badge [^"]*">([^<]+)<', card)[0] for name, card in found.items()}
    assert states == {"Now": "being made", "Wait": "waiting", "Broken": "failed", "Gone": "stopped", "Zorga": "made"}
    assert "the sheet is empty" in found["Broken"]
    assert "5 characters, 1 being made, 1 waiting, 1 failed" in page


def test_a_character_is_followed_stage_step_loss_time_left_and_latest_sample(visit: Visit) -> None:
    visit.prefect.runs = [running("Now")]
    visit.prefect.tasks["run-of-now"] = [
        {"name": "sheet-now", "state_type": "COMPLETED", "state_name": "Cached", "total_run_time": 0.1},
        {"name": "crop-now", "state_type": "COMPLETED", "state_name": "Completed", "total_run_time": 3.2},
        {"name": "train-now", "state_type": "RUNNING", "state_name": "Running"},
    ]
    line = "step 30 of 100, loss 0.1234, 2 min 3 s left"
    visit.prefect.artifacts["run-of-now"] = {"key": "now-training", "data": 30.0, "description": line}
    visit.tracked.sample = (25, f"{'ef' * 16}/images/samples+step+25+x.png")
    part = visit.get(f"/part{visit.address('Now')}")
    assert line in part and 'value="30.0"' in part
    assert "unchanged, taken from an earlier run" in part and "done in 3 s" in part
    assert '<li class="now" aria-current="step"><b>train</b>' in part
    assert f"/tracked/{'ef' * 16}/images/samples" in part and "sample at step 25" in part
    assert line in cards(visit.get("/"))["Now"]


def test_a_sheet_that_is_not_logged_yet_is_no_broken_picture(visit: Visit) -> None:
    visit.prefect.runs = [running("Ada", run_id="abc")]
    visit.tracked.files = []
    assert "images/sheet.png" not in visit.get("/") + visit.get(visit.address("Ada"))
    visit.tracked.files = ["images/sheet.png"]
    assert f"/tracked/{'ab' * 16}/images/sheet.png?w=640" in visit.get(visit.address("Ada"))


def test_the_picture_that_a_character_was_made_from_is_shown_beside_its_sheet(visit: Visit, sample: Sample) -> None:
    folder = made(visit, sample[0])
    address = visit.address("Zorga")
    assert "The picture given" not in visit.get(address)
    (folder / "reference.png").write_bytes((folder / "sheet.png").read_bytes())
    assert f'src="{address}/file/reference?w=320" alt="The picture given of Zorga"' in visit.get(address)
    assert visit.client.get(f"{address}/file/reference?w=320").headers["content-type"] == "image/webp"


def test_the_picture_given_is_shown_before_anything_is_drawn(visit: Visit) -> None:
    (visit.work / "me.png").write_bytes(png(doll()))
    os.symlink(visit.work / "me.png", visit.work / "linked.png")
    lent = lent_as(visit.gallery.store.put(png(doll()), "me.png"))
    for what, place in (("reference", str(visit.work / "me.png")), ("sheet", "me.png"), ("reference", lent)):
        visit.prefect.runs = [running("Ann", "SCHEDULED", **{what: place})]
        [address] = re.findall(r'src="([^"]+)\?w=320" alt="The \w+ given of Ann"', visit.get(visit.address("Ann")))
        assert visit.client.get(address).content == png(doll())
    for place in ("linked.png", "nowhere.png", "a\0b", "~nobody-of-that-name/x"):
        visit.prefect.runs = [running("Ann", reference=place)]
        assert " given of Ann" not in visit.get(visit.address("Ann"))
    visit.get(f"{visit.address('Ann')}/file/given", 404)


def test_what_is_being_made_says_how_long_that_takes(visit: Visit, sample: Sample) -> None:
    visit.prefect.runs = [running("Ann", overrides=["train.steps=300"])]
    assert "not known yet" in visit.get(visit.address("Ann"))
    made(visit, sample[0].model_copy(update={"profile": "embedded"}))
    few = visit.get(visit.address("Ann"))
    visit.prefect.runs = [{**running("Ann", overrides=["train.steps=99000"]), "estimated_run_time": 35.2}]
    many = visit.get(visit.address("Ann"))
    assert "In all it takes about 3 min (" in few and "h (train" in many and "; 35 s of it are over." in many


def test_what_waits_says_whether_others_come_before_it(visit: Visit) -> None:
    visit.prefect.runs = [running("Ada", "SCHEDULED"), running("Zoe", "SCHEDULED")]
    assert "It begins in a moment." in visit.get(visit.address("Ada"))
    visit.prefect.runs.append(running("Ben"))
    assert "It begins when the one before it is done." in visit.get(visit.address("Ada"))


def test_progress_of_a_stage_that_has_ended_is_not_shown_for_the_next(visit: Visit) -> None:
    visit.prefect.runs = [running("Now")]
    visit.prefect.tasks["run-of-now"] = [{"name": "sweep-now", "state_type": "RUNNING", "state_name": "Running"}]
    visit.prefect.artifacts["run-of-now"] = {"key": "now-training", "data": 100.0, "description": "step 9 of 9"}
    assert "step 9 of 9" not in visit.get(f"/part{visit.address('Now')}")


def test_a_stage_says_how_long_it_has_been_made_and_one_that_was_killed_is_not_being_made(visit: Visit) -> None:
    visit.prefect.runs = [running("Now")]
    task = {"name": "sheet-now", "state_type": "RUNNING", "state_name": "Running", "estimated_run_time": 12.4}
    visit.prefect.tasks["run-of-now"] = [task]
    for state in ("RUNNING", "CANCELLING"):
        visit.prefect.runs = [running("Now", state)]
        assert "is being made, 12 s so far" in visit.get(f"/part{visit.address('Now')}")
    visit.prefect.runs = [running("Now", "CANCELLED")]
    page = visit.get(visit.address("Now"))
    assert "<b>sheet</b> <span>stopped</span>" in page and "is being made" not in page
    assert "<b>train</b> <span>not made</span>" in page and "<span>waits" not in page
    task["state_type"] = "FAILED"  # as a training that is stopped ends
    for state in ("CANCELLING", "CANCELLED"):
        visit.prefect.runs = [running("Now", state)]
        assert "<b>sheet</b> <span>stopped</span>" in visit.get(visit.address("Now"))
    visit.prefect.runs = [running("Now", "FAILED")]
    assert "<b>sheet</b> <span>failed</span>" in visit.get(visit.address("Now"))


def test_a_run_whose_heartbeats_were_lost_is_being_made_while_its_process_is_here(visit: Visit) -> None:
    [action] = yaml.safe_load((ROOT / "deployments/automations/crash-dead-runs.yaml").read_text())["actions"]
    run = running("Now", "CRASHED", message=action["message"])
    with Popen([sys.executable, "-c", "print(flush=True); input()", "prefect"], stdin=PIPE, stdout=PIPE) as process:
        assert process.stdout and process.stdout.readline()  # one that only begins has no command line yet
        for pid, host, ended, state in (
            (process.pid, platform.node(), "2100-01-01T00:00:00Z", "being made"),
            (process.pid, platform.node(), "2026-01-01T00:00:00Z", "stopped"),  # the number is another process's now
            (process.pid, "another", "", "stopped"),
        ):
            visit.prefect.runs = [{**run, "infrastructure_pid": f"{host}:{pid}", "end_time": ended}]
            [one] = visit.gallery.characters()[0]
            assert one.state == state
            if state == "being made":
                visit.post(f"{visit.address('Now')}/cancel")
        process.kill()
    assert visit.prefect.cancelled == ["run-of-now!"]


def test_one_that_was_stopped_links_to_mlflow_and_its_prompt_if_any_begins_another(visit: Visit) -> None:
    visit.prefect.runs = [running("Now", "CANCELLED")]
    assert "Its run in MLflow" in visit.get(visit.address("Now"))
    assert "Start one like it" in visit.get(visit.address("Now"))
    visit.prefect.runs = [running("Now", "CANCELLED", prompt="")]
    assert "Start one like it" not in visit.get(visit.address("Now"))


@pytest.mark.parametrize(
    ("state", "buttons"),
    [("RUNNING", "cancel"), ("SCHEDULED", "cancel"), ("FAILED", "resume"), ("CRASHED", "resume"), ("CANCELLING", "")],
)
def test_only_what_goes_on_can_be_cancelled_and_only_what_ended_early_can_be_resumed(
    visit: Visit, state: str, buttons: str
) -> None:
    visit.prefect.runs = [running("Ann", state)]
    page = visit.get(visit.address("Ann"))
    assert re.findall(r'action="/character/[^/"]+/(cancel|resume)"', page) == ([buttons] if buttons else [])
    card = re.findall(r'/resume".*?value="([^"]+)".*?value="(\w+)"', visit.get("/"))
    assert len(card) == (buttons == "resume")
    for token, once in card * 2:  # as often as it is sent, whichever page sends it
        assert f'value="{once}"' in page and token == visit.gallery.token
        visit.post(f"{visit.address('Ann')}/resume", {"once": once})
        assert len(visit.prefect.started) == 1


def test_a_page_of_many_that_failed_asks_prefect_for_their_stages_once(visit: Visit) -> None:
    visit.prefect.runs = [running(f"Ann {number}", "FAILED") for number in range(60)]
    visit.prefect.tasks["run-of-ann 7"] = [{"name": "sheet-ann", "state_type": "FAILED"}]
    page = visit.get("/")
    assert page.count("Ann ") >= 60 and visit.prefect.asked_for_tasks == 1


@pytest.mark.slow
def test_a_thousand_characters_are_shown_again_within_a_second(visit: Visit, sample: Sample) -> None:
    for number in range(1000):
        made(visit, sample[0], f"Ann {number:04d}")
    visit.get("/")
    began = time.process_time()
    assert "Ann 0999" in visit.get("/part/characters")
    assert time.process_time() - began < 1.0


def test_thousands_of_records_are_kept_packed_and_found_without_unpacking_them(visit: Visit, sample: Sample) -> None:
    for number in range(30):
        made(visit, sample[0].model_copy(update={"seed": number}), f"Ann {number:04d}")
    before = _whole.cache_info().misses
    found = visit.gallery.folders.find()
    characters = join(found, [], visit.gallery.folders.places)
    assert [one.name for one in characters if one.matches("0007 zorgax")] == ["Ann 0007"]
    assert all(one.run_id == (sample[0].prefect_flow_run_id or "") for one in characters)
    assert _whole.cache_info().misses == before
    assert all(len(one.record.packed) < len(sample[0].model_dump_json()) / 3 for one in found if one.record)
    assert {one.run.seed for one in found if one.run} == set(range(30))
    assert _whole.cache_info().maxsize == MOST_WHOLE > MOST_SHOWN


def test_search_finds_names_prompts_and_triggers(visit: Visit, sample: Sample) -> None:
    made(visit, sample[0])
    made(visit, sample[0].model_copy(update={"trigger": "vexivo"}), "Lady Vex", "a tall woman in black")
    for words, found in {
        "ZORGA": {"Zorga"},
        "tall black": {"Lady Vex"},
        "vexivo": {"Lady Vex"},
        "nobody": set(),
        "": {"Zorga", "Lady Vex"},
    }.items():
        assert set(cards(visit.get(f"/?q={words}"))) == found, words
        assert set(cards(visit.get(f"/part/characters?q={words}"))) == found


def test_without_prefect_what_was_made_is_shown_and_it_says_why_the_rest_is_not(visit: Visit, sample: Sample) -> None:
    made(visit, sample[0])
    visit.prefect.away = "Prefect at http://127.0.0.1:9/api does not answer (refused)"
    page = visit.get("/")
    assert "Zorga" in cards(page) and "does not answer (refused). What is being made now is not shown." in page
    visit.get(visit.address("Zorga"))


def test_a_character_made_on_another_machine_is_shown_with_mlflows_picture(visit: Visit) -> None:
    visit.prefect.runs = [running("Far", "COMPLETED", out="/somewhere/else/runs/far")]
    card = cards(visit.get("/"))["Far"]
    assert (
        "made, not here" in card
        and "is not at /somewhere/else/runs/far: it was moved" in card
        and f"/tracked/{'ab' * 16}/images/sheet.png" in card
    )
    assert visit.client.get(f"/tracked/{'ab' * 16}/images/sheet.png?w=320").headers["content-type"] == "image/webp"
    visit.get(f"/tracked/{'ab' * 16}/images/page.png", 404)  # what MLflow answers there is no picture


def test_a_folder_that_was_renamed_is_still_its_runs_character(visit: Visit, sample: Sample) -> None:
    run = sample[0].model_copy(update={"prefect_flow_run_id": "run-of-zorga"})
    made(visit, run).rename(visit.work / "runs" / "orc")
    visit.prefect.runs = [running("Zorga", "COMPLETED", out=str(visit.work / "runs" / "zorga"))]
    assert [(one.name, one.state) for one in visit.gallery.characters()[0]] == [("Zorga", "made")]


def test_a_folder_that_was_begun_and_never_finished_is_shown_as_such(visit: Visit) -> None:
    claimed(visit.work / "runs" / "ann", "Ann", "a knight")
    assert "not finished" in cards(visit.get("/"))["ann"]


@pytest.mark.parametrize("out", ["~nobody-of-that-name/x", "a\0b", "x" * 5000, "../../..", 7])
def test_a_folder_that_cannot_be_hides_no_other_character(visit: Visit, sample: Sample, out: object) -> None:
    made(visit, sample[0])
    visit.prefect.runs = [running("Odd", "FAILED", out=out)]
    assert set(cards(visit.get("/"))) == {"Zorga", "Odd"}


def test_what_people_wrote_is_text_on_every_page(visit: Visit, sample: Sample) -> None:
    made(visit, sample[0], "Zorga", "<script>alert('x')</script>")
    visit.prefect.runs = [running("<img src=x onerror=alert(1)>", "FAILED", message="<b>bold</b>")]
    for path in ("/", "/?q=<script>", *(f"/character/{one.id}" for one in visit.gallery.characters()[0])):
        page = visit.get(path)
        assert "<script>alert" not in page and "<img src=x" not in page and "<b>bold" not in page, path


def test_pages_load_nothing_from_elsewhere_and_tell_the_browser_so(visit: Visit, sample: Sample) -> None:
    made(visit, sample[0])
    for path in ("/", "/start", "/cast", visit.address("Zorga"), "/nowhere"):
        answer = visit.client.get(path)
        assert re.findall(r'(?:src|srcset|action)="(?!/)[^"]*"', answer.text) == [], path
        assert re.findall(r'<link[^>]*href="(?!/)', answer.text) == []
        assert "default-src 'none'" in answer.headers["content-security-policy"]
        assert answer.headers["x-content-type-options"] == "nosniff"


def test_the_zip_holds_the_adapters_and_what_lies_beside_them_and_nothing_else(visit: Visit, sample: Sample) -> None:
    folder = made(visit, sample[0]) / "adapters"
    (folder / "README.md").write_text("the card")
    (folder / "zorgax.png").write_bytes(b"\x89PNG preview")
    (folder / "scene-1.webp").write_bytes(b"RIFF")  # shown in the card
    for name in ("zorgax.civitai.info", "zorgax.json", "notes.txt", "../secret.json"):
        (folder / name).write_text("{}")
    os.symlink(folder.parent / "secret.json", folder / "linked.json")
    write_own(folder.parent, {folder / "griqul.safetensors": b"of an earlier trigger"})
    answer = visit.client.get(f"{visit.address('Zorga')}/adapter.zip")
    assert answer.headers["content-disposition"] == 'attachment; filename="zorga.zip"'
    with zipfile.ZipFile(io.BytesIO(answer.content)) as archive:
        assert archive.testzip() is None
        assert sorted(archive.namelist()) == [
            "zorga/README.md",
            "zorga/scene-1.webp",
            "zorga/zorgax.civitai.info",
            "zorga/zorgax.json",
            "zorga/zorgax.png",
            "zorga/zorgax.safetensors",
            "zorga/zorgax_recommended.safetensors",
        ]
        assert archive.read("zorga/zorgax.safetensors") == b"zorgax.safetensors" * 100
    assert "linked.json" not in visit.get(visit.address("Zorga"))
    visit.get(f"{visit.address('Zorga')}/adapters/notes.txt", 404)
    assert visit.get(f"{visit.address('Zorga')}/adapters/README.md") == "the card"


def test_the_report_is_shown_where_it_can_do_nothing_to_the_gallery(visit: Visit, sample: Sample) -> None:
    made(visit, sample[0])
    answer = visit.client.get(f"{visit.address('Zorga')}/report")
    assert answer.text.startswith("<h1>the report")
    policy = answer.headers["content-security-policy"]
    assert policy.startswith("sandbox ") and "allow-same-origin" not in policy and "default-src 'none'" in policy


def test_a_report_leads_back_to_its_character_and_its_file_stays_as_it_was(visit: Visit, sample: Sample) -> None:
    page = render(sample[0], visit.gallery.store)
    (made(visit, sample[0]) / "report.html").write_text(page, encoding="utf-8")
    shown = visit.get(f"{visit.address('Zorga')}/report")
    before, _, after = page.partition("<body>")
    back = shown.removeprefix(f"{before}<body>").removesuffix(after)
    assert re.findall(r'href="([^"]+)"', back) == ["/", visit.address("Zorga")] and len(back) < 500


@pytest.mark.parametrize(
    "path",
    [
        "/character/../../etc/passwd",
        "/character/%2e%2e%2f%2e%2e%2fetc%2fpasswd",
        "/character/nobody-12345678",
        "{address}/file/run.json",
        "{address}/file/..%2frun.json",
        "{address}/adapters/..%2frun.json",
        "{address}/adapters/%2fetc%2fpasswd",
        "/picture/../run.json",
        "/picture/" + "0" * 64,
        "/picture/" + "0" * 63,
        "/tracked/..%2f..%2f/images/sheet.png",
        "/tracked/" + "ab" * 16 + "/images/..%2f..%2fsheet.png",
        "/static/../app.py",
        "/static/%2e%2e/app.py",
    ],
)
def test_no_path_leads_out_of_what_the_gallery_shows(visit: Visit, sample: Sample, path: str) -> None:
    made(visit, sample[0])
    visit.get(path.format(address=visit.address("Zorga")), 404)


def test_the_store_hands_out_pictures_alone(visit: Visit, sample: Sample) -> None:
    visit.get(f"/picture/{sample[0].sweep.adapter.sha256}", 404)
    visit.get(f"/picture/{sample[0].sweep.contact_sheet.sha256}")


def test_a_link_in_a_runs_folder_is_not_followed(visit: Visit, sample: Sample) -> None:
    folder = made(visit, sample[0])
    (folder / "report.html").unlink()
    os.symlink("/etc/hostname", folder / "report.html")
    (folder / "sheet.png").unlink()
    os.symlink("/etc/hostname", folder / "sheet.png")
    visit.get(f"{visit.address('Zorga')}/report", 404)
    visit.get(f"{visit.address('Zorga')}/file/sheet", 404)
