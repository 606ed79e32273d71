"""The app in a process of its own for the length of a `with` block, and a real browser on it.

For tests, benchmarks and the pictures of the README; a visitor's app is started by `app.launch`.
"""

from __future__ import annotations

import os
import shutil
import socket
import subprocess
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app.launch import PATIENCE, command, environment, healthy
from interp.errors import UserError

if TYPE_CHECKING:
    from playwright.sync_api import Browser, Page

# The first of them draws the same pages without windows, which take a second of the processor for each visitor and are seen by nobody.
CHROMIUM = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
# A script that runs, a spinner, an element that has not been drawn yet, and text that is still growing.
BUSY = (
    '[data-testid="stApp"][data-test-script-state="running"]', '[data-testid="stSpinner"]', '[data-testid="stSkeleton"]', ".card .cursor",
)  # fmt: skip
# A click is sent to the server at once; the browser learns that the page runs only from the answer, on a slow machine much later.
NOTE_SENT = """
const send = WebSocket.prototype.send;
WebSocket.prototype.send = function (...message) {
    if (!this.noted) this.addEventListener("message", () => { window.unanswered = null; });
    this.noted = true;
    window.unanswered = performance.now();
    return send.apply(this, message);
};
"""
# Whether nothing has run for so many milliseconds; asked inside the page, so that waiting takes no processor from what is waited for.
# Not every message is answered, so one is waited for no longer than five seconds. Time counts in short steps from look to look: while a
# busy machine keeps the page from running, nothing can have been seen to be at rest.
AT_REST = """([busy, quiet]) => {
    const now = performance.now();
    const step = Math.min(now - (window.looked ?? now), 50);
    window.looked = now;
    window.waited = window.unanswered === window.awaited ? (window.waited ?? 0) + step : 0;
    window.awaited = window.unanswered;
    const waiting = typeof window.unanswered === 'number' && window.waited < 5000;
    window.rested = waiting || document.querySelector(busy) ? 0 : (window.rested ?? 0) + step;
    return window.rested >= quiet;
}"""


@contextmanager
def running_app(folder: str | Path | None = None, *, demo: bool = False, settings: Mapping[str, str] | None = None) -> Iterator[str]:
    """The address of an app that runs in its own process, with `folder` as its working directory.

    Raises:
        UserError: the app did not start; its output is in the message.
    """
    port = free_port()
    with tempfile.TemporaryDirectory() as spare, tempfile.TemporaryFile() as output:
        process = subprocess.Popen(
            command(port, "127.0.0.1"), cwd=folder or spare, env=environment(demo) | dict(settings or {}),
            stdout=output, stderr=subprocess.STDOUT,
        )  # fmt: skip
        try:
            if not healthy(f"http://127.0.0.1:{port}", process):
                output.seek(0)
                raise UserError(f"the app did not come up: {output.read().decode(errors='replace')[-2000:]}", "see what it wrote")
            yield f"http://127.0.0.1:{port}"
        finally:
            process.terminate()
            process.wait(timeout=PATIENCE)


def free_port() -> int:
    """A port on which nothing listens now."""
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        return int(listener.getsockname()[1])


def chromium() -> str | None:
    """The path of a Chromium on this machine, or None."""
    return next(filter(None, map(shutil.which, CHROMIUM)), None)


@contextmanager
def browsing() -> Iterator[Browser]:
    """A headless browser. Raises `UserError` where none is installed."""
    from playwright.sync_api import sync_playwright

    program = chromium()
    if program is None:
        raise UserError("no Chromium is installed", "install the package `chromium` of your system")
    # Chromium's own sandbox refuses to run as root, which containers and CI often are.
    arguments = ["--no-sandbox"] if os.geteuid() == 0 else []
    with sync_playwright() as playwright:
        browser = playwright.chromium.launch(executable_path=program, args=arguments)
        try:
            yield browser
        finally:
            browser.close()


def settle(page: Page, quiet: float = 0.25) -> None:
    """Wait until the page has run to its end and has not run again for `quiet` seconds."""
    from playwright.sync_api import TimeoutError as NeverAtRest

    page.wait_for_selector('[data-testid="stApp"] h1', timeout=PATIENCE * 1000)
    page.evaluate("() => { window.looked = performance.now(); window.rested = 0; }")
    try:
        page.wait_for_function(AT_REST, arg=[", ".join(BUSY), 1000 * quiet], polling=20, timeout=PATIENCE * 1000)
    except NeverAtRest as error:
        raise TimeoutError(f"the page still ran after {PATIENCE:g} s") from error


def open_at(browser: Browser, url: str, path: str = "", *, watch: Callable[[Page], object] = lambda page: None, **options: Any) -> Page:
    """A page of the app in a browser context of its own, once it has settled; `watch` is called with the page before it loads."""
    page = browser.new_context(**{"viewport": {"width": 1400, "height": 1000}} | options).new_page()
    page.set_default_timeout(PATIENCE * 1000)
    page.add_init_script(NOTE_SENT)
    watch(page)
    page.goto(f"{url}/{path}", wait_until="domcontentloaded")
    settle(page)
    return page
