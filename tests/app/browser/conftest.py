"""One server and one browser for each file of tests, and what every visitor's page is checked for.

Without a browser these tests are skipped with a reason; where `BYPASS_NEED_BROWSER` is set, as CI does, that is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

pytest.importorskip("streamlit", reason="the app needs the extra `app`")
pytest.importorskip("playwright", reason="the browser tests need the extra `dev`")

from playwright.sync_api import Browser, Locator, Page

from app.harness import browsing, chromium, open_at, running_app, settle

PICTURES = Path(os.environ.get("BYPASS_SCREENSHOTS") or "build/screenshots")
Open = Callable[..., Page]


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if chromium() is None:
        reason = "no Chromium is installed here, so the app was not looked at in a browser"
        if os.environ.get("BYPASS_NEED_BROWSER", "0") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)
    with browsing() as found:
        yield found


@pytest.fixture(scope="module")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An app on the pair that ships, in an empty folder."""
    with running_app(tmp_path_factory.mktemp("app")) as url:
        yield url


@pytest.fixture
def visit(browser: Browser, address: str) -> Iterator[Open]:
    """Open a page as a new visitor. At the end: nothing outside was asked for, nothing failed in the browser, no traceback was shown."""
    pages: list[Page] = []
    outside: list[str] = []
    faults: list[str] = []

    def note(page: Page) -> None:
        page.on("request", lambda request: outside.append(request.url) if not _own(request.url, address) else None)
        page.on("pageerror", lambda error: faults.append(str(error)))
        page.on("console", lambda said: faults.append(said.text) if "Content Security Policy" in said.text else None)

    def open_page(path: str = "", **options: Any) -> Page:
        page = open_at(browser, address, path, watch=note, **options)
        pages.append(page)
        return page

    yield open_page
    shown = [page.locator('[data-testid="stException"]').count() for page in pages]
    for page in pages:
        page.context.close()
    assert not outside, "the app asked for something outside"
    assert not faults, "something failed in the browser"
    assert not any(shown), "a traceback was shown"


def follow(page: Page, link: Locator) -> None:
    """Click a link to another page of the app and wait until that page is there; on a slow machine the address is, seconds before."""
    left = page.locator("h1").first.inner_text()
    link.click()
    page.wait_for_function("left => ![undefined, left].includes(document.querySelector('h1')?.innerText)", arg=left)
    settle(page)


def _own(url: str, address: str) -> bool:
    return url.startswith((address, address.replace("http", "ws", 1), "data:", "blob:", "about:"))


@pytest.fixture
def picture(request: pytest.FixtureRequest) -> Callable[[Page, str], None]:
    """Keep what is seen: `picture(page, "shift")`."""

    def keep(page: Page, name: str) -> None:
        PICTURES.mkdir(parents=True, exist_ok=True)
        page.screenshot(path=PICTURES / f"{request.node.name.split('[')[0].removeprefix('test_')[:60]}-{name}.png")

    return keep
