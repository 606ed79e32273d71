"""The divergence of two models against the plain way of computing it."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp.models.pair import ModelPair
from interp.stats.divergence import kl_to

TEXTS = ["the quick wintle sings under a river", "blorp and snarg", "never the meldy stone of drith, and a frabe walks with the oskle"]


def test_kl_to_itself_is_zero_and_to_another_model_what_the_logits_say(pair: ModelPair) -> None:
    assert np.abs(kl_to(pair.base, pair.base, TEXTS)).max() < 1e-6
    divergences = kl_to(pair.base, pair.tuned, TEXTS)
    for text, value in zip(TEXTS, divergences, strict=True):
        ids = torch.tensor([pair.base.tokenizer(text)["input_ids"]])
        mine, theirs = (model.hf(ids).logits[0].log_softmax(dim=-1) for model in (pair.base, pair.tuned))
        assert value == pytest.approx((mine.exp() * (mine - theirs)).sum(dim=-1).mean().item(), abs=1e-5)
