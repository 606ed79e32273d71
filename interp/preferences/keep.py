"""Which pairs to keep by a score, and what a filter removes: by kind of answer, by length, by prompt."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import UserError

# By name of a score: its columns, the first of which that was computed is taken, and whether high values are kept.
SCORES: dict[str, tuple[tuple[str, ...], bool]] = {
    "harm": (("influence", "influence_head"), True),
    "total": (("total", "total_head"), True),
    "alpha_ches": (("alpha_ches",), False),
    "ches": (("ches",), False),
    "ln_ches": (("ln_ches",), False),
    "length": (("length_difference",), False),
    "edit": (("edit_similarity",), False),
    "random": (("random",), True),
}


@dataclass(frozen=True)
class Selection:
    """The pairs that are kept, those that are not, and a random subset of as many, as positions in the audited rows.

    Attributes:
        column: the score that decided.
        threshold: the last value of it that is kept.
        unscored: pairs without the score, which are never kept.
    """

    by: str
    column: str
    threshold: float
    kept: tuple[int, ...]
    dropped: tuple[int, ...]
    random: tuple[int, ...]
    unscored: int


def score_column(frame: pd.DataFrame, by: str) -> tuple[str, bool]:
    """The column of a score, and whether its high values are kept. Raises `UserError` for a score that was not computed."""
    if by not in SCORES:
        raise UserError(f"there is no score {by!r}", f"use one of {', '.join(SCORES)}")
    columns, high = SCORES[by]
    column = next((name for name in columns if name in frame.columns and frame[name].notna().any()), None)
    if column is None:
        raise UserError(f"the score {by!r} needs the column {' or '.join(columns)}, which was not computed", "ask for a higher --level")
    return column, high


def with_rank(frame: pd.DataFrame, by: str, seed: int) -> pd.DataFrame:
    """The frame with `random`, and with `rank` by the score: 1 is kept first. Rows without the score have none; ties go by row."""
    out = frame.assign(random=np.random.default_rng(seed).permutation(len(frame)) / max(1, len(frame)))
    column, high = score_column(out, by)
    # A row that the trainer leaves out, or that has no gradient, is not ranked.
    values = out[column].where(trained_on(out)).astype(float)
    out["rank"] = (-values if high else values).rank(method="first").astype("Int64")
    return out


def trained_on(frame: pd.DataFrame) -> pd.Series:
    """Whether each row gives the trainer a gradient: it is not left out and its sides differ."""
    return ~(frame["prompt_fills_context"] | frame["identical"] | frame["identical_after_truncation"])


def select(frame: pd.DataFrame, by: str, share: float | int, seed: int) -> Selection:
    """The share of the ranked rows that is kept.

    Raises `UserError` for a share that is not between 0 and 1, and where the score is known of a sample alone.
    """
    if not 0 < share < 1:
        raise UserError(f"--keep is {share}", "give a share between 0 and 1, such as 0.5")
    column, _ = score_column(frame, by)
    ranked = frame.index[frame["rank"].notna()]
    eligible = int(scorable(frame).sum())
    if column in ("influence", "total") and len(ranked) < eligible:
        problem = f"{column} is known of a sample of {len(ranked)} pairs, and a filter needs it of all {eligible}"
        raise UserError(problem, f"give --sample {eligible}, or --level forward for its head version")
    count = round(share * len(ranked))
    if not 0 < count < len(ranked):
        raise UserError(f"--keep {share} keeps {count} of {len(ranked)} scored pairs", "give another share, or more pairs")
    order = frame.loc[ranked].sort_values("rank").index
    chosen = sorted(int(index) for index in order[:count])
    drawn = sorted(int(index) for index in np.random.default_rng([seed, 1]).choice(ranked.to_numpy(), count, replace=False))
    dropped = [int(index) for index in frame.index.difference(chosen)]
    return Selection(
        by, column, float(frame.loc[order[count - 1], column]), tuple(chosen), tuple(dropped), tuple(drawn), len(frame) - len(ranked)
    )


def scorable(frame: pd.DataFrame) -> pd.Series:
    """Whether a log-probability of both sides is defined and the pair has a gradient."""
    return trained_on(frame) & (frame[["n_prompt", "n_chosen", "n_rejected"]].min(axis=1) > 0)


def removal(frame: pd.DataFrame, selection: Selection) -> dict[str, Any]:
    """What the filter, and the random subset beside it, keep: kinds of answers, mean lengths, prompts.

    Means are of the rows that the trainer does not leave out: of the others it sees no answer.
    """
    parts = {"all": frame, "kept": frame.loc[list(selection.kept)], "dropped": frame.loc[list(selection.dropped)],
             "random": frame.loc[list(selection.random)]}  # fmt: skip
    table = []
    for name, part in parts.items():
        types = part["same_type"].value_counts(normalize=True)
        seen = part[~part["prompt_fills_context"]]
        table.append({
            "part": name, "pairs": len(part), "read_by_trainer": len(seen), "prompts": int(part["prompt_key"].nunique()),
            "mean_n_prompt": _mean(seen["n_prompt"]), "mean_n_chosen": _mean(seen["n_chosen"]),
            "mean_n_rejected": _mean(seen["n_rejected"]), "mean_length_difference": _mean(seen["length_difference"]),
            "mean_edit_similarity": _mean(seen["edit_similarity"]),
            **{f"share {kind}": float(types.get(kind, 0.0)) for kind in ("refusal/refusal", "answer/answer", "mixed")},
        })  # fmt: skip
    lost = set(parts["dropped"]["prompt_key"]) - set(parts["kept"]["prompt_key"])
    return {
        "by": selection.by, "column": selection.column, "threshold": selection.threshold, "kept": len(selection.kept),
        "dropped": len(selection.dropped), "without_score": selection.unscored, "prompts_lost": len(lost), "table": table,
    }  # fmt: skip


def _mean(values: pd.Series) -> float:
    return float(values.astype(float).mean())
