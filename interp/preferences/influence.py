"""First-order predictors of displacement: what a step on preference pairs does to the log-probabilities of their chosen answers.

With `g+` and `g-` the gradients of log π(chosen) and log π(rejected) by all weights, `d = g+ - g-`, and the sums over pairs
`D = Σ d` and `G = Σ g+`:

    own          = <g+, d>             what a pair's own step does to its chosen answer
    entanglement = <g+, g-> / |g+|²    above 1 exactly where own is negative
    total        = <g+, D>             what the step on all pairs does to this pair's chosen answer
    influence    = <G, d>              what this pair's step does to all chosen answers; positive raises them

At the start of DPO every pair has the weight β/2, so that a step of gradient descent with rate η on all N pairs changes
log π(chosen) by (ηβ/2N) total, up to η². The totals and the influences of a set of pairs have the same sum. The first step of Adam,
and ten times that of RMSprop, has the sign of the gradient in place of it: the measures whose names end in `_sign` replace
`d` and `D` by their signs. `influence_sign`, <G, sign(d)>, is that of a step on the pair alone: signs of a sum are not sums of signs,
so that its sum is not that of `total_sign`. Entries of `d` in which `g+` and `g-` cancel up to rounding are zero here: where answers share
contexts or are single tokens, whole rows of the unembedding cancel, and their signs would be noise.

Memory and time: gradients are read twice, pair by pair. The first reading gives own and adds up D and G; the second computes g+ and g-
again and multiplies them with the two sums. Five sets of numbers of the size of the weights (g+, g-, d, D, G) and the copy of the
model are in memory at a time, however many pairs there are. A pair takes two forward and backward passes of both answers, about seven
times two plain forwards. (Central differences along D and G, of equal cost, were 5e-4 off in single precision.)
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, fields

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.errors import UserError
from interp.models.hooks import active
from interp.models.model import Model
from interp.models.modes import check_no_dropout
from interp.models.unembed import head_logits
from interp.preferences.pairs import TokenPair
from interp.preferences.states import check_pairs

# Products that are added up in their own precision; the sums of blocks are added up in double.
BLOCK = 4096
# A difference of two numbers below so many units of their precision is rounding.
ROUNDING = 64
Gradient = tuple[Tensor, ...]


@dataclass(frozen=True, eq=False)
class GradientScores:
    """The first-order predictors of each pair, in the order of the pairs; see the head of this module.

    Attributes:
        grad_norm_chosen, grad_norm_rejected: |g+| and |g-|.
        total, influence, total_sign, influence_sign: with respect to the pairs that were given together.
    """

    own: Float[np.ndarray, " pair"]
    entanglement: Float[np.ndarray, " pair"]
    grad_norm_chosen: Float[np.ndarray, " pair"]
    grad_norm_rejected: Float[np.ndarray, " pair"]
    total: Float[np.ndarray, " pair"]
    influence: Float[np.ndarray, " pair"]
    own_sign: Float[np.ndarray, " pair"]
    total_sign: Float[np.ndarray, " pair"]
    influence_sign: Float[np.ndarray, " pair"]

    @property
    def harm(self) -> Float[np.ndarray, " pair"]:
        """Minus the influence: how far a pair's step is expected to lower all chosen answers."""
        return -self.influence


def gradient_scores(model: Model, pairs: Sequence[TokenPair], *, progress: Callable[[int, int], object] | None = None) -> GradientScores:
    """The first-order predictors of each pair, by gradients on a copy of the model; the model itself is not touched.

    The copy is in single precision, or in double for a model in double. Every weight counts, as in full fine-tuning; an embedding that
    is also the unembedding counts once.

    Args:
        progress: called with the number of gradients that are done and their total number, two a pair and answer.

    Raises:
        UserError: as `check_pairs`, and for a model with active edits, which the copy would not have.
    """
    check_pairs(model, pairs)
    if not pairs:
        return GradientScores(*np.empty((len(fields(GradientScores)), 0)))
    hf = trainable_copy(model)
    rows: list[dict[str, float]] = [{} for _ in pairs]
    sums, steps = no_sums(hf), _counted(4 * len(pairs), progress)
    for read in (read_alone, read_with):
        for row, pair in zip(rows, pairs, strict=True):
            row |= read(hf, pair, sums, steps)
    return GradientScores(**{item.name: np.array([row[item.name] for row in rows]) for item in fields(GradientScores)})


@dataclass(frozen=True, eq=False)
class Sums:
    """`D` and `G` of the pairs that were read, each a list of tensors in the order of the model's parameters."""

    total: list[Tensor]
    chosen: list[Tensor]


def no_sums(hf: PreTrainedModel) -> Sums:
    """The sums of no pair: zeros."""
    return Sums(*([torch.zeros_like(weight, requires_grad=False) for weight in hf.parameters()] for _ in range(2)))


def read_alone(hf: PreTrainedModel, pair: TokenPair, sums: Sums, steps: Iterator[None] | None = None) -> dict[str, float]:
    """The scores of a pair that depend on it alone; its gradients are added to the sums. `steps` is advanced with each gradient."""
    chosen, rejected = _gradients(hf, pair, steps)
    difference = _difference(chosen, rejected)
    _add(sums.chosen, chosen)
    _add(sums.total, difference)
    squares, cross = dot(chosen, chosen), dot(chosen, rejected)
    return {
        "own": dot(chosen, difference), "entanglement": cross / squares if squares else np.nan, "grad_norm_chosen": squares**0.5,
        "grad_norm_rejected": dot(rejected, rejected) ** 0.5, "own_sign": _dot_with_signs(chosen, difference),
    }  # fmt: skip


def read_with(hf: PreTrainedModel, pair: TokenPair, sums: Sums, steps: Iterator[None] | None = None) -> dict[str, float]:
    """The scores of a pair among those in the sums. `steps` is advanced with each gradient."""
    chosen, rejected = _gradients(hf, pair, steps)
    difference = _difference(chosen, rejected)
    return {
        "total": dot(chosen, sums.total), "influence": dot(sums.chosen, difference), "total_sign": _dot_with_signs(chosen, sums.total),
        "influence_sign": _dot_with_signs(sums.chosen, difference),
    }  # fmt: skip


def trainable_copy(model: Model) -> PreTrainedModel:
    """A copy of a model's weights with gradients switched on, in at least single precision.

    Raises `UserError` where dropout or edits are active, or where weights are offloaded.
    """
    check_no_dropout(model)
    if active(model.hf).transforms:
        raise UserError(f"{model.name} is edited, and gradients are computed on a copy without edits", "leave the block of editing first")
    copy = model.plain_copy()
    return (copy if model.dtype == torch.float64 else copy.float()).requires_grad_(True)


def answer_log_prob(hf: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> Float[Tensor, ""]:
    """log π(answer | prompt) in nats, with its graph; logarithms and the sum are in double precision."""
    ids = torch.tensor([[*prompt, *answer[:-1]]], device=hf.device)
    states = hf.base_model(input_ids=ids, use_cache=False).last_hidden_state[0, len(prompt) - 1 :]
    logits = head_logits(hf, states).double()
    targets = torch.tensor(list(answer), device=logits.device)
    value: Tensor = logits.log_softmax(dim=1).gather(1, targets[:, None]).sum()
    return value


def gradient(hf: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> Gradient:
    """The gradient of log π(answer | prompt) by each parameter, in the order of `hf.parameters()`; `grad` fields stay as they are."""
    return torch.autograd.grad(answer_log_prob(hf, prompt, answer), tuple(hf.parameters()), allow_unused=True, materialize_grads=True)


def dot(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The inner product of two lists of tensors: products in their precision, sums in double beyond blocks of some thousand."""
    return sum(_dot(one, other) for one, other in zip(first, second, strict=True))


def _dot(first: Tensor, second: Tensor) -> float:
    products = (first * second).flatten()
    whole = len(products) // BLOCK * BLOCK
    blocks = products[:whole].view(-1, BLOCK).sum(dim=1)
    return float(blocks.double().sum() + products[whole:].double().sum())


def _add(sums: list[Tensor], parts: Sequence[Tensor]) -> None:
    """Replace each tensor of the first list by its sum with that of the second, one at a time, so that no second list exists."""
    for place, part in enumerate(parts):
        sums[place] = sums[place] + part


def _difference(chosen: Gradient, rejected: Gradient) -> list[Tensor]:
    """The first gradient minus the second, zero where the two cancel up to rounding."""
    parts = []
    for first, second in zip(chosen, rejected, strict=True):
        part = first - second
        bound = ROUNDING * torch.finfo(part.dtype).eps * (first.abs() + second.abs())
        parts.append(part.masked_fill(part.abs() <= bound, 0))
    return parts


def _dot_with_signs(first: Sequence[Tensor], second: Sequence[Tensor]) -> float:
    """The inner product of the first list with the signs of the second, which are made one tensor at a time."""
    return sum(_dot(one, other.sign()) for one, other in zip(first, second, strict=True))


def _gradients(hf: PreTrainedModel, pair: TokenPair, steps: Iterator[None] | None) -> tuple[Gradient, Gradient]:
    sides = []
    for side in (pair.chosen, pair.rejected):
        sides.append(gradient(hf, pair.prompt, side))
        if steps is not None:
            next(steps)
    return sides[0], sides[1]


def _counted(total: int, progress: Callable[[int, int], object] | None) -> Iterator[None]:
    """An iterator that reports each step that is taken."""
    for done in range(1, total + 1):
        if progress is not None:
            progress(done, total)
        yield
