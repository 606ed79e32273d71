"""A-E9 on a pair in which tuning lowers every active neuron, toxic or not."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from interp.experiments.toxicity.a_e9_activations import BY_ACTIVITY, BY_NORM, activities, run
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.neurons.activations import forced_neurons
from tests.experiments.toxicity.test_steering_experiments import small_context

LAYER, ACTIVE, TOXIC = 1, slice(0, None, 2), [0, 2, 4, 6, 8]


@pytest.fixture(scope="module")
def lowered(pair: ModelPair) -> ModelPair:
    """Every second neuron of a layer is active in the base and less so in the tuned model; five of them write the probe's direction."""
    direction = small_context(pair).direction
    hf = pair.base.plain_copy()
    mlp = hf.transformer.h[LAYER].mlp
    with torch.no_grad():
        mlp.c_fc.bias[ACTIVE] += 3.0
        norms = mlp.c_proj.weight.norm(dim=1)
        mlp.c_proj.weight[TOXIC] = direction / direction.norm() * norms.median()
    base = Model(hf, pair.base.tokenizer, "base")
    other = base.plain_copy()
    with torch.no_grad():
        other.transformer.h[LAYER].mlp.c_fc.bias[ACTIVE] -= 0.8
    return ModelPair(base, Model(other, pair.base.tokenizer, "tuned"))


def test_a_fall_of_every_active_neuron_is_not_taken_for_one_of_toxic_neurons(lowered: ModelPair) -> None:
    context = replace(small_context(lowered), quick=False)
    assert set(context.ranking.neurons[:5]) == {(LAYER, index) for index in TOXIC}
    finding = run(context)
    assert finding.statistic["mean fall"] > 0.5
    assert (finding.earlier[1], finding.verdict) == ("holds", "inconclusive")
    table = finding.tables["nulls"].set_index("neurons")
    toxic, by_norm, by_activity = (table.loc[name] for name in ("toxic", f"{BY_NORM} (null)", f"{BY_ACTIVITY} (null)"))
    assert by_norm["activation in the base"] < 0.7 * toxic["activation in the base"] < by_activity["activation in the base"]
    assert by_activity["mean fall"] == pytest.approx(toxic["mean fall"], rel=0.3)
    assert finding.null["mean fall"] == by_activity["mean fall"]


def test_the_activity_of_a_layer_is_the_mean_over_the_steps_of_its_neurons(lowered: ModelPair) -> None:
    context = small_context(lowered)
    activity = activities(context, [0, LAYER])
    base = lowered.base
    some = [(0, 5), (LAYER, 0), (LAYER, 7)]
    expected = forced_neurons(base, context.prompt_rows(), context.base_tokens(), some).step_means.mean(dim=0)
    torch.testing.assert_close(torch.stack([activity[layer][index] for layer, index in some]), expected)
