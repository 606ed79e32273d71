"""Token trees and Huffman codes against all prefix codes of small alphabets."""

from __future__ import annotations

import itertools
import math

import numpy as np
import pytest

from interp.elasticity.token_tree import (
    block_trees,
    code_length,
    compression_rate,
    huffman_lengths,
    joined,
    normalised_rate,
    prune,
    token_tree,
)
from interp.errors import UserError


def best_lengths(weights: list[int]) -> int:
    """The least total length of any prefix code, by trying all lengths that satisfy Kraft's inequality."""
    n = len(weights)
    options = (
        lengths for lengths in itertools.product(range(1, n), repeat=n) if sum(2.0**-length for length in lengths) <= 1
    )  # fmt: skip
    return min(sum(weight * length for weight, length in zip(weights, lengths, strict=True)) for lengths in options)


@pytest.mark.oracle
@pytest.mark.parametrize("seed", range(8))
def test_no_prefix_code_is_shorter_than_huffmans(seed: int) -> None:
    rng = np.random.default_rng(seed)
    weights = rng.integers(1, 20, int(rng.integers(2, 6))).tolist()
    lengths = huffman_lengths(np.array(weights, dtype=float))
    assert sum(2.0**-length for length in lengths) <= 1
    assert sum(weight * length for weight, length in zip(weights, lengths, strict=True)) == best_lengths(weights)


def test_weights_that_are_powers_of_a_half_are_coded_at_their_entropy() -> None:
    rows = [[0]] * 4 + [[1]] * 2 + [[2]] + [[3]]
    tree = token_tree(rows, 1)
    assert huffman_lengths(np.array([4.0, 2.0, 1.0, 1.0])) == [1, 2, 3, 3]
    assert code_length(tree, tree) == pytest.approx(tree.entropy / math.log(2), abs=1e-12) == 1.75
    assert huffman_lengths(np.array([5.0])) == [0]


def test_a_code_is_within_one_bit_a_block_of_the_entropy() -> None:
    rng = np.random.default_rng(3)
    tree = token_tree(rng.integers(0, 4, (200, 3)).tolist(), 3)
    bits = tree.entropy / math.log(2)
    assert bits <= code_length(tree, tree) < bits + 1


def test_pruning_adds_up_what_begins_alike_and_keeps_shorter_responses_whole() -> None:
    tree = token_tree([[1, 2, 3], [1, 2, 4], [1, 5], [6]], 3)
    assert dict(tree.leaves) == {(1, 2, 3): 1, (1, 2, 4): 1, (1, 5): 1, (6,): 1}
    assert dict(prune(tree, 2).leaves) == {(1, 2): 2, (1, 5): 1, (6,): 1} == dict(token_tree([[1, 2, 3], [1, 2, 4], [1, 5], [6]], 2).leaves)
    assert dict(prune(tree, 1).leaves) == {(1,): 3, (6,): 1}
    with pytest.raises(UserError, match="cannot be pruned"):
        prune(tree, 4)


def test_blocks_are_coded_by_the_tree_of_their_place() -> None:
    first, second = block_trees([[1, 2, 3, 4], [1, 2, 5], [7]], 2)
    assert (dict(first.leaves), dict(second.leaves)) == ({(1, 2): 2, (7,): 1}, {(3, 4): 1, (5,): 1})


def test_joint_training_codes_each_set_by_the_mixture() -> None:
    large, small = token_tree([[0], [1]] * 15, 1), token_tree([[2]], 1)
    both = joined([large, small])
    assert compression_rate(small, both) == pytest.approx(math.log(31))
    assert compression_rate(large, both) == pytest.approx(math.log(2) + math.log(31 / 30))
    assert compression_rate(small, large) == math.inf == code_length(small, large)
    with pytest.raises(UserError, match="cannot be joined"):
        joined([large, token_tree([[1, 2]], 2)])


def test_the_normalised_rate_of_uniform_leaves_at_depth_one_is_zero_whatever_their_number() -> None:
    for count in (2, 7, 100):
        tree = token_tree([[n] for n in range(count)], 1)
        assert normalised_rate(compression_rate(tree, tree), len(tree.leaves)) == pytest.approx(0, abs=1e-12)


def test_bad_trees_are_refused() -> None:
    for call in (lambda: token_tree([[1]], 0), lambda: token_tree([], 1), lambda: huffman_lengths(np.array([1.0, 0.0]))):
        with pytest.raises(UserError):
            call()
