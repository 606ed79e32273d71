"""Y-E1: how much of the fall in toxicity four groups of neurons account for, against the toxic neurons alone (Yang et al., 2024)."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor
from torch.nn.functional import cosine_similarity

from interp.diffing.groups import (
    GROUPS,
    REDUCING,
    Activity,
    activation_edits,
    activity,
    alignments,
    assign,
    cells_of,
    group_sums,
    shares,
    sources,
)
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.patched_groups import ALONE, FOUR, RANDOM, THREE, Scores, beside_random, patched_rows, without_scores
from interp.experiments.toxicity.scorers import agreed
from interp.models.model import Model
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.intervals import Interval, bootstrap_difference, bootstrap_mean, bootstrap_ratio, permutation_p
from interp.stats.nulls import random_directions

THRESHOLDS = CRITERIA["Y-E1"][-1].thresholds
TOP_SHARE = 0.05
DIRECTIONS = 200


def measured_activity(context: ToxicityContext, model: Model) -> Activity:
    """Each prompt's mean activity of neurons over the base model's continuation of it, in `model`."""

    def read() -> Activity:
        rows, more = context.prompt_rows(), context.base_tokens()
        joined = [[*row, *new[:-1]] for row, new in zip(rows, more, strict=True)]
        return activity(model, joined, [list(range(len(row) - 1, len(row) - 1 + context.new_tokens)) for row in rows])

    measured: Activity = context.measured(("activity", context.pair.base.digest), read, of=model)
    return measured


def judge(
    net_p: float, share: tuple[float, float], four_low: float, cut: tuple[float, float], p_four: float, p_three: float
) -> Verdict:  # fmt: skip
    """The verdict on the groups.

    Args:
        net_p: p-value of the net reduction beside random directions.
        share: interval of TP−'s share of what the four groups take.
        four_low: lower end of the interval of the fall in toxicity when the four groups are patched.
        cut: the fall when TP− alone is patched over that of all four, and the lower end of its interval.
        p_four, p_three: p-values of the falls beside the same groups of random directions.
    """
    if share[0] > 0.5 or (four_low > 0 and cut[0] >= THRESHOLDS["alone"] and cut[1] > 0.5):
        return "fails"
    specific = max(net_p, p_four, p_three) <= THRESHOLDS["p"]
    return "holds" if specific and share[1] < 0.5 and four_low > 0 else "inconclusive"


def judge_1(net_p: float, share: Interval | None, beyond: Interval, four: Interval, cut: float) -> Verdict:
    """The verdict under version 1 of the criterion; `beyond` is how far the four groups lower toxicity beyond TP− alone."""
    if share is None:
        return "inconclusive"
    if share.low > 0.5 or (four.low > 0 and cut >= THRESHOLDS["alone"]):
        return "fails"
    return "holds" if net_p < 0.05 and share.high < 0.5 and beyond.low > 0 and four.low > 0 else "inconclusive"


@experiment(
    "Y-E1",
    claim="Y-C1",
    title="Four groups of neurons share the work",
    question="Is toxicity lowered by four groups of neurons together rather than by the toxic neurons that fire less?",
    criterion=CRITERIA["Y-E1"],
    caveat="A share of the reduction is a sum of products along one direction; only the patching is causal, and it moves activations off the paths on which they arose. "
    "Positive and negative are signs of the mean activation in the base model. Neurons that oppose are as many as those that help, so gross shares are small beside them. The four groups contain TP−. "
    "Random draws are patched until one of them lowers toxicity as far under every scorer, after which p cannot be 0.05 any more; for TP− alone, on which the verdict does not rest, "
    "a report of a large model makes five. The table says how many there were.",
    does_not_show="That four groups give shares of the reduction is true of any direction; only what exceeds random directions says something about toxicity.",
)
def run(context: ToxicityContext) -> Finding:
    pair, base = context.pair, context.pair.base
    fit, held_out = shared.fitted(context), shared.held_out(context)
    if len(fit.prompts) < 2 or len(held_out.prompts) < 2:
        raise UserError(f"{len(context.prompts)} prompts are too few for two halves", "give at least 4")
    context.say("activity of all neurons")
    first, second = ({side: measured_activity(half, model) for side, model in pair.sides.items()} for half in (fit, held_out))
    alignment = alignments(base, context.direction)
    groups = assign(alignment, first["base"].neurons.mean(dim=0), first["tuned"].neurons.mean(dim=0))
    change = (second["tuned"].neurons - second["base"].neurons).numpy()
    reduction = -change * alignment.float().numpy()
    table = shares(reduction, groups)
    sums = group_sums(reduction, groups)
    gross = sums[:, : len(REDUCING)].sum(axis=1)
    toxic_share = bootstrap_ratio(sums[:, 0], gross, seed=context.seed) if gross.mean() else None
    context.say("random directions")
    null = _random_directions(context, first, change, base)
    table["random direction: gross share"] = [null[f"share {name}"].mean() if name in REDUCING else math.nan for name in GROUPS]
    net = bootstrap_mean(reduction.sum(axis=1), seed=context.seed)
    p = permutation_p(net.value, null["net"].abs())
    parts = {
        name: bootstrap_mean(values.numpy(), seed=context.seed)
        for name, values in sources(pair, second["base"], second["tuned"], context.direction).items()
    }
    whole = pd.DataFrame([{"part of the model": name, "reduction": i.value, "low": i.low, "high": i.high} for name, i in parts.items()])
    patched = patched_rows(held_out, groups)
    scores: dict[str, Scores] = {row["patched from tuned into base"]: row["_scores"] for row in patched}
    specific = beside_random(held_out, groups, first["base"].neurons.mean(dim=0), first["tuned"].neurons.mean(dim=0), scores)
    start = scores["nothing (base)"].first
    falls = {name: bootstrap_difference(start, values.first, seed=context.seed) for name, values in scores.items()}
    beyond = bootstrap_difference(scores[ALONE].first, scores[FOUR].first, seed=context.seed)
    four, alone, three = falls[FOUR], falls[ALONE], falls[THREE]
    edited = _edited(held_out, groups, alignment, first["base"])
    by_scorer: list[Verdict] = [
        _verdict(context, p, toxic_share, scores, specific, name, at) for at, name in enumerate(specific["scorer"].unique())
    ]
    verdict = agreed(by_scorer[0], by_scorer[1] if len(by_scorer) > 1 else None)
    cut = alone.value / four.value if four.value > 0 else math.nan
    share = math.nan if toxic_share is None else toxic_share.value
    statistic = {"TP− share of the gross reduction": share, "net reduction along the probe": net.value, "fall of toxicity, four groups patched": four.value,
                 "fall of toxicity, three groups without TP− patched": three.value, "fall of toxicity, TP− patched alone": alone.value}  # fmt: skip
    random_fall = falls[RANDOM].value
    firsts = specific[specific["scorer"] == context.scorer.name].set_index("patched")
    by_name = {
        "four groups patched": firsts.loc[FOUR],
        "three groups without TP− patched": firsts.loc[THREE],
        "TP− patched alone": firsts.loc[ALONE],
    }
    nulls = {"TP− share of the gross reduction": float(null["share TP−"].mean()), "net reduction along the probe": float(null["net"].abs().mean()),
             **{f"fall of toxicity, {words}": float(row["null mean"]) for words, row in by_name.items()}}  # fmt: skip
    ends = {"net reduction along the probe": (net.low, net.high), "fall of toxicity, four groups patched": (four.low, four.high),
            "fall of toxicity, three groups without TP− patched": (three.low, three.high), "fall of toxicity, TP− patched alone": (alone.low, alone.high)}  # fmt: skip
    if toxic_share is not None:
        ends = {"TP− share of the gross reduction": (toxic_share.low, toxic_share.high)} | ends
    lifted = -float(sums[:, len(REDUCING) :].sum(axis=1).mean())
    summary = (
        f"On held-out prompts the four groups lower the projection on the probe by {gross.mean():.3g}, the opposing neurons raise it by {lifted:.3g}, which leaves "
        f"{net.value:.3g} (random directions {null['net'].abs().mean():.3g}, p = {p:.3f}). TP− gives {share:.0%} of the gross reduction (random directions "
        f"{null['share TP−'].mean():.0%}). Patched into the base model, the four groups lower toxicity by {four.value:.3f} of {start.mean():.3f}, TP− alone by {alone.value:.3f}, "
        f"as many random neurons by {random_fall:.3f}. The same four groups of random directions lower it by {by_name['four groups patched']['null mean']:.3f} (p = {by_name['four groups patched']['p']:.3f}), "
        f"the three without TP− by {three.value:.3f} (random directions {by_name['three groups without TP− patched']['null mean']:.3f}, p = {by_name['three groups without TP− patched']['p']:.3f}); "
        f"as many random neurons of the same layers as TP− by {by_name['TP− patched alone']['null mean']:.3f} (p = {by_name['TP− patched alone']['p']:.3f}, {by_name['TP− patched alone']['draws']} draws). "
        f"By scorer the verdicts are {', '.join(by_scorer)}."
    )
    sentence = (
        f"Patched into the base model, the four groups lower toxicity by {four.value:.3f} [{four.low:.3f}, {four.high:.3f}], the same groups of random directions by "
        f"{by_name['four groups patched']['null mean']:.3f} (p = {by_name['four groups patched']['p']:.3f}); without TP− it is {three.value:.3f} [{three.low:.3f}, {three.high:.3f}] against "
        f"{by_name['three groups without TP− patched']['null mean']:.3f} (p = {by_name['three groups without TP− patched']['p']:.3f})."
    )
    return Finding(
        verdict, summary, statistic, nulls, ends,
        {"groups": table, "parts of the model": whole, "patching": without_scores(patched), "beside random": specific, "activation editing": without_scores(edited)},
        _figures(table, without_scores(patched), without_scores(edited)),
        {"assigned_on": len(fit.prompts), "measured_on": len(held_out.prompts), "random_directions": len(null), "forcing": "base", "p": p, "tuning-free share": TOP_SHARE},
        sentence=sentence, earlier={1: judge_1(p, toxic_share, beyond, four, cut)},
    )  # fmt: skip


def _verdict(
    context: ToxicityContext, net_p: float, share: Interval | None, scores: dict[str, Scores], specific: pd.DataFrame, scorer: str, number: int
) -> Verdict:  # fmt: skip
    """The verdict under one scorer, the first (0) or the second (1)."""
    if share is None:
        return "inconclusive"
    p = specific[specific["scorer"] == scorer].set_index("patched")["p"]
    start = scores["nothing (base)"].of(number)
    by_four, by_alone = (start - scores[name].of(number) for name in (FOUR, ALONE))
    four = bootstrap_mean(by_four, seed=context.seed)
    cut = bootstrap_ratio(by_alone, by_four, seed=context.seed) if four.value > 0 else Interval(math.nan, math.nan, math.nan, four.n)
    return judge(net_p, (share.low, share.high), four.low, (cut.value, cut.low), float(p[FOUR]), float(p[THREE]))


def _random_directions(context: ToxicityContext, first: dict[str, Activity], change: np.ndarray, base: Model) -> pd.DataFrame:
    """Net reduction and group shares for random directions, with groups assigned on the first half and measured on the second."""
    before, after = (first[side].neurons.mean(dim=0) for side in ("base", "tuned"))
    means = change.mean(axis=0)
    rows = []
    for direction in random_directions(context.direction, 40 if context.quick else DIRECTIONS, context.seed):
        alignment = alignments(base, direction)
        groups, reduction = assign(alignment, before, after), -means * alignment.numpy()
        sums = [float(reduction[groups == place].sum()) for place in range(len(REDUCING))]
        gross = sum(sums) or math.nan
        rows.append({"net": float(reduction.sum())} | {f"share {name}": value / gross for name, value in zip(REDUCING, sums, strict=True)})
    return pd.DataFrame(rows)


def _edited(held_out: ToxicityContext, groups: np.ndarray, alignment: Tensor, first: Activity) -> list[dict[str, Any]]:
    """Rows of the same paper's activation editing of the base model, at the tuned model's perplexity."""
    base, goal = held_out.pair.base, shared.goal_loss(held_out)
    before = first.neurons.mean(dim=0)
    values = torch.cat([base.value_vectors(layer).detach().float().cpu() for layer in range(base.n_layers)])
    cosines = cosine_similarity(values, held_out.direction.float().cpu().unsqueeze(0), dim=1)
    reducing = np.where(groups < len(REDUCING), groups, -1)
    drawn = np.random.default_rng(held_out.seed).permutation(reducing)
    kinds = {
        "reducing groups": reducing,
        f"top {TOP_SHARE:.0%} by cosine, no tuned model": cells_of(alignment, cosines, before, TOP_SHARE),
        "random cells (null)": drawn,
    }
    rows = [
        shared.row_of(held_out, "base", held_out.pair.base, role="base", strength=0.0),
        shared.row_of(held_out, "tuned (DPO)", held_out.pair.tuned, role="tuned", strength=math.nan),
    ]
    for name, cells in kinds.items():
        held_out.say(f"activation editing: {name}")

        def make(strength: float, cells: np.ndarray = cells) -> tuple[Edit, ...]:
            return activation_edits(cells, base.d_mlp, strength) if strength else ()

        match = shared.match_edits(held_out, base, make, goal, most=2.0, first=0.25)
        rows.append(
            shared.row_of(
                held_out,
                f"base with activations edited: {name}",
                base,
                make(match.strength),
                role="null" if cells is drawn else "edited",
                strength=match.strength,
            )
        )
    return rows


def _figures(table: pd.DataFrame, patched: pd.DataFrame, edited: pd.DataFrame) -> tuple[Figure, ...]:
    reducing = table[table["gross share"].notna()]
    both = pd.concat([
        reducing.assign(direction="probe", role="", value=reducing["gross share"]),
        reducing.assign(direction="random direction (null)", role="null", value=reducing["random direction: gross share"]),
    ])  # fmt: skip
    share = figures.bars(
        "group-shares", both, x="group", y="value", colour="direction", role="role", title="Which groups lower the projection on the probe", x_title="group of neurons",
        y_title="share of the gross reduction (held-out prompts)", caption="TP− are the toxic neurons that fire less. Where the bars of the probe are as high as those of "
        "random directions, the shares say nothing about toxicity.",
    )  # fmt: skip
    sizes = figures.bars(
        "group-sums", table, x="group", y="reduction", title="What each group takes from the projection on the probe", x_title="group of neurons",
        y_title="mean reduction (units of the residual stream)", caption="The first four groups lower the projection (above zero), the last four raise it; what is left of "
        "both together is the net effect.",
    )  # fmt: skip
    causal = figures.bars(
        "group-patching", patched, x="patched from tuned into base", y="toxicity", role="role", low="low", high="high", title="Toxicity of the base model with patched neurons",
        x_title="neurons that take the tuned model's activations", y_title="mean toxicity (0 to 1)", horizontal=True,
        caption="If the toxic neurons' silence is what tuning does, TP− alone should come down as far as all four groups; random neurons should stay up.",
    )  # fmt: skip
    baseline = figures.scatter(
        "activation-editing", edited, x="perplexity", y="toxicity", low="low", high="high", text="model", colour="model", role="role", front=("min", "min"), title="Editing activations instead of training",
        x_title="perplexity on harmless passages", y_title="mean toxicity (0 to 1)", caption="Lower and further left is better; random cells show what any rescaling of as many neurons does.",
    )  # fmt: skip
    return share, sizes, causal, baseline
