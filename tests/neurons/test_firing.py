"""Random neurons that fire as selectively as chosen ones."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UserError
from interp.neurons.firing import selectivity_matched


def test_neurons_that_are_as_selective_are_drawn_among_the_eight_nearest_in_both_rates() -> None:
    provoked, plain = torch.full((100,), 0.1), torch.full((100,), 0.4)
    # As often on provocation and as seldom on plain texts as neuron 0.
    provoked[:9], plain[:9] = 0.5, 0.02
    # As often on provocation, and on everything else: these are what a match in frequency alone would draw.
    provoked[9:40], plain[9:40] = 0.5, 0.5
    drawn = {selectivity_matched([(2, 0)], {2: provoked}, {2: plain}, seed=seed)[0] for seed in range(200)}
    assert drawn == {(2, i) for i in range(1, 9)}


def test_they_are_others_of_the_same_layers_and_none_twice() -> None:
    generator = torch.Generator().manual_seed(0)
    rates = [{layer: torch.rand(30, generator=generator) for layer in (0, 3)} for _ in range(2)]
    neurons, exclude = [(0, 4), (3, 4), (0, 5)], [(0, i) for i in range(6, 20)]
    for seed in range(20):
        drawn = selectivity_matched(neurons, *rates, seed=seed, exclude=exclude)
        assert [layer for layer, _ in drawn] == [0, 3, 0]
        assert len({*drawn}) == 3
        assert not {*drawn} & {*neurons, *exclude}
    assert selectivity_matched(neurons, *rates, seed=1) == selectivity_matched(neurons, *rates, seed=1)


def test_a_layer_without_others_is_refused() -> None:
    rates = {0: torch.zeros(3)}
    with pytest.raises(UserError, match="layer 0 has no other neurons left"):
        selectivity_matched([(0, 0)], rates, rates, seed=0, exclude=[(0, 1), (0, 2)])
