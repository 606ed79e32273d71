"""The gradient of a preference loss over a batch of pairs, each pair read as one packed row."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.unembed import head_logits
from interp.preferences.influence import answer_log_prob
from interp.preferences.packed import batch_tokens_on, packable, packed_groups, packed_row, packed_states
from interp.preferences.pairs import TokenPair

# From a pair's place in the batch and the log-probabilities of its chosen and rejected answer to its loss.
LossOf = Callable[[int, Float[Tensor, ""], Float[Tensor, ""]], Float[Tensor, ""]]


def answer_log_probs(hf: PreTrainedModel, pairs: Sequence[TokenPair]) -> Float[Tensor, "pair 2"]:
    """log π of the chosen and of the rejected answer of each pair in nats, with their graph, by one forward of packed rows.

    Where the model's attention takes no mask of this kind, each answer is read by itself. Sums over tokens are in double precision.
    """
    rows = [packed_row(pair) for pair in pairs]
    if not packable(hf, rows):
        sides = [[answer_log_prob(hf, pair.prompt, side) for side in (pair.chosen, pair.rejected)] for pair in pairs]
        return torch.stack([torch.stack(both) for both in sides])
    states = packed_states(hf, rows)
    width = states.shape[1]
    places, targets, owners = [], [], []
    for number, (row, pair) in enumerate(zip(rows, pairs, strict=True)):
        for side, answer in enumerate((pair.chosen, pair.rejected)):
            places += [number * width + place for place in row.predicting[side]]
            targets += answer
            owners += [2 * number + side] * len(answer)
    index, ids, owner = (torch.tensor(values, device=states.device) for values in (places, targets, owners))
    logits = head_logits(hf, states.flatten(0, 1)[index])
    wide = logits if logits.dtype == torch.float64 else logits.float()
    values = (wide.gather(1, ids[:, None])[:, 0] - wide.logsumexp(dim=1)).double()
    return torch.zeros(2 * len(pairs), dtype=torch.float64, device=values.device).index_add(0, owner, values).view(-1, 2)


def backward(hf: PreTrainedModel, pairs: Sequence[TokenPair], loss_of: LossOf) -> float:
    """Add the gradient of the pairs' mean loss to the weights' `grad`, and return that loss; few pairs are in memory at a time."""
    total = 0.0
    for group in packed_groups([packed_row(pair) for pair in pairs], batch_tokens_on(hf.device)):
        values = answer_log_probs(hf, [pairs[number] for number in group])
        losses = [loss_of(number, *both) for number, both in zip(group, values, strict=True)]
        loss = torch.stack(losses).sum() / len(pairs)
        loss.backward()
        total += float(loss.detach())
    return total
