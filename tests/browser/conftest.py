"""The service as it is served, and a headless Chromium at two widths."""

from __future__ import annotations

from collections.abc import Iterator

import httpx
import pytest

from tests.browser.webdriver import Browser, browser, driver, why_no_browser
from tests.hostile.harness import Service
from tests.integration.conftest import why_no_engine

SIZES = {"desktop": (1280, 900), "phone": (390, 844)}


@pytest.fixture(scope="session")
def service(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Service]:
    if reason := why_no_engine() or why_no_browser():
        pytest.skip(reason)
    folder = tmp_path_factory.mktemp("page-service")
    # The time limit is no matter of the page: examples draw pictures, and the browsers keep the machine busy.
    service = Service(folder, "runc", SANDBOX_ANALYSIS="standard", SANDBOX_TIMEOUT="20s")
    try:
        service.start()
        yield service
    finally:
        service.stop()


@pytest.fixture(scope="session")
def chrome() -> Iterator[httpx.Client]:
    if reason := why_no_browser():
        pytest.skip(reason)
    with driver() as client:
        yield client


@pytest.fixture(scope="module", params=list(SIZES))
def shared_window(request: pytest.FixtureRequest, chrome: httpx.Client) -> Iterator[Browser]:
    width, height = SIZES[request.param]
    with browser(chrome, width=width, height=height, is_phone=request.param == "phone") as window:
        yield window


@pytest.fixture(scope="module", params=[(size, theme) for size in SIZES for theme in ("light", "dark")], ids="-".join)
def themed_window(request: pytest.FixtureRequest, chrome: httpx.Client) -> Iterator[Browser]:
    """Each width in each of the two colour schemes."""
    size, theme = request.param
    width, height = SIZES[size]
    with browser(chrome, width=width, height=height, is_phone=size == "phone", is_dark=theme == "dark") as window:
        assert window.js("return matchMedia('(prefers-color-scheme: dark)').matches") == (theme == "dark")
        yield window


@pytest.fixture
def page(shared_window: Browser, service: Service) -> Iterator[Browser]:
    """The page at `/`, ready; whatever is done to it, nothing may be refused by the policy or fail to load."""
    shared_window.open(f"http://127.0.0.1:{service.port}/")
    shared_window.until(lambda: shared_window.js("return document.querySelector('#language').options.length") == 2)
    yield shared_window
    assert shared_window.complaints() == []
