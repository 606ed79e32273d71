"""Where the probability of the next token goes while a model is tuned: by set of tokens, and in one number per curve.

Tuning on a preference pair is meant to raise the preferred answer. Its probability may fall instead (likelihood displacement), and
what it loses may go to answers of the same or of the opposite meaning. "Displacement" is measured in two ways that can disagree:
Definition 1 of Razin et al. (2025) compares the end with the start, and the tables of that paper give the largest fall from an earlier
value, which may follow upon a rise.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

import numpy as np
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError

SETS = ("preferred", "dispreferred", "similar", "opposite", "rest")


@dataclass(frozen=True)
class TokenSets:
    """Disjoint sets of token ids at the position of an answer; every other token belongs to `rest`.

    Attributes:
        similar: further tokens that mean the same as the preferred answer, such as other spellings of it.
        opposite: further tokens that mean the opposite of the preferred answer.

    Raises `UserError` where a token is in two of the sets, and where there is no preferred or no dispreferred one.
    """

    preferred: tuple[int, ...]
    dispreferred: tuple[int, ...]
    similar: tuple[int, ...] = ()
    opposite: tuple[int, ...] = ()

    def __post_init__(self) -> None:
        if not self.preferred or not self.dispreferred:
            raise UserError("a pair of answers needs a preferred and a dispreferred token", "give one of each")
        every = [token for name in SETS[:-1] for token in getattr(self, name)]
        twice = sorted({token for token in every if every.count(token) > 1})
        if twice:
            raise UserError(f"the tokens {', '.join(map(str, twice))} stand in more than one set", "put each token into one set")


def mass_by_set(log_probs: Float[Tensor, "*batch vocab"], sets: TokenSets) -> dict[str, Float[Tensor, "*batch"]]:
    """The probability of each set of tokens, in the order of `SETS`, in float64; together they are 1.

    Args:
        log_probs: natural logarithms of the probabilities of the next token.

    Raises `UserError` for a token that is not in the vocabulary.
    """
    probabilities = log_probs.double().exp()
    size = probabilities.shape[-1]
    others = torch.ones(size, dtype=torch.bool, device=probabilities.device)
    masses = {}
    for name in SETS[:-1]:
        tokens = list(getattr(sets, name))
        if any(not 0 <= token < size for token in tokens):
            raise UserError(f"a token of {tokens} is not in the vocabulary of {size}", "give token ids of this model")
        others[tokens] = False
        masses[name] = probabilities[..., tokens].sum(-1)
    return masses | {SETS[-1]: probabilities[..., others].sum(-1)}


@dataclass(frozen=True)
class Displacement:
    """How a probability moved over the steps of a run.

    Attributes:
        start, end: the first and the last value.
        change: end minus start (Definition 1): negative where the probability was displaced.
        drawdown: the largest value of the run minus the last one.
        decrease: the largest fall from a value to any later one, which the tables of Razin et al. (2025) report.
    """

    start: float
    end: float
    change: float
    drawdown: float
    decrease: float


def displacement(curve: Float[np.ndarray, " step"]) -> Displacement:
    """The displacement of a probability (or of its logarithm) over the steps of a run, the first one before any step.

    Raises `UserError` for fewer than two values, and for values that are not finite.
    """
    if len(curve) < 2 or not np.isfinite(curve).all():
        raise UserError(f"a curve of {len(curve)} values cannot be read as a run", "give a finite value before and after training")
    values = curve.astype(np.float64)
    falls = np.maximum.accumulate(values) - values
    start, end = float(values[0]), float(values[-1])
    return Displacement(start, end, end - start, float(falls[-1]), float(falls.max()))


@dataclass(frozen=True)
class ArgmaxMass:
    """The token that was most probable before training, and its probability at every step."""

    token: int
    masses: tuple[float, ...]


def argmax_mass(log_probs: Float[Tensor, "step vocab"], without: Collection[int] = ()) -> ArgmaxMass:
    """The token that is most probable at the first step, apart from those in `without`, with its probability at every step.

    By the squeezing account (Ren and Sutherland, 2025) this token gains what a pushed-down answer loses, whatever it means.
    """
    start = log_probs[0].clone()
    start[list(without)] = -torch.inf
    token = int(start.argmax())
    return ArgmaxMass(token, tuple(log_probs[:, token].double().exp().tolist()))


def largest_gains(
    before: Float[Tensor, " vocab"], after: Float[Tensor, " vocab"], count: int, without: Collection[int] = ()
) -> list[tuple[int, float]]:
    """The tokens whose probability rose most, apart from those in `without`, each with its rise, the largest first.

    Args:
        before, after: natural logarithms of the probabilities.
    """
    rises = after.double().exp() - before.double().exp()
    rises[list(without)] = -torch.inf
    best = rises.topk(min(count, len(rises) - len(set(without))))
    return list(zip(best.indices.tolist(), best.values.tolist(), strict=True))
