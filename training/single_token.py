"""Preference tuning of one-token answers in memory: a stage of SFT on answers, then DPO, IPO or DPO with an SFT term on one prompt.

Both answers of a pair are next tokens of the same prompt, so one forward gives the margin. Nothing is written; the model given is
changed. Optimizers have their defaults in torch (RMSprop: alpha .99, epsilon 1e-8; Adam: betas .9 and .999), without clipping or warmup,
as in Razin et al. (2025).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Literal, get_args

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional
from transformers import PreTrainedModel

from interp.errors import UserError
from interp.models.unembed import head_logits
from interp.preferences.influence import dot

Objective = Literal["dpo", "ipo", "dpo+sft"]
BETA, TAU, SFT_WEIGHT = 0.1, 0.01, 0.1
OPTIMIZERS: Mapping[str, Callable[..., torch.optim.Optimizer]] = {
    "sgd": torch.optim.SGD, "rmsprop": torch.optim.RMSprop, "adam": torch.optim.Adam,
}  # fmt: skip
# By how much of itself a loss may rise by rounding alone.
ROUNDING = 1e-6


@dataclass(frozen=True)
class Setting:
    """How a run is trained: its objective, its optimizer, the constant learning rate and the number of steps."""

    objective: Objective
    optimizer: str
    rate: float
    steps: int

    def __post_init__(self) -> None:
        if self.objective not in get_args(Objective) or self.optimizer not in OPTIMIZERS:
            known = f"{', '.join(get_args(Objective))} with {', '.join(OPTIMIZERS)}"
            raise UserError(f"there is no setting {self.objective} with {self.optimizer}", f"use one of {known}")


@dataclass(frozen=True)
class Curve:
    """The course of a run: what holds before each step and after the last one.

    Attributes:
        log_probs: of the next token, `step vocab` in float32.
        entanglement: by step, `<g+, g-> / |g+|^2` of the gradients of the two answers' log-probabilities: above 1 where a step of
            gradient descent on this pair alone lowers the preferred answer.
    """

    log_probs: Tensor
    losses: tuple[float, ...]
    entanglement: dict[int, float]

    @property
    def falls(self) -> bool:
        """Whether the loss was finite at every step and never rose."""
        values = np.array(self.losses)
        return bool(np.isfinite(values).all() and (np.diff(values) <= ROUNDING * np.abs(values[:-1])).all())


def next_log_probs(hf: PreTrainedModel, rows: Sequence[Sequence[int]]) -> Tensor:
    """The log-probabilities of the token that follows each row of token ids, `row vocab`, with gradients."""
    longest = max(map(len, rows))
    device = next(hf.parameters()).device
    # Padding on the right is never read by a causal model before the last real position.
    ids = torch.tensor([[*row, *[0] * (longest - len(row))] for row in rows], device=device)
    mask = torch.tensor([[1] * len(row) + [0] * (longest - len(row)) for row in rows], device=device)
    states = hf.base_model(input_ids=ids, attention_mask=mask, use_cache=False).last_hidden_state
    last = states[torch.arange(len(rows), device=device), torch.tensor([len(row) - 1 for row in rows], device=device)]
    return head_logits(hf, last).log_softmax(-1)


def loss_of(objective: Objective, log_probs: Tensor, preferred: int, dispreferred: int, start_margin: float) -> Tensor:
    """The loss of one pair of next tokens; `start_margin` is the margin of the reference, the model before this stage."""
    gained = log_probs[preferred] - log_probs[dispreferred] - start_margin
    if objective == "ipo":
        return (gained - 1 / (2 * TAU)) ** 2
    loss = -functional.logsigmoid(BETA * gained)
    return loss - SFT_WEIGHT * log_probs[preferred] if objective == "dpo+sft" else loss


def tune(
    hf: PreTrainedModel, prompt: Sequence[int], preferred: int, dispreferred: int, setting: Setting, *,
    entangled_at: Sequence[int] = (), stop_if_rising: bool = False,
) -> Curve:  # fmt: skip
    """Tune a model on one preference pair of next tokens and return the course of the run.

    Args:
        entangled_at: the steps before which entanglement is measured.
        stop_if_rising: whether to stop as soon as the loss has risen; the curve then ends there.
    """
    parameters = list(hf.parameters())
    optimizer = OPTIMIZERS[setting.optimizer](parameters, lr=setting.rate)
    course: list[Tensor] = []
    losses: list[float] = []
    entanglement: dict[int, float] = {}
    start_margin = 0.0
    for step in range(setting.steps + 1):
        log_probs = next_log_probs(hf, [prompt])[0]
        if not step:
            start_margin = float((log_probs[preferred] - log_probs[dispreferred]).detach())
        loss = loss_of(setting.objective, log_probs, preferred, dispreferred, start_margin)
        course.append(log_probs.detach().cpu())
        losses.append(float(loss.detach()))
        if step in entangled_at:
            entanglement[step] = entanglement_of(log_probs, preferred, dispreferred, parameters)
        risen = step > 0 and not losses[-1] <= losses[-2] + ROUNDING * abs(losses[-2])
        if step == setting.steps or (stop_if_rising and risen):
            break
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    return Curve(torch.stack(course), tuple(losses), entanglement)


def entanglement_of(log_probs: Tensor, preferred: int, dispreferred: int, parameters: Sequence[Tensor]) -> float:
    """`<g+, g-> / |g+|^2` of the gradients of two next tokens' log-probabilities, summed in float64; the graph stays.

    NaN where the preferred token's probability is 1 up to rounding, so that its gradient is zero.
    """
    one, other = (
        torch.autograd.grad(log_probs[token], parameters, retain_graph=True, allow_unused=True, materialize_grads=True)
        for token in (preferred, dispreferred)
    )
    squares = dot(one, one)
    return dot(one, other) / squares if squares else float("nan")


@dataclass(frozen=True)
class Answered:
    """A prompt, and the tokens among which the answers that SFT teaches for it are drawn, all with the same chance."""

    prompt: tuple[int, ...]
    labels: tuple[int, ...]


def teach_answers(
    hf: PreTrainedModel, examples: Sequence[Answered], *, rate: float, epochs: int, batch: int, seed: int, stop_if_rising: bool = False
) -> list[float]:  # fmt: skip
    """Fine-tune a model on answers drawn for each example, anew in every epoch, with RMSprop.

    Returns the mean cross-entropy with the labels' uniform distribution, before training and after each epoch.
    """
    rng = np.random.default_rng(seed)
    optimizer = OPTIMIZERS["rmsprop"](hf.parameters(), lr=rate)
    losses = [answer_loss(hf, examples, batch)]
    for _ in range(epochs):
        order = rng.permutation(len(examples))
        for start in range(0, len(order), batch):
            some = [examples[place] for place in order[start : start + batch]]
            labels = torch.tensor([int(rng.choice(example.labels)) for example in some])
            loss = functional.nll_loss(next_log_probs(hf, [example.prompt for example in some]).cpu(), labels)
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
        losses.append(answer_loss(hf, examples, batch))
        if stop_if_rising and not losses[-1] <= losses[-2]:
            break
    return losses


@torch.no_grad()
def answer_loss(hf: PreTrainedModel, examples: Sequence[Answered], batch: int) -> float:
    """The mean over examples of the cross-entropy with the uniform distribution over their labels, in nats."""
    total = 0.0
    for start in range(0, len(examples), batch):
        some = examples[start : start + batch]
        log_probs = next_log_probs(hf, [example.prompt for example in some])
        total -= sum(float(row[list(example.labels)].mean()) for row, example in zip(log_probs, some, strict=True))
    return total / len(examples)


def largest_stable_rate(rates: Sequence[float], stable: Callable[[float], bool], what: str) -> float:
    """The largest of the learning rates that is stable, tried from the largest down. Raises `UserError` where none is."""
    rate = next((rate for rate in sorted(rates, reverse=True) if stable(rate)), None)
    if rate is None:
        raise UserError(f"no learning rate from {min(rates):g} to {max(rates):g} is stable for {what}", "give smaller ones")
    return rate


def state_of(hf: PreTrainedModel) -> dict[str, Any]:
    """A copy of a model's weights, from which `load_state_dict` restores it."""
    return {name: value.detach().clone() for name, value in hf.state_dict().items()}
