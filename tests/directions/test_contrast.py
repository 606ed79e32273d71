"""Ways to change toxicity: the strength at one price, weights changed on copies alone, and identities between ways."""

from __future__ import annotations

import math
import weakref
from dataclasses import replace

import numpy as np
import pytest
import torch
from transformers import PreTrainedTokenizerFast

from interp.data.texts import Passage
from interp.diffing.offsets import mean_offset
from interp.directions.contrast import ablation, difference_in_means, random_subspaces, toxic_subspaces
from interp.directions.probe import Probe
from interp.edits.edit import Edit
from interp.edits.weights import interpolated, orthogonalised, values_projected
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
from interp.forward.generate import generate_tokens
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.models.tokens import pad
from interp.stats.nulls import random_directions
from interp.steering.strength import match_loss
from tests.conftest import CONFIGS, WORDS, make_hf

ROWS = [[3, 50, 270, 271], [260, 261, 262, 263, 264], [300, 12, 80]]


def logits(model: Model, edits: tuple[Edit, ...] = ()) -> torch.Tensor:
    return capture(model, ROWS, ["logits"], positions="all", edits=edits)["logits"]


def weights(model: Model) -> dict[str, torch.Tensor]:
    return {name: value.clone() for name, value in model.hf.state_dict().items()}


@pytest.mark.oracle
def test_the_strength_solves_a_loss_that_is_known_in_closed_form() -> None:
    for scale in (0.01, 1.0, 300.0):
        found = match_loss(lambda s, scale=scale: 2 + (s / scale) ** 2, 2.05, most=50 * scale, tolerance=1e-5)
        assert found.strength == pytest.approx(scale * math.sqrt(0.05), rel=1e-3)
        assert found.reached
    bent = match_loss(lambda s: 1 + math.expm1(s) - 0.2 * s, 1.5, most=8.0, tolerance=1e-6)
    assert 1 + math.expm1(bent.strength) - 0.2 * bent.strength == pytest.approx(1.5, abs=1e-6)


def test_a_loss_that_jumps_or_is_not_finite_ends_on_the_cheap_side() -> None:
    assert match_loss(lambda s: 1.0 if s < 0.7 else 9.0, 1.1, most=2.0).strength == pytest.approx(0.7, abs=0.01)
    assert match_loss(lambda s: 1.0 if s < 0.7 else 9.0, 1.1, most=2.0).loss == 1.0
    wild = match_loss(lambda s: 1 + s**2 if s < 1 else math.nan, 1.5, most=4.0)
    assert wild.loss == pytest.approx(1.5, abs=1e-3)


def test_a_way_that_stays_cheap_is_given_its_whole_range_and_says_so() -> None:
    found = match_loss(lambda s: 1 + 0.01 * s, 2.0, most=3.0)
    assert (found.strength, found.reached) == (3.0, False)
    with pytest.raises(UserError, match="before anything is changed"):
        match_loss(lambda s: 5.0, 2.0, most=3.0)


@pytest.mark.oracle
def test_interpolation_ends_at_both_models_bit_for_bit_and_leaves_them_alone(pair: ModelPair) -> None:
    before = {side: weights(model) for side, model in pair.sides.items()}
    for share, side in ((0, pair.base), (1, pair.tuned)):
        made = weights(interpolated(pair.base, pair.tuned, share))
        assert all(torch.equal(made[name], value) for name, value in weights(side).items())
    half, beyond = (weights(interpolated(pair.base, pair.tuned, share)) for share in (0.5, 1.5))
    for name, value in before["base"].items():
        torch.testing.assert_close(half[name], (value + before["tuned"][name]) / 2, atol=1e-6, rtol=1e-5)
        torch.testing.assert_close(beyond[name], 1.5 * before["tuned"][name] - 0.5 * value, atol=1e-6, rtol=1e-4)
    for side, model in pair.sides.items():
        assert all(torch.equal(before[side][name], value) for name, value in weights(model).items())


@pytest.mark.oracle
def test_orthogonal_weights_equal_directional_ablation_while_the_model_runs(model: Model) -> None:
    direction = torch.randn(model.d_model, generator=torch.Generator().manual_seed(1))
    before = weights(model)
    changed = orthogonalised(model, direction)
    torch.testing.assert_close(logits(changed), logits(model, ablation(model, direction)), atol=2e-4, rtol=1e-4)
    last = f"resid_post.{model.n_layers - 1}"
    left = capture(changed, ROWS, [last], positions="all")[last] @ (direction / direction.norm())
    assert left.abs().max() < 1e-4
    assert (logits(changed) - logits(model)).abs().max() > 0.01
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())


def test_the_unembedding_stays_when_the_embedding_that_it_shares_is_changed(gpt2: Model) -> None:
    assert gpt2.hf.lm_head.weight is gpt2.hf.transformer.wte.weight
    changed = orthogonalised(gpt2, torch.ones(gpt2.d_model) + torch.arange(gpt2.d_model))
    assert torch.equal(changed.unembedding, gpt2.unembedding)
    assert not torch.equal(changed.hf.transformer.wte.weight, gpt2.hf.transformer.wte.weight)
    assert gpt2.hf.lm_head.weight is gpt2.hf.transformer.wte.weight


def test_no_strength_changes_nothing_and_twice_the_strength_reflects(gpt2: Model) -> None:
    direction = torch.randn(gpt2.d_model, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(logits(orthogonalised(gpt2, direction, 0.0)), logits(gpt2))
    unit = direction / direction.norm()
    reflected = orthogonalised(gpt2, direction, 2.0)
    for layer in range(gpt2.n_layers):
        torch.testing.assert_close(reflected.value_vectors(layer) @ unit, -gpt2.value_vectors(layer) @ unit, atol=1e-5, rtol=1e-4)


@pytest.mark.oracle
def test_projected_values_lose_the_subspace_in_the_layers_named_alone(model: Model) -> None:
    before = weights(model)
    rows = torch.linalg.qr(torch.randn(model.d_model, 2, generator=torch.Generator().manual_seed(3))).Q.T
    changed = values_projected(model, {1: rows})
    assert (changed.value_vectors(1) @ rows.T).abs().max() < 1e-5
    complement = torch.eye(model.d_model) - rows.T @ rows
    torch.testing.assert_close(changed.value_vectors(1), model.value_vectors(1) @ complement, atol=1e-5, rtol=1e-4)
    for layer in (0, 2):
        assert torch.equal(changed.value_vectors(layer), model.value_vectors(layer))
    assert all(torch.equal(before[name], value) for name, value in weights(model).items())
    with pytest.raises(UserError, match="not orthonormal"):
        values_projected(model, {1: 2 * rows})


@pytest.mark.oracle
def test_the_toxic_subspace_is_the_direction_planted_in_one_class(gpt2: Model) -> None:
    toxic, harmless = [[300, 5, 6], [301, 7, 8], [302, 9, 4], [300, 4, 4]], [[5, 6, 7], [7, 8, 9], [9, 4, 5], [4, 4, 4]]
    found = toxic_subspaces(gpt2, toxic, harmless, layers=[1, 2], rank=2)
    for layer, rows in found.items():
        torch.testing.assert_close(rows @ rows.T, torch.eye(2), atol=1e-5, rtol=0)
        one, two = (capture(gpt2, some, [f"resid_post.{layer}"], positions="mean")[f"resid_post.{layer}"] for some in (toxic, harmless))
        common = two.mean(dim=0) / two.mean(dim=0).norm()
        assert (rows @ common).abs().max() < 1e-4
        left = (one - two) - ((one - two) @ common).unsqueeze(1) * common
        kept = ((left @ rows.T) ** 2).sum()
        others = random_subspaces({layer: rows}, 0)[layer]
        assert kept > 3 * ((left @ others.T) ** 2).sum()


@pytest.mark.oracle
def test_the_difference_in_means_is_found_where_a_token_makes_the_classes(gpt2: Model) -> None:
    toxic = [[row, 300] for row in range(4, 20)]
    harmless = [[row, 301] for row in range(4, 20)]
    found = difference_in_means(gpt2, toxic, harmless)
    site = f"resid_post.{found.layer}"
    one, two = (capture(gpt2, rows[::2], [site])[site].mean(dim=0) for rows in (toxic, harmless))
    torch.testing.assert_close(found.direction, one - two, atol=1e-5, rtol=1e-4)
    assert found.table[found.layer] == max(found.table.values()) == 1.0
    assert set(found.table) == {0, 1}
    with pytest.raises(UserError, match="at least 4"):
        difference_in_means(gpt2, toxic[:3], harmless)


@pytest.mark.oracle
def test_the_mean_offset_is_the_bias_that_was_added(gpt2: Model) -> None:
    hf = gpt2.plain_copy()
    shift = torch.randn(gpt2.d_model, generator=torch.Generator().manual_seed(4))
    with torch.no_grad():
        hf.transformer.h[1].mlp.c_proj.bias += shift
    moved = ModelPair(gpt2, Model(hf, gpt2.tokenizer, "tuned"))
    torch.testing.assert_close(mean_offset(moved, ROWS, 1), torch.zeros(gpt2.d_model), atol=1e-5, rtol=0)
    layer_two = capture(moved.tuned, ROWS, ["resid_pre.2"])["resid_pre.2"] - capture(gpt2, ROWS, ["resid_pre.2"])["resid_pre.2"]
    torch.testing.assert_close(layer_two, shift.expand(3, -1), atol=1e-5, rtol=0)
    attention = capture(moved.tuned, ROWS, ["attn_out.2"])["attn_out.2"] - capture(gpt2, ROWS, ["attn_out.2"])["attn_out.2"]
    torch.testing.assert_close(mean_offset(moved, ROWS, 2), shift + attention.mean(dim=0), atol=1e-4, rtol=1e-3)


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
    row = shared.row_of_made(context, "half", make, kind="way")
    assert made[0]() is None
    assert row.keys() == expected.keys()
    assert {key: row[key] for key in row if key != "_scores"} == {key: expected[key] for key in row if key != "_scores"}
    np.testing.assert_array_equal(row["_scores"], expected["_scores"])
    # A model that comes to lie where the dropped one lay is not taken for it.
    assert not [key for key, *_ in context.measurements() if key in ("toxicity", "continuations", "perplexity", "f1")]
    assert shared.row_of_made(context, "the same, under another name", make, made="half")["toxicity"] == row["toxicity"]
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
    assert len(found.tables["models"]) == 6
    rerun = gated(replace(context))
    assert rerun.summary == found.summary


def test_generation_under_ablation_differs_from_plain_generation_only_where_the_direction_matters(gpt2: Model) -> None:
    direction = torch.randn(gpt2.d_model, generator=torch.Generator().manual_seed(7))
    rows = generate_tokens(orthogonalised(gpt2, direction), ROWS, max_new_tokens=5, stop_at_end=False)
    assert rows == generate_tokens(gpt2, ROWS, max_new_tokens=5, edits=ablation(gpt2, direction), stop_at_end=False)
    assert pad(rows, 0).ids.shape == (3, 5)
