"""The view of a site: which columns and heads of the tensor that passes a module it reads, and that it writes no others."""

from __future__ import annotations

import pytest
import torch

from interp import Model
from interp.models.architectures import ARCHITECTURES
from interp.models.views import View, view_of

D_HEAD, HEADS = 3, 4


def test_a_view_of_everything_is_the_tensor_itself() -> None:
    whole = torch.arange(24.0).reshape(2, 3, 4)
    assert View().read(whole) is whole
    assert torch.equal(View().write(whole, whole + 1), whole + 1)


def test_heads_are_neighbouring_columns_in_their_order() -> None:
    whole = torch.arange(2.0 * 5 * HEADS * D_HEAD).reshape(2, 5, HEADS * D_HEAD)
    view = View(heads=HEADS)
    heads = view.read(whole)
    assert heads.shape == (2, 5, HEADS, D_HEAD)
    for head in range(HEADS):
        assert torch.equal(heads[:, :, head], whole[..., head * D_HEAD : (head + 1) * D_HEAD])
    assert torch.equal(view.write(whole, heads), whole)


@pytest.mark.parametrize(("site", "start"), [("q", 0), ("k", 1), ("v", 2)])
def test_fused_queries_keys_and_values_are_thirds_and_a_write_leaves_the_others(site: str, start: int) -> None:
    view = view_of(site, ARCHITECTURES["gpt2"], HEADS, HEADS, D_HEAD)
    width = HEADS * D_HEAD
    own = slice(start * width, (start + 1) * width)
    assert view == View(HEADS, own)
    whole = torch.arange(2.0 * 5 * 3 * width).reshape(2, 5, 3 * width)
    before = whole.clone()
    part = view.read(whole)
    assert torch.equal(part.reshape(2, 5, width), whole[..., own])
    changed = view.write(whole, part - 1000)
    expected = before.clone()
    expected[..., own] -= 1000
    assert torch.equal(changed, expected)
    assert torch.equal(whole, before)


def test_sites_of_their_own_module_take_all_of_its_columns(llama: Model) -> None:
    architecture = llama.architecture
    assert view_of("q", architecture, 4, 2, D_HEAD) == View(4)
    assert view_of("k", architecture, 4, 2, D_HEAD) == view_of("v", architecture, 4, 2, D_HEAD) == View(2)
    assert view_of("z", architecture, 4, 2, D_HEAD) == view_of("pattern", architecture, 4, 2, D_HEAD) == View(4)
    assert view_of("mlp_post", architecture, 4, 2, D_HEAD) == view_of("resid_mid", architecture, 4, 2, D_HEAD) == View()
