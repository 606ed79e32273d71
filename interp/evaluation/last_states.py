"""Losses of a model whose edits act on the last residual stream alone: computed from states that are captured once.

Nothing but the final norm and the unembedding comes after that site, so any number of such edits costs one forward.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn import functional

from interp.edits.edit import Edit
from interp.edits.transforms import transforms_of
from interp.evaluation.metrics import TextLoss
from interp.forward.capture import capture
from interp.models.frames import Frame
from interp.models.model import Model
from interp.models.tokens import batches, pad, uncut_rows
from interp.models.unembed import unembed


def last_site(model: Model) -> str:
    """The residual stream that leaves the last block."""
    return f"resid_post.{model.n_layers - 1}"


def acts_last(model: Model, edits: Sequence[Edit]) -> bool:
    """Whether these edits change nothing before the residual stream that leaves the last block; also for no edits."""
    return set(transforms_of(edits, model)) <= {last_site(model)}


def last_states(model: Model, rows: Sequence[Sequence[int]]) -> list[Float[Tensor, "pos d_model"]]:
    """The residual stream that leaves the last block at every position of each row."""
    if not rows:
        return []
    states = capture(model, rows, [last_site(model)], positions="all")[last_site(model)]
    return [state[: len(row)].clone() for state, row in zip(states, rows, strict=True)]


def joined_windows(model: Model, texts: Sequence[str], most: int) -> list[list[int]]:
    """The token ids of about `most` evenly spread windows, as long as the context, of all texts joined into one."""
    ids, step = uncut_rows(model, ["\n\n".join(texts)])[0], model.context - 1
    windows = [ids[start : start + model.context] for start in range(0, len(ids) - 1, step)]
    return windows[:: max(1, len(windows) // most)]


@torch.no_grad()
def losses_from_states(
    model: Model, rows: Sequence[Sequence[int]], states: Sequence[Float[Tensor, "_ d_model"]], edits: Sequence[Edit] = ()
) -> list[TextLoss]:
    """The losses of `text_losses` on texts of these tokens, which fit into the context, under edits that act on the last states alone."""
    transforms = transforms_of(edits, model).get(last_site(model), ())
    losses: list[TextLoss | None] = [None] * len(rows)
    for group in batches([len(row) for row in rows], batch_size=16, batch_tokens=8192):
        tokens = pad([rows[i] for i in group], 0, "right").to(model.device)
        value = torch.nn.utils.rnn.pad_sequence([states[i] for i in group], batch_first=True).to(model.device, model.dtype)
        frame = Frame(tokens.positions, tokens.mask, tokens.lengths, rows=tuple(group))
        for transform in transforms:
            value = transform(value, frame)
        # A token is predicted from the state before it; the first one is not predicted.
        read = tokens.mask[:, 1:]
        nll = torch.zeros(read.shape, dtype=torch.float64, device=model.device)
        nll[read] = functional.cross_entropy(unembed(model, value[:, :-1][read]), tokens.ids[:, 1:][read], reduction="none").double()
        for i, loss in zip(group, nll.sum(dim=1).tolist(), strict=True):
            count = len(rows[i]) - 1
            losses[i] = TextLoss(np.array([loss] if count else []), np.array([float(count)] if count else []))
    return [loss for loss in losses if loss is not None]
