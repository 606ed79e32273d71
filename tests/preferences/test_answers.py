"""One-word answers as tokens: which form of the question has them, and which tokens mean what."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp import Model
from interp.errors import UserError
from interp.preferences.answers import answer_form, answer_sets, labels_of, question_rows, single_token
from tests.answers import answering_model


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return answering_model(Path(tmp_path_factory.mktemp("answering")))


def test_answers_with_a_space_are_asked_for_where_they_are_no_single_tokens_without(model: Model) -> None:
    form = answer_form(model, ("Yes", "No", "Never"))
    assert (form.after_question, form.before_answer, form.chat) == ("\nAnswer:", " ", False)
    assert labels_of(model, form, ("No", "Never", "Absolutely")) == {
        "No": single_token(model, " No"),
        "Never": single_token(model, " Never"),
    }
    (row,) = question_rows(model, form, ["Would you?"])
    assert model.tokenizer.decode(row) == "Would you?\nAnswer:"
    with pytest.raises(UserError, match="Absolutely is no single token"):
        answer_form(model, ("Yes", "Absolutely"))


def test_sets_hold_other_spellings_of_the_preferred_meaning_and_all_of_the_opposite(model: Model) -> None:
    def texts(tokens: tuple[int, ...]) -> set[str]:
        return {model.tokenizer.decode([token]) for token in tokens}

    form = answer_form(model, ("Yes", "No", "Never"))
    sets = answer_sets(model, form, "No", "Never")
    assert (texts(sets.preferred), texts(sets.dispreferred)) == ({" No"}, {" Never"})
    assert texts(sets.similar) == {" no", " never"}
    assert texts(sets.opposite) == {" Yes", " yes", "yes", " Yeah", " Sure"}
    # The dispreferred answer of the opposite meaning is a set of its own.
    assert texts(answer_sets(model, form, "Yes", "No").opposite) == {" no", " never", " Never"}
    with pytest.raises(UserError, match="'Maybe' means neither yes nor no"):
        answer_sets(model, form, "Maybe", "No")
    with pytest.raises(UserError, match="not two single tokens"):
        answer_sets(model, form, "No", "Absolutely")
