"""Bigram models of low rank in double precision: the smallest language models that share parameters between sources of text."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

OUTCOMES, RANK, RATE = 8, 3, 0.01


@dataclass(frozen=True)
class Source:
    """A distribution over pairs of a context and the outcome that follows it."""

    joint: Tensor

    def loss(self, parameters: Sequence[Tensor]) -> Tensor:
        """The mean loss in nats of the model of these parameters (contexts by rank, rank by outcomes)."""
        logps = (parameters[0] @ parameters[1]).log_softmax(dim=1)
        return -(self.joint * logps).sum()

    def divergence(self, parameters: Sequence[Tensor]) -> Tensor:
        """KL(source || model), up to the contexts' distribution, which no model changes."""
        conditional = self.joint / self.joint.sum(dim=1, keepdim=True).clamp_min(1e-300)
        entropy = -(self.joint * conditional.clamp_min(1e-300).log()).sum()
        return self.loss(parameters) - entropy


def sources(seed: int, count: int = 2, *, separate: bool = False) -> list[Source]:
    """Random sources over the same contexts, or two of them over contexts of their own."""
    generator = torch.Generator().manual_seed(seed)
    drawn = []
    for place in range(count):
        joint = torch.rand(OUTCOMES, OUTCOMES, generator=generator, dtype=torch.float64) ** 3
        if separate:
            rows = slice(0, OUTCOMES // 2) if place else slice(OUTCOMES // 2, OUTCOMES)
            joint[rows] = 0
        drawn.append(Source(joint / joint.sum()))
    return drawn


def start(seed: int, rank: int = RANK) -> list[Tensor]:
    """Random parameters."""
    generator = torch.Generator().manual_seed(seed)
    shapes = ((OUTCOMES, rank), (rank, OUTCOMES))
    return [torch.randn(*shape, generator=generator, dtype=torch.float64).mul_(0.5).requires_grad_() for shape in shapes]


def fit(parameters: list[Tensor], weighted: Sequence[tuple[float, Source]], steps: int = 400) -> None:
    """Minimise the weighted sum of losses with L-BFGS, to the digits of double precision."""
    optimizer = torch.optim.LBFGS(
        parameters, max_iter=steps, max_eval=4 * steps, tolerance_grad=1e-13, tolerance_change=1e-16, line_search_fn="strong_wolfe",
        history_size=60,
    )  # fmt: skip

    def closure() -> Tensor:
        optimizer.zero_grad()
        loss = sum((weight * source.loss(parameters) for weight, source in weighted), torch.zeros((), dtype=torch.float64))
        loss.backward()
        return loss

    for _ in range(3):
        optimizer.step(closure)


def adam_course(parameters: Sequence[Tensor], source: Source, steps: Sequence[int], rate: float = RATE) -> list[list[Tensor]]:
    """Copies of the parameters after each of these numbers of steps of Adam on one source, in one run; `steps` rise."""
    moving = copy_of(parameters)
    optimizer = torch.optim.Adam(moving, lr=rate)
    copies, done = [], 0
    for mark in steps:
        for _ in range(mark - done):
            optimizer.zero_grad()
            source.loss(moving).backward()
            optimizer.step()
        done = mark
        copies.append(copy_of(moving))
    return copies


def copy_of(parameters: Sequence[Tensor]) -> list[Tensor]:
    """The same parameters in tensors of their own, with gradients switched on."""
    return [part.detach().clone().requires_grad_() for part in parameters]


def gradient(source: Source, parameters: Sequence[Tensor]) -> tuple[Tensor, ...]:
    """The gradient of the source's loss."""
    return torch.autograd.grad(source.loss(parameters), list(parameters))
