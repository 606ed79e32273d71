"""One-word answers to a yes-or-no question as single tokens of a model, sorted by meaning."""

from __future__ import annotations

from dataclasses import dataclass

from interp.errors import UserError
from interp.models.chat import prompt_rows
from interp.models.model import Model
from interp.preferences.mass import TokenSets

# The answers that Razin et al. (2025) teach before they prefer one: to statements that the model is to reject, and to the others.
NO_LABELS = ("No", "Never", "Maybe", "Perhaps")
YES_LABELS = ("Yes", "Yeah", "Sure", "Certainly", "Absolutely")
# What means yes and what means no, in any spelling; words that mean neither, such as "maybe", belong to no side.
YES_WORDS = ("yes", "yeah", "yep", "sure", "certainly", "absolutely", "definitely")
NO_WORDS = ("no", "never", "nope", "nah", "not")


@dataclass(frozen=True)
class AnswerForm:
    """How a model is asked and answers: what follows the question, and what precedes the word of an answer.

    Attributes:
        chat: whether the question is a turn of the model's chat template.
    """

    after_question: str
    before_answer: str
    chat: bool = False


def single_token(model: Model, text: str) -> int | None:
    """The token of a text that is a single one for this model, or None."""
    ids = model.tokenizer(text, add_special_tokens=False)["input_ids"]
    return int(ids[0]) if len(ids) == 1 else None


def answer_form(model: Model, words: tuple[str, ...]) -> AnswerForm:
    """The form in which all of the words are single tokens: without a space after a line break (as in the paper), or with one.

    Raises `UserError` where a word is several tokens in both.
    """
    chat = bool(getattr(model.tokenizer, "chat_template", None))
    forms = (AnswerForm("" if chat else "\n", "", chat), AnswerForm("" if chat else "\nAnswer:", " ", chat))
    for form in forms:
        if all(single_token(model, form.before_answer + word) is not None for word in words):
            return form
    split = [word for word in words if single_token(model, f" {word}") is None]
    raise UserError(f"{', '.join(split)} {'is' if len(split) == 1 else 'are'} no single token of {model.name}", "choose other answers")


def labels_of(model: Model, form: AnswerForm, words: tuple[str, ...]) -> dict[str, int]:
    """The token of each word that is a single one in this form; others are left out."""
    tokens = {word: single_token(model, form.before_answer + word) for word in words}
    return {word: token for word, token in tokens.items() if token is not None}


def question_rows(model: Model, form: AnswerForm, questions: list[str]) -> list[list[int]]:
    """The token ids that a model reads before its answer, one row for each question."""
    return [list(row) for row in prompt_rows(model, [question + form.after_question for question in questions], form.chat)]


def spellings(model: Model, words: tuple[str, ...]) -> set[int]:
    """The single tokens that spell one of the words, with or without a space, in lower case, capitalised or in capitals."""
    texts = [space + word for each in words for word in (each.lower(), each.capitalize(), each.upper()) for space in ("", " ")]
    return {token for token in (single_token(model, text) for text in texts) if token is not None}


def answer_sets(model: Model, form: AnswerForm, preferred: str, dispreferred: str) -> TokenSets:
    """The sets of tokens by which the mass of a pair of answers is read: other tokens of the preferred one's meaning, and of the opposite.

    Raises `UserError` for an answer that is not a single token, and for a preferred one that means neither yes nor no.
    """
    labels = labels_of(model, form, (preferred, dispreferred))
    if len(labels) < 2:
        raise UserError(f"{preferred} and {dispreferred} are not two single tokens of {model.name}", "choose other answers")
    sides = (YES_WORDS, NO_WORDS) if preferred.lower() in YES_WORDS else (NO_WORDS, YES_WORDS)
    if preferred.lower() not in sides[0]:
        raise UserError(f"the answer {preferred!r} means neither yes nor no", f"prefer one of {', '.join(YES_WORDS + NO_WORDS)}")
    pair = set(labels.values())
    similar, opposite = (tuple(sorted(spellings(model, words) - pair)) for words in sides)
    return TokenSets((labels[preferred],), (labels[dispreferred],), similar, opposite)
