"""The token tree of a data set, pruned to a depth, and the Huffman code of its leaves: the compression protocol of paper C.

The nodes of the tree are the prefixes of the responses, and the weight of a node is how often its prefix occurs. Pruned to depth d, the
leaves are the first d tokens of each response (all of it where it is shorter). A response is coded block by block, each block of d tokens
by the Huffman code of the tree of its place. Paper C (section 3) states the expected length by the entropy of the leaves; Huffman's code is
within one bit a block of it.
"""

from __future__ import annotations

import heapq
import math
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float

from interp.errors import UserError

Leaf = tuple[int, ...]


@dataclass(frozen=True)
class TokenTree:
    """A token tree pruned to a depth: how often each leaf occurs.

    Two responses of which one begins with the other are told apart only where each ends with a token of its own, such as the end of text.
    """

    depth: int
    leaves: Mapping[Leaf, float]

    @property
    def weight(self) -> float:
        """The sum of the weights of all leaves: the number of responses, where every response has the weight 1."""
        return float(sum(self.leaves.values()))

    @property
    def entropy(self) -> float:
        """The entropy of the leaves in nats: the least mean length of a code for one block."""
        shares = np.array(list(self.leaves.values()), dtype=np.float64) / self.weight
        return float(-(shares * np.log(shares)).sum())


def token_tree(rows: Iterable[Sequence[int]], depth: int) -> TokenTree:
    """The token tree of rows of token ids, pruned to `depth`. Raises `UserError` for a depth below 1 and for no tokens."""
    if depth < 1:
        raise UserError(f"the depth of a token tree is {depth}", "give at least 1")
    counts = Counter(tuple(row[:depth]) for row in rows if len(row))
    if not counts:
        raise UserError("the token tree is empty: no row holds a token", "give texts")
    return TokenTree(depth, {leaf: float(count) for leaf, count in counts.items()})


def prune(tree: TokenTree, depth: int) -> TokenTree:
    """The tree pruned further, to a depth that is not above its own; leaves that become equal are added up."""
    if not 1 <= depth <= tree.depth:
        raise UserError(f"a tree of depth {tree.depth} cannot be pruned to depth {depth}", f"give 1 to {tree.depth}")
    weights: dict[Leaf, float] = {}
    for leaf, weight in tree.leaves.items():
        weights[leaf[:depth]] = weights.get(leaf[:depth], 0.0) + weight
    return TokenTree(depth, weights)


def joined(trees: Sequence[TokenTree]) -> TokenTree:
    """The tree of several data sets trained on together: the leaves of all, in proportion to the sizes of the sets.

    Raises `UserError` for trees of different depths.
    """
    depths = {tree.depth for tree in trees}
    if len(depths) != 1:
        raise UserError(f"trees of depths {sorted(depths)} cannot be joined", "prune them to one depth")
    weights: dict[Leaf, float] = {}
    for tree in trees:
        for leaf, weight in tree.leaves.items():
            weights[leaf] = weights.get(leaf, 0.0) + weight
    return TokenTree(trees[0].depth, weights)


def block_trees(rows: Sequence[Sequence[int]], depth: int) -> list[TokenTree]:
    """The trees of the first, second, ... block of `depth` tokens of the rows; each tree is of the rows that reach its block."""
    longest = max((len(row) for row in rows), default=0)
    return [token_tree((row[start : start + depth] for row in rows), depth) for start in range(0, max(longest, 1), max(depth, 1))]


def huffman_lengths(weights: Float[np.ndarray, " leaf"]) -> list[int]:
    """The length in bits of the Huffman code of each leaf; 0 for a single leaf. Source: Huffman (1952).

    Raises `UserError` for weights that are not positive numbers.
    """
    if not len(weights) or not (np.isfinite(weights).all() and (weights > 0).all()):
        raise UserError("the weights of a Huffman code must be positive numbers", "leave out what never occurs")
    lengths = [0] * len(weights)
    # The second entry keeps the order of ties fixed.
    heap: list[tuple[float, int, list[int]]] = [(float(weight), place, [place]) for place, weight in enumerate(weights)]
    heapq.heapify(heap)
    while len(heap) > 1:
        (first, order, some), (second, _, others) = heapq.heappop(heap), heapq.heappop(heap)
        for place in some + others:
            lengths[place] += 1
        heapq.heappush(heap, (first + second, order, some + others))
    return lengths


def code_length(data: TokenTree, coder: TokenTree) -> float:
    """The mean length in bits of one block of `data` in the Huffman code of `coder`; infinite where the code lacks a leaf."""
    if data.depth != coder.depth:
        raise UserError(f"data of depth {data.depth} cannot be coded by a tree of depth {coder.depth}", "prune both to one depth")
    lengths = dict(zip(coder.leaves, huffman_lengths(np.array(list(coder.leaves.values()), dtype=np.float64)), strict=True))
    if any(leaf not in lengths for leaf in data.leaves):
        return math.inf
    return sum(weight * lengths[leaf] for leaf, weight in data.leaves.items()) / data.weight


def compression_rate(data: TokenTree, coder: TokenTree) -> float:
    """The ideal compression rate of `data` by `coder` in nats per token: the cross-entropy of the leaves over the depth.

    This is the rate of paper C, `γ = -Σ p log q / d`; infinite where `coder` lacks a leaf.
    """
    if any(leaf not in coder.leaves for leaf in data.leaves):
        return math.inf
    crossed = sum(weight * math.log(coder.leaves[leaf] / coder.weight) for leaf, weight in data.leaves.items())
    return -crossed / data.weight / data.depth


def normalised_rate(rate: float, leaves: int) -> float:
    """The rate in nats less the logarithm of the number of leaves, which in paper C removes the dependence on the size of the data set."""
    if leaves < 1:
        raise UserError(f"a tree of {leaves} leaves has no normalised rate", "give at least one leaf")
    return rate - math.log(leaves)
