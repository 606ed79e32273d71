"""Losses of preference tuning, of one pair each, by the log-probabilities of both answers under the policy and the reference.

With `r+` and `r-` the log-probability of the chosen and of the rejected answer, each less that of the reference:

    dpo        -log σ(β (r+ - r-))
    ipo        (r+ - r- - 1 / 2τ)²
    dpo+sft    dpo - λ log π(chosen)                                    Razin et al. 2025, appendix E
    dpop       -log σ(β (r+ - r- - 50 max(0, -r+)))                     Pal et al. 2024
    cal-dpo    -log σ(r+ - r-) + ½ ((r+ - 1/2β)² + (r- + 1/2β)²)        Xiao et al. 2024
    dpo-shift  -log σ(β (r+ - f r-)), f = 0.75                          Yang et al. 2025
"""

from __future__ import annotations

from typing import Literal, get_args

import torch
from jaxtyping import Float
from torch import Tensor
from torch.nn.functional import logsigmoid

from interp.errors import UserError
from training.single_token import BETA, SFT_WEIGHT, TAU

PairLoss = Literal["dpo", "ipo", "dpo+sft", "dpop", "cal-dpo", "dpo-shift"]
LOSSES: tuple[PairLoss, ...] = get_args(PairLoss)
DPOP_WEIGHT, SHIFT = 50.0, 0.75


def pair_loss(name: str, chosen: Float[Tensor, ""], rejected: Float[Tensor, ""], reference: tuple[float, float]) -> Float[Tensor, ""]:
    """The loss of one pair in nats (for `ipo` in squared nats).

    Args:
        chosen, rejected: log-probabilities of the answers under the policy.
        reference: those under the reference.

    Raises `UserError` for another name.
    """
    gain, loss = chosen - reference[0], rejected - reference[1]
    if name == "dpo":
        return -logsigmoid(BETA * (gain - loss))
    if name == "ipo":
        return (gain - loss - 1 / (2 * TAU)) ** 2
    if name == "dpo+sft":
        return -logsigmoid(BETA * (gain - loss)) - SFT_WEIGHT * chosen
    if name == "dpop":
        return -logsigmoid(BETA * (gain - loss - DPOP_WEIGHT * torch.relu(-gain)))
    if name == "cal-dpo":
        goal = 1 / (2 * BETA)
        return -logsigmoid(gain - loss) + ((gain - goal) ** 2 + (loss + goal) ** 2) / 2
    if name == "dpo-shift":
        return -logsigmoid(BETA * (gain - SHIFT * loss))
    raise UserError(f"there is no loss {name!r}", f"use one of {', '.join(LOSSES)}")
