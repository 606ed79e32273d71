"""Controls differ from what they control in nothing but the choice."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UserError


def test_random_directions_have_the_norm_of_the_vector_and_nothing_else_of_it() -> None:
    from interp.stats.nulls import random_directions

    like = torch.randn(4096, generator=torch.Generator().manual_seed(0)) * 37
    found = random_directions(like, 50, seed=1)
    assert found.shape == (50, 4096)
    torch.testing.assert_close(found.norm(dim=1), like.norm().expand(50), rtol=1e-6, atol=0)
    assert (torch.nn.functional.cosine_similarity(found, like, dim=1).abs() < 0.1).all()
    assert torch.equal(found, random_directions(like, 50, seed=1))
    assert not torch.equal(found, random_directions(like, 50, seed=2))


def test_matched_neurons_are_others_of_the_same_layers_and_none_twice(model) -> None:
    from interp.stats.nulls import matched_neurons, random_neurons

    neurons = [(0, 3), (0, 4), (2, 7), (0, 5)]
    exclude = [(0, i) for i in range(6, 20)]
    for draw in (matched_neurons, random_neurons):
        for seed in range(20):
            found = draw(model, neurons, seed=seed, exclude=exclude)
            assert [layer for layer, _ in found] == [0, 0, 2, 0]
            assert not set(found) & {*neurons, *exclude}
            assert len(set(found)) == 4
        assert draw(model, neurons, seed=1) == draw(model, neurons, seed=1)
        assert draw(model, neurons, seed=1) != draw(model, neurons, seed=2)


def test_with_every_neuron_a_candidate_the_nearest_norm_of_the_layer_is_taken(gpt2) -> None:
    from interp.stats.nulls import matched_neurons

    norms = gpt2.value_vectors(1).norm(dim=1)
    for index in (0, 50, 127):
        gaps = (norms - norms[index]).abs()
        gaps[index] = torch.inf
        assert matched_neurons(gpt2, [(1, index)], seed=0, candidates=gpt2.d_mlp) == [(1, int(gaps.argmin()))]


def test_matching_comes_nearer_in_norm_than_chance(gpt2) -> None:
    from interp.stats.nulls import matched_neurons, random_neurons

    norms = gpt2.value_vectors(0).norm(dim=1)
    neurons = [(0, int(i)) for i in norms.argsort(descending=True)[:8]]

    def gap(draw) -> float:
        pairs = [pair for seed in range(5) for pair in zip(neurons, draw(gpt2, neurons, seed=seed), strict=True)]
        return sum(float((norms[i] - norms[j]).abs()) for (_, i), (_, j) in pairs)

    assert gap(matched_neurons) < gap(random_neurons) / 2


def test_a_layer_without_others_and_a_missing_neuron_are_refused(gpt2) -> None:
    from interp.stats.nulls import matched_neurons, random_directions

    everything = [(0, i) for i in range(gpt2.d_mlp)]
    with pytest.raises(UserError, match="no other neurons left"):
        matched_neurons(gpt2, [(0, 0)], seed=0, exclude=everything)
    with pytest.raises(UserError, match="does not exist"):
        matched_neurons(gpt2, [(3, 0)], seed=0)
    with pytest.raises(UserError, match="norm 0"):
        random_directions(torch.zeros(4), 2, seed=0)


def test_neurons_that_fire_as_often_are_drawn_among_the_sixteen_nearest() -> None:
    from interp.stats.nulls import frequency_matched

    rates = {0: torch.arange(200).float()}
    drawn = {frequency_matched([(0, 100)], rates, seed=seed)[0][1] for seed in range(400)}
    assert drawn == {*range(92, 109)} - {100}
