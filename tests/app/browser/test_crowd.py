"""Eight people at once, each with an edit of their own: everyone sees what the API says for that edit, and nobody another's."""

from __future__ import annotations

import html
from typing import Any
from urllib.parse import urlencode

import pytest
from playwright.sync_api import Page

from app.harness import settle
from interp import Edit, ModelPair, generate
from interp.data.lexicon import mask
from tests.app.app_pages import PATIENCE
from tests.app.browser.conftest import Open

PROMPTS = (
    "The weather in the mountains is", "People who never read the manual are", "My neighbour told me that", "I think you are such a",
    "The train was late again and", "Nobody asked for your opinion, you", "In the morning the market", "What kind of a person",
)  # fmt: skip
NEW = 24


def question(place: int) -> tuple[str, list[tuple[int, int]], float, dict[str, str]]:
    """What person number `place` asks: a prompt, keys, a factor, and the link that says so."""
    keys = [(layer, 100 * place + unit) for layer in (4, 5) for unit in range(12)]
    factor = 10.0 + place
    written = ",".join(f"{layer}.{index}" for layer, index in keys)
    query = {"own": PROMPTS[place], "which": "My list", "keys": written, "factor": f"{factor:g}", "new": str(NEW)}
    return PROMPTS[place], keys, factor, query


def columns(page: Page) -> list[str]:
    return [html.unescape(text) for text in page.locator(".card .text .new").all_inner_texts()]


@pytest.fixture(scope="module")
def pair() -> ModelPair:
    return ModelPair.bundled()


def test_eight_people_steer_at_once_and_each_sees_what_the_api_says(visit: Open, address: str, pair: ModelPair) -> None:
    # Eight sessions of the server in one browser, which has read and compiled the app's scripts.
    context = visit("steer").context
    pages = [context.new_page() for _ in PROMPTS]
    try:
        # Nobody waits for anybody: all are on their way before the first is looked at.
        for place, page in enumerate(pages):
            page.set_default_timeout(PATIENCE * 1000)
            page.goto(f"{address}/steer?{urlencode(question(place)[3])}", wait_until="commit")
        for page in pages:
            page.wait_for_selector(".card .new")
            page.wait_for_function("() => document.querySelectorAll('.card').length === 3 && !document.querySelector('.card .cursor')")
            settle(page)
        seen = [columns(page) for page in pages]
        errors = [page.locator('[data-testid="stAlertContentError"]').count() for page in pages]
    finally:
        for page in pages:
            page.close()
    assert errors == [0] * len(PROMPTS)
    expected = [_expected(pair, place) for place in range(len(PROMPTS))]
    assert len({texts[2] for texts in expected}) == len(PROMPTS), "the edits must tell the people apart for this test to mean anything"
    assert all(texts[1] != texts[2] for texts in expected), "each edit must change what the tuned model says"
    assert seen == expected


def _expected(pair: ModelPair, place: int) -> list[str]:
    prompt, keys, factor, _ = question(place)
    voices: list[tuple[Any, list[Edit]]] = [(pair.base, []), (pair.tuned, []), (pair.tuned, [Edit.scale_keys(keys, factor)])]
    texts = [generate(model, [prompt], max_new_tokens=NEW, edits=edits)[0] for model, edits in voices]
    return [mask(prompt + text)[len(prompt) :].strip("\n") for text in texts]


def test_what_one_person_pins_and_shows_is_not_seen_by_another(visit: Open) -> None:
    first, second = visit("vectors?pins=mine:5.17,4.3"), visit("vectors")
    first.locator('[data-testid="stSidebar"] [data-testid="stCheckbox"] label').click()
    settle(first)
    second.reload()
    settle(second)
    assert "mine" in first.locator('[data-testid="stMain"]').inner_text()
    assert "5.17" not in second.url
    assert not second.locator('[data-testid="stSidebar"] input[type="checkbox"]').is_checked()
