"""Chromium without a window, driven over its DevTools protocol: pages are opened, measured, clicked and looked at."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
import tempfile
import time
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from websockets.sync.client import ClientConnection, connect

FLAGS = (
    "--headless",
    "--no-sandbox",
    "--disable-gpu",
    "--disable-dev-shm-usage",
    "--disable-background-networking",
    "--hide-scrollbars",
    "--no-first-run",
    "--remote-debugging-port=0",
)
SECONDS = 60.0  # for one answer, and for a page to load
LOOK_SECONDS = 10.0  # for one of many looks: a page that is replaced meanwhile may never answer


def program() -> str | None:
    """Chromium's path; None where there is none."""
    return next(
        (path for name in ("chromium", "chromium-browser", "google-chrome") if (path := shutil.which(name))), None
    )


class Page:
    """One tab.

    Args:
        socket: of its DevTools.
    """

    def __init__(self, socket: ClientConnection) -> None:
        self._socket, self._last = socket, 0
        self.requested: list[str] = []  # addresses, data: left out
        self.said: list[str] = []  # errors in its console
        for domain in ("Page", "Runtime", "Network", "Log"):
            self.call(f"{domain}.enable")
        self.call("Emulation.setFocusEmulationEnabled", enabled=True)  # a page without focus may not copy

    def call(self, method: str, *, within: float = SECONDS, **params: Any) -> dict[str, Any]:
        """One command and its answer, within so many seconds; events that come meanwhile are noted."""
        self._last += 1
        self._socket.send(json.dumps({"id": self._last, "method": method, "params": params}))
        while True:
            message = json.loads(self._socket.recv(timeout=within))
            if message.get("id") == self._last:
                if "error" in message:
                    raise RuntimeError(f"{method}: {message['error']['message']}")
                result: dict[str, Any] = message["result"]
                return result
            self._note(message)

    def _note(self, event: dict[str, Any]) -> None:
        params = event.get("params", {})
        if event.get("method") == "Network.requestWillBeSent" and not params["request"]["url"].startswith("data:"):
            self.requested.append(params["request"]["url"])
        if event.get("method") == "Runtime.exceptionThrown":
            self.said.append(params["exceptionDetails"].get("exception", {}).get("description", "exception"))
        if event.get("method") == "Log.entryAdded" and params["entry"]["level"] == "error":
            self.said.append(params["entry"]["text"])

    def look(self, width: int, height: int = 900, dark: bool = False) -> None:
        """How wide the window is, CSS pixels, and whether the reader's system is dark."""
        self.call(
            "Emulation.setDeviceMetricsOverride", width=width, height=height, deviceScaleFactor=1, mobile=width < 600
        )
        scheme = {"name": "prefers-color-scheme", "value": "dark" if dark else "light"}
        self.call("Emulation.setEmulatedMedia", features=[scheme])

    def open(self, url: str) -> None:
        """Load a page whole."""
        self.call("Page.navigate", url=url)
        deadline = time.monotonic() + SECONDS
        while self.run("document.readyState") != "complete" or self.run("location.href") == "about:blank":
            if time.monotonic() > deadline:
                raise TimeoutError(f"{url} did not load")
            time.sleep(0.05)

    def run(self, script: str, within: float = SECONDS) -> Any:
        """What an expression gives; a promise is waited for."""
        how = {"awaitPromise": True, "returnByValue": True, "userGesture": True}
        answer = self.call("Runtime.evaluate", within=within, expression=script, **how)
        if "exceptionDetails" in answer:
            raise RuntimeError(str(answer["exceptionDetails"].get("exception", {}).get("description")))
        return answer["result"].get("value")

    def until(self, script: str, seconds: float = SECONDS) -> Any:
        """Wait until an expression is true; its value. A page that is being replaced is asked again."""
        deadline = time.monotonic() + seconds
        while True:
            try:
                if value := self.run(script, LOOK_SECONDS):
                    return value
            except (RuntimeError, TimeoutError):
                pass
            if time.monotonic() > deadline:
                raise TimeoutError(f"{script}\n{self.run('document.body.innerText')}")
            time.sleep(0.1)

    def fill(self, selector: str, value: str) -> None:
        """Write into a field, and say so as typing does."""
        self.run(
            f"(() => {{ const one = document.querySelector({json.dumps(selector)}); one.value = {json.dumps(value)};"
            "one.dispatchEvent(new Event('input', {bubbles: true})); one.dispatchEvent(new Event('change', {bubbles: true})) })()"
        )

    def choose_file(self, selector: str, path: Path) -> None:
        """As the dialog of a file field does."""
        root = self.call("DOM.getDocument")["root"]["nodeId"]
        node = self.call("DOM.querySelector", nodeId=root, selector=selector)["nodeId"]
        self.call("DOM.setFileInputFiles", nodeId=node, files=[str(path)])

    def click(self, selector: str) -> None:
        """Click something that leads to another page, and wait for that."""
        self.run("window.stays = true")
        self.run(f"document.querySelector({json.dumps(selector)}).click()")
        self.until("window.stays === undefined && document.readyState === 'complete'")

    def press(self, key: str, code: int) -> None:
        """One key, as a keyboard does."""
        text: dict[str, Any] = {"text": "\r"} if key == "Enter" else {}
        for kind in ("keyDown" if text else "rawKeyDown", "keyUp"):
            self.call("Input.dispatchKeyEvent", type=kind, key=key, code=key, windowsVirtualKeyCode=code, **text)

    def picture(self, path: Path, whole: bool = False) -> Path:
        """A PNG of the window, or of the whole page."""
        shot = self.call("Page.captureScreenshot", format="png", captureBeyondViewport=whole)
        path.write_bytes(base64.b64decode(shot["data"]))
        return path


@contextmanager
def chromium() -> Iterator[Page]:
    """A browser with one empty tab and a profile of its own; it ends on the way out."""
    found = program()
    assert found, "no Chromium"
    with tempfile.TemporaryDirectory(ignore_cleanup_errors=True) as folder:
        command = [found, *FLAGS, f"--user-data-dir={folder}", "about:blank"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        try:
            port = _port(Path(folder) / "DevToolsActivePort")
            with urllib.request.urlopen(f"http://127.0.0.1:{port}/json", timeout=SECONDS) as answer:
                [tab] = [tab for tab in json.loads(answer.read()) if tab["type"] == "page"]
            with connect(tab["webSocketDebuggerUrl"], max_size=None, proxy=None, ping_interval=None) as socket:
                yield Page(socket)
        finally:
            process.terminate()
            process.wait(timeout=30)


def _port(file: Path) -> int:
    deadline = time.monotonic() + SECONDS
    while time.monotonic() < deadline:
        if file.exists() and (lines := file.read_text().splitlines()):
            return int(lines[0])
        time.sleep(0.05)
    raise TimeoutError("Chromium did not start")
