"""Activations of a few neurons at each step of a greedy continuation, and on a given continuation.

The activations are read while the tokens are generated: with the KV cache a step is one position, so nothing but a few numbers per
step is stored. To read the same tokens in another model, `forced_neurons` runs one forward over prompt and continuation.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.forward.capture import capture
from interp.forward.generate import generate_tokens
from interp.models.hooks import Frame, Work, working
from interp.models.model import Model, Neuron, by_layer
from interp.models.sites import layer_of


@dataclass(frozen=True, eq=False)
class Watched:
    """Activations after the nonlinearity at the positions that chose each new token, with the tokens that were chosen."""

    neurons: list[Neuron]
    tokens: list[list[int]]
    values: Float[Tensor, "batch step neuron"]

    @property
    def step_means(self) -> Float[Tensor, "batch neuron"]:
        """Each neuron's activation, averaged over the steps of each continuation."""
        return self.values.mean(dim=1)

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt, step and neuron: prompt, step, layer, neuron, activation."""
        batch, steps, _ = self.values.shape
        index = pd.MultiIndex.from_product([range(batch), range(steps), self.neurons], names=["prompt", "step", "unit"])
        frame = pd.DataFrame({"activation": self.values.flatten().numpy()}, index=index).reset_index()
        units = frame.pop("unit")
        frame.insert(2, "layer", [unit[0] for unit in units])
        frame.insert(3, "neuron", [unit[1] for unit in units])
        return frame


def _units(model: Model, neurons: Sequence[Neuron], part: str = "mlp_post") -> dict[str, list[int]]:
    model.check_neurons(neurons)
    return {f"{part}.{layer}": indices for layer, indices in by_layer(neurons).items()}


def watch_neurons(
    model: Model, rows: Sequence[Sequence[int]], neurons: Sequence[Neuron], *, max_new_tokens: int = 20, edits: Sequence[Edit] = (),
    batch_size: int = 64,
) -> Watched:  # fmt: skip
    """Activations of these neurons at each step while the model continues each prompt greedily.

    Step `t` is the forward whose last position chose new token `t`; edits act as in `generate`. Source: paper A, Figure 2
    (own tokens). Raises `UserError` for no neurons, for one that does not exist, and as `generate_tokens`.
    """
    values = torch.zeros(len(rows), max_new_tokens, len(neurons))
    collectors = {}
    for site, indices in _units(model, neurons).items():
        layer = layer_of(site)
        columns = [place for place, neuron in enumerate(neurons) if neuron[0] == layer]

        def collect(value: Tensor, frame: Frame, indices: list[int] = indices, columns: list[int] = columns) -> None:
            places = torch.tensor(frame.rows if frame.rows is not None else range(len(value)))
            step = (frame.positions[:, -1] - frame.prompt_lengths + 1).cpu()
            activations = value[:, -1, indices].float().cpu()
            values[places[:, None], step[:, None], torch.tensor(columns)] = activations

        collectors[site] = (collect,)
    with working(model.hf, Work(collectors=collectors)):
        tokens = generate_tokens(model, rows, max_new_tokens=max_new_tokens, edits=edits, batch_size=batch_size, stop_at_end=False)
    return Watched(list(neurons), tokens, values)


def forced_neurons(
    model: Model, rows: Sequence[Sequence[int]], tokens: Sequence[Sequence[int]], neurons: Sequence[Neuron], *,
    part: str = "mlp_post", edits: Sequence[Edit] = (),
) -> Watched:  # fmt: skip
    """Activations of these neurons on given continuations, such as another model's; otherwise as `watch_neurons`.

    `part` is the site that is read of each neuron: its activation, or the `mlp_gate` or `mlp_up` of a gated MLP.
    Raises `UserError` where the continuations are not all of one length above 0.
    """
    lengths = {len(more) for more in tokens}
    if len(tokens) != len(rows) or len(lengths) != 1 or lengths == {0}:
        raise UserError(
            f"{len(rows)} prompts came with {len(tokens)} continuations of {sorted(lengths)} tokens",
            "give each prompt one, all equally long",
        )
    units = _units(model, neurons, part)
    joined = [[*row, *more[:-1]] for row, more in zip(rows, tokens, strict=True)]
    (steps,) = lengths
    places = [list(range(len(row) - 1, len(row) - 1 + steps)) for row in rows]
    acts = capture(model, joined, list(units), positions=places, units=units, edits=edits)
    by_neuron = {(layer_of(site), index): acts[site][..., at] for site in units for at, index in enumerate(units[site])}
    return Watched(list(neurons), [list(more) for more in tokens], torch.stack([by_neuron[neuron] for neuron in neurons], dim=-1))
