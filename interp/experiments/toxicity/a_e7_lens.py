"""A-E7: the probability of the toxic word at every half layer by the logit lens, before and after tuning (paper A, Figure 1)."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from interp.experiments.registry import Finding, experiment
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.shared import noise_to_kl, split_by_first_word
from interp.lens.logit_lens import Lens, logit_lens
from interp.results import figures
from interp.results.result import Verdict
from interp.stats.intervals import Interval, bootstrap_difference, bootstrap_mean, bootstrap_means, bootstrap_ratio
from interp.stats.nulls import perturbed

OTHER_PROMPTS = 100
THRESHOLDS = CRITERIA["A-E7"][-1].thresholds
NULL, KL_NULL = "random changes of equal norm (null)", "random changes of equal KL (null)"


def mlp_share(lens: Lens, seed: int) -> Interval:
    """The share of the word's rise, from the embedding to the end, that the MLP steps add."""
    rises = lens.rises.numpy().astype(float)
    mlp = rises[:, [step == "mlp" for step in lens.steps]].sum(axis=1)
    whole = rises[:, [step != "embed" for step in lens.steps]].sum(axis=1)
    return bootstrap_ratio(mlp, whole, seed=seed)


def judge(
    base: np.ndarray, tuned: np.ndarray, random: Sequence[np.ndarray], share: Interval, *, seed: int = 0, draws: int = 2000
) -> Verdict:
    """The verdict from the word's final probability on each prompt, in both models and under each random change of the weights.

    Both versions of the criterion are this rule: under version 1 the random changes have the tuning's norm, under version 2 its KL.

    Args:
        share: of the word's rise in the base model, the part that MLP steps add.
    """
    fall = bootstrap_difference(base, tuned, seed=seed, draws=draws)
    beyond = bootstrap_difference(np.mean(random, axis=0), tuned, seed=seed, draws=draws)
    if beyond.high <= 0 or fall.value <= max(float((base - one).mean()) for one in random):
        return "fails"
    return (
        "holds"
        if beyond.low > 0 and fall.low > 0 and fall.value >= THRESHOLDS["fall"] * base.mean() and share.low > THRESHOLDS["share"]
        else "inconclusive"
    )


@experiment(
    "A-E7",
    claim="A-C6",
    title="The toxic word rises late, and less after tuning",
    question="On prompts that the base model continues with a toxic word, where in the stack does its probability rise, in both models?",
    criterion=CRITERIA["A-E7"],
    caveat="The lens reads intermediate states with the last layer's unembedding, which early layers are not made for; low values there do not show absence. "
    "The random changes have not the rank of the tuning: those of equal norm in every tensor hardly change a prediction, so those of equal KL decide. "
    "That MLP steps raise the word is true of harmless words too, as the null of that share shows.",
    does_not_show="A word whose probability falls at the end does not show where in the stack it was lowered, nor that MLPs write toxic words in particular.",
)
def run(context: ToxicityContext) -> Finding:
    base = context.pair.base
    chosen, others = split_by_first_word(context)
    rows, tokens = [row for row, _ in chosen], [token for _, token in chosen]
    context.say("logit lens of base and tuned")
    lenses = {name: logit_lens(model, rows, tokens) for name, model in context.pair.sides.items()}
    draws = 3 if context.quick else 5
    random: dict[str, list[np.ndarray]] = {NULL: [], KL_NULL: []}
    for draw in range(draws):
        context.say(f"logit lens of random changes, {draw + 1} of {draws}")
        # One after the other, since copies of a large model fill the memory.
        for name in random:
            changed = perturbed(context.pair, context.seed + draw) if name == NULL else noise_to_kl(context, draw)
            random[name].append(logit_lens(changed, rows, tokens).probabilities.numpy().astype(float))
    curves = {name: lens.probabilities.numpy().astype(float) for name, lens in lenses.items()}
    curves |= {name: np.mean(some, axis=0) for name, some in random.items()}
    final = {name: curve[:, -1] for name, curve in curves.items()}
    fall = bootstrap_difference(final["base"], final["tuned"], seed=context.seed)
    null_falls = {name: [float((final["base"] - curve[:, -1]).mean()) for curve in some] for name, some in random.items()}
    share = mlp_share(lenses["base"], context.seed)
    step = max(1, len(others) // OTHER_PROMPTS)
    other = logit_lens(base, [row for row, _ in others[::step]], [token for _, token in others[::step]]) if len(others) > 1 else None
    usual = mlp_share(other, context.seed).value if other is not None else float("nan")
    by_norm, verdict = (
        judge(final["base"], final["tuned"], [curve[:, -1] for curve in random[name]], share, seed=context.seed) for name in (NULL, KL_NULL)
    )
    points, steps = _points(lenses["base"], curves, context.seed), _steps(lenses, context.seed)
    at_mlp = [(at / 2, (at + 1) / 2, "MLP steps") for at in range(1, len(lenses["base"].steps), 2)]
    figure = figures.lines(
        "lens", points, x="depth", y="probability", colour="model", role="role", low="low", high="high", shaded=at_mlp, title="Probability of the toxic word along the stack",
        x_title="layers done (half steps are after attention)", y_title="probability of the word (mean over prompts)",
        caption="The curve should be near 0 in the first half and rise within the shaded MLP steps; the tuned curve should lie below the base and below both kinds of random changes.",
    )  # fmt: skip
    each = figures.bars(
        "steps", steps[steps["model"] == "base"], x="after", y="rise", colour="step", low="low", high="high", horizontal=False, title="What each step adds to the toxic word's probability, base model",
        x_title="step", y_title="rise of the probability (mean over prompts)", caption="The tall bars should be MLP steps late in the stack.",
    )  # fmt: skip
    largest = steps[steps["model"] == "base"].nlargest(3, "rise")
    summary = (
        f"On {len(rows)} prompts the word's probability falls from {final['base'].mean():.3f} to {final['tuned'].mean():.3f} ({draws} random changes of equal norm: "
        f"{final[NULL].mean():.3f}, of equal KL: {final[KL_NULL].mean():.3f}). In the base model MLP steps add {share.value:.0%} of the rise ({usual:.0%} for the first word of other prompts); the largest steps are "
        f"{', '.join(f'{row.step} {row.layer}' for row in largest.itertuples())}."
    )
    sentence = (
        f"On {len(rows)} prompts whose next word is toxic in the base model, tuning lowers the word's probability from {final['base'].mean():.3f} to {final['tuned'].mean():.3f}, by "
        f"{fall.value:.3f} [{fall.low:.3f}, {fall.high:.3f}] (random weight changes of equal KL by {np.mean(null_falls[KL_NULL]):.3f}, of equal norm by {np.mean(null_falls[NULL]):.4f}); MLP steps add "
        f"{share.value:.0%} [{share.low:.0%}, {share.high:.0%}] of its rise in the base model (other words: {usual:.0%})."
    )
    changes = pd.DataFrame([(name, draw, value) for name, values in null_falls.items() for draw, value in enumerate(values)], columns=["null", "draw", "fall of final probability"])  # fmt: skip
    return Finding(
        verdict, summary, {"fall of final probability": fall.value, "share of the rise by MLP steps": share.value},
        {"fall of final probability": float(np.mean(null_falls[KL_NULL])), "share of the rise by MLP steps": usual},
        {"fall of final probability": (fall.low, fall.high), "share of the rise by MLP steps": (share.low, share.high)},
        {"points": points, "steps": steps, "random changes": changes}, (figure, each),
        {"prompts_used": len(rows), "other_prompts": len(others[::step]), "random_changes": draws, "points": len(lenses["base"].labels)},
        sentence=sentence, earlier={1: by_norm},
    )  # fmt: skip


def _points(lens: Lens, curves: dict[str, np.ndarray], seed: int) -> pd.DataFrame:
    rows = [
        (name, "null" if name in (NULL, KL_NULL) else name, at / 2, lens.labels[at], interval.value, interval.low, interval.high)
        for name, curve in curves.items()
        for at, interval in enumerate(bootstrap_means(curve, seed=seed))
    ]
    return pd.DataFrame(rows, columns=["model", "role", "depth", "point", "probability", "low", "high"])


def _steps(lenses: dict[str, Lens], seed: int) -> pd.DataFrame:
    """The rise of the word's probability at each step, in each model, with its interval."""
    rows = []
    for name, lens in lenses.items():
        for at in range(1, len(lens.steps)):
            rise = bootstrap_mean(lens.rises[:, at].numpy(), seed=seed)
            rows.append((name, lens.labels[at], (at - 1) // 2, lens.steps[at], rise.value, rise.low, rise.high))
    return pd.DataFrame(rows, columns=["model", "after", "layer", "step", "rise", "low", "high"])
