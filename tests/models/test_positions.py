"""One vocabulary of positions: what is read out of what a user gives, and that capture, edits and patching agree about it."""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import pytest
import torch

from interp.edits.edit import EDIT_WORDS, Edit
from interp.errors import UserError
from interp.forward.capture import CAPTURE_WORDS, capture
from interp.models.model import Model
from interp.models.positions import MEAN, MEAN_AFTER_FIRST, MEANINGS, ROLES, parse_positions, parse_positions_per_text
from interp.patching.cells import PATCH_WORDS, make_cells


@pytest.mark.parametrize(
    "positions", [[2, 0], (2, 0), range(2, -1, -2), np.array([2, 0]), torch.tensor([2, 0]), [np.int64(2), torch.tensor(0)]], ids=repr
)
def test_any_sequence_of_whole_numbers_is_absolute_positions_in_its_order(positions: Any) -> None:
    assert parse_positions(positions, ("all",)) == (2, 0)
    assert parse_positions_per_text(positions, ("all",), [3, 5]) == [(2, 0), (2, 0)]


@pytest.mark.parametrize("position", [3, np.int64(3), torch.tensor(3)], ids=repr)
def test_one_number_is_one_position(position: Any) -> None:
    assert parse_positions(position, ("all",)) == (3,)


@pytest.mark.parametrize("positions", [[[0, 1], [4, 2]], np.array([[0, 1], [4, 2]]), torch.tensor([[0, 1], [4, 2]])], ids=repr)
def test_one_list_per_text_is_each_text_s_own(positions: Any) -> None:
    assert parse_positions_per_text(positions, ("all",), [2, 5]) == [(0, 1), (4, 2)]


def test_a_word_is_itself_where_it_may_be_used() -> None:
    assert parse_positions("all", ("each", "all")) == "all"
    assert parse_positions_per_text("last", ("last", "all"), [2, 5]) == "last"


def test_every_word_that_somebody_takes_has_one_meaning() -> None:
    taken = {*CAPTURE_WORDS, *EDIT_WORDS, *PATCH_WORDS}
    means = {MEAN, MEAN_AFTER_FIRST}
    assert taken - means == set(MEANINGS)
    assert not means & {*EDIT_WORDS, *PATCH_WORDS, *MEANINGS}


def takers(model: Model) -> dict[str, tuple[Callable[[Any], object], Sequence[str]]]:
    return {
        "capture": (lambda positions: capture(model, ["the river"], ["resid_post.0"], positions=positions), CAPTURE_WORDS),
        "edit": (lambda positions: Edit.scale("mlp_post.0", 2.0, positions=positions), EDIT_WORDS),
        "patch": (lambda positions: make_cells(model, "resid_post", positions, None, None, [4]), PATCH_WORDS),
    }


@pytest.mark.parametrize("name", ["capture", "edit", "patch"])
@pytest.mark.parametrize(
    ("positions", "problem"),
    [
        ("first", "positions 'first' is unknown. Fix: use WORDS"), ([], "an empty list of positions was given"),
        ([-1], "position '-1' is not a whole number"), ([0.5], "position '0.5' is not a whole number"),
        ([True], "position 'True' is not a whole number"), (True, "positions True is unknown"), ({0: 1}, "positions {0: 1} is unknown"),
        (1.5, "positions 1.5 is unknown"), ([2**31], "position '2147483648' is not a whole number"),
    ],
    ids=str,
)  # fmt: skip
def test_capture_edits_and_patching_refuse_the_same_in_the_same_words(gpt2: Model, name: str, positions: Any, problem: str) -> None:
    act, words = takers(gpt2)[name]
    with pytest.raises(UserError, match=re.escape(problem.replace("WORDS", ", ".join(words)))):
        act(positions)


@pytest.mark.parametrize("name", ["capture", "edit", "patch"])
def test_each_takes_its_own_words_and_no_other_s(gpt2: Model, name: str) -> None:
    act, words = takers(gpt2)[name]
    for word in words:
        if word in ROLES and name != "edit":
            # Raw text has no turns; what a conversation has is read in test_chat.
            with pytest.raises(UserError, match=f"positions '{word}' are asked for, but the text is raw"):
                act(word)
        else:
            act(word)
    for word in {*MEANINGS, MEAN} - set(words):
        with pytest.raises(UserError, match=f"positions '{word}' is unknown"):
            act(word)


def test_capture_and_patching_refuse_a_position_that_a_text_lacks_in_the_same_words(gpt2: Model) -> None:
    for name in ("capture", "patch"):
        with pytest.raises(UserError, match=r"has \d+ tokens, but position 99 is asked for"):
            takers(gpt2)[name][0]([0, 99])
