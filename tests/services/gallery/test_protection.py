"""Who may not: foreign names, foreign pages, forms that are not ours, and whoever sends too much."""

from __future__ import annotations

import re

import pytest
from gallery_samples import ADDRESS, Visit, running

CHANGES = ["/start", "/cast", "/cast/start", "{address}/cancel", "{address}/resume", "{address}/sweep"]


@pytest.mark.parametrize(
    "host", ["evil.example", "evil.example:4300", "192.168.0.7:4300", "", "127.0.0.1.evil.example"]
)
def test_a_foreign_name_gets_nothing(visit: Visit, host: str) -> None:
    for path in ("/", "/health", "/static/gallery.css"):
        assert visit.client.get(path, headers={"Host": host}).status_code == 403
    assert visit.client.post("/start", headers={"Host": host}).status_code == 403


@pytest.mark.parametrize("host", ["localhost:4300", "127.0.0.1:8000", "[::1]:4300"])
def test_this_machines_own_names_are_answered_whatever_the_port_for_tunnels(visit: Visit, host: str) -> None:
    assert visit.client.get("/", headers={"Host": host}).status_code == 200


@pytest.mark.parametrize("origin", ["https://evil.example", "http://127.0.0.1:9999", "null", "http://localhost"])
@pytest.mark.parametrize("path", CHANGES)
def test_a_foreign_page_changes_nothing_even_with_the_token(visit: Visit, path: str, origin: str) -> None:
    visit.prefect.runs = [running("Ann")]
    address = path.format(address=visit.address("Ann"))
    sent = {"token": visit.gallery.token, "once": "1", "prompt": "a knight"}
    answer = visit.client.post(address, data=sent, headers={"Origin": origin})
    assert answer.status_code == 403
    assert visit.prefect.started == [] and visit.prefect.cancelled == []


@pytest.mark.parametrize("token", [None, "", "wrong", "ä"])
@pytest.mark.parametrize("path", CHANGES)
def test_a_form_without_the_pages_token_changes_nothing(visit: Visit, path: str, token: str | None) -> None:
    visit.prefect.runs = [running("Ann")]
    address = path.format(address=visit.address("Ann"))
    data = {"once": "1", "prompt": "a knight", **({} if token is None else {"token": token})}
    answer = visit.client.post(address, data=data, headers={"Origin": ADDRESS})
    assert answer.status_code == 403 and "reload it" in answer.text
    assert visit.prefect.started == [] and visit.prefect.cancelled == []


def test_every_form_that_changes_something_holds_the_token(visit: Visit) -> None:
    visit.prefect.runs = [running("Ann")]
    for path in ("/start", "/cast", visit.address("Ann")):
        forms = re.findall(r'<form method="post".*?</form>', visit.get(path), re.DOTALL)
        assert forms and all(f'name="token" value="{visit.gallery.token}"' in form for form in forms), path


def test_looking_never_changes_anything(visit: Visit) -> None:
    visit.prefect.runs = [running("Ann")]
    for path in CHANGES[2:]:
        assert visit.client.get(path.format(address=visit.address("Ann"))).status_code == 405
    assert visit.prefect.cancelled == []


def test_too_much_is_refused_whether_its_length_is_said_or_not(visit: Visit) -> None:
    large = b"x" * 65_000_000
    answer = visit.client.post("/start", data={"token": visit.gallery.token}, files={"picture": ("x.png", large)})
    assert answer.status_code == 413 and "more than 64 MB" in answer.text
    pieces = (large[:1_000_000] for _ in range(70))
    kind = {"Content-Type": "multipart/form-data; boundary=b"}
    assert visit.client.post("/start", content=pieces, headers=kind).status_code == 413
    lie = {**kind, "Content-Length": "-5"}
    assert visit.client.post("/start", content=b"--b--", headers=lie).status_code == 413
    assert visit.prefect.started == []


@pytest.mark.parametrize("body", [b"", b"--b\r\nnonsense", b"--other--"])
def test_what_is_no_form_is_refused(visit: Visit, body: bytes) -> None:
    answer = visit.client.post("/start", content=body, headers={"Content-Type": "multipart/form-data; boundary=b"})
    assert answer.status_code in (400, 403)
    assert visit.client.post("/start", content=body, headers={"Content-Type": "multipart/form-data"}).status_code in (
        400,
        403,
    )


def test_a_defect_of_ours_says_so_and_shows_no_inside(visit: Visit, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken() -> None:
        raise RuntimeError("secret of the inside")

    monkeypatch.setattr(visit.gallery, "characters", broken)
    answer = visit.client.get("/")
    assert answer.status_code == 500 and "defect" in answer.text and "secret of the inside" not in answer.text
