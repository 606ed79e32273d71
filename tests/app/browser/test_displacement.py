"""The walk through the page Displacement: a measure, a pair out of the ranking, a file of one's own, and two answers of the study."""

from __future__ import annotations

import json
from collections.abc import Callable

from playwright.sync_api import Page, expect
from playwright.sync_api import TimeoutError as NotThere

from app.harness import settle
from tests.app.browser.conftest import Open

expect.set_options(timeout=120_000)
Keep = Callable[[Page, str], None]


def choose(page: Page, label: str, option: str) -> None:
    box, entry = page.get_by_role("combobox", name=label), page.get_by_role("option", name=option, exact=True)
    box.scroll_into_view_if_needed()
    settle(page)
    box.click()
    try:
        entry.click(timeout=5000)
    except NotThere:
        # A list closes when the page scrolls, as a late figure makes it do.
        box.click()
        entry.click()
    settle(page)


def test_a_pair_is_looked_into_and_a_link_restores_it(visit: Open, picture: Keep) -> None:
    page = visit("displacement")
    settle(page)
    main = page.get_by_test_id("stMain")
    expect(main.locator(".strip")).to_have_count(2)
    first = main.locator(".verdict").first.inner_text()
    assert first.startswith("alpha-CHES is")
    assert "number 1 of 64" in first
    page.get_by_test_id("stDataFrame").first.click(position={"x": 16, "y": 35 * 2 + 17})
    page.wait_for_function("() => location.search.includes('row=')")
    settle(page)
    assert "number 2 of 64" in main.locator(".verdict").first.inner_text()
    choose(page, "Measure", "CHES")
    picture(page, "pair")
    said = main.locator(".verdict").first.inner_text()
    assert said.startswith("CHES is")
    other = visit(page.evaluate("location.href").split("/", 3)[3])
    settle(other)
    assert other.get_by_test_id("stMain").locator(".verdict").first.inner_text() == said


def test_a_file_of_ones_own_is_audited_and_one_that_is_none_is_refused_in_a_line(visit: Open) -> None:
    page = visit("displacement?pairs=your+own+file")
    rows = [
        {"chosen": f"The stone is {word}, I think.", "rejected": f"The stone is {word} and I do not care."}
        for word in ("red", "old", "big")
    ]
    box = page.locator('[data-testid="stFileUploader"] input[type="file"]')
    content = "\n".join(map(json.dumps, rows)).encode()
    box.set_input_files({"name": "mine.jsonl", "mimeType": "application/json", "buffer": content})
    expect(page.locator(".strip")).to_have_count(2)
    settle(page)
    assert "of 3 from the highest" in page.locator(".verdict").first.inner_text()
    box.set_input_files({"name": "mine.jsonl", "mimeType": "application/json", "buffer": b"{"})
    expect(page.locator('[data-testid="stAlertContentError"]')).to_have_count(1)
    assert "your file.jsonl" in page.locator('[data-testid="stAlertContentError"]').inner_text()


def test_other_answers_have_other_curves(visit: Open, picture: Keep) -> None:
    page = visit("displacement")
    settle(page)
    title = page.locator(".st-key-mass_curves .gtitle")
    assert "Never" in (title.text_content() or "")
    choose(page, "Dispreferred answer", "Maybe")
    assert "Maybe" in (title.text_content() or "")
    assert "dispreferred=Maybe" in page.evaluate("location.search")
    picture(page, "mass")
