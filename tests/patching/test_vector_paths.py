"""A vector on the direct path and on the path through later blocks: what each of them sees, and that both together are an addition."""

from __future__ import annotations

import pytest
import torch

from interp import Model, UserError, capture, editing
from interp.patching.vector_paths import BOTH, DIRECT, LATER, edits_on_path

TEXTS = ["the quick wintle", "blorp and snarg", "a quonk never sings"]


def sites(model: Model) -> list[str]:
    return [f"{name}.{layer}" for layer in range(model.n_layers) for name in ("attn_out", "mlp_out")] + [f"resid_post.{model.n_layers - 1}"]


@pytest.mark.oracle
def test_each_path_reaches_what_it_says_and_nothing_else(any_model: Model) -> None:
    layer, last = 1, f"resid_post.{any_model.n_layers - 1}"
    vector = 3 * torch.randn(any_model.d_model, generator=torch.Generator().manual_seed(4))
    names = sites(any_model)
    plain = capture(any_model, TEXTS, names)
    seen = {}
    for path in (DIRECT, LATER, BOTH):
        with editing(any_model, edits_on_path(any_model, layer, vector, path)):
            seen[path] = capture(any_model, TEXTS, names)
    for name in names[:-1]:
        assert torch.equal(seen[DIRECT][name], plain[name]), "on the direct path no block sees the vector"
        assert torch.equal(seen[LATER][name], seen[BOTH][name]), "later blocks see it as in a plain addition"
    moved = {name: float((seen[LATER][name] - plain[name]).abs().max()) for name in names[:-1]}
    assert moved[f"mlp_out.{layer}"] > 1e-3
    assert moved[f"attn_out.{layer}"] == 0.0, "the vector comes after this layer's attention"
    assert seen[DIRECT][last] - plain[last] == pytest.approx(vector.expand_as(plain[last]).numpy(), abs=1e-4)
    assert seen[BOTH][last] - seen[LATER][last] == pytest.approx(vector.expand_as(plain[last]).numpy(), abs=1e-4)


def test_a_path_is_an_addition_that_can_be_taken_back(gpt2: Model) -> None:
    vector = torch.ones(gpt2.d_model)
    (edit,) = edits_on_path(gpt2, 2, vector, BOTH, -0.5)
    assert (str(edit.site), edit.strength) == ("resid_mid.2", -0.5)
    entering, leaving = edits_on_path(gpt2, 2, vector, LATER, -0.5, "generated")
    assert (entering.strength, leaving.strength) == (-0.5, 0.5)
    assert {entering.positions, leaving.positions} == {"generated"}


def test_an_unknown_path_or_layer_is_refused(gpt2: Model) -> None:
    vector = torch.ones(gpt2.d_model)
    with pytest.raises(UserError, match="there is no layer 9"):
        edits_on_path(gpt2, 9, vector, DIRECT)
    with pytest.raises(UserError, match="no path 'sideways'"):
        edits_on_path(gpt2, 1, vector, "sideways")
