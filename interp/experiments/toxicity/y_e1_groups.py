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
    OPPOSING,
    REDUCING,
    Activity,
    activation_edits,
    activity,
    alignments,
    assign,
    cells_of,
    chosen_of,
    group_sums,
    masks_by_layer,
    shares,
    sources,
)
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.context import BATCH, ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.models.model import Model
from interp.models.tokens import token_rows
from interp.patching.cross_model import Selection, generate_with_donor, perplexity_with_donor
from interp.results import figures
from interp.results.result import Figure, Verdict
from interp.stats.intervals import bootstrap_difference, bootstrap_mean, bootstrap_ratio, permutation_p
from interp.stats.nulls import random_directions

ALONE = 0.8
TOP_SHARE = 0.05
DIRECTIONS = 200
RANDOM = "as many random neurons (null)"


def measured_activity(context: ToxicityContext, model: Model) -> Activity:
    """Each prompt's mean activity of neurons over the base model's continuation of it, in `model`."""

    def read() -> Activity:
        rows, more = context.prompt_rows(), context.base_tokens()
        joined = [[*row, *new[:-1]] for row, new in zip(rows, more, strict=True)]
        return activity(model, joined, [list(range(len(row) - 1, len(row) - 1 + context.new_tokens)) for row in rows])

    measured: Activity = context.measured(("activity", context.pair.base.digest), read, of=model)
    return measured


@experiment(
    "Y-E1",
    claim="Y-C1",
    title="Four groups of neurons share the work",
    question="Is toxicity lowered by four groups of neurons together rather than by the toxic neurons that fire less?",
    criterion=CRITERIA["Y-E1"],
    caveat="A share of the reduction is a sum of products along one direction; only the patching is causal, and it moves activations off the paths on which they arose. "
    "Positive and negative are signs of the mean activation in the base model. Neurons that oppose are as many as those that help, so gross shares are small beside them.",
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
    patched = _patched(held_out, groups)
    scores = {row["patched from tuned into base"]: row["_scores"] for row in patched}
    start = scores["nothing (base)"]
    falls = {name: bootstrap_difference(start, values, seed=context.seed) for name, values in scores.items()}
    beyond = bootstrap_difference(scores["TP− alone"], scores["all four groups"], seed=context.seed)
    four, alone = falls["all four groups"], falls["TP− alone"]
    cut = alone.value / four.value if four.value > 0 else math.nan
    edited = _edited(held_out, groups, alignment, first["base"])
    verdict: Verdict = "inconclusive"
    if toxic_share is not None:
        if toxic_share.low > 0.5 or (four.low > 0 and cut >= ALONE):
            verdict = "fails"
        elif p < 0.05 and toxic_share.high < 0.5 and beyond.low > 0 and four.low > 0:
            verdict = "holds"
    share = math.nan if toxic_share is None else toxic_share.value
    statistic = {"TP− share of the gross reduction": share, "net reduction along the probe": net.value, "fall of toxicity, four groups patched": four.value,
                 "fall of toxicity, TP− patched alone": alone.value}  # fmt: skip
    random_fall = falls[RANDOM].value
    nulls = {"TP− share of the gross reduction": float(null["share TP−"].mean()), "net reduction along the probe": float(null["net"].abs().mean()),
             "fall of toxicity, four groups patched": random_fall}  # fmt: skip
    ends = {"net reduction along the probe": (net.low, net.high), "fall of toxicity, four groups patched": (four.low, four.high),
            "fall of toxicity, TP− patched alone": (alone.low, alone.high)}  # fmt: skip
    if toxic_share is not None:
        ends = {"TP− share of the gross reduction": (toxic_share.low, toxic_share.high)} | ends
    lifted = -float(sums[:, len(REDUCING) :].sum(axis=1).mean())
    summary = (
        f"On held-out prompts the four groups lower the projection on the probe by {gross.mean():.3g}, the opposing neurons raise it by {lifted:.3g}, which leaves "
        f"{net.value:.3g} (random directions {null['net'].abs().mean():.3g}, p = {p:.3f}). TP− gives {share:.0%} of the gross reduction (random directions "
        f"{null['share TP−'].mean():.0%}). Patched into the base model, the four groups lower toxicity by {four.value:.3f} of {start.mean():.3f}, TP− alone by {alone.value:.3f}, "
        f"as many random neurons by {random_fall:.3f}."
    )
    return Finding(
        verdict, summary, statistic, nulls, ends,
        {"groups": table, "parts of the model": whole, "patching": _without_scores(patched), "activation editing": _without_scores(edited)},
        _figures(table, _without_scores(patched), _without_scores(edited)),
        {"assigned_on": len(fit.prompts), "measured_on": len(held_out.prompts), "random_directions": len(null), "forcing": "base", "p": p, "tuning-free share": TOP_SHARE},
    )  # fmt: skip


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


def _patched(held_out: ToxicityContext, groups: np.ndarray) -> list[dict[str, Any]]:
    """Rows of toxicity and perplexity of the base model with some neurons' activations patched from the tuned model at every token."""
    base, tuned = held_out.pair.base, held_out.pair.tuned
    d_mlp, every = base.d_mlp, len(groups)
    four = np.isin(groups, range(len(REDUCING)))
    drawn = np.zeros(every, dtype=bool)
    drawn[np.random.default_rng(held_out.seed).permutation(every)[: int(four.sum())]] = True
    cases: dict[str, Selection] = {"nothing (base)": {}}
    cases |= {"TP− alone": chosen_of(groups, ["TP−"], d_mlp)}
    if not held_out.quick:
        cases |= {f"{name} alone": chosen_of(groups, [name], d_mlp) for name in REDUCING[1:]}
    cases |= {
        "all four groups": masks_by_layer(four, d_mlp), "the opposing groups": chosen_of(groups, OPPOSING, d_mlp),
        RANDOM: masks_by_layer(drawn, d_mlp), "all neurons": masks_by_layer(np.ones(every, dtype=bool), d_mlp),
    }  # fmt: skip
    texts = token_rows(base, [passage.text for passage in held_out.passages], max_tokens=base.context)
    rows = []
    for name, chosen in cases.items():
        held_out.say(f"patching {name}")
        generated = generate_with_donor(base, tuned, held_out.prompt_rows(), chosen, max_new_tokens=held_out.new_tokens, batch_size=BATCH)
        words = [base.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in generated]
        scores = held_out.scorer.score(words)["toxicity"].to_numpy().astype(float)
        interval = bootstrap_mean(scores, seed=held_out.seed)
        rows.append({
            "patched from tuned into base": name, "role": "null" if name == RANDOM else "", "neurons": int(sum(int(units.sum()) for units in chosen.values())), "toxicity": interval.value, "low": interval.low,
            "high": interval.high, "perplexity": perplexity_with_donor(base, tuned, texts, chosen), "_scores": scores,
        })  # fmt: skip
    interval = bootstrap_mean(held_out.toxicity(tuned), seed=held_out.seed)
    rows.append({"patched from tuned into base": "everything (tuned)", "role": "", "neurons": every, "toxicity": interval.value, "low": interval.low, "high": interval.high,
                 "perplexity": held_out.perplexity(tuned).value, "_scores": held_out.toxicity(tuned)})  # fmt: skip
    return rows


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


def _without_scores(rows: list[dict[str, Any]]) -> pd.DataFrame:
    return pd.DataFrame(rows).drop(columns=["_scores"])


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
