"""Attention patterns in a capture, whose axes differ from those of every other site."""

from __future__ import annotations

import numpy as np
from einops import rearrange
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.models.positions import MEAN, MEAN_AFTER_FIRST
from interp.models.sites import parse_site
from interp.models.tokens import Tokens


def is_pattern(site: str) -> bool:
    """Whether a site is an attention pattern."""
    return parse_site(site).kind.axis == "pattern"


def pattern_shape(name: str, texts: int, heads: int, longest: int, positions: str, count: int, units: bool) -> tuple[int, ...]:
    """The shape of a captured pattern: `batch head key_pos` at the last position, else `batch head pos key_pos` with `count` positions.

    Raises `UserError` for the mean over positions, and for units.
    """
    if positions in (MEAN, MEAN_AFTER_FIRST):
        raise UserError(f"{name} has no mean over positions: each has other keys to attend to", "use positions 'last', 'all' or a list")
    if units:
        raise UserError(f"units are given for {name}, whose last axis holds the positions of each text", "leave them out")
    return (texts, heads, longest) if positions == "last" else (texts, heads, count, longest)


def by_query(pattern: Float[Tensor, "batch head pos key_pos"]) -> Float[Tensor, "batch pos head key_pos"]:
    """A pattern with positions on its second axis, as at every other site."""
    return rearrange(pattern, "batch head pos key_pos -> batch pos head key_pos")


def by_key_position(
    pattern: Float[Tensor, "batch pos head key_pos"], tokens: Tokens, longest: int
) -> Float[Tensor, "batch pos head position"]:
    """A pattern with keys at their absolute positions under any padding, and zeros beyond each text."""
    aligned = pattern.new_zeros(*pattern.shape[:-1], longest)
    for row, (length, mask) in enumerate(zip(tokens.lengths.tolist(), tokens.mask, strict=True)):
        aligned[row, ..., :length] = pattern[row][..., mask.to(pattern.device)]
    return aligned


def by_position(store: np.ndarray, positions: str) -> np.ndarray:
    """The array of captured patterns with positions on its second axis: a view, so that writing to it fills the array."""
    return store if positions == "last" else np.swapaxes(store, 1, 2)
