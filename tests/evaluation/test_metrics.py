"""Perplexity, F1 and distinct-n against the plain way of computing each."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interp.data.texts import Passage
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.evaluation.metrics import distinct_n, evaluate, f1_of, perplexity, token_f1
from interp.evaluation.toxicity import load_scorer
from interp.forward.generate import generate, generate_tokens
from interp.models.model import Model

TEXTS = ["the quick wintle sings under a river", "blorp and snarg", "never the meldy stone of drith, and a frabe walks with the oskle"]


def plain_losses(model: Model, row: list[int]) -> list[float]:
    """The loss of each token after the first, from one forward of the whole row."""
    ids = torch.tensor([row])
    logits = model.hf(ids).logits[0, :-1].log_softmax(dim=-1)
    return [-logits[i, token].item() for i, token in enumerate(row[1:])]


def test_perplexity_of_texts_is_the_exponential_of_the_mean_loss_of_every_predicted_token(gpt2: Model) -> None:
    rows = gpt2.tokenizer(TEXTS)["input_ids"]
    losses = [loss for row in rows for loss in plain_losses(gpt2, row)]
    found = perplexity(gpt2, TEXTS)
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)
    assert found.settings["tokens"] == len(losses)
    assert perplexity(gpt2, TEXTS, batch_size=1).value == pytest.approx(found.value, rel=1e-6)


def test_windows_without_overlap_predict_all_but_the_first_token_of_the_whole(gpt2: Model) -> None:
    row = gpt2.tokenizer("\n\n".join(TEXTS))["input_ids"]
    width = 8
    losses: list[float] = plain_losses(gpt2, row[:width])
    start = width
    while start < len(row):
        # A window starts one token early, so that its first new token has something to be predicted from.
        part = row[start - 1 : start - 1 + width]
        losses += plain_losses(gpt2, part)
        start += len(part) - 1
    found = perplexity(gpt2, TEXTS, joined=True, window=width)
    assert found.settings["tokens"] == len(row) - 1 == len(losses)
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


@pytest.mark.parametrize(("window", "stride"), [(8, 1), (8, 3), (8, 8), (16, 5), (64, 64)])
def test_every_token_is_predicted_once_whatever_the_stride(gpt2: Model, window: int, stride: int) -> None:
    row = gpt2.tokenizer("\n\n".join(TEXTS))["input_ids"]
    found = perplexity(gpt2, TEXTS, joined=True, window=window, stride=stride)
    assert found.counts.sum() == len(row) - 1
    assert (found.counts > 0).all()


def test_stride_one_gives_every_token_the_longest_context(gpt2: Model) -> None:
    row = gpt2.tokenizer("\n\n".join(TEXTS))["input_ids"]
    losses = [plain_losses(gpt2, row[max(0, at - 7) : at + 1])[-1] for at in range(1, len(row))]
    found = perplexity(gpt2, TEXTS, joined=True, window=8, stride=1)
    assert found.value == pytest.approx(math.exp(np.mean(losses)), rel=1e-5)


def test_an_edit_changes_perplexity_as_the_edited_logits_do(gpt2: Model) -> None:
    edit = Edit.scale("logits", 0.0)
    assert perplexity(gpt2, TEXTS, edits=[edit]).value == pytest.approx(gpt2.d_vocab, rel=1e-4)


@pytest.mark.parametrize(
    ("texts", "settings", "message"),
    [
        ([], {}, "no texts"),
        (TEXTS, {"window": 1}, "not usable"),
        (TEXTS, {"window": 10_000}, "not usable"),
        (TEXTS, {"stride": 0}, "not usable"),
        (["a"], {}, "no token to predict"),
    ],
)
def test_what_perplexity_cannot_read_is_refused(gpt2: Model, texts: list[str], settings: dict, message: str) -> None:
    with pytest.raises(UserError, match=message):
        perplexity(gpt2, texts, **settings)


def test_f1_counts_shared_tokens_with_their_number() -> None:
    found = token_f1([[1, 1, 2, 3], [5], [], [7, 8]], [[1, 2, 2, 4], [5], [1], [9]])
    # Shared: 1 once and 2 once, so precision and recall are 2/4.
    assert found.tolist() == [0.5, 1.0, 0.0, 0.0]
    with pytest.raises(UserError, match="2 continuations were given for 1"):
        token_f1([[1], [2]], [[1]])


def test_f1_compares_as_many_tokens_of_the_real_continuation_as_are_generated(gpt2: Model) -> None:
    prompt = TEXTS[0]
    row = gpt2.tokenizer(prompt)["input_ids"]
    written = generate_tokens(gpt2, [row], max_new_tokens=5, stop_at_end=False)[0]
    for continuation in (" under the river", " never with the quick bitter sunny stone of a"):
        real = gpt2.tokenizer(continuation)["input_ids"][:5]
        shared = sum(min(written.count(token), real.count(token)) for token in set(real))
        expected = 2 * shared / (len(written) + len(real))
        assert f1_of(gpt2, [Passage(prompt, continuation, "post")], new_tokens=5).tolist() == [pytest.approx(expected)]


def test_distinct_n_is_the_share_of_different_word_pairs() -> None:
    assert distinct_n(["a b a b", "a b"], 2) == pytest.approx(2 / 4)
    assert distinct_n(["one two three"], 2) == 1.0
    assert math.isnan(distinct_n(["one"], 2))


def test_evaluate_reports_every_guard_and_scores_the_continuation_alone(gpt2: Model) -> None:
    class Seen:
        name, classes = "seen", ("toxicity",)

        def __init__(self) -> None:
            self.texts: list[str] = []

        def score(self, texts: list[str]) -> object:
            import pandas as pd

            self.texts += texts
            return pd.DataFrame({"toxicity": [0.25, 0.75]})

    scorer = Seen()
    held = [Passage(text[:12], text[12:], "post") for text in TEXTS]
    found = evaluate(gpt2, TEXTS[:2], scorer, passages=held, max_new_tokens=4)
    assert scorer.texts == generate(gpt2, TEXTS[:2], max_new_tokens=4)
    record = found.to_json()
    assert record["toxicity"]["mean"] == 0.5
    assert record["toxicity"]["share_above_half"] == 0.5
    assert record["n"] == 2
    assert record["perplexity"] == pytest.approx(perplexity(gpt2, TEXTS).value)
    assert set(record) == {"toxicity", "perplexity", "f1", "distinct_2", "n", "settings"}
    with pytest.raises(UserError, match="no prompts"):
        evaluate(gpt2, [], load_scorer("lexicon"))
