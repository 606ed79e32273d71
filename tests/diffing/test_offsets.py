"""The linear shift and where it comes from, on states whose answer is known and on models whose change is planted."""

from __future__ import annotations

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from interp import Model, ModelPair, capture
from interp.diffing.offset_sources import decompose, pooled, sites_below, spearman, value_update_cosines
from interp.diffing.offsets import (
    MODES,
    consistency,
    coordinates,
    explained_share,
    held_out_cosines,
    held_out_directions,
    key_products,
    mean_offset_at_last,
    pairwise_cosine,
    resampled,
    shift_profile,
    shifts,
    sign_flipped,
)
from interp.errors import UserError
from interp.models.tokens import pad, token_rows
from interp.stats.nulls import gradient_step

TEXTS = ["the quick wintle sings", "blorp and snarg", "never the meldy stone of drith", "a quonk", "river and stone", "hoddle hoddle"]


def noise(*shape: int, seed: int = 0) -> Tensor:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def moved(model: Model, change: Callable[[nn.Module], None]) -> ModelPair:
    """A pair whose tuned side is `model` after `change`."""
    hf = model.plain_copy()
    with torch.no_grad():
        change(hf)
    return ModelPair(model, Model(hf, model.tokenizer, "tuned"))


def with_attention_bias(model: Model, layer: int, vector: Tensor) -> ModelPair:
    """A constant added to what attention writes: at `resid_mid.layer` every prompt moves by exactly this vector."""
    return moved(model, lambda hf: hf.transformer.h[layer].attn.c_proj.bias.add_(vector))


def test_one_vector_for_all_prompts_is_explained_fully_and_unrelated_shifts_by_one_over_n() -> None:
    same = noise(1, 8).repeat(20, 1)
    assert explained_share(same) == pytest.approx(1.0)
    assert pairwise_cosine(same) == pytest.approx(1.0)
    apart = torch.eye(8)
    assert explained_share(apart) == pytest.approx(1 / 8)
    assert pairwise_cosine(apart) == pytest.approx(0.0, abs=1e-7)


def test_pairwise_cosine_equals_the_mean_over_all_pairs() -> None:
    shift = noise(7, 5)
    shift[3] = 0
    pairs = [
        float(torch.cosine_similarity(shift[a], shift[b], dim=0)) if 3 not in (a, b) else 0.0 for a in range(7) for b in range(7) if a != b
    ]
    assert pairwise_cosine(shift) == pytest.approx(np.mean(pairs), abs=1e-6)


def test_the_intervals_hold_the_values_and_are_those_of_a_plain_bootstrap() -> None:
    shift = (noise(12, 6) + 0.8).double()
    share, cosine = consistency(shift, draws=50, seed=3)
    shares, cosines = [], []
    unit = torch.nn.functional.normalize(shift, dim=1)
    for counts in resampled(12, 50, 3).long():
        drawn = torch.repeat_interleave(torch.arange(12), counts)
        shares.append(explained_share(shift[drawn]))
        cosines.append(np.mean([float(unit[a] @ unit[b]) for a in drawn for b in drawn if a != b]))
    assert (share.low, share.high) == pytest.approx(tuple(np.quantile(shares, (0.025, 0.975))))
    assert (cosine.low, cosine.high) == pytest.approx(tuple(np.quantile(cosines, (0.025, 0.975))))
    assert share.value == pytest.approx(explained_share(shift))
    assert cosine.value == pytest.approx(pairwise_cosine(shift))


def test_nothing_that_moved_has_no_consistency() -> None:
    assert math.isnan(explained_share(torch.zeros(4, 3)))
    assert math.isnan(pairwise_cosine(torch.zeros(4, 3)))
    assert math.isnan(consistency(torch.zeros(4, 3).double())[1].low)


@pytest.mark.usefixtures("unchecked")
def test_states_of_other_shapes_or_of_one_prompt_are_refused() -> None:
    with pytest.raises(UserError, match="of the same prompts"):
        shifts(noise(3, 4), noise(4, 4)[:2])
    with pytest.raises(UserError, match="at least two"):
        shifts(noise(1, 4), noise(1, 4))


def test_flipped_signs_take_a_common_shift_away_and_keep_every_length() -> None:
    shift = (torch.ones(40, 6) + 0.1 * noise(40, 6)).double()
    flipped = sign_flipped(shift, 1)
    assert torch.equal(flipped.norm(dim=1), shift.norm(dim=1))
    assert explained_share(flipped) < 0.15 < 0.9 < explained_share(shift)
    assert abs(pairwise_cosine(flipped)) < 0.15


def test_no_prompt_takes_part_in_the_direction_on_which_it_is_tested() -> None:
    shift = noise(10, 6).double()
    before = held_out_directions(shift, 0)
    for number in range(10):
        other = shift.clone()
        other[number] = 100 * noise(6, seed=9)
        assert torch.equal(held_out_directions(other, 0)[number], before[number])
    # Unrelated shifts: a direction fitted on the same prompts would have a positive cosine with each of them.
    many = noise(400, 50).double()
    assert abs(float(held_out_cosines(many, 0).mean())) < 0.02
    fitted = torch.nn.functional.normalize(many, dim=1) @ torch.nn.functional.normalize(many.mean(dim=0), dim=0)
    assert float(fitted.mean()) > 0.03


def test_all_modes_see_a_constant_shift_but_only_two_of_them_with_its_length() -> None:
    base = noise(50, 6).double()
    vector = torch.tensor([3.0, 0, 0, 0, 0, 0]).double()
    found = {mode: coordinates(base, base + vector, mode=mode) for mode in MODES}
    assert all(bool((place.moves > 0).all()) for place in found.values())
    assert found["fixed"].moves == pytest.approx(torch.full((50,), 3.0).double())
    assert len(found["code"].moves) == 30
    pooled_std = torch.cat([base, base + vector]).std(dim=0, correction=0)[0]
    assert found["paper"].moves == pytest.approx(torch.full((50,), float(3.0 / pooled_std)).double())
    assert found["code"].moves == pytest.approx(torch.full((30,), float(9.0 / pooled_std)).double())


def test_the_region_of_a_key_is_what_the_model_computes(model: Model) -> None:
    held = capture(model, TEXTS, ["resid_mid.1", "mlp_pre.1"], positions="last")
    neurons = [3, 0, 17]
    found = key_products(model, 1, neurons, held["resid_mid.1"])
    assert found == pytest.approx(held["mlp_pre.1"][:, neurons].double(), abs=1e-5)
    keys = model.key_vectors(1)[neurons]
    raw = key_products(model, 1, neurons, held["resid_mid.1"], mode="paper")
    assert raw == pytest.approx((held["resid_mid.1"] @ keys.T).double(), abs=1e-5)


def test_the_reading_of_the_code_differs_from_the_model_by_scale_and_bias_alone(gpt2: Model) -> None:
    state = capture(gpt2, TEXTS, ["resid_mid.2"], positions="last")["resid_mid.2"]
    norm = gpt2.hf.transformer.h[2].ln_2
    folded = key_products(gpt2, 2, [1, 5], state, mode="code")
    scale = (state.var(dim=1, correction=0) + norm.eps).sqrt().double()[:, None]
    bias = (gpt2.key_biases(2) + gpt2.key_vectors(2) @ norm.bias)[[1, 5]].double()
    assert folded / scale + bias == pytest.approx(key_products(gpt2, 2, [1, 5], state), abs=1e-5)


def test_a_planted_constant_is_one_shift_for_every_prompt(gpt2: Model) -> None:
    vector = noise(gpt2.d_model, seed=4)
    pair = with_attention_bias(gpt2, 1, vector)
    base, tuned = (capture(side, TEXTS, ["resid_mid.1"], positions="last")["resid_mid.1"] for side in pair.sides.values())
    shift = shifts(base, tuned)
    assert explained_share(shift) == pytest.approx(1.0, abs=1e-6)
    assert pairwise_cosine(shift) == pytest.approx(1.0, abs=1e-6)
    assert shift.mean(dim=0) == pytest.approx(vector.double(), abs=1e-5)


def means_of(pair: ModelPair, layer: int, texts: list[str]) -> tuple[list, Tensor]:
    rows = token_rows(pair.base, texts)
    held = [capture(side, rows, sites_below(layer), positions="mean") for side in pair.sides.values()]
    return held, torch.tensor([len(row) for row in rows])


def test_the_parts_add_up_to_the_measured_offset(pair: ModelPair) -> None:
    held, lengths = means_of(pair, 2, TEXTS)
    found = decompose(pair, 2, *held, lengths)
    positions = [capture(side, TEXTS, ["resid_mid.2"], positions="all") for side in pair.sides.values()]
    real = positions[0].mask
    offset = (positions[1]["resid_mid.2"] - positions[0]["resid_mid.2"])[real].double().mean(dim=0)
    assert found.length == pytest.approx(float(offset.norm()), rel=1e-5)
    assert found.table["projection"].sum() == pytest.approx(float(offset.norm()), rel=1e-5)
    assert found.table["share"].sum() == pytest.approx(1.0, abs=1e-5)
    assert abs(found.residual) < 1e-5


def test_the_parts_add_up_along_any_direction_and_in_a_gated_model(llama: Model) -> None:
    pair = moved(llama, lambda hf: [weight.add_(0.02 * noise(*weight.shape, seed=2)) for weight in hf.parameters()])
    held, lengths = means_of(pair, 1, TEXTS)
    along = noise(llama.d_model, seed=8)
    found = decompose(pair, 1, *held, lengths, along=along)
    offset = pooled(held[1]["resid_mid.1"] - held[0]["resid_mid.1"], lengths)
    expected = float(offset @ torch.nn.functional.normalize(along.double(), dim=0))
    assert found.table["projection"].sum() == pytest.approx(expected, abs=1e-5)


def test_each_part_is_found_where_it_was_planted(gpt2: Model) -> None:
    vector = noise(gpt2.d_model, seed=4)
    held, lengths = means_of(with_attention_bias(gpt2, 1, vector), 1, TEXTS)
    by_attention = decompose(with_attention_bias(gpt2, 1, vector), 1, *held, lengths)
    assert by_attention.share("attention") == pytest.approx(1.0, abs=1e-5)

    values = moved(gpt2, lambda hf: hf.transformer.h[0].mlp.c_proj.weight.add_(0.05 * noise(128, 32, seed=6)))
    # Read before attention of layer 1, so that what it copies of the change does not count.
    held, lengths = means_of(values, 1, TEXTS)
    by_values = decompose(values, 1, *held, lengths)
    assert by_values.share("changed values", "inactive") + by_values.share("changed values", "active") == pytest.approx(
        1.0 - by_values.share("attention"), abs=1e-5
    )
    assert by_values.share("changed activations", "inactive") == 0.0

    keys = moved(gpt2, lambda hf: hf.transformer.h[0].mlp.c_fc.weight.add_(0.05 * noise(32, 128, seed=6)))
    held, lengths = means_of(keys, 1, TEXTS)
    by_keys = decompose(keys, 1, *held, lengths)
    assert by_keys.share("changed values", "active") == by_keys.share("both", "inactive") == 0.0
    assert by_keys.share("changed activations", "active") != 0.0


def test_an_offset_of_zero_has_no_parts(gpt2: Model) -> None:
    pair = ModelPair(gpt2, gpt2)
    held, lengths = means_of(pair, 1, TEXTS)
    with pytest.raises(UserError, match="same mean state"):
        decompose(pair, 1, *held, lengths)


def test_cosines_of_value_updates_are_those_that_were_planted(gpt2: Model) -> None:
    offset = noise(gpt2.d_model, seed=4)

    def change(hf: nn.Module) -> None:
        hf.transformer.h[0].mlp.c_proj.weight[3] -= 0.1 * offset
        hf.transformer.h[0].mlp.c_proj.weight[5] += 0.2 * offset

    found = value_update_cosines(moved(gpt2, change), offset, 0)
    assert found[3] == pytest.approx(-1.0, abs=1e-4)
    assert found[5] == pytest.approx(1.0, abs=1e-4)
    assert int((found != 0).sum()) == 2
    centred = value_update_cosines(moved(gpt2, change), offset, 0, mode="code")
    off_mean = offset - offset.mean()
    assert centred[5] == pytest.approx(float(torch.cosine_similarity(off_mean, offset, dim=0)), abs=1e-4)


@pytest.mark.parametrize("together", [1, 4])
def test_a_gradient_step_has_the_gradient_of_the_loss_and_the_length_of_the_tuning(
    together: int, pair: ModelPair, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = token_rows(pair.base, TEXTS)
    signs = [1, -1, 1, 1, -1, 1]
    passes: list[int] = []
    forward = type(pair.base.hf).forward
    monkeypatch.setattr(
        type(pair.base.hf), "forward", lambda self, **given: (passes.append(len(given["input_ids"])), forward(self, **given))[1]
    )
    monkeypatch.setattr("interp.stats.nulls.LOGITS", together * max(map(len, rows)) * pair.base.d_vocab)
    stepped = gradient_step(pair, rows, signs=signs)
    assert passes == {1: [1] * 6, 4: [4, 2]}[together]
    hf = pair.base.plain_copy().requires_grad_(True)
    tokens = pad(rows, 0, "right")
    logits = hf(**tokens.inputs()).logits.log_softmax(dim=-1)
    loss = torch.zeros(())
    for number, row in enumerate(rows):
        for place in range(1, len(row)):
            loss = loss - signs[number] * logits[number, place - 1, row[place]]
    loss.backward()
    tuned, after = (dict(side.hf.named_parameters()) for side in (pair.tuned, stepped))
    for name, weight in hf.named_parameters():
        change = (after[name] - weight).detach()
        assert change.norm().item() == pytest.approx((tuned[name] - weight).norm().item(), rel=1e-3)
        assert torch.cosine_similarity(change.flatten(), -weight.grad.flatten(), dim=0).item() == pytest.approx(1.0, abs=1e-3)


def test_a_gradient_step_makes_antipodes_of_inactive_neurons_whatever_the_objective(pair: ModelPair) -> None:
    """The null of paper A's Figure 5: one text seen at one position gives a gradient of rank one, and signs follow from activations."""
    row = token_rows(pair.base, ["blorp snarg"])[0][:2]
    stepped = ModelPair(pair.base, gradient_step(pair, [row]))
    activations = capture(pair.base, [row[:1]], ["mlp_post.2"], positions="mean")["mlp_post.2"][0]
    change = stepped.tuned.value_vectors(2) - pair.base.value_vectors(2)
    written = (activations @ change).double()
    cosines = value_update_cosines(stepped, written, 2)
    assert bool((torch.sign(cosines) == torch.sign(activations)).all())
    assert cosines[activations < 0] == pytest.approx(-torch.ones(int((activations < 0).sum())).double(), abs=1e-3)


@pytest.mark.parametrize(("rows", "signs"), [([], None), ([[1, 2]], [1, 1]), ([[1]], None)])
def test_a_gradient_step_on_nothing_is_refused(pair: ModelPair, rows: list, signs: list | None) -> None:
    with pytest.raises(UserError, match="two tokens or more"):
        gradient_step(pair, rows, signs=signs)


def test_rank_correlation_on_known_orders() -> None:
    assert spearman([1, 2, 3, 4], [10, 20, 25, 100]) == pytest.approx(1.0)
    assert spearman([1, 2, 3, 4], [4, 3, 2, 1]) == pytest.approx(-1.0)
    assert spearman([1, 2, 3], [2, 1, 3]) == pytest.approx(0.5)
    assert math.isnan(spearman([1, 2], [1, 2]))
    assert math.isnan(spearman([1, 2, 3], [5, 5, 5]))


@pytest.mark.oracle
def test_the_mean_offset_is_the_bias_that_was_added(gpt2: Model) -> None:
    shift = noise(gpt2.d_model, seed=4)
    pair = moved(gpt2, lambda hf: hf.transformer.h[1].mlp.c_proj.bias.add_(shift))
    rows = [[3, 50, 270, 271], [260, 261, 262, 263, 264], [300, 12, 80]]
    torch.testing.assert_close(mean_offset_at_last(pair, rows, 1), torch.zeros(gpt2.d_model), atol=1e-5, rtol=0)
    layer_two = capture(pair.tuned, rows, ["resid_pre.2"])["resid_pre.2"] - capture(gpt2, rows, ["resid_pre.2"])["resid_pre.2"]
    torch.testing.assert_close(layer_two, shift.expand(3, -1), atol=1e-5, rtol=0)
    attention = capture(pair.tuned, rows, ["attn_out.2"])["attn_out.2"] - capture(gpt2, rows, ["attn_out.2"])["attn_out.2"]
    torch.testing.assert_close(mean_offset_at_last(pair, rows, 2), shift + attention.mean(dim=0), atol=1e-4, rtol=1e-3)


def test_a_planted_shift_stands_out_at_its_layer_and_shuffled_labels_do_not() -> None:
    base = [noise(60, 8, seed=layer) for layer in range(3)]
    step = 5 * noise(8, seed=9)
    tuned = [base[0] + noise(60, 8, seed=20), base[1] + step, base[2] + step + 0.1 * noise(60, 8, seed=22)]
    changes = [[noise(60, 8, seed=30 + 3 * draw + layer) for layer in range(3)] for draw in range(2)]
    profile = shift_profile(base, tuned, changes, flips=20)
    values = [interval.value for interval in profile.tuned]
    assert abs(values[0]) < 0.3
    assert values[1] == pytest.approx(1.0, abs=1e-6)
    assert 0.9 < values[2] < 1
    assert (profile.flipped.shape, profile.changed.shape) == ((3, 20), (3, 2))
    assert np.abs(profile.flipped.mean(axis=1)).max() < 0.3
    expected = [[float(held_out_cosines(changes[draw][layer], 0).mean()) for draw in range(2)] for layer in range(3)]
    assert profile.changed.tolist() == pytest.approx(np.array(expected))
    frame = profile.to_frame().set_index(["layer", "role"])
    assert frame.loc[(1, "tuned"), "cosine"] == values[1]
    assert frame.loc[(2, "changed"), "low"] == min(expected[2])
    assert frame.loc[(2, "changed"), "high"] == max(expected[2])
    assert frame.loc[(0, "flipped"), "low"] == pytest.approx(np.quantile(profile.flipped[0], 0.025))
    assert set(shift_profile(base, tuned, flips=2).to_frame()["role"]) == {"tuned", "flipped"}


def test_a_profile_of_sides_of_different_depths_is_refused() -> None:
    base = [noise(4, 3), noise(4, 3)]
    for arguments in ((base, base[:1]), ([], []), (base, base, [base[:1]])):
        with pytest.raises(UserError, match="one table per layer"):
            shift_profile(*arguments)
    with pytest.raises(UserError, match="at least one draw"):
        shift_profile(base, base, flips=0)
