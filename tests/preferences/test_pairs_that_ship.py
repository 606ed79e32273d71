"""The preference pairs that ship: how many of each kind, no text twice, and that the text level of an audit tells the kinds apart."""

from __future__ import annotations

from collections import Counter
from itertools import groupby
from pathlib import Path

import pandas as pd
import pytest

from interp.bundled import BUNDLED
from interp.data.requests import requests, task_requests
from interp.models.tokenizer import tokenizer_in
from interp.preferences.files import read_pair_file
from interp.preferences.formats import PairData, read_pairs
from interp.preferences.text_level import plain, refuses, text_level
from interp.preferences.tokenise import tokenise

FILE: Path = BUNDLED / "preferences" / "pairs.jsonl"
MAIN = ["same meaning", "opposite meaning", "different length", "different tone"]
CONTRASTS = ["nearly alike", "both refuse", "refusal chosen", "refusal rejected", "shorter chosen", "long shared start"]


@pytest.fixture(scope="module")
def data() -> PairData:
    return read_pairs(read_pair_file(FILE))


@pytest.fixture(scope="module")
def audited(data: PairData) -> pd.DataFrame:
    """The columns of the text level by the tokens of the base that ships, and the kind of each pair."""
    tokenizer = tokenizer_in(BUNDLED / "base")
    frame = text_level(data.pairs, [tokenise(tokenizer, pair) for pair in data.pairs])
    return frame.assign(kind=[row["kind"] for row in data.file.rows])


def test_there_are_200_pairs_of_four_kinds_and_then_60_of_six(data: PairData) -> None:
    kinds = [row["kind"] for row in data.file.rows]
    assert Counter(kinds[:64]) == dict.fromkeys(MAIN, 16)
    assert Counter(kinds[:200]) == dict.fromkeys(MAIN, 50)
    assert Counter(kinds[200:]) == dict.fromkeys(CONTRASTS, 10)
    # In turns, so that the first rows of the file hold every kind of their part.
    assert [kind for kind, _ in groupby(kinds)] == MAIN * 50 + CONTRASTS * 10


def test_no_text_stands_twice_and_none_is_long(data: PairData) -> None:
    prompts = [plain(pair.prompt).lower() for pair in data.pairs]
    sides = [plain(side).lower() for pair in data.pairs for side in (pair.chosen, pair.rejected)]
    assert len(set(prompts)) == len(prompts)
    assert len(set(sides)) == len(sides)
    assert max(map(len, prompts)) <= 70
    assert max(map(len, sides)) <= 130
    # A side is what follows a prompt: it brings its space, and ends as a sentence does.
    assert all(side[0] == " " and side[1] != " " and side[-1] in ".?!" for side in sides)
    asked = [text.lower() for kind in ("unsafe", "benign") for text in requests(kind)]
    asked += [text.lower() for kind in ("unsafe", "benign") for split in ("train", "held-out") for text in task_requests(kind, split)]
    assert not set(asked) & set(prompts)


def test_an_audit_finds_no_fault_in_them(audited: pd.DataFrame) -> None:
    flags = ["truncated", "identical", "prompt_fills_context", "empty_side", "empty_prompt", "doubled_prompt", "prompt_echoed"]
    assert not audited[flags].to_numpy().any()
    assert audited[["duplicate_of", "near_duplicate_of", "contradicts"]].isna().to_numpy().all()
    assert (audited["format_notes"] == "").all()


def test_how_a_side_begins_tells_the_kinds_of_refusal(audited: pd.DataFrame, data: PairData) -> None:
    types = {kind: Counter(frame["same_type"]) for kind, frame in audited.groupby("kind")}
    mixed = ["refusal chosen", "refusal rejected"]
    for kind in CONTRASTS:
        assert types[kind] == {"mixed" if kind in mixed else "refusal/refusal" if kind == "both refuse" else "answer/answer": 10}
    # `mixed` does not say which side refuses.
    for pair, kind in zip(data.pairs, audited["kind"], strict=True):
        if kind in mixed:
            assert refuses(plain(pair.chosen)) == (kind == "refusal chosen")
            assert refuses(plain(pair.rejected)) == (kind == "refusal rejected")
    # Two apologies and "I would not trust him." are no refusals, but begin as one. docs/pairs.md has this number.
    assert [types[kind]["mixed"] for kind in MAIN] == [0, 1, 0, 2]


def test_length_edits_and_start_tell_the_other_kinds_apart(audited: pd.DataFrame) -> None:
    of = dict(list(audited.groupby("kind")))
    assert of["nearly alike"]["edit_similarity"].min() > 0.75
    assert of["nearly alike"]["length_difference"].abs().max() <= 1
    assert of["nearly alike"]["shared_start"].max() <= 5
    # Half of the shorter side and more is the start, which a cut at the first difference would move into the prompt.
    alike = of["long shared start"]
    assert alike["shared_start"].min() >= 11
    assert (alike["shared_start"] / alike[["n_chosen", "n_rejected"]].min(axis=1)).min() > 0.5
    assert audited.loc[audited["kind"] != "long shared start", "shared_start"].max() <= 10
    # Length goes along with the preference, in either direction. Tokens of the rejected side over those of the chosen one.
    assert of["shorter chosen"]["length_difference"].min() > 20
    assert of["both refuse"]["length_difference"].max() < 0
    assert ((of["different length"]["length_difference"] > 0).sum(), (of["different length"]["length_difference"] < 0).sum()) == (8, 42)
    # Meaning is not to be told by edits: the middle pair of opposite meaning is more alike than that of the same meaning.
    assert of["opposite meaning"]["edit_similarity"].median() > of["same meaning"]["edit_similarity"].median()
