"""Antipodal updates: cosines of the changes of value vectors with the offset."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from interp.diffing.offset_sources import pooled, value_update_cosines
from interp.diffing.offsets import pairwise_cosine
from interp.models.pair import ModelPair


@dataclass(frozen=True, eq=False)
class Antipodes:
    """How the value updates of one change of the base model point relative to its offset at one layer.

    Attributes:
        cosines: of each neuron's value update with the offset, by layer below.
        predicted: share of neurons whose cosine has the sign of their mean activation; guessed: the share that always guessing
            the commoner sign reaches.
        alike: mean cosine between the offsets of two prompts.
    """

    cosines: dict[int, Tensor]
    predicted: float
    guessed: float
    alike: float

    @property
    def medians(self) -> list[float]:
        """The median cosine of each layer below the offset's, in order."""
        return [float(cosines.median()) for cosines in self.cosines.values()]

    @property
    def last(self) -> float:
        """The median in the layer next to the offset's."""
        return self.medians[-1]


def antipodes(pair: ModelPair, layer: int, shift: Tensor, activations: Sequence[Tensor], weights: Tensor) -> Antipodes:
    """Cosines of the value updates below `layer` with the offset, and the share that the sign of the activation predicts.

    Args:
        shift: each prompt's mean shift at `resid_mid.layer`; activations: each layer's mean activations, `d_mlp`.
        weights: the prompts' lengths.
    """
    offset = pooled(shift, weights)
    cosines = {below: value_update_cosines(pair, offset, below) for below in range(layer)}
    every, means = torch.cat(list(cosines.values())), torch.cat(list(activations))
    changed = every != 0
    if not bool(changed.any()):
        return Antipodes(cosines, float("nan"), float("nan"), pairwise_cosine(shift))
    negative = float((every[changed] < 0).double().mean())
    predicted = float((torch.sign(every[changed]) == torch.sign(means[changed])).double().mean())
    return Antipodes(cosines, predicted, max(negative, 1 - negative), pairwise_cosine(shift))
