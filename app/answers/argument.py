"""The argument of the first page: five steps, each with a claim, its null, a figure, and a link to the page with more.

A step takes a result of a report or of the jobs of `app.answers.start`; while these run there is none, and it has its claim alone.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import pandas as pd

from app.answers.summary import Measured
from interp.errors import UserError
from interp.models.sites import layer_of
from interp.results import figures
from interp.results.result import Figure, Result, effect_of, figure_of, rows_of
from interp.steering.unalign import FACTOR, KEYS

HEIGHT, TALL = 380, 420
VECTORS, TOKENS = 5, 4


@dataclass(frozen=True)
class Step:
    """One step; `chance` is empty and `figure` None until there is a result, `problem` is the error where there can be none."""

    title: str
    claim: str
    page: str
    label: str
    chance: str = ""
    figure: Figure | None = None
    problem: UserError | None = None
    height: int = HEIGHT


def steps(summary: Measured | None, results: Mapping[str, Result | UserError], compared: Step) -> list[Step]:
    """The five steps, in order; `compared` is the second. Words are raw here and masked when they are drawn."""
    return [
        _read(written, results.get("A-E2")), compared, _read(silenced, results.get("A-E9")), _read(shifted, results.get("A-E10")),
        brought_back(summary),
    ]  # fmt: skip


def _read(step: Callable[[Result | UserError | None], Step], result: Result | UserError | None) -> Step:
    """A step with its result. Where a report of an earlier version lacks something that the step reads, the step has a problem."""
    try:
        return step(result)
    except UserError as error:
        return step(error)


def written(result: Result | UserError | None) -> Step:
    """Step 1: the tokens that the value vectors nearest to the probe promote."""
    step = Step(
        "Value vectors write what is toxic",
        "Each neuron of an MLP writes one vector, its value. Those that point along a probe for toxicity promote hostile words",
        "vectors", "Look through the toxic vectors", height=TALL,
    )  # fmt: skip
    if not isinstance(result, Result):
        return replace(step, claim=f"{step.claim}.", problem=result)
    single, shared = rows_of(result, "vectors", "value"), rows_of(result, "vectors", "shared").iloc[0]
    share, (_, null) = float(single["share of toxic words"].mean()), effect_of(result, "share of toxic words")
    majority = int((single["share of toxic words"] > 0.5).sum())
    return replace(
        step,
        claim=f"{step.claim}: {share:.0%} of what the {len(single)} nearest promote is on a word list, and "
        f"{shared['share of toxic words']:.0%} of what the direction promotes that the nearest 128 share.",
        chance=f"Neurons of the same layers and norms: {null:.1%}. Hostile words are the majority in {majority} of the {len(single)}: "
        + ("in a small model one neuron does many jobs." if 2 * majority < len(single) else "most are plain to read."),
        figure=_words(single, shared, null),
    )  # fmt: skip


def _words(single: pd.DataFrame, shared: pd.Series, null: float) -> Figure:
    named = [("all 128", shared["top tokens"], shared["share of toxic words"])]
    columns = ["vector", "top tokens", "share of toxic words"]
    named += list(single.head(VECTORS)[columns].itertuples(index=False, name=None))
    kind = "base model's value vectors"
    rows = [(f"{name}: {' · '.join(str(words).split(' · ')[:TOKENS])}", float(share), kind, "base") for name, words, share in named]
    frame = pd.DataFrame([*rows, ("other neurons", null, "matched neurons (null)", "null")], columns=["writes", "share", "vectors", "role"])
    return sized(figures.bars(
        "words", frame, x="writes", y="share", colour="vectors", role="role", horizontal=True,
        title="What the nearest value vectors promote", x_title="",
        y_title="listed words among the top 10",
        caption="First the direction that the nearest 128 share, then single vectors. Bars longer than the grey one are more than chance.",
    ), TALL)  # fmt: skip


def in_place() -> Step:
    """Step 2, empty: `app.answers.left_in_place` computes it from the weights."""
    return Step("Tuning leaves them in place", "", "vectors", "Compare a neuron across the pair")


def silenced(result: Result | UserError | None) -> Step:
    """Step 3: how much less active the toxic neurons are after tuning."""
    step = Step(
        "But they are switched on less", "While challenge prompts are continued, the same neurons are less active in the tuned model",
        "bypass", "See which neurons fall silent",
    )  # fmt: skip
    if not isinstance(result, Result):
        return replace(step, claim=f"{step.claim}.", problem=result)
    (fall, null), (fallen, _) = effect_of(result, "mean fall"), effect_of(result, "neurons that fell")
    claim = f"{step.claim}: their mean activation falls by {fall:.3f}, in {fallen:.0f} of the 5 nearest for certain (95 %)."
    if fall <= 0:
        claim = f"While challenge prompts are continued, the same neurons do not become less active (their mean falls by {fall:.3f})."
    chance = f"In neurons of the same layers and norms that are as active it {'falls' if null >= 0 else 'rises'} by {abs(null):.3f}."
    return replace(step, claim=claim, chance=chance, figure=sized(figure_of(result, "activations")))


def shifted(result: Result | UserError | None) -> Step:
    """Step 4: how alike the shifts of the residual stream are over prompts."""
    step = Step(
        "Does the stream go round them?",
        "Tuning adds nearly the same small shift to the residual stream of every prompt",
        "bypass", "Walk through the layers",
    )  # fmt: skip
    if not isinstance(result, Result):
        return replace(step, claim=f"{step.claim}.", problem=result)
    cosine, null = effect_of(result, "mean pairwise cosine")
    layer = layer_of(str(result.settings["site"]))
    return replace(
        step, claim=f"{step.claim}: before the MLP of layer {layer} the shifts of two prompts have a mean cosine of {cosine:.2f}.",
        chance=_alike_by_chance(result, null),
        figure=sized(figure_of(result, "by-layer"), y_title="mean cosine of two shifts"),
    )  # fmt: skip


def _alike_by_chance(result: Result, null: float) -> str:
    """What the cosine is without this tuning: in control runs where they are logged, else under random changes of the weights."""
    table = result.tables.get("how alike, beside control runs")
    runs = None if table is None else table[table["kind"] == "control run"]
    if runs is None or runs.empty:
        return f"Random changes of the weights of equal size give {null:.2f}; no control run stands beside them."
    beside = ", ".join(f"{name} {value:.2f}" for name, value in zip(runs["shifts of"], runs["mean pairwise cosine"], strict=True))
    later = result.statistic.get("share of the fall through later blocks")
    acts = "" if later is None else f" What later blocks make of the shift brings {later:.0%} of the fall in toxicity."
    return f"Other training moves all prompts alike too: {beside}.{acts}"


def brought_back(summary: Measured | None) -> Step:
    """Step 5: how much toxicity enlarged toxic keys bring back to the tuned model, and how much they add to the base model."""
    claim = f"Multiply the keys of {KEYS} toxic neurons by {FACTOR:g}, so that they fire again, and the tuned model"
    step = Step(
        "Can it be brought back?",
        f"{claim} may talk like the base model again; so it is measured beside the base model with the same keys.",
        "steer",
        "Enlarge keys yourself",
        height=HEIGHT,
    )
    if summary is None:
        return step
    base, tuned, back, null = (summary.row(role)["toxicity"] for role in ("base", "tuned", "un-aligned", "null"))
    lost = base - tuned
    figure = figures.bars(
        "brought-back", summary.table, x="model", y="toxicity", role="role", low="low", high="high", horizontal=True, x_title="",
        title="Toxicity of challenge continuations", y_title="mean toxicity, 0 to 1",
        caption="Keys that undo tuning bring the tuned model back to the base's height and leave the base model there; keys that raise "
        "both models only amplify. Random keys should do neither. Whiskers: 95 %.",
    )  # fmt: skip
    if lost <= 0:
        return replace(
            step, claim=f"{claim} scores {back:.2f}; but on these prompts tuning lowered nothing that could come back.",
            chance=f"Random keys scaled alike: {null:.2f}.", figure=sized(figure),
        )  # fmt: skip
    both = summary.row("edited")["toxicity"]
    return replace(
        step,
        claim=f"{claim} goes from {tuned:.2f} to {back:.2f}. The same keys take the base model from {base:.2f} to {both:.2f}: of the "
        f"gap that tuning made, {(both - back) / lost:.0%} is left when both models have them.",
        chance=f"Random keys of the same layers that fire as often bring the tuned model to {null:.2f} ({summary.draws} draws).",
        figure=sized(figure),
    )  # fmt: skip


def sized(figure: Figure, height: int = HEIGHT, y_title: str | None = None) -> Figure:
    """The figure at another height, and with another title of the y axis."""
    layout = figure.spec.get("layout", {}) | {"height": height}
    if y_title is not None:
        layout["yaxis"] = layout.get("yaxis", {}) | {"title": {"text": y_title}}
    return replace(figure, spec=figure.spec | {"layout": layout})
