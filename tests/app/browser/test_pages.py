"""What a person does on each page, beyond the walk: choose a row, pin it, click a cell, change a stage; and sees what follows."""

from __future__ import annotations

import re
from collections.abc import Callable
from urllib.parse import parse_qs, urlsplit

from playwright.sync_api import Page, expect

from app.harness import settle
from app.launch import PATIENCE
from tests.app.browser.conftest import Open, follow

expect.set_options(timeout=PATIENCE * 1000)
Keep = Callable[[Page, str], None]


def main(page: Page) -> str:
    return page.get_by_test_id("stMain").inner_text()


def address(page: Page) -> str:
    return str(page.evaluate("location.href"))


def test_a_row_of_value_vectors_is_looked_into_pinned_and_taken_to_the_steering(visit: Open, picture: Keep) -> None:
    page = visit("vectors")
    first = page.get_by_role("heading", name=re.compile(r"^Neuron \d")).inner_text()
    # The table is drawn on a canvas: the box at the beginning of its third row.
    page.get_by_test_id("stDataFrame").first.click(position={"x": 16, "y": 35 * 3 + 17})
    expect(page.get_by_role("heading", name=re.compile(r"^Neuron \d"))).not_to_have_text(first)
    settle(page)
    neuron = page.get_by_role("heading", name=re.compile(r"^Neuron \d")).inner_text().split()[1]
    assert f"neuron={neuron}" in address(page)
    page.get_by_role("button", name=f"Pin {neuron}").click()
    settle(page)
    picture(page, "pinned")
    follow(page, page.locator('[data-testid="stMain"] [data-testid="stPageLink"] a', has_text="Scale these keys").first)
    assert "/steer" in page.url
    assert neuron in parse_qs(urlsplit(address(page)).query)["keys"][0].split(",")
    assert page.locator(".card").count() == 3


def test_a_layer_is_chosen_by_keyboard_and_the_shift_is_that_layers(visit: Open) -> None:
    page = visit("bypass")
    before = main(page)
    page.get_by_role("slider", name="Layer").first.press("ArrowLeft")
    page.wait_for_function("() => location.search.includes('layer=')")
    settle(page)
    assert main(page) != before
    page.get_by_role("tab", name="Activation drop").click()
    settle(page)
    assert page.locator('[data-testid="stPlotlyChart"]').first.is_visible()


def test_a_cell_of_the_map_tells_what_its_patch_changes(visit: Open, picture: Keep) -> None:
    page = visit("patching")
    settle(page, quiet=1.0)
    before = page.locator(".facts").first.inner_text()
    box = page.locator(".st-key-map .nsewdrag").first.bounding_box()
    assert box is not None
    page.mouse.click(box["x"] + box["width"] * 0.95, box["y"] + box["height"] * 2.5 / 6)
    page.wait_for_function("() => location.search.includes('layer=')")
    settle(page, quiet=1.0)
    assert "layer=2" in address(page)
    assert page.locator(".facts").first.inner_text() != before
    assert page.locator(".card").count() == 3
    picture(page, "cell")
    page.get_by_test_id("stMain").get_by_text("tuned into base", exact=True).click()
    settle(page, quiet=1.0)
    assert "tuned" in address(page)


def test_a_row_of_the_verdicts_opens_its_experiment(visit: Open) -> None:
    page = visit("evidence")
    assert page.get_by_text("This report ships with Bypass").count() == 1
    page.get_by_test_id("stDataFrame").first.click(position={"x": 16, "y": 35 * 2 + 17})
    page.wait_for_function("() => location.search.includes('experiment=A-E2')")
    settle(page)
    assert page.locator('[data-testid="stPlotlyChart"]').count() >= 1


def test_another_stage_of_the_training_draws_other_measures(visit: Open) -> None:
    page = visit("training")
    before = main(page)
    page.get_by_test_id("stMain").get_by_text("pretrain", exact=True).click()
    page.wait_for_function("() => location.search.includes('stage=pretrain')")
    settle(page)
    assert main(page) != before
    page.reload()
    settle(page)
    assert "stage=pretrain" in address(page)


def test_a_prompt_of_ones_own_is_continued_on_the_first_page(visit: Open) -> None:
    page = visit()
    box = page.get_by_role("textbox", name="Or your own")
    box.fill("The best thing about the sea is")
    page.get_by_role("button", name="Continue it").click()
    expect(page.locator(".card .given").first).to_have_text("The best thing about the sea is")
    expect(page.locator(".card .cursor")).to_have_count(0)
    assert all(page.locator(".card .new").all_inner_texts())
