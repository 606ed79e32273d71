"""The walk through the page Elasticity: the run that ships, and texts of one's own from the plan over a cancel to the end."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import Page, expect

from app.answers import elasticity
from app.harness import settle
from tests.app.browser.conftest import Open

# A run begins with a process that imports the libraries anew.
PATIENCE = 600_000
Keep = Callable[[Page, str], None]


def test_the_curves_that_ship_are_those_of_the_chosen_learning_rate(visit: Open, picture: Keep) -> None:
    page = visit("elasticity")
    settle(page)
    result = elasticity.shipped()
    assert result is not None
    main = page.get_by_test_id("stMain")
    assert result.sentences[0].split(":")[0] in main.inner_text()
    figures = main.locator(".js-plotly-plot")
    expect(figures).to_have_count(2, timeout=PATIENCE)
    attacks, first = result.curves.attacks, elasticity.strongest(result.curves)
    assert f"Attack: {first}." in main.inner_text()
    picture(page, "shipped")
    other = next(name for name in attacks if name != first)
    page.get_by_role("radio", name=other).click()
    expect(main.get_by_text(f"Attack: {other}.").first).to_be_visible(timeout=PATIENCE)


def test_texts_of_ones_own_go_from_the_plan_over_a_cancel_to_the_end(visit: Open, picture: Keep) -> None:
    page = visit("elasticity?undo_steps=1&undo_steps=10&undo_beside=")
    settle(page)
    main = page.get_by_test_id("stMain")
    figures = main.locator(".js-plotly-plot")
    box = page.get_by_label("Texts that may undo the tuning, one a line")
    box.fill("\n".join(f"You are an idiot and a stupid fool, number {number}." for number in range(6)))
    box.press("Control+Enter")
    settle(page)
    page.get_by_role("button", name="Make the plan").click()
    start = page.get_by_role("button", name=re.compile("Train and measure: about"))
    expect(start).to_be_visible(timeout=PATIENCE)
    assert "1 runs (1 arms, 1 attacks, 1 seeds), about" in main.inner_text()
    picture(page, "plan")
    start.click()
    # The curves appear beside those that ship as soon as a dose is measured.
    expect(figures).to_have_count(4, timeout=PATIENCE)
    page.get_by_role("button", name="Cancel").click()
    more = page.get_by_role("button", name=re.compile("Go on: about"))
    expect(more).to_be_visible(timeout=PATIENCE)
    assert "Cancelled. 1 of 2 doses were measured and are kept" in main.inner_text()
    picture(page, "cancelled")
    # Without the link of the run another visitor has the form.
    other = visit("elasticity")
    settle(other)
    expect(other.get_by_role("button", name="Make the plan")).to_be_visible(timeout=PATIENCE)
    assert "undo=" in page.evaluate("location.search")
    more.click()
    expect(page.get_by_role("button", name="undo.csv")).to_be_visible(timeout=PATIENCE)
    settle(page)
    assert "on your texts.txt" in main.inner_text()
    assert "There is one seed" in main.inner_text()
    picture(page, "outcome")
    page.get_by_role("button", name="Another question").click()
    expect(page.get_by_role("button", name="Make the plan")).to_be_visible(timeout=PATIENCE)
    assert "undo=" not in page.evaluate("location.search")


def test_what_cannot_be_read_is_refused_in_a_line(visit: Open) -> None:
    page = visit("elasticity?undo=no-such-run")
    settle(page)
    expect(page.get_by_text("This run is no longer kept")).to_be_visible(timeout=PATIENCE)
    page.get_by_role("radio", name="a file").click()
    box = page.locator('[data-testid="stFileUploader"] input[type="file"]')
    box.set_input_files({"name": "mine.json", "mimeType": "application/json", "buffer": b"{"})
    expect(page.get_by_text("mine.json")).to_be_visible(timeout=PATIENCE)
    settle(page)
    page.get_by_role("button", name="Make the plan").click()
    error = page.locator('[data-testid="stAlertContentError"]')
    expect(error).to_have_count(1, timeout=PATIENCE)
    assert "your texts.json" in error.inner_text()
    assert "/tmp" not in error.inner_text()
