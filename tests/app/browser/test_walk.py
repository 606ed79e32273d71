"""A newcomer's ten minutes: the most toxic value vector, that tuning left it in place, the shift around it, and the toxicity brought back;
then what a person does who works here: a sweep that outlives a reload and can be stopped, and a link that restores an edit."""

from __future__ import annotations

import re
from collections.abc import Callable

from playwright.sync_api import Page, expect

from app.harness import settle
from tests.app.browser.conftest import Open, follow

expect.set_options(timeout=120_000)
Keep = Callable[[Page, str], None]


def go_on(page: Page, name: str) -> None:
    """Follow the page's own link to the next one, as somebody does who reads."""
    follow(page, page.locator(f'[data-testid="stMain"] [data-testid="stPageLink"] a[href*="{name}"]').first)
    assert re.search(rf"/{name}(\?|$)", page.url)


def scores(page: Page) -> list[float]:
    expect(page.locator(".card .cursor")).to_have_count(0)
    return [float(text) for text in page.locator(".card .score").all_inner_texts()]


def test_a_newcomer_finds_the_bypass_without_reading_documentation(visit: Open, picture: Keep) -> None:
    page = visit()
    settle(page)
    base, tuned, unaligned = scores(page)
    assert base > 0.5
    assert tuned < 0.5
    assert unaligned > 0.5
    picture(page, "1-start")

    go_on(page, "vectors")
    main = page.locator('[data-testid="stMain"]')
    # The most toxic value vector is the first row, and it is looked into without a click.
    found = re.search(r"\b(\d+)\.(\d+)\b", main.inner_text())
    assert found
    picture(page, "2-vectors")
    cosines = [float(number) for number in re.findall(r"\b(0\.9\d+|1\.0+)\b", main.inner_text())]
    assert cosines
    assert max(cosines) > 0.99

    go_on(page, "bypass")
    assert page.locator('[data-testid="stPlotlyChart"]').count() >= 1
    picture(page, "3-bypass")

    go_on(page, "steer")
    base, tuned, edited = scores(page)
    assert tuned < base
    assert edited > tuned
    picture(page, "4-steer")


def test_a_sweep_shows_progress_survives_a_reload_and_can_be_stopped(visit: Open, picture: Keep) -> None:
    page = visit("steer?sweep_prompts=48&sweep_points=9&factor=7")
    page.get_by_role("button", name="Run the sweep").click()
    cancel = page.get_by_role("button", name="Cancel")
    cancel.wait_for()
    picture(page, "running")
    page.reload()
    cancel.wait_for()
    cancel.click()
    page.get_by_role("button", name="Run the sweep").wait_for()
    assert page.get_by_text("Cancelled").count() >= 1


def test_a_sweep_ends_in_two_figures_and_a_table(visit: Open, picture: Keep) -> None:
    page = visit("steer?sweep_prompts=8&sweep_points=3&new=5")
    before = page.locator('[data-testid="stPlotlyChart"]').count()
    page.get_by_role("button", name="Run the sweep").click()
    expect(page.locator('[data-testid="stPlotlyChart"]')).to_have_count(before + 2)
    settle(page)
    picture(page, "done")


def test_a_link_restores_an_edit_in_another_browser(visit: Open) -> None:
    page = visit("steer")
    factor = page.get_by_label("Times", exact=True)
    factor.fill("25")
    factor.press("Enter")
    settle(page)
    page.get_by_role("textbox", name="Or your own").fill("You people are all such")
    page.get_by_role("textbox", name="Or your own").press("Enter")
    settle(page)
    page.get_by_test_id("stMain").get_by_role("button", name="Run", exact=True).click()
    expect(page.locator(".card .given")).to_have_text(["You people are all such"] * 3)
    settle(page)
    said = page.locator(".card .text").all_inner_texts()
    assert "factor=25" in page.url
    other = visit(page.evaluate("location.href").split("/", 3)[3])
    expect(other.get_by_label("Times", exact=True)).to_have_value("25")
    settle(other)
    assert other.locator(".card .text").all_inner_texts() == said
    assert len(set(said)) == 3


def test_the_switch_shows_words_and_hides_them_again_on_every_page(visit: Open) -> None:
    page = visit()
    masked = page.locator(".card .text").first.inner_text()
    switch = page.locator('[data-testid="stSidebar"] [data-testid="stCheckbox"] label').first
    switch.click()
    settle(page)
    page.wait_for_function("before => document.querySelector('.card .text').innerText !== before", arg=masked)
    assert "*" in masked
    assert "*" not in page.locator(".card .text .given").first.inner_text()
    switch.click()
    settle(page)
    page.wait_for_function("before => document.querySelector('.card .text').innerText === before", arg=masked)
