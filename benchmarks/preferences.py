"""Cases around preference pairs: CHES by packed rows, against the loop of the paper's script over whole sequences."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Case, largest_difference
from interp import Model
from interp.models.loading import load_model
from interp.models.named import installed
from interp.preferences.pairs import TokenPair
from interp.preferences.similarity import ches_scores

# The mean lengths of a prompt, a chosen and a rejected answer in pairs about harmlessness, in tokens of the base that ships, and of
# SmolLM2. Lengths vary by half to both sides. Which tokens they are makes no difference to the time.
SHIPPED_LENGTHS = (84, 31, 45)
SMOLLM2_LENGTHS = (121, 30, 38)


def preferences(model: Model) -> Iterator[Case]:
    """Every case of this file; the one of SmolLM2 where its package is installed."""
    yield ches_case("packed CHES", lambda: model, SHIPPED_LENGTHS, 32, 5)
    if installed("smollm2"):
        yield ches_case("packed CHES, SmolLM2", functools.cache(lambda: load_model("smollm2")), SMOLLM2_LENGTHS, 8, 3)


def ches_case(name: str, model: Callable[[], Model], lengths: Sequence[int], count: int, turns: int) -> Case:
    """CHES of as many pairs of random tokens: packed rows in batches, against one pair at a time, on one thread.

    The other way reads both sides as whole sequences, keeps the states of every layer, and computes the logits of every position.
    """
    copy = functools.cache(lambda: model().plain_copy())
    drawn = functools.cache(lambda: drawn_pairs(model().d_vocab, lengths, count))

    def packed() -> Tensor:
        with one_thread():
            return torch.from_numpy(ches_scores(model(), drawn()).ches)

    def pair_by_pair() -> Tensor:
        with one_thread():
            return torch.tensor([whole_sequences(copy(), pair) for pair in drawn()], dtype=torch.float64)

    return Case(
        name, packed, pair_by_pair, f"ches_scores, {count} pairs", "one pair at a time, both sides whole, all states and logits",
        largest_difference, memory=False, turns=turns,
    )  # fmt: skip


@torch.no_grad()
def whole_sequences(hf: Any, pair: TokenPair) -> float:
    """CHES of one pair from a forward of each side, from the last prompt token to the last but one of the answer."""
    sums = []
    for answer in (pair.chosen, pair.rejected):
        output = hf(torch.tensor([[*pair.prompt, *answer]]), output_hidden_states=True, use_cache=False)
        sums.append(output.hidden_states[-1][0, len(pair.prompt) - 1 : -1].sum(dim=0))
    return float((sums[0] * sums[1]).sum() - (sums[0] * sums[0]).sum())


def drawn_pairs(vocabulary: int, lengths: Sequence[int], count: int) -> list[TokenPair]:
    """Pairs of random tokens whose parts have these lengths on average, from half to one and a half times of them."""
    generator = torch.Generator().manual_seed(1)

    def part(length: int) -> tuple[int, ...]:
        size = int(torch.randint(length // 2, length + length // 2 + 1, (1,), generator=generator))
        return tuple(torch.randint(1, vocabulary, (size,), generator=generator).tolist())

    return [TokenPair(*map(part, lengths)) for _ in range(count)]


@contextlib.contextmanager
def one_thread() -> Iterator[None]:
    """One thread of torch inside the block: on a busy machine two wait for each other."""
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    try:
        yield
    finally:
        torch.set_num_threads(threads)
