"""The forecast of what a text undoes, beside small steps that are really taken."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.elasticity.compression import started_rows
from interp.elasticity.ranking import own_answers_score, ranking, undoing_effects, word_odds_score
from interp.models.model import Model
from tests.conftest import TEXTS


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ["words", "answers"])
def test_the_effect_of_a_text_is_what_a_small_step_on_it_does(gpt2: Model, kind: str) -> None:
    prompts = [gpt2.tokenizer(text)["input_ids"] for text in ("the river", "a stone", "never with")]
    tokens = [(gpt2.token(" blorp"), gpt2.token(" snarg"))]
    score = (
        word_odds_score(prompts, tokens)
        if kind == "words"
        else own_answers_score(prompts, [[5, 6], [7], []], [[8], [9, 10], [11]])
    )  # fmt: skip
    texts = list(TEXTS[:3])
    effects = undoing_effects(gpt2, score, texts)
    rate = 1e-6
    for text, effect in zip(texts, effects, strict=True):
        hf = gpt2.plain_copy().double().requires_grad_(True)
        before = float(score(hf).detach())
        ids = torch.tensor(started_rows(gpt2, [text]))
        hf(input_ids=ids, labels=ids).loss.backward()
        with torch.no_grad():
            for parameter in hf.parameters():
                if parameter.grad is not None:
                    parameter -= rate * parameter.grad
        assert (float(score(hf).detach()) - before) / rate == pytest.approx(effect, rel=0.02, abs=1e-4)


def test_what_undoes_most_comes_first_beside_the_mean_of_neutral_texts() -> None:
    frame = ranking(["a", "b", "c"], np.array([0.5, -2.0, 0.1]), np.array([-0.5, -0.5]))
    assert frame["text"].tolist() == ["b", "c", "a"]
    assert frame["beyond neutral"].tolist() == pytest.approx([-1.5, 0.6, 1.0])
    assert frame["rank"].tolist() == [1, 2, 3]
