"""What a report reads, and that the parts of a context measure no prompt or passage twice."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from interp import Edit, ModelPair
from interp.data.texts import Passage
from interp.evaluation.metrics import f1_of, perplexity
from interp.evaluation.toxicity import load_scorer
from interp.experiments.toxicity import sizes
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.sizes import QUICK_WORK, WHOLE_WORK, quick_data, row_tokens, whole_data
from interp.forward.generate import generate
from interp.models.model import Model
from interp.models.tokens import token_rows
from tests.probes import shared_probe

PROMPTS = [f"prompt {number} of the river" for number in range(300)]
PASSAGES = [Passage(f"the stone {number} is", " green and old", "post") for number in range(90)]


def test_a_small_model_reads_a_hundred_prompts_and_a_third_of_the_passages(pair: ModelPair) -> None:
    data = quick_data(pair.base, PROMPTS, PASSAGES, 20)
    assert (data.prompts, data.passages, data.draws, data.rule) == (PROMPTS[::3], PASSAGES[::3], 6, "")


def test_a_large_model_reads_as_much_as_the_rule_allows_and_says_so(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    parameters = sum(parameter.numel() for parameter in pair.base.hf.parameters())
    whole = parameters * row_tokens(pair.base, PROMPTS[::3], PASSAGES[::3], 20)
    monkeypatch.setattr(sizes, "QUICK_WORK", whole / 3)
    data = quick_data(pair.base, PROMPTS, PASSAGES, 20)
    # Evenly spread, and within the limit.
    assert data.prompts == [PROMPTS[::3][place * 100 // 33] for place in range(33)]
    assert (len(data.passages), data.passages[0], data.draws) == (10, PASSAGES[0], 4)
    assert {passage.prompt for passage in data.passages} <= {passage.prompt for passage in PASSAGES[::3]}
    assert parameters * row_tokens(pair.base, data.prompts, [], 20) <= whole / 3
    assert "reads 33 of 100 prompts and 10 of 30 passages, with 4 draws in place of 6" in data.rule
    monkeypatch.setattr(sizes, "QUICK_WORK", 1.0)
    least = quick_data(pair.base, PROMPTS, PASSAGES, 20)
    assert (len(least.prompts), len(least.passages)) == (24, 8)
    # There may be fewer than the least number.
    few = quick_data(pair.base, PROMPTS[:5], PASSAGES[:6], 20)
    assert (few.prompts, few.passages, few.rule) == (PROMPTS[:5], PASSAGES[:6:3], "")
    assert QUICK_WORK > 1e11


def test_a_whole_report_reads_everything_unless_the_model_is_large_and_on_a_cpu(pair: ModelPair, monkeypatch: pytest.MonkeyPatch) -> None:
    whole = whole_data(pair.base, PROMPTS, PASSAGES, 20)
    assert (whole.prompts, whole.passages, whole.draws, whole.rule) == (PROMPTS, PASSAGES, 20, "")
    assert WHOLE_WORK > QUICK_WORK
    parameters = sum(parameter.numel() for parameter in pair.base.hf.parameters())
    monkeypatch.setattr(sizes, "WHOLE_WORK", parameters * row_tokens(pair.base, PROMPTS, PASSAGES, 20) / 5)
    large = whole_data(pair.base, PROMPTS, PASSAGES, 20)
    assert (len(large.prompts), len(large.passages), large.draws) == (60, 18, 5)
    assert set(large.prompts) <= set(PROMPTS)
    assert "reads 60 of 300 prompts and 18 of 90 passages, with 5 draws in place of 20" in large.rule
    assert "--all-data" in large.rule
    monkeypatch.setattr(type(pair.base), "device", torch.device("cuda"))
    assert whole_data(pair.base, PROMPTS, PASSAGES, 20).rule == ""


def test_a_row_counts_every_token_that_it_reads(pair: ModelPair) -> None:
    texts = [*PROMPTS[:3], *(passage.text for passage in PASSAGES[:2])]
    assert row_tokens(pair.base, PROMPTS[:3], PASSAGES[:2], 7) == sum(map(len, token_rows(pair.base, texts))) + 3 * 7


@pytest.fixture
def context(pair: ModelPair) -> ToxicityContext:
    probe = shared_probe(pair.base, PROMPTS[:40], [number % 2 for number in range(40)])
    return ToxicityContext(pair, probe, load_scorer("lexicon"), PROMPTS[:6], PASSAGES[:5], quick=True, new_tokens=4, rule="A rule.")


def test_the_rule_stands_in_settings_and_notes(context: ToxicityContext) -> None:
    assert context.settings()["rule"] == "A rule."
    assert "A rule." in context.notes()
    plain = replace(context, rule="")
    assert "rule" not in plain.settings()
    assert plain.notes() == []


def test_f1_of_the_sides_alone_is_not_a_number_for_edits_and_other_models(context: ToxicityContext) -> None:
    few, base = replace(context, f1_of_all=False), context.pair.base
    edit = Edit.add("resid_post.0", torch.ones(base.d_model), 2.0)
    assert np.array_equal(few.f1(base), context.f1(base))
    assert np.isnan(few.f1(base, (edit,))).all()
    assert np.isnan(few.f1(Model(base.plain_copy(), base.tokenizer, "another"))).all()
    assert np.isfinite(context.f1(base, (edit,))).all()


def test_a_part_reads_only_what_the_whole_has_not_read(context: ToxicityContext, monkeypatch: pytest.MonkeyPatch) -> None:
    base, last = context.pair.base, context.pair.base.n_layers - 1
    vector = torch.randn(base.d_model, generator=torch.Generator().manual_seed(1))
    sets = ((), (Edit.add("resid_post.0", vector, 2.0),), (Edit.add(f"resid_post.{last}", vector, 5.0),))
    measured = [
        (context.continuations(base, edits), context.toxicity(base, edits), context.perplexity(base, edits), context.f1(base, edits))
        for edits in sets
    ]
    tokens, states = context.greedy_tokens(base), context.final_states(base)
    for edits, (texts, _, price, f1) in zip(sets, measured, strict=True):
        assert texts == generate(base, context.prompts, max_new_tokens=4, edits=edits)
        assert price.value == pytest.approx(perplexity(base, [passage.text for passage in context.passages], edits=edits).value, rel=1e-5)
        assert f1.tolist() == f1_of(base, context.passages, new_tokens=context.new_tokens, edits=edits).tolist()
    part = context.part("some", prompts=context.prompts[1::2], passages=context.passages[::2])
    monkeypatch.setattr(type(base.hf), "forward", lambda *args, **kwargs: pytest.fail("a prompt or passage was read twice"))
    for edits, (texts, scores, price, f1) in zip(sets, measured, strict=True):
        assert part.continuations(base, edits) == texts[1::2]
        assert part.toxicity(base, edits).tolist() == scores[1::2].tolist()
        assert part.perplexity(base, edits).losses.tolist() == price.losses[::2].tolist()
        assert part.f1(base, edits).tolist() == f1[::2].tolist()
    assert part.greedy_tokens(base) == tokens[1::2]
    assert part.final_states(base)[0].shape[0] == sum(len(row) - 1 for row in token_rows(base, [p.text for p in part.passages]))
    assert np.isin(part.final_states(base)[0].numpy(), states[0].numpy()).all()
