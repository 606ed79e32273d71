"""One server and one browser for all files, pages that are used again, and what every visitor's page is checked for.

Without a browser these tests are skipped with a reason; where `BYPASS_NEED_BROWSER` is set, as CI does, that is a failure.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import pytest

pytest.importorskip("streamlit", reason="the app needs the extra `app`")
pytest.importorskip("playwright", reason="the browser tests need the extra `dev`")

from playwright.sync_api import Browser, Dialog, Locator, Page, ViewportSize

from app.harness import browsing, chromium, open_at, running_app, settle

# Where what is seen is kept, if anywhere: drawing pictures that nobody asked for takes a second each.
PICTURES = os.environ.get("BYPASS_SCREENSHOTS")
Open = Callable[..., Page]
SCREEN: ViewportSize = {"width": 1400, "height": 1000}


@pytest.fixture(scope="session")
def browser() -> Iterator[Browser]:
    if chromium() is None:
        reason = "no Chromium is installed here, so the app was not looked at in a browser"
        if os.environ.get("BYPASS_NEED_BROWSER", "0") not in ("", "0"):
            pytest.fail(reason)
        pytest.skip(reason)
    with browsing() as found:
        yield found


@pytest.fixture(scope="session")
def address(browser: Browser, tmp_path_factory: pytest.TempPathFactory) -> Iterator[str]:
    """An app on the pair that ships, in an empty folder."""
    with running_app(tmp_path_factory.mktemp("app")) as url:
        yield url


@dataclass
class Visits:
    """One page for each of those who are there at the same time, kept between visits, each in a browser context of its own.

    A new context would read and compile the app's scripts anew. Between two visits a page is left, and what it stored is forgotten;
    what a visitor's screen is like is set before the app is loaded again.
    """

    browser: Browser
    address: str
    outside: list[str] = field(default_factory=list)
    faults: list[str] = field(default_factory=list)
    pages: list[Page] = field(default_factory=list)
    taken: int = 0

    def watch(self, page: Page) -> None:
        page.on("request", lambda request: self.outside.append(request.url) if not _own(request.url, self.address) else None)
        page.on("pageerror", lambda error: self.faults.append(str(error)))
        page.on("console", lambda said: self.faults.append(said.text) if "Content Security Policy" in said.text else None)
        page.on("dialog", self.refuse)

    def refuse(self, dialog: Dialog) -> None:
        self.faults.append(f"a dialog opened: {dialog.message[:80]}")
        dialog.dismiss()

    def open(self, path: str = "", *, color_scheme: Literal["light", "dark"] = "light", viewport: ViewportSize = SCREEN) -> Page:
        """This page of the app, as a new visitor with such a screen sees it."""
        self.taken += 1
        if self.taken > len(self.pages):
            self.pages.append(open_at(self.browser, self.address, path, watch=self.watch, color_scheme=color_scheme, viewport=viewport))
            return self.pages[-1]
        page = self.pages[self.taken - 1]
        page.emulate_media(color_scheme=color_scheme)
        page.set_viewport_size(viewport)
        page.goto(f"{self.address}/{path}", wait_until="domcontentloaded")
        settle(page)
        return page

    def leave(self) -> tuple[list[str], list[str], list[int]]:
        """What was asked of the outside, what failed, and how many tracebacks each page shows; every page is free again."""
        taken, self.taken = self.pages[: self.taken], 0
        shown = [page.locator('[data-testid="stException"]').count() for page in taken]
        outside, faults = self.outside[:], self.faults[:]
        for page in taken:
            page.evaluate("() => { localStorage.clear(); sessionStorage.clear(); }")
            page.context.clear_cookies()
            page.goto("about:blank")
        # What a page does while it is left is nobody's.
        self.outside.clear()
        self.faults.clear()
        return outside, faults, shown


@pytest.fixture(scope="session")
def visits(browser: Browser, address: str) -> Visits:
    return Visits(browser, address)


@pytest.fixture
def visit(visits: Visits) -> Iterator[Open]:
    """Open a page as a new visitor. At the end: nothing outside was asked for, nothing failed in the browser, no traceback was shown."""
    yield visits.open
    outside, faults, shown = visits.leave()
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
    """Keep what is seen in the folder that BYPASS_SCREENSHOTS names: `picture(page, "shift")`."""

    def keep(page: Page, name: str) -> None:
        if PICTURES:
            Path(PICTURES).mkdir(parents=True, exist_ok=True)
            page.screenshot(path=Path(PICTURES) / f"{request.node.name.split('[')[0].removeprefix('test_')[:60]}-{name}.png")

    return keep
