"""Subsets of preference pairs, models tuned on them, and what tuning changed: the parts of the study of filters."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from scipy import stats
from transformers import PreTrainedModel

from interp.edits.edit import Edit
from interp.evaluation.metrics import distinct_n
from interp.evaluation.toxicity import Scorer
from interp.forward.generate import generate
from interp.models.model import Model
from interp.preferences.distance import edit_similarity, length_difference
from interp.preferences.forward_level import rank_residual
from interp.preferences.influence import answer_log_prob, gradient_scores, trainable_copy
from interp.preferences.logprobs import LogProbs, log_probs
from interp.preferences.pairs import TokenPair
from interp.preferences.similarity import similarity
from interp.stats.divergence import kl_to
from training.optimizers import preference_optimizer
from training.pair_losses import pair_loss
from training.single_token import BETA

# By name of a filter: the column of scores of which the low values are kept. A high value of each is expected to lower chosen answers.
FILTERS = {
    "influence": "harm", "worst": "benefit", "ches": "ches", "ln_ches": "ln_ches", "length": "length_difference", "edit": "edit_similarity",
}  # fmt: skip


def forward_columns(model: Model, pairs: Sequence[TokenPair]) -> pd.DataFrame:
    """The scores of each pair that need no gradient, high where the pair's chosen answer is expected to fall."""
    scores = similarity(model, pairs)
    return pd.DataFrame({
        "ches": scores.ches, "ln_ches": scores.ln_ches, "alpha_ches": scores.alpha_ches, "last_hidden": scores.last_hidden,
        "edit_similarity": list(map(edit_similarity, pairs)), "length_difference": [float(length_difference(pair)) for pair in pairs],
        "logp_chosen": scores.log_probs.chosen, "minus_length": [-float(len(pair.chosen)) for pair in pairs],
    })  # fmt: skip


def gradient_columns(model: Model, pairs: Sequence[TokenPair]) -> tuple[pd.DataFrame, dict[str, float]]:
    """The first-order scores of each pair among these, high where a fall is expected, and what is known of all of them.

    `harm` is what a pair does to all chosen answers; the others are what is done to its own: by itself (`own`), or by all (`total`).
    """
    scores = gradient_scores(model, pairs)
    table = pd.DataFrame({
        "own": -scores.own, "own_sign": -scores.own_sign, "total": -scores.total, "total_sign": -scores.total_sign,
        "harm": scores.harm, "benefit": scores.influence,
    })  # fmt: skip
    shares = {
        "own_negative": float((scores.own < 0).mean()), "total_negative": float((scores.total < 0).mean()),
        "influence_negative": float((scores.influence < 0).mean()), "largest_entanglement": float(np.nanmax(scores.entanglement)),
        "conservation_error": float(abs(scores.total.sum() - scores.influence.sum()) / np.abs(scores.total).sum()),
    }  # fmt: skip
    return table, shares


def lowest(values: Sequence[float] | np.ndarray, count: int) -> list[int]:
    """The places of the `count` lowest values in order of place; ties go by place, and NaN is never among them."""
    order = np.argsort(np.asarray(values, dtype=float), kind="stable")[:count]
    return sorted(int(place) for place in order)


def changes(before: LogProbs, after: LogProbs, pairs: Sequence[TokenPair]) -> dict[str, float]:
    """The mean changes in nats over pairs: of log π of both answers, of the chosen by token, of the margin; and shares of pairs.

    `fell` is the share whose chosen answer lost, `accuracy` that whose margin grew.
    """
    chosen, rejected, margin = after.chosen - before.chosen, after.rejected - before.rejected, after.margin - before.margin
    lengths = np.array([len(pair.chosen) for pair in pairs])
    return {
        "chosen": float(chosen.mean()), "chosen_per_token": float((chosen / lengths).mean()), "rejected": float(rejected.mean()),
        "margin": float(margin.mean()), "fell": float((chosen < 0).mean()), "accuracy": float((margin > 0).mean()),
    }  # fmt: skip


def dpo_loss(before: LogProbs, after: LogProbs) -> float:
    """The mean loss of DPO in nats of a policy, `after`, whose reference is `before`; ln 2 where the two are the same."""
    return float(np.logaddexp(0, -BETA * (after.margin - before.margin)).mean())


@dataclass(frozen=True)
class Behaviour:
    """What is generated from, and what scores it; prompts and neutral texts are strings or rows of token ids."""

    prompts: Sequence[str] | Sequence[Sequence[int]]
    neutral: Sequence[str] | Sequence[Sequence[int]]
    scorer: Scorer
    new_tokens: int

    def continuations(self, model: Model, edits: Sequence[Edit] = ()) -> list[str]:
        """The model's greedy continuations of the prompts."""
        return generate(model, self.prompts, max_new_tokens=self.new_tokens, edits=edits, batch_size=256)

    def toxicity(self, model: Model, edits: Sequence[Edit] = ()) -> float:
        """Their mean toxicity."""
        return self.scored(self.continuations(model, edits))

    def scored(self, texts: Sequence[str]) -> float:
        """The mean toxicity of these texts."""
        return float(self.scorer.score(texts)["toxicity"].astype(float).mean())

    def of(self, model: Model, base: Model) -> dict[str, float]:
        """Mean toxicity and the share of different word pairs of greedy continuations, and the mean KL to the base on neutral text."""
        texts = self.continuations(model)
        kl = 0.0 if model is base else float(kl_to(model, base, self.neutral).mean())
        return {"toxicity": self.scored(texts), "distinct_2": distinct_n(texts), "kl": kl}


def alone(model: Model, pairs: Sequence[TokenPair], optimizer: str, rate: float) -> np.ndarray:
    """The change of each chosen answer's log-probability by one step of DPO on its pair alone."""
    hf: PreTrainedModel = trainable_copy(model)
    start = {name: value.detach().clone() for name, value in hf.state_dict().items()}
    before, moved = log_probs(model, pairs), []
    for place, pair in enumerate(pairs):
        steps = preference_optimizer(optimizer, hf.parameters(), rate)
        chosen, rejected = (answer_log_prob(hf, pair.prompt, side) for side in (pair.chosen, pair.rejected))
        steps.zero_grad()
        pair_loss("dpo", chosen, rejected, (float(before.chosen[place]), float(before.rejected[place]))).backward()
        steps.step()
        with torch.no_grad():
            moved.append(float(answer_log_prob(hf, pair.prompt, pair.chosen)) - float(before.chosen[place]))
        hf.load_state_dict(start)
    return np.array(moved)


def rank_correlations(scores: pd.DataFrame, fall: np.ndarray) -> dict[str, dict[str, float]]:
    """By score its rank correlation with the fall of log π(chosen), and that given the lengths' difference (of both ranks).

    NaN where a score has one value, or is not applicable to three pairs.
    """
    lengths = scores["length_difference"]
    out = {}
    for name in scores:
        known = scores[name].notna().to_numpy()
        partial = correlation(rank_residual(scores[name], lengths)[known], rank_residual(pd.Series(fall), lengths)[known])
        out[str(name)] = {"plain": spearman(scores[name][known], fall[known]), "given_length": partial}
    return out


def spearman(one: Any, other: Any) -> float:
    """The rank correlation; NaN where one of the two has a single value or there are fewer than three."""
    return correlation(stats.rankdata(one), stats.rankdata(other))


def correlation(one: Any, other: Any) -> float:
    """Pearson's correlation; NaN where one of the two does not vary or there are fewer than three."""
    first, second = np.asarray(one, dtype=float), np.asarray(other, dtype=float)
    if len(first) < 3 or np.ptp(first) < 1e-9 or np.ptp(second) < 1e-9:
        return float("nan")
    return float(np.corrcoef(first, second)[0, 1])


def described(pairs: Sequence[TokenPair], scores: Mapping[str, Any]) -> dict[str, float]:
    """What a subset of pairs is like: mean lengths of both sides, and the mean of each of these scores."""
    sides = {"n_chosen": [len(pair.chosen) for pair in pairs], "n_rejected": [len(pair.rejected) for pair in pairs]}
    return {name: float(np.nanmean(np.asarray(values, dtype=float))) for name, values in {**sides, **scores}.items()}
