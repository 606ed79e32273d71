"""How well a model compresses the texts of each source: bits per UTF-8 byte, nats per token, and the normalised rate of paper C.

A text is read after the BOS token, or after the end-of-text token where a model has no BOS token, so that each of its tokens is
predicted and each of its bytes is counted. None of the experiments of paper C measures a compression rate.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.elasticity.token_tree import normalised_rate, token_tree
from interp.errors import UserError
from interp.evaluation.metrics import text_losses
from interp.models.model import Model
from interp.models.tokens import uncut_rows
from interp.stats.intervals import Interval, bootstrap_ratio

# The depth to which the tree of a source is pruned where its leaves are counted.
DEPTH = 4


@dataclass(frozen=True, eq=False)
class TextCosts:
    """What each text of a source costs under a model: nats over all its tokens, with its tokens and its UTF-8 bytes."""

    nats: Float[np.ndarray, " text"]
    tokens: Float[np.ndarray, " text"]
    size: Float[np.ndarray, " text"]

    @property
    def bits_per_byte(self) -> float:
        """Bits per byte over all texts together."""
        return float(self.nats.sum() / math.log(2) / self.size.sum())

    @property
    def nats_per_token(self) -> float:
        """Nats per token over all texts together."""
        return float(self.nats.sum() / self.tokens.sum())


@dataclass(frozen=True)
class Compression:
    """How a model compresses one source; intervals are over its texts.

    Attributes:
        leaves: of the token tree of the source, pruned to `depth` tokens.
        normalised: nats per token less log(leaves).
    """

    source: str
    bits_per_byte: Interval
    nats_per_token: Interval
    normalised: float
    leaves: int
    depth: int
    tokens: int
    size: int

    def to_json(self) -> dict[str, Any]:
        """The same as a JSON object."""
        return {
            "source": self.source, "bits_per_byte": self.bits_per_byte.to_json(), "nats_per_token": self.nats_per_token.to_json(),
            "normalised": self.normalised, "leaves": self.leaves, "depth": self.depth, "tokens": self.tokens, "bytes": self.size,
        }  # fmt: skip


def start_token(model: Model) -> int:
    """The token that a text is read after: BOS, or else the end-of-text token. Raises `UserError` where there is neither."""
    for token in (model.tokenizer.bos_token_id, model.tokenizer.eos_token_id):
        if token is not None:
            return int(token)
    raise UserError(f"the tokenizer of {model.name} has neither a BOS nor an end-of-text token to read a text after", "give it one")


def started_rows(model: Model, texts: Sequence[str], *, max_tokens: int | None = None) -> list[list[int]]:
    """The token ids of each text behind the start token, once; of longer texts the first `max_tokens`, the start token among them.

    Raises `UserError` for a text without tokens.
    """
    start = start_token(model)
    rows = [[start, *row] if row[:1] != [start] else row for row in uncut_rows(model, texts, bos=False)]
    for number, row in enumerate(rows):
        if len(row) < 2:
            raise UserError(f"text {number} has no tokens", "leave it out")
    return [row[:max_tokens] for row in rows]


def text_costs(model: Model, texts: Sequence[str], *, batch_size: int = 16) -> TextCosts:
    """What each text costs under the model; texts beyond the context are read in windows, and every token is predicted once."""
    if not len(texts):
        raise UserError("no texts were given to compress", "give at least one")
    losses = text_losses(model, started_rows(model, texts), batch_size=batch_size)
    nats, tokens = (np.array([float(getattr(loss, name).sum()) for loss in losses]) for name in ("losses", "counts"))
    return TextCosts(nats, tokens, np.array([len(text.encode("utf-8")) for text in texts], dtype=np.float64))


def compression(model: Model, sources: Mapping[str, Sequence[str]], *, depth: int = DEPTH, seed: int = 0) -> list[Compression]:
    """How the model compresses the texts of each source, in their order."""
    results = []
    for source, texts in sources.items():
        costs = text_costs(model, texts)
        leaves = len(token_tree(uncut_rows(model, texts, bos=False), depth).leaves)
        results.append(
            Compression(
                source, bootstrap_ratio(costs.nats / math.log(2), costs.size, seed=seed),
                bootstrap_ratio(costs.nats, costs.tokens, seed=seed), normalised_rate(costs.nats_per_token, leaves), leaves, depth,
                int(costs.tokens.sum()), int(costs.size.sum()),
            )
        )  # fmt: skip
    return results


def compression_frame(results: Sequence[Compression]) -> pd.DataFrame:
    """One row per source: bits per byte and nats per token with their intervals, the normalised rate, and the sizes."""
    return pd.DataFrame([
        {"source": one.source, "bits per byte": one.bits_per_byte.value, "low": one.bits_per_byte.low, "high": one.bits_per_byte.high,
         "nats per token": one.nats_per_token.value, "normalised": one.normalised, "leaves": one.leaves, "tokens": one.tokens,
         "bytes": one.size}
        for one in results
    ])  # fmt: skip
