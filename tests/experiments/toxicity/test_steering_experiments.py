"""The tables of ways to detoxify and to retoxify (W-E1, W-E2), at one price each, and the gates of gated models (A-E13)."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.data.texts import Passage
from interp.directions.probe import Probe
from interp.edits.edit import Edit
from interp.edits.weights import interpolated
from interp.errors import UserError
from interp.evaluation.metrics import perplexity
from interp.evaluation.toxicity import LexiconScorer
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.a_e13_glu import gates_open, linear_scaled
from interp.experiments.toxicity.a_e13_glu import run as gated
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.w_e1_detoxify import run as detoxify
from interp.experiments.toxicity.w_e2_retoxify import run as retoxify
from interp.forward.capture import capture
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.stats.nulls import random_directions
from tests.conftest import CONFIGS, WORDS, make_hf

ROWS = [[3, 50, 270, 271], [260, 261, 262, 263, 264], [300, 12, 80]]


def small_context(pair: ModelPair, seed: int = 0) -> ToxicityContext:
    """Prompts and passages of the invented words, scored by whether a frequent one of the base's own words is said."""
    generator = torch.Generator().manual_seed(seed)
    texts = [" ".join(WORDS[int(i)] for i in torch.randint(len(WORDS), (7,), generator=generator)) for _ in range(20)]
    probe = random_probe(pair)
    return ToxicityContext(
        pair,
        probe,
        LexiconScorer(),
        texts[:12],
        [Passage(text[:18], text[18:], "post") for text in texts[12:]],
        draws=6,
        quick=True,
        new_tokens=4,
    )


def random_probe(pair: ModelPair) -> Probe:
    direction = random_directions(torch.ones(pair.base.d_model), 1, 9)[0]
    return Probe(torch.stack([-direction, direction], dim=1), direction, {}, pair.base.digest, {})


def test_every_price_is_the_one_asked_for(pair: ModelPair) -> None:
    context = small_context(pair)
    texts = [passage.text for passage in context.passages]
    edit = Edit.add(f"resid_post.{pair.base.n_layers - 1}", context.direction, 0.7)
    cheap = shared.last_loss(context, pair.base, context.direction, 0.7)
    assert cheap == pytest.approx(math.log(perplexity(pair.base, texts, edits=[edit]).value), abs=1e-4)
    start = math.log(perplexity(pair.base, texts).value)
    # Which sign of a change costs anything is the random model's business: the goal is taken from a strength inside the range.
    for make in (lambda s: interpolated(pair.base, pair.tuned, s), lambda s: interpolated(pair.base, pair.tuned, -s)):
        goal = math.log(perplexity(make(10.0), texts).value)
        if goal > start + 0.01:
            found = shared.match_weights(context, pair.base, make, goal, most=40.0)
            assert found.reached
            assert found.loss == pytest.approx(goal, abs=shared.TOLERANCE)
            assert math.log(perplexity(make(found.strength), texts).value) == pytest.approx(found.loss, abs=1e-6)
            return
    raise AssertionError("neither sign of the change costs anything")


def test_halves_of_the_prompts_share_no_prompt_and_keep_their_measurements(pair: ModelPair) -> None:
    context = small_context(pair)
    fit, held = shared.fitted(context), shared.held_out(context)
    assert not set(fit.prompts) & set(held.prompts)
    assert set(fit.prompts) | set(held.prompts) == set(context.prompts)
    assert shared.held_out(context) is held
    assert held.toxicity(pair.base) is shared.held_out(context).toxicity(pair.base)


def test_a_model_made_for_one_line_is_measured_once_and_dropped(pair: ModelPair) -> None:
    context = small_context(pair)
    made: list[weakref.ref[Model]] = []

    def make() -> Model:
        model = interpolated(pair.base, pair.tuned, 0.5)
        made.append(weakref.ref(model))
        return model

    expected = shared.row_of(small_context(pair), "half", interpolated(pair.base, pair.tuned, 0.5), kind="way")
    row = shared.row_of_temporary(context, "half", make, kind="way")
    assert made[0]() is None
    assert row.keys() == expected.keys()
    assert {key: row[key] for key in row if key != "_scores"} == {key: expected[key] for key in row if key != "_scores"}
    np.testing.assert_array_equal(row["_scores"], expected["_scores"])
    # A model that comes to lie where the dropped one lay is not taken for it.
    assert not [key for key, *_ in context.measurements() if key in ("toxicity", "continuations", "perplexity", "f1")]
    assert shared.row_of_temporary(context, "half", make, kind="way") == row
    assert len(made) == 1


def test_prompts_that_are_not_toxic_are_refused_by_both_tables_of_ways(pair: ModelPair) -> None:
    context = small_context(pair)
    with pytest.raises(UserError, match="not toxic at all"):
        detoxify(context)
    with pytest.raises(UserError, match="nothing to bring back"):
        retoxify(context)


def test_a_model_without_gates_is_told_what_the_experiment_needs(pair: ModelPair) -> None:
    with pytest.raises(UserError, match="needs a gated MLP"):
        gated(small_context(pair))


@pytest.fixture(scope="module")
def gated_pair(tokenizer: PreTrainedTokenizerFast) -> tuple[ModelPair, ToxicityContext]:
    """A Llama whose 8 neurons nearest to the probe write a listed word, with gates that the tuned side shuts."""
    hf = make_hf(CONFIGS["llama"](), tokenizer, seed=11)
    direction = random_directions(torch.ones(32), 1, 9)[0]
    with torch.no_grad():
        for layer in (1, 2):
            mlp = hf.model.layers[layer].mlp
            mlp.down_proj.weight[:, :4] = direction.unsqueeze(1)
    base = Model(hf, tokenizer, "base")
    other = base.plain_copy()
    with torch.no_grad():
        for layer in (1, 2):
            other.model.layers[layer].mlp.gate_proj.weight[:4] *= -0.5
            other.model.layers[layer].mlp.up_proj.weight[:4] *= 0.5
    pair = ModelPair(base, Model(other, tokenizer, "tuned"))
    return pair, small_context(pair)


@pytest.mark.oracle
def test_open_gates_and_scaled_linear_parts_do_to_the_neurons_what_they_say(gated_pair: tuple[ModelPair, ToxicityContext]) -> None:
    pair, _ = gated_pair
    neurons = [(1, 0), (1, 3), (2, 2)]
    sites = ["mlp_gate.1", "mlp_up.1", "mlp_post.1", "mlp_up.2"]
    plain = capture(pair.tuned, ROWS, sites, positions="all")
    held = capture(pair.tuned, ROWS, sites, positions="all", edits=gates_open(neurons))
    mask = held.mask
    assert torch.equal(held["mlp_gate.1"][mask][:, [0, 3]], torch.ones(int(mask.sum()), 2))
    torch.testing.assert_close(held["mlp_post.1"][mask][:, [0, 3]], plain["mlp_up.1"][mask][:, [0, 3]])
    scaled = capture(pair.tuned, ROWS, sites, positions="all", edits=linear_scaled(neurons, 3.0))
    torch.testing.assert_close(scaled["mlp_up.1"][..., [0, 3]], 3 * plain["mlp_up.1"][..., [0, 3]])
    torch.testing.assert_close(scaled["mlp_up.1"][..., [1, 2]], plain["mlp_up.1"][..., [1, 2]])


def test_the_gated_experiment_runs_on_a_pair_of_llamas_and_counts_the_parts_that_fell(
    gated_pair: tuple[ModelPair, ToxicityContext],
) -> None:
    _, context = gated_pair
    assert set(context.ranking.neurons[:8]) == {(layer, i) for layer in (1, 2) for i in range(4)}
    found = gated(context)
    assert found.verdict in {"fails", "inconclusive"}, "nothing is toxic here, so nothing can come back"
    assert set(found.tables["parts"]["part"]) == {"gate", "linear part"}
    assert len(found.tables["models"]) == 8
    rerun = gated(replace(context))
    assert rerun.summary == found.summary
