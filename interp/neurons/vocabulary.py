"""Vectors projected on the vocabulary: the tokens that a direction promotes, and the neurons that promote a word.

A value vector that is added to the last residual stream moves the logit of token w by `e_w . v` (up to the final norm), so its top
tokens say what it writes. Projecting all value vectors of a model for each search would be slow, so an index is computed once per
weight hash and then searched.
"""

from __future__ import annotations

import difflib
import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float, Int
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from interp.data.lexicon import is_toxic_word, mask
from interp.errors import UserError
from interp.files import replacing
from interp.models.weights import written_values
from interp.neurons.projection import DOT, Projection

if TYPE_CHECKING:
    from interp.models.model import Model

CHUNK = 2**25
FORMAT = "bypass-vocabulary-1"
# The number of tokens of each value vector, and of value vectors, that are judged (paper A, Table 1).
JUDGED_TOKENS, JUDGED_VECTORS = 10, 10


@dataclass(frozen=True, eq=False)
class TopTokens:
    """The tokens with the largest (or smallest) products with each vector, best first."""

    ids: Int[Tensor, "vector top"]
    scores: Float[Tensor, "vector top"]
    words: list[list[str]]
    labels: tuple[str, ...]

    def to_frame(self, masked: bool = True) -> pd.DataFrame:
        """One row per vector and token: vector, rank (from 1), token, score, id; profanity masked unless asked for."""
        rows = [
            (label, rank + 1, mask(word) if masked else word, score, token)
            for label, words, scores, ids in zip(self.labels, self.words, self.scores.tolist(), self.ids.tolist(), strict=True)
            for rank, (word, score, token) in enumerate(zip(words, scores, ids, strict=True))
        ]
        return pd.DataFrame(rows, columns=["vector", "rank", "token", "score", "id"])


@torch.no_grad()
def top_tokens(
    model: Model, vectors: Tensor, *, top: int = 10, final_norm: bool = False, largest: bool = True, labels: Sequence[str] | None = None,
    projection: Projection = DOT,
) -> TopTokens:  # fmt: skip
    """The tokens that these vectors promote (or, with `largest=False`, suppress) most.

    Args:
        vectors: `vector d_model`, or a single vector.
        final_norm: project `gain * v` instead of `v`, the gain being the final norm's; paper A projects `v` itself.
        labels: a name per vector for the frame.
        projection: how vectors are scored and which tokens are listed; `projection_for(model)` suits models with many rare tokens.

    Source: static vocabulary projection `r = E v`, paper A section 2. Rows of the unembedding that the tokenizer has no
    token for are left out. Raises `UserError` for vectors of another width, or more tokens than there are.
    """
    matrix = vectors.unsqueeze(0) if vectors.dim() == 1 else vectors
    if matrix.dim() != 2 or matrix.shape[1] != model.d_model:
        raise UserError(f"vectors of shape {tuple(vectors.shape)} were given", f"give [count, {model.d_model}] or [{model.d_model}]")
    size = len(_listed(model, projection))
    if not 1 <= top <= size:
        raise UserError(f"{top} tokens per vector were asked for", f"ask for 1 to {size}")
    names = tuple(labels) if labels is not None else tuple(str(i) for i in range(len(matrix)))
    if len(names) != len(matrix):
        raise UserError(f"{len(names)} labels were given for {len(matrix)} vectors", "give one label per vector")
    ids, scores = _project(model, matrix, top, final_norm, largest, projection)
    seen = dict(_decoded(model, sorted(set(ids.flatten().tolist()))))
    return TopTokens(ids, scores, [[seen[token] for token in row] for row in ids.tolist()], names)


@dataclass(frozen=True, eq=False)
class VocabularyIndex:
    """The top tokens of every value vector: row `layer * d_mlp + neuron`, best token first."""

    ids: Int[np.ndarray, "neuron top"]
    scores: Float[np.ndarray, "neuron top"]
    words: tuple[str, ...] = field(repr=False)
    d_mlp: int = 0
    digest: str = ""
    projection: Projection = DOT

    @property
    def top(self) -> int:
        """How many tokens are listed per value vector."""
        return int(self.ids.shape[1])

    @cached_property
    def plain(self) -> tuple[str, ...]:
        """Each token without surrounding space and case."""
        return tuple(word.strip().lower() for word in self.words)

    @cached_property
    def postings(self) -> tuple[Int[np.ndarray, " entries"], Int[np.ndarray, " starts"]]:
        """The places of each token: entries `row * top + place` sorted by token, and where each token's entries start."""
        order = np.argsort(self.ids, axis=None, kind="stable")
        return order, np.searchsorted(self.ids.ravel()[order], np.arange(len(self.words) + 1))

    def to_frame(self, layer: int, neuron: int, masked: bool = True) -> pd.DataFrame:
        """The top tokens of one neuron."""
        row = layer * self.d_mlp + neuron
        if layer < 0 or not 0 <= neuron < self.d_mlp or row >= len(self.ids):
            raise UserError(f"neuron {layer}.{neuron} is not in the index", "count layers and neurons from 0")
        words = [self.words[i] for i in self.ids[row]]
        tokens = [mask(word) for word in words] if masked else words
        return pd.DataFrame({"rank": range(1, self.top + 1), "token": tokens, "score": self.scores[row].astype(float)})


def build_index(
    model: Model, *, top: int = 50, projection: Projection = DOT, cache: str | Path | None = None,
    progress: Callable[[int, int], Any] | None = None,
) -> VocabularyIndex:  # fmt: skip
    """Top tokens of every value vector of the model, or the stored ones where `cache` holds this model's.

    Args:
        projection: as in `top_tokens`.
        cache: a folder; the index is kept there as `<weight hash>.safetensors`, with the projection's hash where it is not the dot product
            over all tokens, written atomically.
        progress: called with (layers done, layers) after each layer.
    """
    top = min(top, len(_listed(model, projection)))
    file = Path(cache) / f"{model.digest}{_suffix(projection)}.safetensors" if cache is not None else None
    words = tuple(word for _, word in _decoded(model, range(_size(model))))
    stored = _stored(file, top, (model.n_layers * model.d_mlp, _size(model))) if file is not None else None
    if stored is None:
        parts: list[tuple[Tensor, Tensor]] = []
        for layer in range(model.n_layers):
            ids, scores = _project(model, written_values(model, layer), top, False, True, projection)
            # A half-precision score cannot hold what is beyond its range; clamping keeps it finite and first.
            limit = torch.finfo(torch.float16).max
            parts.append((ids.to(torch.int32).cpu(), scores.clamp(-limit, limit).half().cpu()))
            if progress is not None:
                progress(layer + 1, model.n_layers)
        stored = torch.cat([ids for ids, _ in parts]), torch.cat([scores for _, scores in parts])
        if file is not None:
            with replacing(file, shared=True) as temporary:
                save_file({"ids": stored[0], "scores": stored[1]}, temporary, metadata={"format": FORMAT, "tokens": str(_size(model))})
    index = VocabularyIndex(stored[0].numpy()[:, :top], stored[1].numpy()[:, :top], words, model.d_mlp, model.digest, projection)
    _ = index.postings  # Computed here, so that the first search is as fast as the others.
    return index


def search(index: VocabularyIndex, word: str, *, limit: int = 20, prefix: bool = False, masked: bool = True) -> pd.DataFrame:
    """The neurons that have this word among the top tokens of their value vector.

    A token matches when it equals the word, whatever its case and leading space. Tokens that only begin with the word
    count with `prefix=True`, or where no token equals it. One row per neuron, by its best match: whole words first,
    then by rank (from 1) of the token among the neuron's tokens, then by score.

    Returns columns layer, neuron, token, rank, score, match (`whole` or `prefix`); no rows where no value vector has the
    word among its top tokens. Raises `UserError` for an empty word, or one that no token begins with.
    """
    query = word.strip().lower()
    if not query:
        raise UserError("the word to search for is empty", "give a word")
    partial = np.array([token for token, text in enumerate(index.plain) if text.startswith(query)], dtype=np.int64)
    whole = np.array([token for token in partial if index.plain[token] == query], dtype=np.int64)
    if not len(partial):
        known = sorted({text for text in index.plain if text})
        near = dict.fromkeys(mask(text) for text in difflib.get_close_matches(query, known, n=5, cutoff=0.5))
        hint = f"nearest tokens: {', '.join(near)}" if near else "search for a shorter word or a part of it"
        raise UserError(f"no token begins with {mask(word.strip())!r}, so no single neuron can be said to write it", hint)
    seen = index.projection.seen
    if seen is not None and seen.isdisjoint(partial.tolist()):
        raise UserError(
            f"{mask(word.strip())!r} is not among the {len(seen):,} common tokens that are read here", "search for a commoner word"
        )
    entries, starts = index.postings
    chosen = partial if prefix or not len(whole) else whole
    rows, ranks = np.divmod(np.concatenate([entries[starts[token] : starts[token + 1]] for token in chosen]), index.top)
    tokens = index.ids[rows, ranks]
    is_whole = np.isin(tokens, whole)
    scores = index.scores[rows, ranks].astype(np.float64)
    order = np.lexsort((rows, -scores, ranks, ~is_whole))
    order = order[np.sort(np.unique(rows[order], return_index=True)[1])][:limit]
    words = [index.words[i] for i in tokens[order]]
    return pd.DataFrame({
        "layer": rows[order] // index.d_mlp, "neuron": rows[order] % index.d_mlp, "token": [mask(w) for w in words] if masked else words,
        "rank": ranks[order] + 1, "score": scores[order], "match": np.where(is_whole[order], "whole", "prefix"),
    })  # fmt: skip


def _size(model: Model) -> int:
    """The number of tokens that the tokenizer knows; the unembedding may have padded rows beyond."""
    return min(model.d_vocab, len(model.tokenizer))


def _decoded(model: Model, tokens: Sequence[int]) -> list[tuple[int, str]]:
    return list(zip(tokens, model.tokenizer.batch_decode([[token] for token in tokens], clean_up_tokenization_spaces=False), strict=True))


def _listed(model: Model, projection: Projection) -> Sequence[int]:
    """The ids of the tokens that are listed, in ascending order."""
    size = _size(model)
    return range(size) if projection.seen is None else sorted(token for token in projection.seen if 0 <= token < size)


def _suffix(projection: Projection) -> str:
    """What tells the stored indexes of several projections apart."""
    if projection == DOT:
        return ""
    seen = "all" if projection.seen is None else sorted(projection.seen)
    return "-" + hashlib.blake2b(f"{projection.cosine} {seen}".encode(), digest_size=8).hexdigest()


@torch.no_grad()
def _project(
    model: Model, vectors: Tensor, top: int, final_norm: bool, largest: bool, projection: Projection = DOT
) -> tuple[Tensor, Tensor]:
    unembedding = model.unembedding[: _size(model)]
    listed = None if projection.seen is None else torch.tensor(_listed(model, projection), device=unembedding.device)
    rows = unembedding if listed is None else unembedding[listed]
    matrix = vectors.to(rows.device, rows.dtype)
    if projection.cosine:
        rows = rows.float() - unembedding.mean(dim=0, dtype=torch.float32)
        rows = torch.nn.functional.normalize(rows * model.final_gain.float() if final_norm else rows, dim=1)
        matrix = torch.nn.functional.normalize(matrix.float(), dim=1)
    elif final_norm:
        matrix = matrix * model.final_gain
    step = max(1, CHUNK // len(rows))
    pieces = (matrix[start : start + step] @ rows.T for start in range(0, len(matrix), step))
    parts = [piece.float().topk(top, dim=1, largest=largest) for piece in pieces]
    ids, scores = torch.cat([part.indices for part in parts]), torch.cat([part.values for part in parts])
    return ids if listed is None else listed[ids], scores


def _stored(file: Path, top: int, shape: tuple[int, int]) -> tuple[Tensor, Tensor] | None:
    """The stored index, or None where there is none that can be used."""
    try:
        with safe_open(file, framework="pt") as tensors:
            metadata = tensors.metadata() or {}
            # An index of an earlier version does not say how many tokens it chose from.
            if metadata.get("format") != FORMAT or metadata.get("tokens", str(shape[1])) != str(shape[1]):
                return None
            ids, scores = tensors.get_tensor("ids"), tensors.get_tensor("scores")
    except (OSError, SafetensorError):
        return None
    usable = ids.shape == scores.shape and ids.dim() == 2 and len(ids) == shape[0] and ids.shape[1] >= top
    return (ids, scores) if usable and int(ids.max()) < shape[1] else None


def toxic_shares(words: list[list[str]]) -> np.ndarray:
    """The share of profanity, slurs and insults among each row of tokens."""
    return np.array([np.mean([is_toxic_word(word) for word in row]) for row in words])
