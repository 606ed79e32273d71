"""The columns of the text level against values worked out by hand."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest
from transformers import PreTrainedTokenizerFast

from interp.errors import UserError
from interp.preferences.duplicates import BANDS, ROWS_OF_A_BAND, jaccard, min_hash, repeats, shingles
from interp.preferences.text_level import answer_types, echoes, length_effect, read_refusals, text_level
from interp.preferences.tokenise import tokenise
from tests.preferences.test_formats import answer, data_of, turns

LONG = "the quick wintle sings under a river and never walks with the oskle, said the old snarg to a bitter quonk in the sunny grent today"


def columns(rows: list[dict[str, object]], tokenizer: PreTrainedTokenizerFast, **options: object) -> pd.DataFrame:
    pairs = data_of(rows).pairs
    return text_level(pairs, [tokenise(tokenizer, pair, **options) for pair in pairs])  # type: ignore[arg-type]


def test_lengths_edits_and_flags_are_those_of_the_tokens_that_the_trainer_sees(tokenizer: PreTrainedTokenizerFast) -> None:
    rows = [
        {"prompt": "the", "chosen": " river a stone sings", "rejected": " river a quonk sings"},
        {"prompt": "the", "chosen": " river", "rejected": " river"},
        {"prompt": "the river a stone sings", "chosen": " never", "rejected": " quick"},
        {"prompt": "", "chosen": " never", "rejected": " quick river"},
    ]
    frame = columns(rows, tokenizer, max_length=5)
    assert frame["n_prompt"].tolist() == [1, 1, 5, 0]
    assert frame[["n_chosen", "n_rejected"]].to_numpy().tolist() == [[4, 4], [2, 2], [0, 0], [2, 3]]
    assert frame["truncated"].tolist() == [True, False, True, False]
    assert frame["identical"].tolist() == [False, True, False, False]
    assert frame["prompt_fills_context"].tolist() == [False, False, True, False]
    assert frame["empty_prompt"].tolist() == [False, False, False, True]
    assert frame["identical_after_truncation"].tolist() == [False] * 4
    assert columns(rows[:1], tokenizer, max_length=3)["identical_after_truncation"].tolist() == [True]
    assert frame["edit_similarity"].tolist()[:2] == [0.75, 1.0]
    assert frame["length_difference"].tolist() == [0, 0, 0, 1]
    assert frame[["shared_start", "shared_end"]].to_numpy().tolist()[:2] == [[2, 1], [2, 0]]
    assert frame.loc[3, ["shared_start", "shared_end"]].tolist() == [0, 1]
    assert frame["prompt_count"].tolist() == [2, 2, 1, 1]


def test_repeats_name_the_first_row_that_they_repeat() -> None:
    other = LONG.replace("today", "now")
    pairs = [("p", "a b", "c"), ("p", "c", "a b"), ("p", "a b", "c"), ("p", LONG * 3, "c"), ("p", LONG * 2 + other, "c"), ("q", "x", "x")]
    found = repeats(pairs)
    assert found.duplicate_of == (None, None, 0, None, None, None)
    assert found.near_duplicate_of == (None, None, None, None, 3, None)
    assert found.contradicts == (1, 0, 1, None, None, None)
    assert found.prompt_count == (5, 5, 5, 5, 5, 1)


def test_near_duplicates_are_those_of_comparing_every_pair_with_every_other() -> None:
    rng = np.random.default_rng(0)
    words = LONG.split()
    pairs = []
    for _ in range(12):
        base = list(rng.choice(words, 60))
        for changes in (0, 1, 2, 6):
            text = list(base)
            for place in rng.choice(60, changes, replace=False):
                text[place] = "zz"
            pairs.append(("p", " ".join(text), "c"))
    sets = [shingles(pair) for pair in pairs]
    alone: list[int] = []
    expected: list[int | None] = []
    for index, members in enumerate(sets):
        match = next((other for other in alone if jaccard(members, sets[other]) >= 0.9), None)
        expected.append(match)
        if match is None:
            alone.append(index)
    found = repeats(pairs)
    both = [a if a is not None else b for a, b in zip(found.duplicate_of, found.near_duplicate_of, strict=True)]
    assert both == expected
    assert 0 < sum(value is not None for value in expected) < 36


def test_min_hash_estimates_the_jaccard_similarity() -> None:
    first, second = frozenset(range(0, 4000, 2)), frozenset(range(1000, 5000, 2))
    shared = float((min_hash(first) == min_hash(second)).mean())
    # Five standard errors of a share of 128.
    assert shared == pytest.approx(jaccard(first, second), abs=5 * 0.5 / (BANDS * ROWS_OF_A_BAND) ** 0.5)


def test_an_echo_is_a_run_of_forty_characters() -> None:
    assert echoes("x" + "abcdefghij" * 4 + "y", "so: " + "abcdefghij" * 4)
    assert not echoes("abcdefghij" * 4, "abcdefghij" * 3 + "abcdefghi")


def test_kinds_of_answers_go_by_how_they_begin(tokenizer: PreTrainedTokenizerFast) -> None:
    assert answer_types(" I’m sorry, no", "\nAs an AI model, I") == "refusal/refusal"
    assert answer_types("Sure!", "I cannot do that") == "mixed"
    assert answer_types("Sure! I cannot praise it enough", "Well") == "answer/answer"
    assert answer_types("Nope.", "Sure", ("nope",)) == "mixed"
    frame = columns([{"prompt": turns("a"), "chosen": answer("I cannot"), "rejected": answer("I can")}], tokenizer_with_chat(tokenizer))
    assert frame["same_type"].tolist() == ["mixed"]


def tokenizer_with_chat(tokenizer: PreTrainedTokenizerFast) -> PreTrainedTokenizerFast:
    from tests.conftest import make_tokenizer
    from tests.preferences.test_formats import CHAT

    made = make_tokenizer()
    made.chat_template = CHAT
    return made


def test_prefixes_of_refusals_can_be_given(tmp_path: object) -> None:
    file = tmp_path / "refusals.txt"  # type: ignore[operator]
    file.write_text("Nope\n\nI’d rather not\n")
    assert read_refusals(file) == ("nope", "i'd rather not")
    file.write_text("\n")
    with pytest.raises(UserError, match="holds no prefix"):
        read_refusals(file)


def test_the_effect_of_length_is_cohens_d() -> None:
    frame = pd.DataFrame({"n_chosen": [3, 5, 7, 9], "n_rejected": [1, 3, 5, 7]})
    effect = length_effect(frame)
    assert effect is not None
    # Mean difference 2, both variances 5.
    assert effect.value == pytest.approx(2 / 5**0.5)
    assert effect.low < effect.value < effect.high
    assert length_effect(pd.DataFrame({"n_chosen": [2, 2, 2], "n_rejected": [2, 2, 2]})) is None
