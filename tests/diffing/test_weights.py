"""Weight shifts against NumPy and full SVD, and on changes whose size is known."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest
import torch

from interp.errors import UserError

pytestmark = pytest.mark.oracle


def pair_of(load, folder, change):
    """A pair whose tuned side is the base side after `change`."""
    from interp import ModelPair

    base, tuned = load(folder), load(folder)
    with torch.no_grad():
        change(tuned)
    return ModelPair(base, tuned)


@pytest.mark.parametrize("kind", ["gpt2", "llama", "qwen2", "gemma"])
def test_every_number_of_every_tensor_agrees_with_numpy(make_folder, kind: str) -> None:
    from interp import load_model
    from interp.diffing.weights import weight_shift
    from interp.models.parameters import PARAMETER_KINDS

    noise = torch.Generator().manual_seed(1)

    def shake(model) -> None:
        for parameter in model.hf.parameters():
            parameter.add_(0.01 * torch.randn(parameter.shape, generator=noise))

    pair = pair_of(load_model, make_folder(kind), shake)
    frame = weight_shift(pair).to_frame().set_index("tensor")
    tuned = dict(pair.tuned.hf.named_parameters())
    assert list(frame.index) == [name for name, _ in pair.base.hf.named_parameters()]
    assert frame["elements"].sum() == sum(p.numel() for p in pair.base.hf.parameters())
    assert set(frame["group"]) <= set(PARAMETER_KINDS)
    for name, parameter in pair.base.hf.named_parameters():
        a, b = parameter.detach().double().numpy(), tuned[name].detach().double().numpy()
        row = frame.loc[name]
        assert row["cosine"] == pytest.approx((a * b).sum() / np.linalg.norm(a) / np.linalg.norm(b), abs=1e-12)
        assert row["difference_norm"] == pytest.approx(np.linalg.norm(b - a), rel=1e-9)
        assert row["relative_difference"] == pytest.approx(np.linalg.norm(b - a) / np.linalg.norm(a), rel=1e-9)
        assert row["mean_abs_difference"] == pytest.approx(np.abs(b - a).mean(), rel=1e-9)
        assert row["norm_difference_per_element"] == pytest.approx(abs(np.linalg.norm(b) - np.linalg.norm(a)) / a.size, rel=1e-6)
        if a.ndim == 2:
            singular = np.linalg.svd(b - a, compute_uv=False)
            assert row["spectral_norm"] == pytest.approx(singular[0], rel=1e-9)
            assert row["stable_rank"] == pytest.approx((singular**2).sum() / singular[0] ** 2, rel=1e-9)
        else:
            assert np.isnan(row["spectral_norm"])


def test_a_change_along_one_direction_has_stable_rank_one_and_nothing_else_moves(gpt2_folder) -> None:
    from interp import load_model
    from interp.diffing.weights import weight_shift

    def one_direction(model) -> None:
        weight = model.hf.transformer.h[2].mlp.c_fc.weight
        weight.add_(0.5 * torch.outer(torch.ones(weight.shape[0]), torch.ones(weight.shape[1])))

    shift = weight_shift(pair_of(load_model, gpt2_folder, one_direction))
    frame = shift.to_frame()
    moved = frame[frame["difference_norm"] > 0]
    assert moved[["tensor", "layer", "group"]].to_numpy().tolist() == [["transformer.h.2.mlp.c_fc.weight", 2, "mlp key"]]
    assert moved["stable_rank"].iloc[0] == pytest.approx(1, abs=1e-5)
    assert moved["spectral_norm"].iloc[0] == pytest.approx(0.5 * (32 * 128) ** 0.5, rel=1e-5)
    assert frame.drop(moved.index)["cosine"].to_numpy() == pytest.approx(1, abs=1e-12)
    groups = shift.by_group().set_index("group")
    assert groups["difference_norm"].drop("mlp key").eq(0).all()
    assert groups.loc["mlp key", "difference_norm"] == pytest.approx(moved["difference_norm"].iloc[0])
    assert groups.loc["mlp key", "smallest_cosine"] == pytest.approx(moved["cosine"].iloc[0])
    assert groups["elements"].sum() == frame["elements"].sum()


def test_large_tensors_are_summed_in_pieces_without_a_difference(pair, monkeypatch) -> None:
    from interp.diffing import weights

    whole = weights.weight_shift(pair).to_frame()
    monkeypatch.setattr(weights, "CHUNK", 100)
    pieces = weights.weight_shift(pair).to_frame()
    for column in ("cosine", "difference_norm", "mean_abs_difference", "spectral_norm", "stable_rank"):
        np.testing.assert_allclose(pieces[column], whole[column], rtol=1e-9)


def test_tensors_that_are_zero_on_both_sides_are_equal(gpt2_folder) -> None:
    from interp import load_model
    from interp.diffing.weights import weight_shift

    pair = pair_of(load_model, gpt2_folder, lambda model: model.hf.transformer.h[0].mlp.c_fc.bias.zero_())
    name = "transformer.h.0.mlp.c_fc.bias"
    row = weight_shift(pair).to_frame().set_index("tensor").loc[name]
    assert np.isnan(row["cosine"])
    assert row["relative_difference"] == pytest.approx(1)
    with torch.no_grad():
        pair.base.hf.transformer.h[0].mlp.c_fc.bias.zero_()
    row = weight_shift(pair).to_frame().set_index("tensor").loc[name]
    assert (row["cosine"], row["relative_difference"]) == (1.0, 0.0)


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_a_neuron_that_alone_was_changed_is_at_the_top_and_the_others_tie(make_folder, kind: str) -> None:
    from interp import load_model
    from interp.diffing.weights import neuron_shift

    def change(model) -> None:
        model.value_vectors(1)[5] *= 1.5
        model.key_vectors(2)[7] *= 0.75

    pair = pair_of(load_model, make_folder(kind), change)
    count = pair.base.n_layers * pair.base.d_mlp
    frame = neuron_shift(pair, [(1, 5), (2, 7), (0, 0)])
    assert frame["value_shift"].tolist() == pytest.approx([0.5, 0, 0], abs=1e-6)
    assert frame["key_shift"].tolist() == pytest.approx([0, 0.25, 0], abs=1e-6)
    top, tied = 100 * (count - 0.5) / count, 100 * (count - 1) / 2 / count
    assert frame["value_percentile"].tolist() == pytest.approx([top, tied, tied])
    assert frame["key_percentile"].tolist() == pytest.approx([tied, top, tied])
    assert ("up_shift" in frame) == (kind == "llama")


def test_a_neuron_that_does_not_exist_is_refused(pair) -> None:
    from interp.diffing.weights import neuron_shift

    with pytest.raises(UserError, match="does not exist"):
        neuron_shift(pair, [(0, 128)])


def test_sides_with_other_tensors_are_refused(pair, llama) -> None:
    from interp.diffing.weights import weight_shift

    with pytest.raises(UserError, match="same tensors"):
        weight_shift(dataclasses.replace(pair, tuned=llama))
