"""Frames: which tokens of which rows pass the hooks of the running forward.

A hook may itself run a model, so that forwards nest: each has its frame, and the outer one's is back when the inner one ends.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass, replace
from typing import Any
from weakref import WeakKeyDictionary

import torch
from jaxtyping import Bool, Int
from torch import Tensor

from interp.errors import UserError
from interp.models.tokens import positions_of


@dataclass(frozen=True)
class Frame:
    """The tokens of the running forward: their positions, which are padding, and the rows that they belong to.

    Attributes:
        positions: absolute, counted from the first real token of each row.
        real: which are not padding.
        prompt_lengths: tokens of each row's prompt.
        rows: each row's place in the caller's list where batching by length reordered it, else None.
        roles: the roles of each row's prompt tokens by absolute position, where the rows are conversations (see `role_codes`).
    """

    positions: Int[Tensor, "batch pos"]
    real: Bool[Tensor, "batch pos"]
    prompt_lengths: Int[Tensor, " batch"]
    rows: tuple[int, ...] | None = None
    roles: Int[Tensor, "batch longest"] | None = None

    def last(self, count: int) -> Frame:
        """The frame of the last `count` columns (a forward may keep fewer logits than tokens)."""
        return self if count == self.positions.shape[1] else replace(self, positions=self.positions[:, -count:], real=self.real[:, -count:])


_FRAME: ContextVar[Frame | None] = ContextVar("bypass_frame", default=None)
# For each running forward, from the outermost: the id of the model's body, and the frame that was current before it.
_OUTER: ContextVar[tuple[tuple[int, Frame | None], ...]] = ContextVar("bypass_outer_frames", default=())
# The frame of the body that ended last: that of the logits, which are computed after it.
_ENDED: ContextVar[Frame | None] = ContextVar("bypass_ended_frame", default=None)
# The prompt lengths of the sequences in each KV cache; an entry goes when the cache does.
_PROMPTS: WeakKeyDictionary[Any, Int[Tensor, " batch"]] = WeakKeyDictionary()


def current_frame() -> Frame | None:
    """The frame of the innermost running forward, or None outside of any."""
    return _FRAME.get()


def ended_frame() -> Frame | None:
    """The frame of the forward of a model's body that ended last."""
    return _ENDED.get()


def set_frame(frame: Frame) -> None:
    """Make this the frame of the forward that was entered last."""
    _FRAME.set(frame)


def enter_forward(body: int) -> None:
    """Remember the current frame until `leave_forward` of the same body, given by its id."""
    _OUTER.set((*_OUTER.get(), (body, _FRAME.get())))


def leave_forward(body: int) -> None:
    """Set the frame that was current when this body's forward was entered; does nothing unless it was entered last."""
    outer = _OUTER.get()
    if outer and outer[-1][0] == body:
        _ENDED.set(_FRAME.get())
        _FRAME.set(outer[-1][1])
        _OUTER.set(outer[:-1])


@contextlib.contextmanager
def framed(frame: Frame | None) -> Iterator[None]:
    """Set the frame that hooks see where blocks are called one by one, without a forward of the whole model."""
    token = _FRAME.set(frame)
    try:
        yield
    finally:
        _FRAME.reset(token)


@contextlib.contextmanager
def frame_restored() -> Iterator[None]:
    """Restore the frames after the block, also those of forwards that a `KeyboardInterrupt` ended, for which torch calls no hook."""
    frame, outer, ended = _FRAME.get(), _OUTER.get(), _ENDED.get()
    try:
        yield
    finally:
        _FRAME.set(frame)
        _OUTER.set(outer)
        _ENDED.set(ended)


def frame_of(
    args: tuple[Any, ...], kwargs: dict[str, Any], prompt_lengths: Int[Tensor, " batch"] | None, rows: tuple[int, ...] | None,
    roles: Int[Tensor, "batch longest"] | None = None,
) -> tuple[Frame, dict[str, Any]]:  # fmt: skip
    """The frame of a forward of a model's body with these arguments, and its keyword arguments.

    They are given the positions of left-padded rows where the caller sets none. Raises `UserError` for prompt lengths of another batch.
    """
    tokens = args[0] if args else kwargs.get("input_ids")
    if tokens is None:
        tokens = kwargs["inputs_embeds"]
    batch, count = tokens.shape[:2]
    past = kwargs.get("past_key_values")
    seen = int(past.get_seq_length()) if past is not None else 0
    mask = kwargs.get("attention_mask")
    if mask is None or mask.dim() != 2:
        mask = torch.ones((batch, seen + count), dtype=torch.bool, device=tokens.device)
    absolute = positions_of(mask.bool())[:, -count:]
    position_ids = kwargs.get("position_ids")
    if position_ids is not None:
        absolute = position_ids.expand(batch, count)
    elif not bool(mask.all()):
        kwargs = {**kwargs, "position_ids": absolute}
    return Frame(absolute, mask.bool()[:, -count:], _prompt_lengths(prompt_lengths, past, seen, mask), rows, roles), kwargs


def _prompt_lengths(lengths: Int[Tensor, " batch"] | None, past: Any, seen: int, mask: Tensor) -> Int[Tensor, " batch"]:
    """The number of tokens of each row's prompt: `lengths`, or else those of the first forward of the sequence.

    They are stored by KV cache, since sequences of several models may be continued in turn.
    """
    if lengths is not None:
        if len(lengths) != len(mask):
            raise UserError(f"{len(lengths)} prompt lengths were given for a batch of {len(mask)}", "give one for each row")
        return lengths
    known = _PROMPTS.get(past) if seen else None
    if known is None or len(known) != len(mask):
        known = mask[:, : seen or None].sum(dim=1)
        if past is not None:
            _PROMPTS[past] = known
    return known
