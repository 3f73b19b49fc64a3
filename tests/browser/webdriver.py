"""A client of chromedriver, as much as the tests of the pages need: WebDriver is JSON over HTTP."""

from __future__ import annotations

import base64
import re
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import httpx

ELEMENT = "element-6066-11e4-a52e-4f735466cecf"


def why_no_browser() -> str:
    """Say why no page can be tested here; empty when it can."""
    missing = [name for name in ("chromium", "chromedriver") if shutil.which(name) is None]
    return f"{' and '.join(missing)} is missing (Debian: apt-get install chromium chromium-driver)" if missing else ""


class Browser:
    """One window of a headless Chromium."""

    def __init__(self, client: httpx.Client, session: str) -> None:
        self._client = client
        self._session = session

    def call(self, method: str, path: str, **body: Any) -> Any:
        reply = self._client.request(method, f"/session/{self._session}{path}", json=body if method == "POST" else None)
        value = reply.json()["value"]
        assert reply.status_code == 200, value
        return value

    def open(self, url: str) -> None:
        self.call("POST", "/url", url=url)

    def js(self, script: str, *arguments: Any) -> Any:
        return self.call("POST", "/execute/sync", script=script, args=list(arguments))

    def find(self, selector: str) -> str:
        found: str = self.call("POST", "/element", using="css selector", value=selector)[ELEMENT]
        return found

    def click(self, selector: str) -> None:
        self.call("POST", f"/element/{self.find(selector)}/click")

    def keys(self, selector: str, text: str) -> None:
        """Type into an element; the private characters of WebDriver stand for keys."""
        self.call("POST", f"/element/{self.find(selector)}/value", text=text)

    def replace(self, selector: str, text: str) -> None:
        """Set what a text area holds as pasting would."""
        self.js(
            "const area = document.querySelector(arguments[0]); area.focus(); area.select();"
            "document.execCommand('insertText', false, arguments[1]);",
            selector,
            text,
        )

    def text(self, selector: str) -> str:
        """Text as it is shown; empty where the element is hidden."""
        shown: str = self.call("GET", f"/element/{self.find(selector)}/text")
        return shown

    def until(self, condition: Callable[[], object], seconds: float = 15) -> None:
        deadline = time.monotonic() + seconds
        while not condition():
            assert time.monotonic() < deadline, self.js("return document.body.innerText")
            time.sleep(0.05)

    def picture(self, path: Path) -> None:
        """Take the whole page."""
        height = self.js("return document.documentElement.scrollHeight")
        width = self.js("return innerWidth")
        clip = {"x": 0, "y": 0, "width": width, "height": height, "scale": 1}
        shot = self.cdp("Page.captureScreenshot", captureBeyondViewport=True, clip=clip)
        path.write_bytes(base64.b64decode(shot["data"]))

    def cdp(self, command: str, **parameters: Any) -> Any:
        return self.call("POST", "/goog/cdp/execute", cmd=command, params=parameters)

    def complaints(self) -> list[str]:
        """What the console holds since the last look: failed loads, errors, violations of the policy."""
        return [entry["message"] for entry in self.call("POST", "/se/log", type="browser")]


@contextmanager
def driver() -> Iterator[httpx.Client]:
    """Start chromedriver; it and its browsers end with the context."""
    process = subprocess.Popen(
        ["chromedriver", "--port=0"], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True
    )
    try:
        assert process.stdout is not None
        port = next(
            match[1] for line in process.stdout if (match := re.search(r"successfully on port (\d+)", line.strip()))
        )
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            yield client
    finally:
        process.terminate()
        process.communicate(timeout=20)


@contextmanager
def browser(
    client: httpx.Client, *, width: int, height: int, is_phone: bool, is_dark: bool = False
) -> Iterator[Browser]:
    options: dict[str, Any] = {
        # Root in a container has no other choice than no-sandbox, and only our own pages are opened.
        "args": ["--headless=new", "--no-sandbox", "--disable-dev-shm-usage", "--hide-scrollbars", "--disable-gpu"],
        "binary": shutil.which("chromium"),
    }
    options["args"].append(f"--window-size={width},{height}")
    if is_phone:
        options["mobileEmulation"] = {"deviceMetrics": {"width": width, "height": height, "pixelRatio": 2}}
    wanted = {"goog:chromeOptions": options, "goog:loggingPrefs": {"browser": "ALL"}, "browserName": "chrome"}
    reply = client.post("/session", json={"capabilities": {"alwaysMatch": wanted}})
    assert reply.status_code == 200, reply.text
    one = Browser(client, reply.json()["value"]["sessionId"])
    try:
        if is_dark:
            features = [{"name": "prefers-color-scheme", "value": "dark"}]
            one.cdp("Emulation.setEmulatedMedia", features=features)
        yield one
    finally:
        one.call("DELETE", "")
