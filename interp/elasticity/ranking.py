"""Which of some texts would undo a behaviour: the first-order effect of a training step on each text on the behaviour.

A step of gradient descent with rate η on a text moves a score s by `-η ⟨∇ loss(text), ∇ s⟩`. The score has to be differentiable: the mean
paired word log-odds, or the mean log-probability of answers that the tuned model gives and the base does not. It is a forecast for the
first step of gradient descent, and for nothing beyond it (He et al. 2024, arXiv 2404.01099, rank by gradients too).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.elasticity.behaviour import Behaviour, WordOdds
from interp.elasticity.compression import started_rows
from interp.elasticity.stationarity import loss_gradient
from interp.errors import UserError
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.preferences.influence import dot, trainable_copy
from interp.stats.intervals import bootstrap_mean

# Prompts on which the score is differentiated.
PROMPTS = 40
Score = Callable[[PreTrainedModel], Tensor]


def own_answers_score(prompts: Sequence[Sequence[int]], tuned: Sequence[Sequence[int]], base: Sequence[Sequence[int]]) -> Score:
    """The mean over prompts of log π(tuned's answer) - log π(base's answer), per token, of rows of token ids.

    Prompts on which the two give the same answer, or one of them none, are left out.
    """
    rows = [row for row in zip(prompts, tuned, base, strict=True) if row[1] and row[2] and list(row[1]) != list(row[2])]

    def score(hf: PreTrainedModel) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=hf.device)
        for prompt, one, other in rows:
            total = total + _mean_log_prob(hf, prompt, one) - _mean_log_prob(hf, prompt, other)
        return total / len(rows)

    return score


def _mean_log_prob(hf: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    ids = torch.tensor([[*prompt, *answer]], device=hf.device)
    logps = hf(input_ids=ids, use_cache=False).logits[0, len(prompt) - 1 : -1].double().log_softmax(dim=-1)
    return logps.gather(1, ids[0, len(prompt) :, None]).mean()


def word_odds_score(prompts: Sequence[Sequence[int]], pairs: Sequence[tuple[int, int]]) -> Score:
    """The mean paired word log-odds after each prompt, of rows of token ids and pairs of tokens."""

    def score(hf: PreTrainedModel) -> Tensor:
        total = torch.zeros((), dtype=torch.float64, device=hf.device)
        for prompt in prompts:
            logits = hf(input_ids=torch.tensor([list(prompt)], device=hf.device), use_cache=False).logits[0, -1].double()
            total = total + sum(((logits[one] - logits[other]) for one, other in pairs), torch.zeros_like(total)) / len(pairs)
        return total / len(prompts)

    return score


def score_of(behaviour: Behaviour, pair: ModelPair) -> Score:
    """A differentiable score that tuning has raised: the behaviour itself for word log-odds, otherwise that of the pair's own answers.

    Raises `UserError` where base and tuned say the same on every prompt.
    """
    rows = behaviour.rows(pair.base)[:PROMPTS]
    sides = [behaviour.read(side) for side in (pair.base, pair.tuned)]
    if isinstance(behaviour, WordOdds):
        tokens = [(pair.base.token(one), pair.base.token(other)) for one, other in behaviour.pairs]
        if sides[1].score.mean() < sides[0].score.mean():
            tokens = [(other, one) for one, other in tokens]
        return word_odds_score(rows, tokens)
    base, tuned = (side.continuations[:PROMPTS] for side in sides)
    if all(not one or not other or one == other for one, other in zip(base, tuned, strict=True)):
        raise UserError("base and tuned give the same answers to these prompts, so there is nothing to undo", "give other prompts")
    return own_answers_score(rows, tuned, base)


def undoing_effects(
    model: Model, score: Score, texts: Sequence[str], *, max_tokens: int = 96, progress: Callable[[int, int], object] | None = None
) -> Float[np.ndarray, " text"]:  # fmt: skip
    """How fast a step on each text moves the score, per unit of the learning rate: `-⟨∇ loss(text), ∇ score⟩`.

    Negative values undo a behaviour whose score tuning has raised. The model itself is not touched.
    """
    hf = trainable_copy(model)
    parameters = tuple(hf.parameters())
    slope = torch.autograd.grad(score(hf), parameters, allow_unused=True, materialize_grads=True)
    effects = []
    rows = started_rows(model, list(texts), max_tokens=max_tokens)
    for place, row in enumerate(rows):
        effects.append(-dot(loss_gradient(hf, [row]), slope))
        if progress is not None:
            progress(place + 1, len(rows))
    return np.array(effects)


def ranking(texts: Sequence[str], effects: Float[np.ndarray, " text"], neutral: Float[np.ndarray, " other"]) -> pd.DataFrame:
    """The texts with their effects, what undoes most first, beside the mean effect of neutral texts with its interval."""
    null = bootstrap_mean(neutral)
    frame = pd.DataFrame({"rank": 0, "effect": effects, "beyond neutral": effects - null.value, "text": list(texts)})
    frame = frame.sort_values("effect", kind="stable").reset_index(drop=True)
    frame["rank"] = np.arange(1, len(frame) + 1)
    return frame
