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


@pytest.mark.parametrize("seed", [0, 1])
def test_noise_of_equal_norm_hardly_changes_predictions_and_is_scaled_until_it_changes_them_as_tuning_does(pair, seed: int) -> None:
    """Noise as long as a tuning that has a direction is a null too weak to show anything."""
    from interp.models.pair import ModelPair
    from interp.stats.divergence import kl_to
    from interp.stats.nulls import perturbed, perturbed_to_kl, scale_to_kl

    texts = ["the quick wintle sings under a river", "never the meldy stone of drith, and a frabe walks"]
    # Every token's logit rises or falls along the mean state that the texts end in: a short change with a direction.
    hf = pair.base.plain_copy()
    with torch.no_grad():
        ids = torch.tensor([pair.base.tokenizer(text)["input_ids"][:6] for text in texts])
        state = hf(ids, output_hidden_states=True).hidden_states[-1].mean(dim=(0, 1))
        signs = 2.0 * torch.randint(2, (len(hf.lm_head.weight), 1), generator=torch.Generator().manual_seed(4)) - 1
        hf.lm_head.weight.add_(0.02 * signs * state / state.norm())
    directed = ModelPair(pair.base, type(pair.base)(hf, pair.base.tokenizer, "tuned"))
    goal = kl_to(directed.tuned, pair.base, texts).mean()
    weak = kl_to(perturbed(directed, seed), pair.base, texts).mean()
    assert weak < 0.5 * goal
    scale = scale_to_kl(directed, seed, texts)
    matched = perturbed_to_kl(directed, seed, texts)
    assert kl_to(matched, pair.base, texts).mean() == pytest.approx(goal, rel=0.02)
    assert scale > 1
    # Wherever the search begins, within what 2 % of the divergence allow.
    for start in (0.3 * scale, 1.5 * scale):
        assert scale_to_kl(directed, seed, texts, start=start) == pytest.approx(scale, rel=0.05)
    # The same noise, only longer.
    for name, weight in pair.base.hf.named_parameters():
        short, long = (dict(model.hf.named_parameters())[name] - weight for model in (perturbed(directed, seed), matched))
        torch.testing.assert_close(long, scale * short, rtol=1e-3, atol=1e-6)


def test_noise_that_changes_predictions_more_than_tuning_is_made_shorter(pair) -> None:
    from interp.models.pair import ModelPair
    from interp.stats.divergence import kl_to
    from interp.stats.nulls import perturbed, scale_to_kl

    texts = [[3, 50, 270, 271], [260, 261, 262, 263, 264]]
    # A row that no text reads and that predictions hardly feel: position embeddings beyond the texts.
    hf = pair.base.plain_copy()
    with torch.no_grad():
        hf.transformer.wpe.weight[40:] += 1.0
        hf.transformer.wpe.weight[0, 0] += 1e-2
    idle = ModelPair(pair.base, type(pair.base)(hf, pair.base.tokenizer, "tuned"))
    goal = kl_to(idle.tuned, pair.base, texts).mean()
    scale = scale_to_kl(idle, 0, texts)
    assert 0 < scale < 1
    assert kl_to(perturbed(idle, 0, scale=scale), pair.base, texts).mean() == pytest.approx(goal, rel=0.02)


def test_a_tuning_that_changes_no_prediction_is_matched_by_no_noise_and_an_unreachable_one_is_refused(
    pair, monkeypatch: pytest.MonkeyPatch
) -> None:
    from interp.models.pair import ModelPair
    from interp.stats.nulls import perturbed_to_kl, scale_to_kl

    assert scale_to_kl(ModelPair(pair.base, pair.base), 0, ["a quonk"]) == 0.0
    with pytest.raises(UserError, match="no texts"):
        scale_to_kl(pair, 0, [])
    monkeypatch.setattr("interp.stats.nulls.KL_TRIALS", 1)
    with pytest.raises(UserError, match="as far from the base model as the tuning"):
        perturbed_to_kl(pair, 0, ["a quonk and a wintle"])


def test_neurons_matched_in_activity_are_as_active_as_the_chosen_ones_where_those_of_equal_norm_are_not(gpt2) -> None:
    """Neurons of equal norm are half as active as the toxic ones; what is twice as active can fall twice as far."""
    from interp.stats.nulls import activity_matched, matched_neurons

    # One neuron in three is active, whatever its norm.
    activity = {1: torch.rand(gpt2.d_mlp, generator=torch.Generator().manual_seed(0)) * 0.1}
    active = list(range(0, gpt2.d_mlp, 3))
    activity[1][active] += 1.0
    neurons = [(1, index) for index in active[:5]]
    norms = gpt2.value_vectors(1).norm(dim=1)
    equal_norm = [pair for seed in range(20) for pair in matched_neurons(gpt2, neurons, seed=seed)]
    both = [pair for seed in range(20) for pair in activity_matched(gpt2, neurons, activity, seed=seed)]
    assert sum(index in active for _, index in equal_norm) < 0.5 * len(equal_norm)
    assert all(index in active for _, index in both)

    def gap(drawn) -> float:
        return sum(float((norms[i] - norms[j]).abs()) for (_, i), (_, j) in zip(neurons * 20, drawn, strict=True))

    generator = torch.Generator().manual_seed(1)
    # Among neurons of equal activity, those of about equal norm are taken.
    by_activity_alone = [
        (1, int(index)) for _ in range(20) for index in torch.tensor(active[5:])[torch.randperm(len(active) - 5, generator=generator)[:5]]
    ]
    assert gap(both) < gap(by_activity_alone)


def test_neurons_matched_in_activity_are_others_of_the_layer_and_none_twice(model) -> None:
    from interp.stats.nulls import activity_matched

    activity = {layer: torch.randn(model.d_mlp, generator=torch.Generator().manual_seed(layer)) for layer in (0, 2)}
    neurons, exclude = [(0, 3), (0, 4), (2, 7)], [(0, i) for i in range(6, 20)]
    for seed in range(10):
        drawn = activity_matched(model, neurons, activity, seed=seed, exclude=exclude)
        assert [layer for layer, _ in drawn] == [0, 0, 2]
        assert not set(drawn) & {*neurons, *exclude}
        assert len(set(drawn)) == 3
        assert drawn == activity_matched(model, neurons, activity, seed=seed, exclude=exclude)
    with pytest.raises(UserError, match="layer 1 was not given"):
        activity_matched(model, [(1, 0)], activity, seed=0)
    with pytest.raises(UserError, match="does not exist"):
        activity_matched(model, [(0, model.d_mlp)], activity, seed=0)
    with pytest.raises(UserError, match="no other neurons left"):
        activity_matched(model, [(0, 0)], activity, seed=0, exclude=[(0, i) for i in range(model.d_mlp)])
