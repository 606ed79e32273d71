"""How often neurons fire, and random neurons that fire about as often: the control for changes of keys.

A key that is multiplied matters only where its neuron fires, so random keys of neurons that never do are no control at all.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.capture import capture
from interp.models.model import Model, Neuron
from interp.models.tokens import token_rows

CHUNK = 16
CANDIDATES = 16
LONGEST = 40
# A neuron that never fires on plain texts is not infinitely selective: so few texts cannot tell it from one that seldom does.
OFTEN_ENOUGH = 0.02


def firing_rates(
    model: Model, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], layers: Sequence[int]
) -> dict[int, Float[Tensor, " d_mlp"]]:
    """At what share of these positions is each neuron's input above zero (paper A's region gamma of its key), layer by layer?

    Args:
        positions: for each row equally many absolute positions.
    """
    if not rows:
        raise UserError("no texts were given", "give at least one")
    sites = {layer: f"mlp_pre.{layer}" for layer in layers}
    sums = {layer: torch.zeros(model.d_mlp, dtype=torch.float64) for layer in layers}
    for start in range(0, len(rows), CHUNK):
        some = slice(start, start + CHUNK)
        held = capture(model, list(rows[some]), list(sites.values()), positions=[list(p) for p in positions[some]])
        for layer, site in sites.items():
            sums[layer] += (held[site] > 0).double().mean(dim=1).sum(dim=0)
    return {layer: (found / len(rows)).float() for layer, found in sums.items()}


def selective_first(
    model: Model, neurons: Sequence[Neuron], provoking: Sequence[str], plain: Sequence[str], *, max_tokens: int = LONGEST
) -> list[Neuron]:
    """These neurons, those first that fire most often at the end of provoking texts relative to the end of plain ones.

    A key that is enlarged acts wherever its neuron fires: one that fires everywhere spoils language before it brings anything
    back. Ordered by `rate(provoking) / (rate(plain) + 0.02)`, equal ones as given; texts are cut to `max_tokens`.
    """
    layers = sorted({layer for layer, _ in neurons})
    seen, usual = (
        firing_rates(model, rows, [[len(row) - 1] for row in rows], layers)
        for rows in (token_rows(model, list(texts), max_tokens=max_tokens) for texts in (provoking, plain))
    )
    return sorted(neurons, key=lambda n: -float(seen[n[0]][n[1]] / (usual[n[0]][n[1]] + OFTEN_ENOUGH)))
