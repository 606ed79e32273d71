"""The next-token loss of a language model, computed in pieces so that all logits never exist at once.

For a small model most of a step's time on a CPU goes to memory, not arithmetic: 4,096 positions times 8,192 tokens of logits,
written and read several times. Here loss and gradient of some hundred positions are computed together and their logits
discarded. The gradient of cross-entropy with respect to logits is softmax minus one-hot, so only the gradients of the hidden
states and of the unembedding, which are small, have to be saved for the backward pass.
"""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

POSITIONS = 256


class _PiecewiseCrossEntropy(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, states: Tensor, unembedding: Tensor, targets: Tensor, pieces: int) -> Tensor:
        count = targets.numel()
        weight = unembedding.to(states.dtype)
        states_gradient = torch.empty_like(states)
        weight_gradient = torch.zeros_like(unembedding, dtype=torch.float32)
        total = torch.zeros((), device=states.device)
        for start in range(0, count, pieces):
            piece, target = states[start : start + pieces], targets[start : start + pieces]
            logits = (piece @ weight.T).float()
            log_sum = logits.logsumexp(dim=1, keepdim=True)
            total += (log_sum - logits.gather(1, target[:, None])).sum()
            gradient = logits.sub_(log_sum).exp_()
            gradient[torch.arange(len(target), device=states.device), target] -= 1
            gradient = gradient.div_(count).to(states.dtype)
            states_gradient[start : start + pieces] = gradient @ weight
            weight_gradient += (gradient.T @ piece).float()
        ctx.save_for_backward(states_gradient, weight_gradient.to(unembedding.dtype))
        return total / count

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor) -> tuple[Tensor, Tensor, None, None]:
        states_gradient, weight_gradient = ctx.saved_tensors
        return states_gradient * gradients[0], weight_gradient * gradients[0], None, None


@torch.compiler.disable
def next_token_loss(
    states: Float[Tensor, "batch pos d_model"], unembedding: Float[Tensor, "vocab d_model"], ids: Int[Tensor, "batch pos"],
    *, pieces: int = POSITIONS,
) -> Float[Tensor, ""]:  # fmt: skip
    """Mean negative log-probability, in nats, of each token given those before it, from the states after the final norm.

    Equals `cross_entropy(states[:, :-1] @ unembedding.T, ids[:, 1:])` in value and gradient; the products are computed in the
    precision of `states`. `pieces` is how many positions' logits exist at a time.
    """
    width = states.shape[-1]
    loss: Tensor = _PiecewiseCrossEntropy.apply(states[:, :-1].reshape(-1, width), unembedding, ids[:, 1:].reshape(-1), pieces)
    return loss


class PiecewiseLoss(nn.Module):
    """A GPT-2 called with labels, which returns its loss without ever holding all logits."""

    def __init__(self, model: GPT2LMHeadModel) -> None:
        super().__init__()
        self.model = model

    def forward(self, input_ids: Tensor, labels: Tensor) -> SimpleNamespace:
        """As `GPT2LMHeadModel.forward` with labels that are the inputs, with `loss` alone in what it returns."""
        states = self.model.transformer(input_ids=input_ids).last_hidden_state
        return SimpleNamespace(loss=next_token_loss(states, self.model.lm_head.weight, labels))
