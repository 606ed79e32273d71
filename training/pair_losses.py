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
SIMPO_BETA, SIMPO_MARGIN = 2.0, 1.0


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


def simpo_loss(chosen: Float[Tensor, ""], rejected: Float[Tensor, ""], lengths: tuple[int, int]) -> Float[Tensor, ""]:
    """SimPO's loss of one pair in nats, without a reference: -log σ(β' (log π(chosen) / |chosen| - log π(rejected) / |rejected|) - γ).

    Args:
        lengths: the tokens of both answers.

    Source: Meng et al. 2024, with their β' = 2 and γ = 1.
    """
    return -logsigmoid(SIMPO_BETA * (chosen / lengths[0] - rejected / lengths[1]) - SIMPO_MARGIN)


def kto_loss(
    chosen: Float[Tensor, ""], rejected: Float[Tensor, ""], reference: tuple[float, float], divergence: float
) -> Float[Tensor, ""]:  # fmt: skip
    """KTO's loss of one desirable and one undesirable answer, their mean: 1 - σ(β (r+ - z)) and 1 - σ(β (z - r-)).

    Args:
        divergence: z, an estimate of the KL to the reference in nats: the mean gain in log-probability of answers to other prompts.
            No gradient goes through it, and a negative one counts as 0.

    Source: Ethayarajh et al. 2024, with weights of 1 for both kinds.
    """
    kl = max(0.0, divergence)
    gain, loss = chosen - reference[0], rejected - reference[1]
    return (2 - torch.sigmoid(BETA * (gain - kl)) - torch.sigmoid(BETA * (kl - loss))) / 2
