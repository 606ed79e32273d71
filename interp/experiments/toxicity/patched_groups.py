"""Groups of neurons of the base model that take the tuned model's activations, beside the same groups of random directions (Y-E1)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
from jaxtyping import Bool, Int
from torch import Tensor

from interp.diffing.groups import OPPOSING, REDUCING, alignments, assign, chosen_of, masks_by_layer
from interp.experiments.toxicity.context import ToxicityContext
from interp.models.model import Model
from interp.models.tokens import decoded_rows, token_rows
from interp.patching.cross_model import Selection, generate_with_donor, perplexities_with_donor
from interp.stats.intervals import bootstrap_mean, permutation_p
from interp.stats.nulls import random_directions

RANDOM = "as many random neurons (null)"
FOUR, THREE, ALONE = "all four groups", "the three groups without TP−", "TP− alone"
# Rows that are decoded together by both models, each with a cache.
BATCH = 256
# The fewest draws of which none reaches the observed fall at p = 0.05, and how many are made before it is looked whether one did.
DRAWS, LOOK = 19, 5


@dataclass(frozen=True, eq=False)
class Scores:
    """The toxicity of each prompt's continuation under the report's scorer and under the second one, if there is one."""

    first: np.ndarray
    second: np.ndarray | None

    def of(self, number: int) -> np.ndarray:
        """Those of the first scorer (0) or of the second (1), or of the first where there is no second."""
        return self.first if number == 0 or self.second is None else self.second


def patched_scores(held_out: ToxicityContext, selections: Sequence[Selection]) -> list[Scores]:
    """For each selection, the toxicity of the base model's continuations when these neurons take the tuned model's activations at every
    token. All selections are decoded together."""
    base, rows = held_out.pair.base, held_out.prompt_rows()
    generated = generate_with_donor(
        base, held_out.pair.tuned, rows * len(selections), [chosen for chosen in selections for _ in rows],
        max_new_tokens=held_out.new_tokens, batch_size=BATCH,
    )  # fmt: skip
    words = decoded_rows(base, generated)
    first = held_out.scorer.score(words)["toxicity"].to_numpy().astype(float)
    second = None if held_out.second is None else held_out.second.score(words)["toxicity"].to_numpy().astype(float)
    parts = [slice(start, start + len(rows)) for start in range(0, len(words), len(rows))]
    return [Scores(first[part], None if second is None else second[part]) for part in parts]


def patched_rows(held_out: ToxicityContext, groups: Int[np.ndarray, " neuron"]) -> list[dict[str, Any]]:
    """Rows of toxicity and perplexity of the base model with groups of neurons patched; `_scores` has the `Scores`."""
    base, tuned = held_out.pair.base, held_out.pair.tuned
    d_mlp, every = base.d_mlp, len(groups)
    four = np.isin(groups, range(len(REDUCING)))
    drawn = np.zeros(every, dtype=bool)
    drawn[np.random.default_rng(held_out.seed).permutation(every)[: int(four.sum())]] = True
    cases: dict[str, Selection] = {ALONE: chosen_of(groups, ["TP−"], d_mlp)}
    if not held_out.quick:
        cases |= {f"{name} alone": chosen_of(groups, [name], d_mlp) for name in REDUCING[1:]}
    cases |= {
        THREE: chosen_of(groups, REDUCING[1:], d_mlp), FOUR: masks_by_layer(four, d_mlp),
        "the opposing groups": chosen_of(groups, OPPOSING, d_mlp),
        RANDOM: masks_by_layer(drawn, d_mlp), "all neurons": masks_by_layer(np.ones(every, dtype=bool), d_mlp),
    }  # fmt: skip
    texts = token_rows(base, [passage.text for passage in held_out.passages], max_tokens=base.context)
    rows = [_row(held_out, "nothing (base)", 0, _unpatched(held_out, base), held_out.perplexity(base).value)]
    held_out.say("patching groups of neurons")
    selections = list(cases.values())
    perplexities = perplexities_with_donor(base, tuned, texts, selections)
    for (name, chosen), scores, perplexity in zip(cases.items(), patched_scores(held_out, selections), perplexities, strict=True):
        neurons = int(sum(int(units.sum()) for units in chosen.values()))
        rows.append(_row(held_out, name, neurons, scores, perplexity))
    rows.append(_row(held_out, "everything (tuned)", every, _unpatched(held_out, tuned), held_out.perplexity(tuned).value))
    return rows


def _unpatched(held_out: ToxicityContext, model: Model) -> Scores:
    return Scores(held_out.toxicity(model), held_out.second_toxicity(model))


def _row(held_out: ToxicityContext, name: str, neurons: int, scores: Scores, perplexity: float) -> dict[str, Any]:
    interval = bootstrap_mean(scores.first, seed=held_out.seed)
    return {
        "patched from tuned into base": name, "role": "null" if name == RANDOM else "", "neurons": neurons, "toxicity": interval.value,
        "low": interval.low, "high": interval.high, "perplexity": perplexity, "_scores": scores,
    }  # fmt: skip


def beside_random(
    held_out: ToxicityContext, groups: Int[np.ndarray, " neuron"], before: Tensor, after: Tensor, scores: Mapping[str, Scores]
) -> pd.DataFrame:
    """How far patching lowers toxicity, beside what it is compared with, under each scorer.

    One row for the four groups and for the three without TP− (beside the same groups of random directions), and for TP− (beside as
    many other neurons of each layer, drawn at random), by scorer: patched, null, scorer, draws, fall, null mean, null highest, p.
    Once draws have reached the fall under every scorer no p can be 0.05 any more, so that no more are made. The verdict does not rest
    on TP− beside random neurons, so a report of a large model, which reads less by a rule, makes only the first few draws of it.

    Args:
        before, after: mean activations on the prompts on which groups are assigned.
        scores: by the name of what is patched, with those of the base model under "nothing (base)".
    """
    base = held_out.pair.base
    chosen: dict[str, list[Selection]] = {FOUR: [], THREE: [], ALONE: []}
    rng = np.random.default_rng(held_out.seed)
    # The seed is not that of the directions of the net reduction, so that these are other ones.
    for direction in random_directions(held_out.direction, DRAWS, held_out.seed + 1):
        other = assign(alignments(base, direction), before, after)
        chosen[FOUR].append(chosen_of(other, REDUCING, base.d_mlp))
        chosen[THREE].append(chosen_of(other, REDUCING[1:], base.d_mlp))
        chosen[ALONE].append(masks_by_layer(_as_many(groups == 0, base.d_mlp, rng), base.d_mlp))
    directions = "the same groups of random directions"
    kinds = {FOUR: directions, THREE: directions, ALONE: "as many random neurons of the same layers"}
    scorers = [scorer.name for scorer in (held_out.scorer, held_out.second) if scorer is not None]
    rows = []
    for name, null in kinds.items():
        observed = _falls(scores["nothing (base)"], [scores[name]], len(scorers))[0]
        drawn = np.empty((0, len(scorers)))
        most = LOOK if name == ALONE and held_out.rule else DRAWS
        while len(drawn) < most and not (drawn >= observed).any(axis=0).all():
            held_out.say(f"patching {name} of random draws, {len(drawn)} of {most} done")
            more = patched_scores(held_out, chosen[name][len(drawn) : min(len(drawn) + LOOK, most)])
            drawn = np.concatenate([drawn, _falls(scores["nothing (base)"], more, len(scorers))])
        for scorer, fall, falls in zip(scorers, observed.tolist(), drawn.T.tolist(), strict=True):
            rows.append((name, null, scorer, len(falls), fall, float(np.mean(falls)), max(falls), permutation_p(fall, falls)))
    return pd.DataFrame(rows, columns=["patched", "null", "scorer", "draws", "fall", "null mean", "null highest", "p"])


def _falls(start: Scores, after: Sequence[Scores], scorers: int) -> np.ndarray:
    """The mean fall in toxicity from `start`, one row for each patch and one column for each scorer."""
    return np.array([[(start.of(number) - scores.of(number)).mean() for number in range(scorers)] for scores in after])


def _as_many(chosen: Bool[np.ndarray, " neuron"], d_mlp: int, rng: np.random.Generator) -> Bool[np.ndarray, " neuron"]:
    """Random other neurons, as many in each layer as are chosen there (or all others, where they are fewer)."""
    drawn = np.zeros_like(chosen)
    for start in range(0, len(chosen), d_mlp):
        others = np.flatnonzero(~chosen[start : start + d_mlp])
        drawn[start + rng.permutation(others)[: int(chosen[start : start + d_mlp].sum())]] = True
    return drawn


def without_scores(rows: Sequence[dict[str, Any]]) -> pd.DataFrame:
    """The rows as a table, without the scores of single prompts."""
    return pd.DataFrame(rows).drop(columns=["_scores"])
