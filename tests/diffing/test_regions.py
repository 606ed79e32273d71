"""The region where a neuron fires, on a pair whose change of the residual stream is planted."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from interp import Model, ModelPair, UserError, capture
from interp.diffing.offsets import key_products
from interp.diffing.regions import STATES, Leaving, firing_states, leaving, matched_shares
from interp.models.model import Neuron
from interp.stats.intervals import bootstrap_ratio

LAYER = 1
TEXTS = ["the quick wintle sings", "blorp and snarg", "never the meldy stone of drith", "a quonk", "river and stone", "hoddle hoddle"]


def states_of(model: Model) -> torch.Tensor:
    return capture(model, TEXTS, [f"resid_mid.{LAYER}"])[f"resid_mid.{LAYER}"]


def firing_neuron(model: Model) -> Neuron:
    """The neuron that fires on most of the texts, but not on all."""
    shares = (key_products(model, LAYER, range(model.d_mlp), states_of(model)) > 0).double().mean(dim=0)
    shares[shares == 1] = 0
    return LAYER, int(shares.argmax())


def without(states: torch.Tensor, model: Model, index: int) -> torch.Tensor:
    """The states moved so far against a neuron's key, as the MLP's norm sees it, that the neuron is silent on all."""
    norm = model.hf.get_submodule(f"transformer.h.{LAYER}.ln_2")
    direction = model.key_vectors(LAYER)[index] * norm.weight
    direction = (direction - direction.mean()) / direction.norm()
    return states - 50 * direction


def same(model: Model) -> ModelPair:
    """A pair of one model with itself: what differs are only the states that a test gives."""
    return ModelPair(model, model)


def test_a_shift_against_the_key_empties_the_region_and_random_shifts_do_not(gpt2: Model) -> None:
    neuron = firing_neuron(gpt2)
    base = states_of(gpt2)
    found = leaving(same(gpt2), neuron, base, without(base, gpt2, neuron[1]), shift_draws=99, matched_draws=0)
    fires = (key_products(gpt2, LAYER, [neuron[1]], base)[:, 0] > 0).numpy()
    assert 0 < fires.sum() < len(TEXTS)
    assert found.fires.tolist() == found.leaves.tolist() == found.leaves_by_shift.tolist() == fires.tolist()
    assert not found.enters.any()
    assert found.share == 1.0
    assert found.null.n == 99
    assert found.null.value < fires.sum()
    assert found.p <= 0.5
    assert len(found.matched) == 0


def test_a_shift_the_other_way_is_entering(gpt2: Model) -> None:
    neuron = firing_neuron(gpt2)
    base = states_of(gpt2)
    found = leaving(same(gpt2), neuron, without(base, gpt2, neuron[1]), base, shift_draws=5, matched_draws=0)
    fires = (key_products(gpt2, LAYER, [neuron[1]], base)[:, 0] > 0).numpy()
    assert not found.fires.any()
    assert found.enters.tolist() == fires.tolist()
    assert found.share == 0.0
    assert found.to_frame().set_index("role").loc["tuned", "share"] != found.share  # No share of none: NaN in the table.


def test_the_tuned_key_counts_for_the_tuned_model_and_the_base_key_for_the_shift_alone(pair: ModelPair) -> None:
    base, tuned = (states_of(model) for model in pair.sides.values())
    found = leaving(pair, (LAYER, 3), base, tuned, shift_draws=3, matched_draws=0)
    assert found.before.tolist() == key_products(pair.base, LAYER, [3], base)[:, 0].tolist()
    assert found.after.tolist() == key_products(pair.tuned, LAYER, [3], tuned)[:, 0].tolist()
    assert found.shift_alone.tolist() == key_products(pair.base, LAYER, [3], tuned)[:, 0].tolist()
    assert found.after.tolist() != found.shift_alone.tolist()


def test_matched_neurons_are_counted_one_by_one_and_silent_ones_left_out(pair: ModelPair) -> None:
    base, tuned = (states_of(model) for model in pair.sides.values())
    shares = matched_shares(pair, (LAYER, 3), base, tuned, draws=12)
    every = range(pair.base.d_mlp)
    before, after = (key_products(model, LAYER, every, states) > 0 for model, states in ((pair.base, base), (pair.tuned, tuned)))
    possible = {
        float((before[:, index] & ~after[:, index]).sum() / before[:, index].sum())
        for index in every
        if index != 3 and bool(before[:, index].any())
    }
    assert 0 < len(shares) <= 12
    assert all(any(share == pytest.approx(other) for other in possible) for share in shares)
    # Every other neuron of the layer excluded: none would be left, so the exclusion is ignored.
    excluded = [(LAYER, index) for index in every]
    assert len(matched_shares(pair, (LAYER, 3), base, tuned, draws=12, exclude=excluded)) > 0


def planted() -> Leaving:
    """Eight prompts, four of which fire; three leave, one enters."""
    return Leaving(
        (2, 5), before=np.array([1.0, 2, 3, 4, -1, -1, -1, -1]), after=np.array([-1.0, -1, -1, 4, 1, -1, -1, -1]),
        shift_alone=np.array([-1.0, -1, 3, 4, -1, -1, -1, -1]), random=np.array([0, 1, 1, 2]), matched=np.array([0.25, 0.75]),
    )  # fmt: skip


def test_the_table_holds_shares_with_intervals_and_ranges_of_nulls() -> None:
    found = planted()
    frame = found.to_frame().set_index("role")
    assert frame["share"].to_dict() == {"tuned": 0.75, "shift_alone": 0.5, "random_shift": 0.25, "matched_neurons": 0.5}
    interval = bootstrap_ratio([1, 1, 1, 0, 0, 0, 0, 0], [1, 1, 1, 1, 0, 0, 0, 0])
    assert (frame.loc["tuned", "low"], frame.loc["tuned", "high"]) == (interval.low, interval.high)
    assert frame.loc["matched_neurons", "low"] == pytest.approx(0.25 + 0.025 * 0.5)
    assert found.p == pytest.approx((1 + 1) / (1 + 4))
    assert (found.null.value, found.enters.sum()) == (1.0, 1)


def test_states_are_told_apart_by_the_median_of_the_firing_prompts() -> None:
    before = torch.tensor([-1.0, 1.0, 2.0, 3.0])
    assert firing_states(before, before) == [STATES[2], STATES[1], STATES[1], STATES[0]]
    assert firing_states(torch.tensor([0.0, 5.0]), torch.tensor([-1.0, -2.0])) == [STATES[2], STATES[0]]


def test_what_did_not_move_has_no_region_to_leave(gpt2: Model) -> None:
    base = states_of(gpt2)
    with pytest.raises(UserError, match="moved nothing before the MLP of layer 1"):
        leaving(same(gpt2), (LAYER, 0), base, base)
    with pytest.raises(UserError, match="at least 1"):
        leaving(same(gpt2), (LAYER, 0), base, base + 1, shift_draws=0)
