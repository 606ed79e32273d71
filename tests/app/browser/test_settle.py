"""The browser tests read a page only once it is at rest: what is still being written and what is not answered yet is waited for."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from playwright.sync_api import Browser, Page

from app.harness import settle
from tests.app.browser.conftest import Open


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A page with the marks by which `settle` knows one of the app's, and nothing that runs."""
    found = browser.new_page()
    found.set_content('<div data-testid="stApp"><h1>Page</h1><div class="card"><p class="text">So far</p></div></div>')
    yield found
    found.close()


def test_a_text_that_is_still_being_written_is_waited_for(page: Page) -> None:
    page.evaluate("document.querySelector('.text').innerHTML += '<span class=cursor></span>'")
    page.evaluate("() => { setTimeout(() => { document.querySelector('.text').innerText = 'To the end' }, 1500) }")
    settle(page)
    assert page.locator(".text").inner_text() == "To the end"


def test_a_message_without_an_answer_is_waited_for(page: Page) -> None:
    page.evaluate("""() => {
        window.unanswered = performance.now();
        setTimeout(() => { window.unanswered = null; window.answered = true }, 1500);
    }""")
    settle(page)
    assert page.evaluate("window.answered === true")


def test_a_click_counts_as_unanswered_until_the_server_speaks(visit: Open) -> None:
    page = visit("steer")
    assert page.evaluate("window.unanswered") is None
    page.evaluate("""() => {
        window.kinds = [];
        let held = null;
        Object.defineProperty(window, "unanswered", {get: () => held, set: value => { held = value; window.kinds.push(typeof value); }});
    }""")
    page.get_by_test_id("stMain").get_by_role("button", name="Run", exact=True).click()
    # However long a busy server takes: a message is waited for no longer than a few seconds.
    page.wait_for_function("() => window.kinds.includes('object')")
    settle(page)
    kinds = page.evaluate("window.kinds")
    assert kinds[0] == "number"
    assert kinds[-1] == "object"
