"""Every page, as it is first seen: nothing fails, nothing is asked of the outside, the accessibility audit finds nothing.

That it fits a phone is seen in test_hostile.py, which opens every page as well.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Literal

import pytest
from axe_playwright_python.sync_playwright import Axe
from playwright.sync_api import Browser, Page

from app.harness import open_at, settle
from app.shell import PAGES, heading
from tests.app.browser.conftest import Open

# Halfway through a transition no colour is what it will be.
FADED = "() => document.getAnimations().every(one => one.effect.getComputedTiming().endTime === Infinity)"
# Streamlit says on its outermost element in which scheme it draws.
DRAWN = "scheme => getComputedStyle(document.querySelector('[data-testid=\"stApp\"]')).colorScheme === scheme"
SCHEMES: tuple[Literal["dark", "light"], ...] = ("dark", "light")
PATHS = {name: "" if name == "start" else name for name in PAGES}


@pytest.mark.parametrize("name", list(PAGES))
def test_a_page_passes_the_accessibility_audit(visit: Open, picture: Callable[[Page, str], None], name: str) -> None:
    # Loaded in the dark, which no other test does; the page follows the screen's scheme without being loaded again.
    page = visit(PATHS[name], color_scheme="dark")
    assert page.locator("h1").inner_text() == heading(name)
    assert page.locator('[data-testid="stAlertContentError"]').count() == 0
    told, backgrounds = {}, []
    for scheme in SCHEMES:
        page.emulate_media(color_scheme=scheme)
        page.wait_for_function(DRAWN, arg=scheme)
        settle(page)
        page.wait_for_function(FADED)
        picture(page, f"{name}-{scheme}")
        backgrounds.append(page.get_by_test_id("stApp").evaluate("element => getComputedStyle(element).backgroundColor"))
        found = Axe().run(page).response["violations"]
        told[scheme] = [
            (item["id"], item["help"], [(node["html"][:200], node["failureSummary"]) for node in item["nodes"][:3]]) for item in found
        ]
    assert not any(told.values()), told
    assert len(set(backgrounds)) == 2, "each scheme is audited in colours of its own"


# Which opacities captions have had since the page was opened, looked at in every frame.
WATCHED = """() => {
    window.seen = new Set();
    const look = () => {
        document.querySelectorAll('[data-testid="stCaptionContainer"]').forEach(one => window.seen.add(getComputedStyle(one).opacity));
        requestAnimationFrame(look);
    };
    look();
}"""


def test_what_is_drawn_first_has_its_look_already(browser: Browser, address: str) -> None:
    page = open_at(browser, address, "vectors", watch=lambda page: page.add_init_script(f"({WATCHED})()"))
    assert page.evaluate("[...window.seen]") == ["0.8"]
    page.context.close()


def test_the_navigation_leads_to_every_page_by_keyboard_alone(visit: Open) -> None:
    page = visit()
    for name, (title, _) in list(PAGES.items())[1:]:
        link = page.locator('[data-testid="stSidebarNav"] a', has_text=title)
        link.focus()
        page.keyboard.press("Enter")
        page.wait_for_url(f"**/{name}*")
        page.wait_for_function("title => document.querySelector('h1')?.innerText === title", arg=title)
