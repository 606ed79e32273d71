"""A verdict that rests on toxicity, under the scorer of the report and under a second one, and how far the two scorers agree."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd

from interp.edits.edit import Edit
from interp.experiments.toxicity.context import ToxicityContext
from interp.models.model import Model
from interp.results.result import Verdict
from interp.stats.intervals import bootstrap_mean


def agreed(first: Verdict, second: Verdict | None) -> Verdict:
    """The first scorer's verdict, but inconclusive where the second scorer's is the opposite one; `None` for no second scorer."""
    return "inconclusive" if {first, second} == {"holds", "fails"} else first


def beside(context: ToxicityContext, sides: Mapping[str, tuple[Model, Sequence[Edit]]]) -> pd.DataFrame:
    """The mean toxicity of each row under both scorers, and their correlation over its prompts (NaN where one scorer is constant).

    Args:
        sides: by the row's name, the model and its edits.
    """
    scores = {}
    for name, (model, edits) in sides.items():
        scores[name] = context.toxicity(model, tuple(edits)), context.second_toxicity(model, tuple(edits))
    return beside_scores(context, scores)


def beside_scores(context: ToxicityContext, scores: Mapping[str, tuple[np.ndarray, np.ndarray | None]]) -> pd.DataFrame:
    """The table of `beside` for scores that were measured before: by the row's name, those of both scorers for each prompt."""
    rows = []
    for name, (first, second) in scores.items():
        for scorer, values in ((context.scorer, first), (context.second, second)):
            if scorer is None or values is None:
                continue
            mean = bootstrap_mean(values, seed=context.seed)
            constant = second is None or first.std() == 0 or second.std() == 0
            correlation = np.nan if constant else float(np.corrcoef(first, second)[0, 1])
            rows.append({
                "model": name, "scorer": scorer.name, "toxicity": mean.value, "low": mean.low, "high": mean.high,
                "correlation with the other scorer": correlation,
            })  # fmt: skip
    return pd.DataFrame(rows)
