"""The piecewise next-token loss against PyTorch's own cross-entropy, in value and in both gradients."""

from __future__ import annotations

import pytest
import torch
from torch.nn.functional import cross_entropy

from training.loss import next_token_loss


def _inputs(dtype: torch.dtype) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    generator = torch.Generator().manual_seed(5)
    states = torch.randn(3, 11, 8, generator=generator, dtype=dtype)
    unembedding = torch.randn(37, 8, generator=generator, dtype=dtype)
    return states.requires_grad_(), unembedding.requires_grad_(), torch.randint(0, 37, (3, 11), generator=generator)


@pytest.mark.parametrize("pieces", [1, 7, 30, 1000])
def test_loss_and_gradients_equal_plain_cross_entropy_for_every_size_of_piece(pieces: int) -> None:
    states, unembedding, ids = _inputs(torch.float32)
    plain = cross_entropy((states[:, :-1] @ unembedding.T).flatten(0, 1), ids[:, 1:].flatten())
    wanted = torch.autograd.grad(3.0 * plain, (states, unembedding))
    ours = next_token_loss(states, unembedding, ids, pieces=pieces)
    found = torch.autograd.grad(3.0 * ours, (states, unembedding))
    assert ours.item() == pytest.approx(plain.item(), abs=1e-6)
    for mine, theirs in zip(found, wanted, strict=True):
        torch.testing.assert_close(mine, theirs, atol=1e-6, rtol=1e-5)


def test_the_last_state_and_the_first_token_have_no_part_in_the_loss() -> None:
    states, unembedding, ids = _inputs(torch.float32)
    loss = next_token_loss(states, unembedding, ids)
    (gradient,) = torch.autograd.grad(loss, states)
    assert (gradient[:, -1] == 0).all()
    assert (gradient[:, :-1].abs().sum(-1) > 0).all()
    changed = ids.clone()
    changed[:, 0] = (changed[:, 0] + 1) % 37
    assert next_token_loss(states, unembedding, changed).item() == loss.item()


def test_states_in_bfloat16_give_gradients_of_the_float32_weight_within_bfloat16() -> None:
    states, unembedding, ids = _inputs(torch.float32)
    exact = torch.autograd.grad(next_token_loss(states, unembedding, ids), unembedding)[0]
    rounded = torch.autograd.grad(next_token_loss(states.bfloat16(), unembedding, ids), unembedding)[0]
    assert rounded.dtype == torch.float32
    assert torch.cosine_similarity(exact.flatten(), rounded.flatten(), dim=0) > 0.999
