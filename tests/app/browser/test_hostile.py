"""What a visitor types, or puts into a link, is shown as text or refused in a line; it never runs, and never ends the page."""

from __future__ import annotations

from collections.abc import Callable
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page, ViewportSize

from app.harness import settle
from app.shell import PAGES, heading
from tests.app.browser.conftest import SCREEN, Open

HOSTILE = {
    "markup": "<img src=x onerror=\"document.title='owned'\"><script>document.title='owned'</script><b>b</b> **b** _i_ # h "
    "[l](javascript:alert(1)) ![x](http://example.invalid/x.png) $x^2$ :red[y] :material/home: `c` {{7*7}} ${7*7} %(name)s {0} <%= 7*7 %>",
    "system": "../../../../etc/passwd file:///etc/passwd ~/.ssh/id_rsa C:\\Windows $(touch /tmp/owned); `id` | cat && rm -rf / # '\"",
    "characters": "🙂🏴‍☠️ \u202eright to left\u202c שלום مرحبا e\u0301 \ufeff\u200b a\x00b\x01c\x1b[31m 1e999 -inf NaN 99999999999999 ١٢٣",
    "long": "a" * 1_000_000,
}
# What may be typed into.
BOXES = '[data-testid="stMain"] input[type="text"]:not([role="combobox"]), [data-testid="stMain"] textarea'
KEYS = (
    "prompt",
    "own",
    "neuron",
    "word",
    "layer",
    "keys",
    "factor",
    "site",
    "token",
    "experiment",
    "run",
    "view",
    "metric",
    "measure",
    "row",
    "kind",
    "pins",
    "pair",
)
ALERT = '[data-testid="stAlertContentError"]'
PHONE: ViewportSize = {"width": 400, "height": 850}


def unharmed(page: Page, title: str) -> None:
    """The page is still itself: nothing ran, nothing was put into it as HTML or as a picture from outside, nothing fell over."""
    assert page.locator("h1").inner_text() == title
    assert page.title() != "owned"
    assert page.locator('[data-testid="stException"]').count() == 0
    assert page.locator('[data-testid="stMain"] img[src="x"], [data-testid="stMain"] img[src*="example.invalid"]').count() == 0
    assert page.locator('[data-testid="stMain"] a[href^="javascript"]').count() == 0
    for text in page.locator(ALERT).all_inner_texts():
        assert "root:x:" not in text
        assert "fault in Bypass" not in text
        assert len(text) < 1000


@pytest.mark.parametrize("name", list(PAGES))
def test_a_page_fits_a_phone_and_every_field_takes_hostile_text_as_text(
    visit: Open, address: str, picture: Callable[[Page, str], None], name: str
) -> None:
    path = "" if name == "start" else name
    page = visit(path, viewport=PHONE)
    picture(page, name)
    assert page.get_by_test_id("stMain").evaluate("element => element.scrollWidth - element.clientWidth") <= 1
    page.set_viewport_size(SCREEN)
    settle(page)
    # A page may have no field at all; then its own text is looked at.
    unharmed(page, heading(name))
    for place in range(page.locator(BOXES).count()):
        if place:
            page.goto(f"{address}/{path}", wait_until="domcontentloaded")
            settle(page)
        for what, text in HOSTILE.items():
            box = page.locator(BOXES).nth(place)
            if not box.count() or not box.is_visible() or not box.is_enabled():
                break
            # As pasted: a browser drops NUL from what is typed, not from what a script puts in.
            box.fill(text if what != "long" else text[:20_000])
            box.press("Enter")
            settle(page)
            unharmed(page, heading(name))


@pytest.mark.parametrize("name", list(PAGES))
@pytest.mark.parametrize("what", ["markup", "system", "characters"])
def test_a_hostile_link_is_shown_as_text_or_refused_in_a_line(visit: Open, name: str, what: str) -> None:
    keys = [key for key in KEYS if key not in ("pins", "pair")]
    page = visit(f"{'' if name == 'start' else name}?{urlencode(dict.fromkeys(keys, HOSTILE[what]))}")
    unharmed(page, heading(name))


@pytest.mark.parametrize("key", ["pins", "pair"])
@pytest.mark.parametrize("what", list(HOSTILE))
def test_a_link_cannot_name_a_hostile_set_or_pair(visit: Open, key: str, what: str) -> None:
    page = visit(f"training?{urlencode({key: HOSTILE[what][:20_000]})}")
    unharmed(page, "Training")
    assert page.locator(ALERT).count() == 1


def test_a_megabyte_in_a_prompt_is_cut_or_refused(visit: Open) -> None:
    page = visit("steer")
    box = page.get_by_role("textbox", name="Or your own")
    box.fill(HOSTILE["long"])
    box.press("Enter")
    settle(page)
    unharmed(page, heading("steer"))
    assert len(box.input_value()) <= 4000 or page.locator(ALERT).count() >= 1
