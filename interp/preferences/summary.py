"""The summary of an audit: counts of flags, bias of length, how the scores are related, and how they are distributed."""

from __future__ import annotations

import itertools
import math
from typing import Any

import numpy as np
import pandas as pd
from scipy import stats

from interp.preferences.keep import trained_on
from interp.preferences.text_level import FLAGS, length_effect

# The scores whose rank correlations are shown, in order.
RELATED = (
    "ches", "ln_ches", "alpha_ches", "length_difference", "edit_similarity", "logp_chosen", "margin", "total_head", "influence_head",
    "own", "total", "influence",
)  # fmt: skip
QUANTILES = (0.0, 0.05, 0.25, 0.5, 0.75, 0.95, 1.0)


def summarise(frame: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """The numbers of `audit.json` that are computed from the columns of an audit.

    Lengths, correlations and distributions are those of the rows that the trainer does not leave out.
    """
    seen = frame[~frame["prompt_fills_context"]]
    return {
        "trainer": {
            "rows": len(frame), "left_out": int(frame["prompt_fills_context"].sum()),
            "without_gradient": int((~trained_on(seen)).sum()), "with_gradient": int(trained_on(frame).sum()),
        },
        "flags": {name: int(frame[name].sum()) for name in FLAGS},
        "repeats": {
            "duplicates": int(frame["duplicate_of"].notna().sum()), "near_duplicates": int(frame["near_duplicate_of"].notna().sum()),
            "contradictions": int(frame["contradicts"].notna().sum()), "prompts": int(frame["prompt_key"].nunique()),
            "most_pairs_of_a_prompt": int(frame["prompt_count"].max()),
        },
        "types": {kind: int((frame["same_type"] == kind).sum()) for kind in ("refusal/refusal", "answer/answer", "mixed")},
        "lengths": lengths(seen, seed=seed),
        "noisy": int(frame["noisy"].sum()) if "noisy" in frame else None,
        "correlations": correlations(seen).to_dict(orient="records"),
        "distributions": {name: distribution(seen[name]) for name in RELATED if name in seen and seen[name].notna().any()},
        "expected_to_fall": expected_to_fall(frame),
        "conservation": conservation(frame),
    }  # fmt: skip


def lengths(frame: pd.DataFrame, *, seed: int = 0) -> dict[str, Any]:
    """Mean lengths in tokens, Cohen's d (chosen less rejected) with its interval, and the share of pairs whose chosen side is longer."""
    if frame.empty:
        return {}
    effect = length_effect(frame, seed=seed)
    return {
        "mean_n_prompt": float(frame["n_prompt"].mean()), "mean_n_chosen": float(frame["n_chosen"].mean()),
        "mean_n_rejected": float(frame["n_rejected"].mean()), "mean_length_difference": float(frame["length_difference"].mean()),
        "cohens_d": None if effect is None else effect.to_json(), "share_chosen_longer": float((frame["length_difference"] < 0).mean()),
    }  # fmt: skip


def correlations(frame: pd.DataFrame) -> pd.DataFrame:
    """Spearman's rank correlation of every two scores, with a 95 % interval by Fisher's z (Bonett and Wright's variance) and its pairs."""
    rows = []
    names = [name for name in RELATED if name in frame.columns and frame[name].notna().sum() > 3]
    for first, second in itertools.combinations(names, 2):
        known = frame[[first, second]].dropna().astype(float)
        if len(known) < 4 or (known.nunique() < 2).any():
            continue
        rho = float(stats.spearmanr(known[first], known[second]).statistic)
        low, high = rank_interval(rho, len(known))
        rows.append({"first": first, "second": second, "rho": rho, "low": low, "high": high, "n": len(known)})
    return pd.DataFrame(rows, columns=["first", "second", "rho", "low", "high", "n"])


def rank_interval(rho: float, n: int) -> tuple[float, float]:
    """The 95 % interval of a rank correlation of n pairs."""
    if abs(rho) >= 1:
        return rho, rho
    spread = 1.96 * math.sqrt((1 + rho**2 / 2) / (n - 3))
    return math.tanh(math.atanh(rho) - spread), math.tanh(math.atanh(rho) + spread)


def distribution(values: pd.Series) -> dict[str, float | int]:
    """Mean, quantiles, and the share below zero of the values that are known."""
    known = values.dropna().to_numpy(dtype=float)
    spots = {f"q{round(100 * q)}": float(value) for q, value in zip(QUANTILES, np.quantile(known, QUANTILES), strict=True)}
    return {"n": len(known), "mean": float(known.mean()), **spots, "share_below_zero": float((known < 0).mean())}


def expected_to_fall(frame: pd.DataFrame) -> dict[str, Any] | None:
    """The share of pairs whose chosen answer a first full-batch step of SGD is expected to lower: `total` below zero."""
    column = next((name for name in ("total", "total_head") if name in frame and frame[name].notna().any()), None)
    if column is None:
        return None
    known = frame[column].dropna()
    return {"by": column, "pairs": len(known), "share": float((known < 0).mean())}


def conservation(frame: pd.DataFrame) -> list[dict[str, Any]]:
    """Whether `total` and `influence` add up to the same, as they must: their sums, and the difference by the larger of them."""
    checks = []
    for end in ("", "_head"):
        names = f"total{end}", f"influence{end}"
        if all(name in frame and frame[name].notna().any() for name in names):
            sums = [float(frame[name].sum()) for name in names]
            largest = max(float(frame[name].abs().sum()) for name in names)
            checks.append({"of": names[0], "sum_total": sums[0], "sum_influence": sums[1],
                           "relative_difference": abs(sums[0] - sums[1]) / largest if largest else 0.0})  # fmt: skip
    return checks
