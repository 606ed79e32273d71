"""Further training of a tuned model on texts of one kind, in batches of a tuning's own optimizer and rate."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import numpy as np
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.model import Model
from interp.preferences.influence import trainable_copy
from interp.preferences.pairs import TokenPair
from training.filters import BATCH
from training.optimizers import preference_optimizer
from training.pair_batches import backward


def as_rejected(rows: Sequence[Sequence[int]]) -> list[TokenPair]:
    """Texts as pairs whose rejected side is the text after its first token, so that `further_steps` reads them."""
    return [TokenPair(tuple(row[:1]), tuple(row[1:2]), tuple(row[1:])) for row in rows]


def further_steps(
    model: Model, texts: Sequence[TokenPair], *, optimizer: str, rate: float, steps: int, seed: int
) -> Iterator[tuple[int, PreTrainedModel]]:  # fmt: skip
    """A copy of the model after each step on the rejected sides of these pairs, with the number of the step from 1.

    A step lowers the mean over its pairs of the loss of a token; the order is drawn by the seed and read in as many passes as it takes.
    """
    hf = trainable_copy(model)
    trained = preference_optimizer(optimizer, list(hf.parameters()), rate)
    order = np.random.default_rng([seed, 6]).permutation(len(texts))
    for step in range(steps):
        some = [texts[int(order[(step * BATCH + place) % len(order)])] for place in range(BATCH)]

        def loss_of(place: int, chosen: Tensor, rejected: Tensor, some: list[TokenPair] = some) -> Tensor:
            return -rejected / len(some[place].rejected)

        trained.zero_grad()
        backward(hf, some, loss_of)
        trained.step()
        yield step + 1, hf
