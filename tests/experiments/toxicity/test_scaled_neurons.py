"""Neurons multiplied by a factor are named by what the factor does, and stand beside equally active neurons at the same factor."""

from __future__ import annotations

import pytest
import torch

from interp.experiments.toxicity import scaled_neurons, shared
from interp.forward.capture import capture
from interp.models.pair import ModelPair
from interp.steering.strength import effect_of
from tests.experiments.toxicity.test_steering_experiments import ROWS, small_context


@pytest.mark.oracle
@pytest.mark.parametrize("factor", [0.0, 0.5, -3.0])
def test_activations_are_multiplied_by_the_factor_and_others_left(pair: ModelPair, factor: float) -> None:
    neurons = [(1, 3), (0, 7), (1, 0)]
    sites = ["mlp_post.0", "mlp_post.1"]
    # Each layer by itself, since a change below alters what a layer above reads.
    for layer, indices in ((0, [7]), (1, [0, 3])):
        edits = scaled_neurons.scaled([neuron for neuron in neurons if neuron[0] == layer], factor)
        plain, edited = (capture(pair.base, ROWS, sites, positions="all", edits=some)[f"mlp_post.{layer}"] for some in ((), edits))
        torch.testing.assert_close(edited[..., indices], factor * plain[..., indices])
        rest = [index for index in range(pair.base.d_mlp) if index not in indices]
        torch.testing.assert_close(edited[..., rest], plain[..., rest])


def test_switching_off_halving_and_inverting_are_rows_of_their_own_beside_a_control_of_the_same_factor(pair: ModelPair) -> None:
    """A factor of -3 was once called turning down, which made inverting look like ablation."""
    context = small_context(pair)
    held_out = shared.held_out(context)
    ways, controls = scaled_neurons.neuron_rows(context, held_out, shared.goal_loss(held_out))
    assert [row["strength"] for row in ways[1:]] == [0.0, 0.5]
    assert ["switched off" in row["model"] for row in ways] == [False, True, False]
    by_name = {row["model"]: row for row in controls}
    for row in [*ways, *controls]:
        assert effect_of(row["strength"]) in row["model"]
        assert "turned down" not in row["model"] or 0 < row["strength"] < 1
    for row in ways:
        assert by_name[row["null"]]["strength"] == row["strength"]
        assert row["null"] != row["model"]
    # The last control has a factor of its own, at which perplexity is the same.
    assert controls[-1]["model"].startswith("base with random neurons ")
