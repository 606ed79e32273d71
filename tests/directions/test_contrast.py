"""The directions that separate two classes of texts, on classes made by a token and on a subspace that is planted."""

from __future__ import annotations

import pytest
import torch

from interp.directions.contrast import difference_in_means, random_subspaces, toxic_subspaces
from interp.errors import UserError
from interp.forward.capture import capture
from interp.models.model import Model


@pytest.mark.oracle
def test_the_toxic_subspace_is_the_direction_planted_in_one_class(gpt2: Model) -> None:
    toxic, harmless = [[300, 5, 6], [301, 7, 8], [302, 9, 4], [300, 4, 4]], [[5, 6, 7], [7, 8, 9], [9, 4, 5], [4, 4, 4]]
    found = toxic_subspaces(gpt2, toxic, harmless, layers=[1, 2], rank=2)
    for layer, rows in found.items():
        torch.testing.assert_close(rows @ rows.T, torch.eye(2), atol=1e-5, rtol=0)
        one, two = (capture(gpt2, some, [f"resid_post.{layer}"], positions="mean")[f"resid_post.{layer}"] for some in (toxic, harmless))
        common = two.mean(dim=0) / two.mean(dim=0).norm()
        assert (rows @ common).abs().max() < 1e-4
        left = (one - two) - ((one - two) @ common).unsqueeze(1) * common
        kept = ((left @ rows.T) ** 2).sum()
        others = random_subspaces({layer: rows}, 0)[layer]
        assert kept > 3 * ((left @ others.T) ** 2).sum()


@pytest.mark.oracle
def test_the_difference_in_means_is_found_where_a_token_makes_the_classes(gpt2: Model) -> None:
    toxic = [[row, 300] for row in range(4, 20)]
    harmless = [[row, 301] for row in range(4, 20)]
    found = difference_in_means(gpt2, toxic, harmless)
    site = f"resid_post.{found.layer}"
    one, two = (capture(gpt2, rows[::2], [site])[site].mean(dim=0) for rows in (toxic, harmless))
    torch.testing.assert_close(found.direction, one - two, atol=1e-5, rtol=1e-4)
    assert found.table[found.layer] == max(found.table.values()) == 1.0
    assert set(found.table) == {0, 1}
    with pytest.raises(UserError, match="at least 4"):
        difference_in_means(gpt2, toxic[:3], harmless)
