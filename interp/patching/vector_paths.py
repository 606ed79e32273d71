"""The two paths of a vector that is added to the residual stream: straight to the logits, and through what later blocks make of it.

Every block adds to the stream what it computes from it, so a vector that is added at one layer is still there, unchanged, at the
end. The direct path is the vector in the stream that the final norm and the unembedding read, while no later attention or MLP sees
it. The path through later blocks is the opposite: they read the stream with the vector, and what they then write stays, but the
vector itself is taken off before the final norm.
"""

from __future__ import annotations

from typing import Literal

from jaxtyping import Float
from torch import Tensor

from interp.edits.edit import Edit, EditPositions
from interp.errors import UserError
from interp.models.model import Model

VectorPath = Literal["direct", "later blocks", "both"]
DIRECT: VectorPath = "direct"
LATER: VectorPath = "later blocks"
BOTH: VectorPath = "both"
VECTOR_PATHS = (DIRECT, LATER, BOTH)


def edits_on_path(
    model: Model, layer: int, vector: Float[Tensor, " d_model"], path: str, strength: float | int = 1.0,
    positions: EditPositions = "all",
) -> tuple[Edit, ...]:  # fmt: skip
    """The edits that add `strength * vector` at `resid_mid.layer` of a model on one path to the logits, or on both.

    Args:
        path: `direct` for the logits alone, `later blocks` for the layer's MLP and all blocks above alone, `both` for a plain addition.

    Raises `UserError` for an unknown path, or a layer that the model lacks.
    """
    if path not in VECTOR_PATHS:
        raise UserError(f"there is no path {path!r}", f"use one of: {', '.join(VECTOR_PATHS)}")
    if not 0 <= layer < model.n_layers:
        raise UserError(f"there is no layer {layer}: the model has {model.n_layers}", "count layers from 0")
    here, end = f"resid_mid.{layer}", f"resid_post.{model.n_layers - 1}"
    entering = Edit.add(here, vector, strength, positions)
    if path == BOTH:
        return (entering,)
    return (Edit.add(end, vector, strength, positions),) if path == DIRECT else (entering, Edit.add(end, vector, -strength, positions))
