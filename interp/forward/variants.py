"""`generate_variants`: one list of prompts continued under several lists of edits in one batch."""

from __future__ import annotations

from collections.abc import Sequence

from interp.edits.by_row import transforms_by_row
from interp.edits.edit import Edit
from interp.edits.transforms import transforms_of
from interp.forward.generate import GREEDY, continue_rows
from interp.models.model import Model


def generate_variants(
    model: Model, rows: Sequence[Sequence[int]], variants: Sequence[Sequence[Edit]], *, max_new_tokens: int = 20, batch_size: int = 256
) -> list[list[list[int]]]:
    """The greedy continuations of the rows under each of several lists of edits, as `generate_tokens` gives them one list after another.

    All are decoded together: a step reads the weights once for every row of the batch, whatever is edited in it. Raises `UserError` as
    `generate_tokens`.
    """
    transforms = transforms_by_row([transforms_of(edits, model) for edits in variants], len(rows))
    joined = [row for _ in variants for row in rows]
    continuations = continue_rows(model, joined, transforms, max_new_tokens, GREEDY, batch_size, True, True)
    return [continuations[place * len(rows) : (place + 1) * len(rows)] for place in range(len(variants))]
