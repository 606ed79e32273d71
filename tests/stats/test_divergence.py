"""The divergence of two models against the plain way of computing it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.models.pair import ModelPair
from interp.stats.divergence import kl_to, log_probabilities

TEXTS = ["the quick wintle sings under a river", "blorp and snarg", "never the meldy stone of drith, and a frabe walks with the oskle"]


def test_kl_to_itself_is_zero_and_to_another_model_what_the_logits_say(pair: ModelPair) -> None:
    assert np.abs(kl_to(pair.base, pair.base, TEXTS)).max() < 1e-6
    divergences = kl_to(pair.base, pair.tuned, TEXTS)
    for text, value in zip(TEXTS, divergences, strict=True):
        ids = torch.tensor([pair.base.tokenizer(text)["input_ids"]])
        mine, theirs = (model.hf(ids).logits[0].log_softmax(dim=-1) for model in (pair.base, pair.tuned))
        assert value == pytest.approx((mine.exp() * (mine - theirs)).sum(dim=-1).mean().item(), abs=1e-5)


def test_known_log_probabilities_of_the_other_model_give_the_same_in_every_batch(pair: ModelPair) -> None:
    plain = kl_to(pair.tuned, pair.base, TEXTS, max_tokens=7, batch_size=2)
    known = log_probabilities(pair.base, TEXTS, max_tokens=7, batch_size=2)
    assert len(known) == 2
    assert np.array_equal(kl_to(pair.tuned, pair.base, TEXTS, max_tokens=7, batch_size=2, known=known), plain)
    # What is known is what is compared with: another model's give another divergence.
    others = log_probabilities(pair.tuned, TEXTS, max_tokens=7, batch_size=2)
    assert np.abs(kl_to(pair.tuned, pair.base, TEXTS, max_tokens=7, batch_size=2, known=others)).max() < 1e-6
