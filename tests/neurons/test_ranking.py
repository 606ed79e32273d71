"""Ranking, SVD and explanation against brute force over raw weights, and against a planted neuron."""

from __future__ import annotations

import pytest
import torch

from interp.errors import UserError

pytestmark = pytest.mark.oracle


def brute_force(model, direction: torch.Tensor) -> list[tuple[float, int, int]]:
    """Every value vector's cosine, one neuron at a time, from the Hugging Face modules themselves."""
    found = []
    for layer in range(model.n_layers):
        for index in range(model.d_mlp):
            if model.family == "gelu":
                value = model.hf.transformer.h[layer].mlp.c_proj.weight[index]
            else:
                value = model.hf.model.layers[layer].mlp.down_proj.weight[:, index]
            found.append((float(value @ direction / value.norm() / direction.norm()), layer, index))
    return sorted(found, reverse=True)


def test_the_ranking_is_the_brute_force_one_over_all_layers(any_model) -> None:
    from interp.neurons.ranking import rank_values

    direction = torch.randn(any_model.d_model, generator=torch.Generator().manual_seed(2)) * 5
    expected = brute_force(any_model, direction)
    found = rank_values(any_model, direction, top=20)
    assert found.neurons == [(layer, index) for _, layer, index in expected[:20]]
    torch.testing.assert_close(found.cosines, torch.tensor([cosine for cosine, _, _ in expected[:20]]), atol=1e-6, rtol=0)
    least = rank_values(any_model, direction, top=5, largest=False)
    assert least.neurons == [(layer, index) for _, layer, index in expected[::-1][:5]]
    assert len(rank_values(any_model, direction, top=None)) == any_model.n_layers * any_model.d_mlp


def test_a_ranking_becomes_a_frame_with_the_norm_of_each_value_vector(gpt2) -> None:
    from interp.neurons.ranking import rank_values

    frame = rank_values(gpt2, torch.ones(gpt2.d_model), top=7).to_frame()
    assert list(frame.columns) == ["layer", "neuron", "cosine", "norm"]
    assert len(frame) == 7
    row = frame.iloc[3]
    assert row["norm"] == pytest.approx(float(gpt2.value_vectors(int(row["layer"]))[int(row["neuron"])].norm()))


def test_values_and_keys_are_what_the_neuron_writes_and_reads(model) -> None:
    from interp import capture
    from interp.neurons.ranking import keys_at, values_at

    neuron = (1, 5)
    layer = model.hf.get_submodule(model.architecture.blocks)[1]
    norm = layer.ln_2 if model.family == "gelu" else layer.post_attention_layernorm
    found = capture(model, ["the quick river sings"], ["resid_mid.1", "mlp_pre.1"])
    read = norm.forward(found["resid_mid.1"]) @ keys_at(model, [neuron])[0] + model.key_biases(1)[5]
    torch.testing.assert_close(read, found["mlp_pre.1"][:, 5], atol=1e-5, rtol=1e-5)
    assert torch.equal(values_at(model, [neuron, (0, 2)])[1], model.value_vectors(0)[2])


def test_svd_directions_are_the_singular_vectors_with_the_sign_of_the_reference(model) -> None:
    from interp.neurons.ranking import svd_directions, values_at

    neurons = [(layer, index) for layer in range(3) for index in range(0, 40, 4)]
    towards = torch.randn(model.d_model, generator=torch.Generator().manual_seed(0))
    found = svd_directions(model, neurons, count=4, towards=towards)
    values = values_at(model, neurons).double()
    stacked = torch.stack([value / value.norm() for value in values], dim=1)
    # Referee: the eigenvectors of the Gram matrix of the unit vectors.
    powers, vectors = torch.linalg.eigh(stacked @ stacked.T)
    for rank, direction in enumerate(found.double()):
        assert abs(float(direction @ vectors[:, -1 - rank])) == pytest.approx(1, abs=1e-6)
        assert float((stacked.T @ direction).square().sum()) == pytest.approx(float(powers[-1 - rank]), rel=1e-6)
        assert float(direction @ towards.double()) > 0
    torch.testing.assert_close(svd_directions(model, neurons, count=4, towards=-towards), -found)


def test_svd_counts_neurons_equally_whatever_their_norm(fresh_gpt2) -> None:
    from interp.neurons.ranking import svd_directions

    neurons, towards = [(0, i) for i in range(6)], torch.ones(fresh_gpt2.d_model)
    before = svd_directions(fresh_gpt2, neurons, towards=towards)
    fresh_gpt2.value_vectors(0)[2] *= 1000
    torch.testing.assert_close(svd_directions(fresh_gpt2, neurons, towards=towards), before, atol=1e-5, rtol=0)


def test_the_planted_neuron_is_ranked_first_for_the_word_that_it_writes(planted) -> None:
    from interp.neurons.ranking import explain_neuron, rank_values

    ranking = rank_values(planted.model, planted.model.unembedding[planted.word_id], top=3)
    assert ranking.neurons[0] == (planted.layer, planted.index)
    assert ranking.cosines[0] == pytest.approx(1, abs=1e-5)
    (row,) = explain_neuron(planted.model, planted.layer, planted.index).to_dict("records")
    assert row["top_tokens"].split(" | ")[0] == planted.word.strip()
    assert "value_cosine" not in row


def test_a_pair_is_explained_side_by_side(pair) -> None:
    from interp.neurons.ranking import explain_neuron

    base, tuned = explain_neuron(pair, 1, 3, top=4).to_dict("records")
    assert (base["side"], tuned["side"]) == ("base", "tuned")
    assert (base["value_cosine"], base["key_cosine"]) == pytest.approx((1, 1))
    first, second = pair.base.value_vectors(1)[3], pair.tuned.value_vectors(1)[3]
    assert tuned["value_cosine"] == pytest.approx(float(first @ second / first.norm() / second.norm()), abs=1e-6)
    assert tuned["key_norm"] == pytest.approx(float(pair.tuned.hf.transformer.h[1].mlp.c_fc.weight[:, 3].norm()))
    assert tuned["key_bias"] == pytest.approx(float(pair.tuned.hf.transformer.h[1].mlp.c_fc.bias[3]))
    scores = pair.tuned.unembedding @ second
    assert tuned["bottom_tokens"].split(" | ")[0] == pair.tuned.tokenizer.decode([int(scores.argmin())]).strip()


def test_a_value_vector_of_zero_has_no_direction_and_breaks_nothing(fresh_gpt2) -> None:
    from interp.neurons.ranking import rank_values

    fresh_gpt2.value_vectors(0)[0] = 0
    ranking = rank_values(fresh_gpt2, torch.ones(fresh_gpt2.d_model), top=None)
    assert torch.isfinite(ranking.cosines).all()
    assert float(ranking.cosines[ranking.neurons.index((0, 0))]) == 0


def test_what_the_model_lacks_is_refused(gpt2) -> None:
    from interp.neurons.ranking import rank_values, svd_directions, values_at

    ones = torch.ones(gpt2.d_model)
    for call, message in [
        (lambda: rank_values(gpt2, torch.ones(3)), "shape"),
        (lambda: rank_values(gpt2, 0 * ones), "norm 0"),
        (lambda: rank_values(gpt2, ones * float("nan")), "norm nan"),
        (lambda: rank_values(gpt2, ones, top=0), "at least 1"),
        (lambda: values_at(gpt2, [(0, gpt2.d_mlp)]), "does not exist"),
        (lambda: values_at(gpt2, [(-1, 0)]), "does not exist"),
        (lambda: values_at(gpt2, []), "no neurons"),
        (lambda: svd_directions(gpt2, [(0, 1)], count=3, towards=ones), "3 directions of 1 neurons"),
    ]:
        with pytest.raises(UserError, match=message):
            call()


def test_sets_near_random_directions_have_as_many_neurons_of_each_layer_and_are_the_nearest_there(model) -> None:
    from interp.models.weights import written_values
    from interp.neurons.ranking import nearest_in_layers

    neurons, exclude = [(0, 1), (1, 2), (1, 5)], [(1, 0), (1, 1)]
    directions = torch.randn(3, model.d_model, generator=torch.Generator().manual_seed(0))
    sets = nearest_in_layers(model, directions, neurons, exclude=exclude)
    for direction, chosen in zip(directions, sets, strict=True):
        for layer, count in ((0, 1), (1, 2)):
            values = written_values(model, layer).float()
            cosines = torch.cosine_similarity(values, direction[None], dim=1)
            order = [i for i in cosines.argsort(descending=True).tolist() if (layer, i) not in exclude]
            assert [index for at, index in chosen if at == layer] == order[:count]
    with pytest.raises(UserError, match="layer 0 has no 1 other neurons"):
        nearest_in_layers(model, directions, [(0, 1)], exclude=[(0, i) for i in range(model.d_mlp)])
