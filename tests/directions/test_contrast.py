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


@pytest.mark.oracle
def test_standardised_the_difference_is_not_drowned_by_an_enormous_coordinate(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    states = {kind: torch.randn(40, gpt2.d_model, generator=generator) for kind in ("toxic", "harmless")}
    states["toxic"][:, 9] += 3
    for rows in states.values():
        rows[:, 2] *= 1000
    sites = {f"resid_post.{layer}" for layer in range(gpt2.n_layers)}

    def captured(model: Model, rows: list[list[int]], *others: object, **settings: object) -> dict[str, torch.Tensor]:
        return dict.fromkeys(sites, states["toxic" if rows[0] == [4] else "harmless"])

    monkeypatch.setattr("interp.directions.contrast.capture", captured)
    plain, standardised = (difference_in_means(gpt2, [[4]] * 40, [[5]] * 40, standardise=on) for on in (False, True))
    assert int(plain.direction.abs().argmax()) == 2
    assert int(standardised.direction.abs().argmax()) == 9
    assert standardised.table[standardised.layer] > plain.table[plain.layer] + 0.2
    fitted = {kind: rows[::2].double() for kind, rows in states.items()}
    deviations = torch.cat([fitted["toxic"], fitted["harmless"]]).std(dim=0, correction=0)
    expected = (fitted["toxic"].mean(dim=0) - fitted["harmless"].mean(dim=0)) / deviations
    torch.testing.assert_close(standardised.direction, expected.float())
