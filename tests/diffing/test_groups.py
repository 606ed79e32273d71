"""The four groups of neurons: sums that close, a planted model in which one group carries everything, patching from a donor."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch

from interp.diffing.groups import (
    CELLS,
    GROUPS,
    REDUCING,
    UNCHANGED,
    activation_edits,
    activity,
    alignments,
    assign,
    cells_of,
    chosen_of,
    group_sums,
    masks_by_layer,
    shares,
    sources,
)
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.evaluation.metrics import perplexity
from interp.forward.capture import capture
from interp.forward.generate import generate_tokens
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.neurons.firing import firing_rates
from interp.patching.cross_model import generate_with_donor, perplexities_with_donor
from interp.stats.nulls import frequency_matched

ROWS = [[3, 50, 270, 271, 5], [260, 261, 262, 263, 264], [300, 12, 80]]
PLACES = [[2, 3], [0, 4], [1, 2]]


def direction_of(model: Model, seed: int = 0) -> torch.Tensor:
    return torch.randn(model.d_model, generator=torch.Generator().manual_seed(seed))


@pytest.mark.oracle
def test_the_parts_of_the_model_add_up_to_the_fall_of_the_projection(model: Model) -> None:
    hf = model.plain_copy()
    noise = torch.Generator().manual_seed(5)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(0.03 * torch.randn(parameter.shape, generator=noise))
    pair = ModelPair(model, Model(hf, model.tokenizer, "tuned"))
    base, tuned = (activity(side, ROWS, PLACES) for side in pair.sides.values())
    direction = direction_of(model)
    found = sources(pair, base, tuned, direction)
    torch.testing.assert_close(sum(values for name, values in found.items() if name != "total"), found["total"], atol=1e-5, rtol=1e-4)
    site = f"resid_post.{model.n_layers - 1}"
    unit = direction / direction.norm()
    states = [capture(side, ROWS, [site], positions=PLACES)[site].mean(dim=1) @ unit for side in pair.sides.values()]
    torch.testing.assert_close(found["total"].float(), states[0] - states[1], atol=1e-4, rtol=1e-3)
    # Two different routes to what the activations alone change.
    alignment = alignments(model, direction)
    by_neuron = -(tuned.neurons - base.neurons).double() @ alignment
    torch.testing.assert_close(found["changed activations"], by_neuron)
    if model.family == "gelu":
        biases = sum((pair.base.value_bias(i) - pair.tuned.value_bias(i)).double() @ unit.double() for i in range(model.n_layers))
        torch.testing.assert_close(found["MLP biases and norms"], torch.as_tensor(biases).expand(3), atol=1e-5, rtol=1e-4)


@pytest.mark.oracle
def test_group_shares_add_up_to_the_whole(gpt2: Model, pair: ModelPair) -> None:
    base, tuned = (activity(side, ROWS, PLACES) for side in pair.sides.values())
    alignment = alignments(pair.base, direction_of(gpt2))
    groups = assign(alignment, base.neurons.mean(dim=0), tuned.neurons.mean(dim=0))
    reduction = -((tuned.neurons - base.neurons) * alignment.float()).numpy()
    table = shares(reduction, groups).set_index("group")
    assert list(table.index) == list(GROUPS)
    assert table["neurons"].sum() == len(groups)
    assert table["net share"].sum() == pytest.approx(1.0)
    assert table.loc[list(REDUCING), "gross share"].sum() == pytest.approx(1.0)
    assert table["reduction"].sum() == pytest.approx(reduction.mean(axis=0).sum(), abs=1e-5)
    # On the prompts that groups were assigned on, each has the sign that its name says.
    assert (table.loc[list(REDUCING), "reduction"] >= 0).all()
    assert (table.loc[list(GROUPS[4:]), "reduction"] <= 0).all()
    np.testing.assert_allclose(group_sums(reduction, groups).mean(axis=0), table["reduction"], atol=1e-6)


def test_each_neuron_is_in_the_group_that_its_signs_say() -> None:
    alignment = torch.tensor([1.0, 1.0, -1.0, -1.0, 1.0, 1.0, -1.0, -1.0, 1.0, 0.0])
    before = torch.tensor([2.0, -0.1, 2.0, -0.1, 2.0, -0.1, 2.0, -0.1, 2.0, 2.0])
    after = torch.tensor([1.0, -0.2, 3.0, 0.0, 3.0, 0.0, 1.0, -0.2, 2.0, 1.0])
    names = [(*GROUPS, "none")[i] for i in assign(alignment, before, after)]
    assert names == ["TP−", "TN+", "AP+", "AN−", "TP+", "TN−", "AP−", "AN+", "none", "none"]
    assert len(GROUPS) == UNCHANGED


@pytest.mark.oracle
def test_a_planted_group_carries_everything(gpt2: Model) -> None:
    """Toxic neurons that fire in the base model and are silenced by their bias alone in the tuned one: all of it is TP−."""
    direction = direction_of(gpt2, 1)
    planted = [(gpt2.n_layers - 1, index) for index in range(6)]
    hf = gpt2.plain_copy()
    with torch.no_grad():
        mlp = hf.transformer.h[-1].mlp
        for _, index in planted:
            mlp.c_proj.weight[index] = direction
            mlp.c_fc.bias[index] = 4.0
    base = Model(hf, gpt2.tokenizer, "base")
    quiet = base.plain_copy()
    with torch.no_grad():
        quiet.transformer.h[-1].mlp.c_fc.bias[:6] = -8.0
    pair = ModelPair(base, Model(quiet, gpt2.tokenizer, "tuned"))
    sides = [activity(side, ROWS, PLACES) for side in pair.sides.values()]
    alignment = alignments(base, direction)
    groups = assign(alignment, *(side.neurons.mean(dim=0) for side in sides))
    reduction = -((sides[1].neurons - sides[0].neurons) * alignment.float()).numpy()
    table = shares(reduction, groups).set_index("group")
    assert table.loc["TP−", "gross share"] == pytest.approx(1.0)
    assert table.loc["TP−", "net share"] == pytest.approx(1.0)
    assert table.loc["TP−", "neurons"] == 6
    found = sources(pair, *sides, direction)
    torch.testing.assert_close(found["changed activations"], found["total"], atol=1e-4, rtol=1e-4)
    # Patching that group from the tuned into the base model makes the tuned model, and patching the rest changes nothing.
    silent = chosen_of(groups, ["TP−"], base.d_mlp)
    rest = masks_by_layer(groups != GROUPS.index("TP−"), base.d_mlp)
    plain = {side: generate_tokens(model, ROWS, max_new_tokens=6) for side, model in pair.sides.items()}
    assert plain["base"] != plain["tuned"]
    assert generate_with_donor(base, pair.tuned, ROWS, silent, max_new_tokens=6) == plain["tuned"]
    assert generate_with_donor(base, pair.tuned, ROWS, rest, max_new_tokens=6) == plain["base"]


@pytest.mark.oracle
def test_no_neuron_patched_is_the_model_and_a_stored_patch_agrees(pair: ModelPair) -> None:
    base, tuned = pair.base, pair.tuned
    assert generate_with_donor(base, tuned, ROWS, {}, max_new_tokens=8) == generate_tokens(base, ROWS, max_new_tokens=8)
    texts = [base.tokenizer.decode(row) for row in ROWS[:2]]
    rows = base.tokenizer(texts, add_special_tokens=False)["input_ids"]
    plain = perplexity(base, texts).value
    assert perplexities_with_donor(base, tuned, rows, [{}]) == [pytest.approx(plain, rel=1e-5)]
    mask = torch.zeros(base.d_mlp, dtype=torch.bool)
    mask[::3] = True
    # With all neurons of a layer chosen this is a patch of the whole site, which can be stored.
    stored = capture(tuned, ROWS, ["mlp_post.1"], positions="all")["mlp_post.1"]
    whole = {1: torch.ones(base.d_mlp, dtype=torch.bool)}
    first = [row[:1] for row in generate_with_donor(base, tuned, ROWS, whole, max_new_tokens=1)]
    edits = [Edit.patch("mlp_post.1", stored, "prompt")]
    assert first == [row[:1] for row in generate_tokens(base, ROWS, max_new_tokens=1, edits=edits)]
    together = perplexities_with_donor(base, tuned, rows, [{1: mask}, {}, whole], batch_size=1)
    assert len({round(value, 4) for value in together}) == 3
    assert together == pytest.approx([perplexities_with_donor(base, tuned, rows, [one])[0] for one in ({1: mask}, {}, whole)], rel=1e-5)
    # One selection for each row, of other layers and some of no neuron, is what each row gives with its selection alone.
    each = [({}, {1: mask}, whole, {0: mask, 1: ~mask})[place % 4] for place in range(len(ROWS))]
    together = generate_with_donor(base, tuned, ROWS, each, max_new_tokens=6, batch_size=3)
    assert together == [generate_with_donor(base, tuned, [row], one, max_new_tokens=6)[0] for row, one in zip(ROWS, each, strict=True)]
    assert together != generate_with_donor(base, tuned, ROWS, {}, max_new_tokens=6)
    # Prompts that come again with another selection, of which the donor reads each once, give what they give alone.
    twice, both = [*ROWS, *ROWS[::-1], ROWS[0]], [*each, *each[1:], {}, whole]
    again = generate_with_donor(base, tuned, twice, both, max_new_tokens=6)
    assert again == [generate_with_donor(base, tuned, [row], one, max_new_tokens=6)[0] for row, one in zip(twice, both, strict=True)]
    with pytest.raises(UserError, match="rows came with 1 selections"):
        generate_with_donor(base, tuned, ROWS, [whole], max_new_tokens=6)
    # A donor that is the model itself changes nothing, whatever is patched.
    assert generate_with_donor(base, base, ROWS, {0: mask, 1: mask}, max_new_tokens=8) == generate_tokens(base, ROWS, max_new_tokens=8)


def test_a_selection_that_does_not_fit_is_refused(pair: ModelPair, llama: Model) -> None:
    with pytest.raises(UserError, match="do not fit"):
        generate_with_donor(pair.base, pair.tuned, ROWS, {9: torch.ones(pair.base.d_mlp, dtype=torch.bool)})
    with pytest.raises(UserError, match="differ in shape"):
        perplexities_with_donor(pair.base, llama, ROWS, [{}])


@pytest.mark.oracle
def test_activation_edits_shrink_and_grow_the_cells_that_they_should(gpt2: Model) -> None:
    cells = np.full(gpt2.n_layers * gpt2.d_mlp, -1)
    cells[[3, gpt2.d_mlp + 4, gpt2.d_mlp + 5, 2 * gpt2.d_mlp]] = [CELLS.index(name) for name in ("TP", "TN", "AP", "AN")]
    edits = activation_edits(cells, gpt2.d_mlp, 0.5)
    plain, edited = (capture(gpt2, ROWS, ["mlp_post.0"], edits=some)["mlp_post.0"] for some in ((), edits))
    torch.testing.assert_close(edited[:, 3], 0.5 * plain[:, 3])
    torch.testing.assert_close(edited[:, 4:], plain[:, 4:])
    factors = {(str(edit.site), edit.neurons): edit.strength for edit in edits}
    assert factors == {("mlp_post.0", (3,)): 0.5, ("mlp_post.2", (0,)): 0.5, ("mlp_post.1", (4, 5)): 1.5}


def test_only_the_most_aligned_neurons_get_a_cell() -> None:
    cosines = torch.linspace(-1, 1, 101)
    found = cells_of(cosines, cosines, torch.full((101,), -1.0), 0.1)
    assert (found >= 0).sum() == 12, "sizes come in pairs here"
    assert set(found[:5]) == {CELLS.index("AN")}
    assert set(found[-5:]) == {CELLS.index("TN")}


def test_a_direction_that_is_zero_is_refused(gpt2: Model) -> None:
    with pytest.raises(UserError, match="norm 0"):
        alignments(gpt2, torch.zeros(gpt2.d_model))


def test_neurons_whose_parts_do_not_add_up_are_refused(families: Any) -> None:
    model = families("gemma2").model
    with pytest.raises(UserError, match="the neurons' parts do not add up"):
        alignments(model, torch.ones(model.d_model))


@pytest.mark.oracle
def test_firing_rates_count_inputs_above_zero_and_matched_neurons_fire_as_often(gpt2: Model) -> None:
    rates = firing_rates(gpt2, ROWS, PLACES, [0, 2])
    held = capture(gpt2, ROWS, ["mlp_pre.0"], positions=PLACES)["mlp_pre.0"]
    torch.testing.assert_close(rates[0], (held > 0).float().mean(dim=(0, 1)))
    chosen = [(0, 3), (2, 7), (0, 5)]
    for seed in range(10):
        drawn = frequency_matched(chosen, rates, seed=seed, exclude=[(0, 1)], candidates=8)
        assert [layer for layer, _ in drawn] == [0, 2, 0]
        assert not set(drawn) & {*chosen, (0, 1)}
        assert len(set(drawn)) == 3
        for (layer, index), (_, other) in zip(chosen, drawn, strict=True):
            gaps = (rates[layer] - rates[layer][index]).abs().sort().values
            assert abs(rates[layer][index] - rates[layer][other]) <= gaps[min(len(gaps) - 1, 8 + 4)] + 1e-6
    assert frequency_matched(chosen, rates, seed=1) != frequency_matched(chosen, rates, seed=2)
