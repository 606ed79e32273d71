"""A-E14: size and stable rank of the weight change under different strengths of the KL term, from logged runs (paper A, section 7.2).

Version 1 of the rule read the control runs of the pair. RMSprop divides by the scale of the gradient, so beta cancels in them while
beta times the margin is small; the rule in force reads the runs of `training.studies.kl_term`, in which it is not.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.a_e14_rule import THRESHOLDS, Comparison, compared, judge, judge_1, table_of_comparisons
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.models.pair import ModelPair
from interp.results import figures
from interp.results.result import Figure, show_number
from interp.runs.logs import kl_term_if_any, read_controls, read_tuning_log

MATCH = 0.25
RECIPE = ("method", "loss", "labels", "beta", "generator")
# Fields of a run in the table of `training.studies.toxicity_controls`, by the column names of the report.
SHOWN = {
    "run": "run", "loss": "loss", "labels": "labels", "beta": "beta", "generator": "generator", "seed": "seed", "steps": "steps",
    "toxicity": "toxicity", "toxicity_low": "low", "toxicity_high": "high", "perplexity": "perplexity", "f1": "F1",
    "relative_change": "relative change", "stable_rank": "stable rank", "least_cosine": "least cosine", "neurons_key_16": "percentile of toxic keys",
    "neurons_value_16": "percentile of toxic values", "consistency": "offset consistency", "antipodality": "antipodality", "kl": "KL to base",
    "unaligned_toxicity": "un-aligned toxicity", "returned": "share returned", "unaligned_perplexity": "un-aligned perplexity",
}  # fmt: skip
# The columns of `training.studies.kl_term`, by the column names of the report.
KL_SHOWN = {
    "run": "run", "optimizer": "optimizer", "beta": "beta", "seed": "seed", "steps": "steps", "reached": "reached the stop",
    "margin": "margin", "beta_margin": "beta × margin", "kl": "KL to base", "toxicity": "toxicity",
    "relative_change": "relative change", "stable_rank": "stable rank",
}  # fmt: skip
LAST_STEPS = 5
SIZE, RANK = "size of the change, strong over weak KL term", "stable rank of the change, strong over weak KL term"
DRAWN = (
    "toxicity",
    "perplexity",
    "relative change",
    "stable rank",
    "offset consistency",
    "antipodality",
    "KL to base",
    "un-aligned toxicity",
    "share returned",
)


@experiment(
    "A-E14",
    claim="A-C11",
    title="The KL term keeps the change small and spread out",
    question="At equal toxicity, does a stronger KL term (a higher beta, against a lower one and against plain fine-tuning) make the change of the weights smaller and more spread out?",
    criterion=CRITERIA["A-E14"],
    caveat="Paper A states this as a hypothesis and tests nothing of it. Under RMSprop and Adam beta cancels while beta times the margin is small, so only runs in which it is well above 1 are compared, paired by seed, with runs in "
    "which it is not; they are short runs on fewer pairs. Toxicity is equal on average over seeds, not run by run. The control runs of the pair are shown and decide version 1 only; beta of IPO, and of DPO with an added SFT term, means something else.",
    does_not_show="Runs in which beta times margin is small say nothing on the KL term under RMSprop, whatever their weights look like; equal sizes there are no evidence against the hypothesis.",
    reads="logs",
)
def run(context: ToxicityContext) -> Finding:
    log = read_controls(context.logs, context.pair)
    runs, base = pd.DataFrame(log["runs"]), log["base_model"]
    if len(runs) < 2:
        raise UserError(
            "no control run stands beside this pair in the training logs",
            "train control runs, then python -m training.studies.toxicity_controls",
        )
    lost = base["toxicity"] - runs["toxicity"]
    runs["returned"] = ((runs["unaligned_toxicity"] - runs["toxicity"]) / lost.where(lost > 0)).astype(float)
    tuning = runs.iloc[0]
    seeds = runs[[same_recipe(tuning, row) for _, row in runs.iterrows()]]
    spread = {name: _range(seeds[name]) for name in ("relative_change", "stable_rank")}
    pairs = comparisons(runs, base["toxicity"], spread)
    study = kl_term_if_any(context.logs, context.pair)
    kl_runs = pd.DataFrame(study["runs"]) if study else pd.DataFrame()
    tests = compared(study["runs"], study["base_model"]["toxicity"]) if study else []
    strongest = next((one for one in reversed(tests) if not one.problem), None)
    logged = logged_margins(context.logs, context.pair, runs)
    table = table_of(runs, base)
    plain = runs[(runs["method"] == "sft") & (runs["labels"] == "true")]
    keys = {
        "relative_change": "relative change of all weights",
        "stable_rank": "mean stable rank of the change",
        "consistency": "offset consistency",
        "returned": "share of lost toxicity returned",
    }
    measured = {} if strongest is None else {SIZE: strongest.size, RANK: strongest.rank}
    statistic = {name: ratio.value for name, ratio in measured.items()}
    statistic |= {name: float(tuning[key]) for key, name in keys.items() if pd.notna(tuning[key])}
    null = dict.fromkeys(measured, 1.0) | {
        name: float(plain.iloc[0][key]) for key, name in keys.items() if name in statistic and len(plain) and pd.notna(plain.iloc[0][key])
    }
    interval = {name: (ratio.low, ratio.high) for name, ratio in measured.items()} | {
        name: (float(seeds[key].min()), float(seeds[key].max())) for key, name in keys.items() if name in statistic and len(seeds) > 1
    }
    tables = {
        "control runs": table,
        "relative change by group": _groups(runs),
        "relative change by layer": _layers(runs),
        "beta times margin": logged,
    }
    if study:
        tables |= {
            "runs of the KL study": kl_runs.reindex(columns=list(KL_SHOWN)).rename(columns=KL_SHOWN),
            "strong against weak KL term": table_of_comparisons(tests),
        }
    if pairs:
        tables["comparisons"] = pd.DataFrame(pairs)
    if log.get("missing"):
        tables["not run"] = pd.DataFrame(list(log["missing"].items()), columns=["run", "why"])
    return Finding(
        judge(tests), f"{_tested(tests, logged)} {_summary(runs, seeds, pairs, log)}", statistic, null, interval, tables, _figures(table, tables["relative change by layer"]),
        {"runs": runs["run"].tolist(), "missing": sorted(log.get("missing", {})), "interval": "over seeds: Student's, corrected, for ratios; least and most for the others", "null": "1 for ratios; fine-tuning on the chosen side, equal steps, for the others",
         "measured": log.get("settings", {}), "kl_study": study.get("settings", {}) if study else {}},
        sentence=_sentence(strongest, logged), earlier={1: judge_1(pairs)},
    )  # fmt: skip


def logged_margins(logs: Path, pair: ModelPair, runs: pd.DataFrame) -> pd.DataFrame:
    """Beta times the margin (chosen minus rejected, in nats, against the reference) of DPO runs of the table, at their end.

    That of the pair's own run is the mean over the last steps of its log. Other runs with its loss and labels are taken to have its
    margin, since they stop at the same toxicity. No rows where the log is not there.
    """
    columns = ["run", "beta", "beta × margin", "margin from"]
    try:
        log = read_tuning_log(logs, pair)
    except UserError:
        return pd.DataFrame(columns=columns)
    scaled = [record["margin"] for record in log if "margin" in record][-LAST_STEPS:]
    own = runs.iloc[0]
    if not scaled or pd.isna(own["beta"]):
        return pd.DataFrame(columns=columns)
    margin = float(np.mean(scaled)) / float(own["beta"])
    rows = [
        (row["run"], float(row["beta"]), margin * float(row["beta"]), "its own log" if number == 0 else "the log of this pair's run")
        for number, (_, row) in enumerate(runs.iterrows())
        if row["loss"] == own["loss"] and row["labels"] == own["labels"] and row["generator"] == own["generator"]
    ]
    return pd.DataFrame(rows, columns=columns)


def _margins(logged: pd.DataFrame) -> str:
    """The range of beta times margin of the logged runs, in words."""
    if logged.empty:
        return "no log says how large beta times margin was"
    low, high = logged["beta × margin"].min(), logged["beta × margin"].max()
    return f"beta times margin is {low:.2f} to {high:.2f} in this pair's runs"


def _tested(tests: Sequence[Comparison], logged: pd.DataFrame) -> str:
    """Whether the KL term could be seen, what the comparisons found, and what they could have found."""
    why = f"RMSprop divides by the scale of the gradient, so beta cancels while beta times margin is small; {_margins(logged)}."
    if not tests:
        return f"Not tested: {why} No runs with beta times margin of {THRESHOLDS['seen']:g} or more are logged (python -m training.studies.kl_term)."
    words = [why[0].upper() + why[1:]]
    for one in tests:
        about = f"{one.optimizer}, beta {one.betas[1]:g} against {one.betas[0]:g} (beta times margin {one.seen[1]:.1f} against {one.seen[0]:.2f})"
        if one.problem:
            words.append(f"{about}: no test, since {one.problem}.")
        else:
            words.append(
                f"{about}, {one.seeds} seeds, toxicity different by {one.toxicity:+.3f}: size of the change × {one.size.value:.2f} [{one.size.low:.2f}, {one.size.high:.2f}], stable rank × {one.rank.value:.2f} [{one.rank.low:.2f}, {one.rank.high:.2f}]; "
                f"changes of {one.found[0]:.0%} in size and {one.found[1]:.0%} in stable rank would have been found in four of five such studies."
            )
    return " ".join(words)


def _sentence(strongest: Comparison | None, logged: pd.DataFrame) -> str:
    if strongest is None:
        return f"The hypothesis on the KL term is not tested by these runs: under RMSprop beta cancels while beta times margin is small, and {_margins(logged)}."
    size, rank = strongest.size, strongest.rank
    return (
        f"At equal toxicity and over {strongest.seeds} seeds, runs with a strong KL term (beta times margin {strongest.seen[1]:.1f}) moved the weights {size.value:.2f} [{size.low:.2f}, {size.high:.2f}] times as far as runs with a weak one ({strongest.seen[0]:.2f}), "
        f"with {rank.value:.2f} [{rank.low:.2f}, {rank.high:.2f}] times their stable rank, where 1 is no effect of the KL term."
    )


def same_recipe(one: pd.Series, other: pd.Series) -> bool:
    """Whether two runs differ in nothing but the seed."""
    return all(one[name] == other[name] or (pd.isna(one[name]) and pd.isna(other[name])) for name in RECIPE)


def comparisons(runs: pd.DataFrame, base: float, spread: dict[str, float]) -> list[dict[str, Any]]:
    """One row for every two runs that differ in the strength of the KL term only and are equally toxic, the weaker one first."""
    tuning = runs.iloc[0]
    tolerance = MATCH * max(0.0, base - tuning["toxicity"])
    by_beta: dict[float, pd.Series] = {}
    for _, row in runs.iterrows():
        beta = 0.0 if row["method"] == "sft" else float(row["beta"]) if row["loss"] == "sigmoid" else math.nan
        same = (
            row["labels"] == "true" and row["generator"] == tuning["generator"] and abs(row["toxicity"] - tuning["toxicity"]) <= tolerance
        )
        if same and not math.isnan(beta):
            by_beta.setdefault(beta, row)
    rows = []
    for low, high in itertools.combinations(sorted(by_beta), 2):
        smaller = float(by_beta[low]["relative_change"] - by_beta[high]["relative_change"])
        broader = float(by_beta[high]["stable_rank"] - by_beta[low]["stable_rank"])
        rows.append({
            "weaker": by_beta[low]["run"], "stronger": by_beta[high]["run"], "lower beta": low, "higher beta": high, "smaller by": smaller, "broader by": broader,
            "spread of size": spread["relative_change"], "spread of stable rank": spread["stable_rank"],
            # Comparisons with NaN are false: without a spread over seeds nothing agrees and nothing opposes.
            "agrees": smaller > spread["relative_change"] and broader > spread["stable_rank"],
            "opposes": smaller < -spread["relative_change"] or broader < -spread["stable_rank"],
        })  # fmt: skip
    return rows


def _range(values: pd.Series) -> float:
    return float(values.max() - values.min()) if len(values) > 1 else math.nan


def table_of(runs: pd.DataFrame, base: dict[str, Any]) -> pd.DataFrame:
    """One row per run with the report's column names, after a row for the base model."""
    rows = pd.concat([pd.DataFrame([{"run": "base"} | base]), runs], ignore_index=True)
    return rows.reindex(columns=list(SHOWN)).rename(columns=SHOWN)


def _groups(runs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame([{"run": row["run"], **row["groups"]} for _, row in runs.iterrows()])


def _layers(runs: pd.DataFrame) -> pd.DataFrame:
    return pd.DataFrame(
        [
            {"run": row["run"], "role": "null" if row["labels"] == "shuffled" else "", "layer": layer, "relative change": value}
            for _, row in runs.iterrows()
            for layer, value in enumerate(row["layers"])
        ]
    )


def _summary(runs: pd.DataFrame, seeds: pd.DataFrame, pairs: list[dict[str, Any]], log: dict[str, Any]) -> str:
    tuning = runs.iloc[0]
    words = [
        f"{len(runs) - 1} control runs stand beside this pair ({len(seeds)} {'seed' if len(seeds) == 1 else 'seeds'} of its own recipe). It moved the weights by {tuning['relative_change']:.2%} of their norm, with a mean stable rank of {tuning['stable_rank']:.1f}."
    ]
    others = runs[(runs["method"] == "sft") | (runs["labels"] != "true")]
    words += [
        f"{row['run']}: {row['relative_change']:.2%}, stable rank {row['stable_rank']:.1f}, toxicity {row['toxicity']:.3f} against {tuning['toxicity']:.3f}."
        for _, row in others.iterrows()
    ]
    if not pairs:
        words.append("No two of them differ in the KL term alone and are equally toxic.")
    else:
        agree, oppose = (sum(bool(row[key]) for row in pairs) for key in ("agrees", "opposes"))
        words.append(
            f"Of {len(pairs)} comparisons of single runs by version 1 of the rule {agree} agree with the hypothesis and {oppose} oppose it; where beta cancels that says nothing."
        )
    if log.get("missing"):
        words.append(f"Not run: {', '.join(sorted(log['missing']))}.")
    return " ".join(words)


def _figures(table: pd.DataFrame, layers: pd.DataFrame) -> tuple[Figure, ...]:
    tuning = table.iloc[1]
    cells = [
        {"run": row["run"], "measure": name, "ratio": float(row[name]) / float(tuning[name]), "value": show_number(row[name], name)}
        for _, row in table.iterrows()
        for name in DRAWN
        if pd.notna(row[name]) and pd.notna(tuning[name]) and tuning[name] != 0
    ]
    across = figures.heatmap(
        "across", pd.DataFrame(cells), x="measure", y="run", z="ratio", text="value", centre=1.0, title="Tuning beside its control runs", x_title="measure", y_title="run",
        z_title="ratio to this pair's tuning", caption="Colours say how a run compares with this pair's own tuning, the words are its values. Rows of shuffled and reversed labels show what any training does.",
    )  # fmt: skip
    spread = figures.scatter(
        "size and spread", table.iloc[1:], x="relative change", y="stable rank", text="run", title="How large and how spread out is the change?", x_title="norm of the change / norm of the weights",
        y_title="mean stable rank of the change", caption="The hypothesis puts runs with a strong KL term to the upper left of runs without one; the distance between seeds says what counts as a difference.",
    )  # fmt: skip
    profile = figures.lines(
        "layers", layers, x="layer", y="relative change", colour="run", role="role", title="Where the change lies", x_title="layer", y_title="norm of the change / norm of the weights",
        caption="A peak in a few layers is a local change, a level line one that is spread over the depth.",
    )  # fmt: skip
    return across, spread, profile
