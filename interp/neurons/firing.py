"""Firing rates of neurons, neurons ordered by how selectively they fire, and random ones that are as selective.

A key that is multiplied matters only where its neuron fires, so random keys are a control only if their neurons fire about as
often. Where neurons were chosen because they fire on some texts and not on others, a control fires as selectively.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.capture import capture
from interp.models.chat import Chat, prompt_rows
from interp.models.model import Model, Neuron

CHUNK = 16
LONGEST = 40
# Added to the rate on plain texts: few texts cannot tell a neuron that never fires there from one that fires seldom.
OFTEN_ENOUGH = 0.02
# Of the neurons that are nearest in both rates, so many can be drawn. A difference on plain texts, where rates are small and an
# enlarged key harms language, counts more.
SELECTIVE_CANDIDATES, PLAIN_WEIGHT = 8, 3.0


def firing_rates(
    model: Model, rows: Sequence[Sequence[int]], positions: Sequence[Sequence[int]], layers: Sequence[int]
) -> dict[int, Float[Tensor, " d_mlp"]]:
    """The share of these positions at which each neuron's input is above zero (paper A's region gamma of its key), by layer.

    Args:
        positions: for each row equally many absolute positions.
    """
    if not rows:
        raise UserError("no texts were given", "give at least one")
    sites = {layer: f"mlp_pre.{layer}" for layer in layers}
    sums = {layer: torch.zeros(model.d_mlp, dtype=torch.float64) for layer in layers}
    for start in range(0, len(rows), CHUNK):
        some = slice(start, start + CHUNK)
        acts = capture(model, list(rows[some]), list(sites.values()), positions=[list(p) for p in positions[some]])
        for layer, site in sites.items():
            sums[layer] += (acts[site] > 0).double().mean(dim=1).sum(dim=0)
    return {layer: (total / len(rows)).float() for layer, total in sums.items()}


def rates_at_end(model: Model, rows: Sequence[Sequence[int]], layers: Sequence[int]) -> dict[int, Float[Tensor, " d_mlp"]]:
    """The share of these texts at whose last token each neuron's input is above zero, by layer."""
    return firing_rates(model, rows, [[len(row) - 1] for row in rows], layers)


def selective_first(
    model: Model, neurons: Sequence[Neuron], provoking: Sequence[str], plain: Sequence[str], *, max_tokens: int = LONGEST,
    chat: Chat | bool = False,
) -> list[Neuron]:  # fmt: skip
    """These neurons, ordered by how often they fire at the end of provoking texts relative to the end of plain ones.

    An enlarged key acts wherever its neuron fires, so a neuron that fires everywhere harms language first. The largest first of
    `rate(provoking) / (rate(plain) + 0.02)`, equal ones as given; of longer texts the last `max_tokens` are read,
    and all of them where `chat` has them read as user turns of the model's chat template.
    """
    layers = sorted({layer for layer, _ in neurons})
    provoked, unprovoked = (
        rates_at_end(model, prompt_rows(model, list(texts), chat, max_tokens=None if chat else max_tokens, keep="last"), layers)
        for texts in (provoking, plain)
    )
    return by_selectivity(neurons, provoked, unprovoked)


def by_selectivity(
    neurons: Sequence[Neuron], provoked: dict[int, Float[Tensor, " d_mlp"]], unprovoked: dict[int, Float[Tensor, " d_mlp"]]
) -> list[Neuron]:
    """These neurons, ordered as by `selective_first`, from their rates at the end of provoking and of plain texts."""
    return sorted(neurons, key=lambda n: -float(provoked[n[0]][n[1]] / (unprovoked[n[0]][n[1]] + OFTEN_ENOUGH)))


def selectivity_matched(
    neurons: Sequence[Neuron], provoked: dict[int, Float[Tensor, " d_mlp"]], unprovoked: dict[int, Float[Tensor, " d_mlp"]], *,
    seed: int, exclude: Sequence[Neuron] = (), candidates: int = SELECTIVE_CANDIDATES,
) -> list[Neuron]:  # fmt: skip
    """A random other neuron of the same layer for each neuron, among those that fire about as often on provoking and on plain texts.

    Drawn among the `candidates` with the smallest `|rate on provoking - its rate| + 3 |rate on plain - its rate|`. Never one of
    `neurons` or `exclude`, none twice, in the order of `neurons`. Raises `UserError` where a layer has no others left.
    """
    generator = torch.Generator().manual_seed(seed)
    excluded = {*neurons, *exclude}
    controls: list[Neuron] = []
    for layer, index in neurons:
        gaps = (provoked[layer] - provoked[layer][index]).abs() + PLAIN_WEIGHT * (unprovoked[layer] - unprovoked[layer][index]).abs()
        near = [other for other in gaps.argsort(stable=True).tolist() if (layer, other) not in excluded][:candidates]
        if not near:
            raise UserError(f"layer {layer} has no other neurons left to draw from", "exclude fewer neurons")
        control = (layer, near[int(torch.randint(len(near), (1,), generator=generator))])
        excluded.add(control)
        controls.append(control)
    return controls
