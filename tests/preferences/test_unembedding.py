"""Theorem 5 against autograd with free hidden state and unembedding, and the split of a difference against worked examples."""

from __future__ import annotations

import math

import pytest
import torch

from interp.errors import UserError
from interp.preferences.unembedding import difference_of, gain_scores, pairs_like, split_along


def test_the_scores_order_the_derivatives_of_log_probabilities_as_autograd_has_them() -> None:
    generator = torch.Generator().manual_seed(0)
    for _ in range(20):
        unembedding = torch.randn(11, 5, generator=generator, dtype=torch.float64, requires_grad=True)
        state = torch.randn(5, generator=generator, dtype=torch.float64, requires_grad=True)

        def log_probs(weight: torch.Tensor, hidden: torch.Tensor) -> torch.Tensor:
            return (weight @ hidden).log_softmax(-1)

        now = log_probs(unembedding, state)
        slopes = torch.autograd.grad(now[2] - now[7], (unembedding, state))
        _, growth = torch.autograd.functional.jvp(log_probs, (unembedding.detach(), state.detach()), slopes)
        others = [token for token in range(11) if token not in (2, 7)]
        scores = gain_scores(unembedding, (unembedding[2] - unembedding[7]).detach())
        constant = (growth - scores)[others]
        torch.testing.assert_close(constant, constant[:1].expand(9), atol=1e-10, rtol=0)


def test_a_difference_is_split_along_the_preferred_unembedding() -> None:
    rows = torch.tensor([[2.0, 0.0, 0.0], [1.0, 2.0, 2.0], [0.0, 0.0, 1.0]])
    split = difference_of(rows, 0, 1)
    # (2, 0, 0) - (1, 2, 2) = (1, -2, -2).
    assert (split.along, split.orthogonal) == (pytest.approx(1.0), pytest.approx(math.sqrt(8)))
    assert (split.cosine, split.preferred_norm, split.dispreferred_norm) == (pytest.approx(1 / 3), pytest.approx(2.0), pytest.approx(3.0))
    assert split.expected == pytest.approx(math.sqrt(0.5))
    # The mean of the rows is (1, 2/3, 1).
    one, other = torch.tensor([1.0, -2 / 3, -1.0]), torch.tensor([0.0, 4 / 3, 1.0])
    assert split.centred == pytest.approx(torch.cosine_similarity(one, other, dim=0).item())


def test_for_equal_norms_the_split_is_the_one_expected_of_the_cosine_alone() -> None:
    angle = 0.7
    rows = torch.tensor([[1.0, 0.0], [math.cos(angle), math.sin(angle)]], dtype=torch.float64)
    split = difference_of(rows, 0, 1)
    assert split.along / split.orthogonal == pytest.approx(split.expected, abs=1e-12)


def test_a_direction_of_length_zero_is_refused() -> None:
    with pytest.raises(UserError, match="length zero"):
        split_along(torch.ones(3), torch.zeros(3))


def test_random_pairs_have_the_cosine_asked_for_and_none_of_the_tokens_left_out() -> None:
    rows = torch.randn(300, 8, generator=torch.Generator().manual_seed(1))
    pairs = pairs_like(rows, 0.5, 20, without=(3, 4), seed=2)
    cosines = torch.stack([torch.cosine_similarity(rows[one], rows[other], dim=0) for one, other in pairs])
    assert len(pairs) == 20
    assert (cosines - 0.5).abs().max() < 0.05
    assert not {3, 4} & {token for pair in pairs for token in pair}
    assert pairs == pairs_like(rows, 0.5, 20, without=(3, 4), seed=2)
    with pytest.raises(UserError, match="no two tokens"):
        pairs_like(rows[:3], 0.5, 2, without=(0, 1))
