"""Compression against plain transformers, and the divergence by position against torch in double precision."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch

from interp.elasticity.compression import compression, compression_frame, started_rows, text_costs
from interp.elasticity.divergence import kl_by_position
from interp.errors import UserError
from interp.models.model import Model
from interp.models.pair import ModelPair
from tests.conftest import TEXTS


@pytest.mark.oracle
def test_costs_are_those_of_plain_transformers_with_every_token_predicted(any_model: Model) -> None:
    texts = [*TEXTS, " ".join(TEXTS)]
    costs = text_costs(any_model, texts)
    start = any_model.tokenizer.eos_token_id
    for place, text in enumerate(texts[:4]):
        ids = torch.tensor([[start, *any_model.tokenizer(text, add_special_tokens=False)["input_ids"]]])
        with torch.no_grad():
            loss = any_model.hf(input_ids=ids, labels=ids).loss
        assert costs.nats[place] == pytest.approx(float(loss) * (ids.shape[1] - 1), rel=1e-5)
        assert (costs.tokens[place], costs.size[place]) == (ids.shape[1] - 1, len(text.encode()))
    # A text beyond the context is read in windows: every token once.
    assert costs.tokens[5] == len(any_model.tokenizer(texts[5], add_special_tokens=False)["input_ids"])


def test_bits_per_byte_and_nats_per_token_are_one_sum_in_two_units(gpt2: Model) -> None:
    sources = {"first": list(TEXTS[:3]), "second": list(TEXTS[3:])}
    first, second = compression(gpt2, sources, depth=2)
    for one, texts in zip((first, second), sources.values(), strict=True):
        assert one.size == sum(len(text.encode()) for text in texts)
        assert one.bits_per_byte.value * one.size * math.log(2) == pytest.approx(one.nats_per_token.value * one.tokens, rel=1e-9)
        assert one.normalised == pytest.approx(one.nats_per_token.value - math.log(one.leaves))
    assert list(compression_frame([first, second])["source"]) == ["first", "second"]


def test_texts_that_cannot_be_compressed_are_refused(gpt2: Model) -> None:
    for texts in ([], [""]):
        with pytest.raises(UserError):
            text_costs(gpt2, texts)


@pytest.mark.oracle
def test_divergence_by_position_is_torchs_in_double(pair: ModelPair) -> None:
    rows = started_rows(pair.base, list(TEXTS), max_tokens=20)
    tables = kl_by_position(pair.tuned, {"base": pair.base, "itself": pair.tuned}, rows, batch_size=2)
    assert np.nanmax(np.abs(tables["itself"].values)) == 0
    values = tables["base"].values
    for place, row in enumerate(rows):
        with torch.no_grad():
            mine, theirs = (side.hf(torch.tensor([row])).logits[0].double().log_softmax(-1) for side in (pair.tuned, pair.base))
        expected = torch.nn.functional.kl_div(theirs, mine, log_target=True, reduction="none").sum(-1)
        assert values[place, : len(row)] == pytest.approx(expected.numpy(), rel=1e-4, abs=1e-9)
        assert np.isnan(values[place, len(row) :]).all()
        assert tables["base"].of_row[place] == pytest.approx(float(expected.mean()), rel=1e-4)
    assert tables["base"].by_position(3) == pytest.approx(np.nanmean(values[:, :3], axis=0))
    assert tables["base"].mean > 0


def test_divergence_needs_one_vocabulary_and_rows(pair: ModelPair) -> None:
    with pytest.raises(UserError, match="no texts"):
        kl_by_position(pair.tuned, {"base": pair.base}, [])
