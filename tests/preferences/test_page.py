"""The page of an audit: texts stay texts, and tokens carry their parts of the score."""

from __future__ import annotations

import re

import numpy as np

from interp.models.model import Model
from interp.preferences.audit import Settings, audit
from interp.preferences.page import coloured, render, token_texts
from tests.preferences.invented_pairs import HOSTILE
from tests.preferences.test_formats import data_of


def test_the_page_holds_hostile_and_profane_texts_as_text(gpt2: Model) -> None:
    texts = [{"prompt": f"the {HOSTILE}", "chosen": f" you shit {n}", "rejected": f" {HOSTILE} river"} for n in range(2)]
    data = data_of(texts)
    made = audit(data, gpt2, Settings(max_length=256)) if gpt2.context >= 256 else audit(data_of(short(texts)), gpt2, Settings())
    page = render(made, gpt2, command=f"bypass pairs audit '{HOSTILE}'")
    assert "<img" not in page
    assert page.count("<script") == 4
    assert not re.search(r"\bshit\b", visible(page))
    assert "sh*t" in visible(page)
    assert "shit" in visible(render(made, gpt2, command="", show_words=True))


def short(texts: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same with texts that fit the tiny model's context, whose letters are a token each."""
    return [{name: text.replace(HOSTILE, "</script><img x>")[:30] for name, text in row.items()} for row in texts]


def visible(page: str) -> str:
    """The text of a page between its tags, without scripts."""
    return re.sub(r"<[^>]*>", "", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S))


def test_tokens_are_the_answer_again_and_their_colours_their_parts_of_the_term(gpt2: Model) -> None:
    text = "the river 🙂 café, you shit"
    ids = gpt2.tokenizer(text)["input_ids"]
    assert "".join(token_texts(gpt2.tokenizer, ids)) == text
    weights = np.linspace(-1, 2, len(ids))
    tokens = coloured(gpt2, ids, weights, show_words=False)
    assert "".join(token["text"] for token in tokens) == text.replace("shit", "sh*t")
    assert [token["sign"] for token in tokens] == ["up" if weight > 0 else "down" for weight in weights]
    assert (tokens[-1]["strength"], tokens[0]["strength"]) == (100, 50)
