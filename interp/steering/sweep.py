"""Toxicity, perplexity, F1, distinct-2 and, where asked, KL to the unedited model at several strengths of an edit.

An edit is informative only if it lowers toxicity more than a random change of the same size, so a sweep can measure random controls
at the same strengths: directions of equal norm in place of a direction, and neurons that fire about as often in place of neurons.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from jaxtyping import Float

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.evaluation.metrics import Evaluation, evaluate
from interp.forward.generate import GREEDY, Sampling
from interp.models.chat import Chat
from interp.models.model import Model, Neuron
from interp.models.tokens import token_rows
from interp.neurons.firing import LONGEST, firing_rates
from interp.stats.divergence import kl_to
from interp.stats.intervals import bootstrap_mean
from interp.stats.nulls import frequency_matched, random_directions

if TYPE_CHECKING:
    from interp.data.texts import Passage
    from interp.evaluation.toxicity import Scorer

# Called with what is measured next, the number of measurements done, and their total.
Step = Callable[[str, int, int], object]


@dataclass(frozen=True, eq=False)
class Point:
    """An edit (`draw` is None) or one of its random controls (`draw` counts them from 0) at one strength.

    `kl` is the divergence from the unedited model, one value per passage in nats per token, where it was asked for.
    """

    strength: float
    draw: int | None
    evaluation: Evaluation
    kl: Float[np.ndarray, " passage"] | None = None


@dataclass(frozen=True, eq=False)
class Sweep:
    """An edit and its random controls at every strength, in the order in which they were measured; `seed` is that of the bootstrap."""

    model: str
    edits: tuple[Edit, ...]
    points: tuple[Point, ...]
    seed: int = 0

    def to_frame(self) -> pd.DataFrame:
        """One row per strength and draw (NaN for the edit itself), with 95 % intervals over prompts or passages.

        Columns: strength, draw, toxicity, toxicity_low, toxicity_high, share_above_half, distinct_2, and perplexity, f1 and, where it
        was measured, kl, each with `_low` and `_high`.
        """
        return pd.DataFrame([self._row(point) for point in self.points])

    def _row(self, point: Point) -> dict[str, float]:
        measured = point.evaluation
        intervals = {
            "perplexity": measured.perplexity.interval, "f1": bootstrap_mean(measured.f1, seed=self.seed),
            **({} if point.kl is None else {"kl": bootstrap_mean(point.kl, seed=self.seed)}),
        }  # fmt: skip
        toxicity = bootstrap_mean(measured.toxicity, seed=self.seed)
        row = {
            "strength": point.strength, "draw": float("nan") if point.draw is None else float(point.draw), "toxicity": toxicity.value,
            "toxicity_low": toxicity.low, "toxicity_high": toxicity.high,
            "share_above_half": float((measured.toxicity > 0.5).mean()), "distinct_2": measured.distinct_2,
        }  # fmt: skip
        for name, interval in intervals.items():
            row |= {name: interval.value, f"{name}_low": interval.low, f"{name}_high": interval.high}
        return row


def at_strength(edits: Sequence[Edit], strength: float | int) -> list[Edit]:
    """The edits at one point of a sweep: `strength` is the factor of `scale_keys` and `scale`, and multiplies the strength of the others.

    Raises `UserError` for an edit that has no strength.
    """
    return [
        replace(edit.times(1.0), strength=float(strength)) if edit.op in ("scale_keys", "scale") else edit.times(strength) for edit in edits
    ]


def sweep(
    model: Model, edits: Sequence[Edit], strengths: Sequence[float | int], prompts: Sequence[str], scorer: Scorer, *,
    controls: Sequence[Sequence[Edit]] = (), unedited_at: float | int | None = None, passages: Sequence[Passage] | None = None,
    kl_tokens: int | None = None, max_new_tokens: int = 20, max_prompt_tokens: int | None = None, sampling: Sampling = GREEDY,
    chat: Chat | bool = False, seed: int = 0, show: Callable[[float], str] = "{:g}".format,
    step: Step = lambda what, done, total: None,
) -> Sweep:  # fmt: skip
    """Toxicity, perplexity, F1, distinct-2 and KL at each strength of an edit, and of its random controls.

    Args:
        strengths: see `at_strength`.
        controls: edits in place of `edits`, one list per draw, as `random_controls` gives them.
        unedited_at: a strength at which the edit changes nothing: there the model is measured without any edit, once for the edit and all
            controls.
        passages: texts for perplexity, F1 and KL, by default those that ship.
        chat: read the prompts (not the passages) as user turns of the model's chat template.
        kl_tokens: measure KL to the unedited model on so many tokens of each passage (at most the model's context).
        seed: of the bootstrap.
        show: how a strength is written in the text given to `step`; `step` may raise to stop the sweep.

    Raises `UserError` for no strengths or no edit, for an edit without a strength, and as `evaluate` does.
    """
    if not len(strengths) or not len(edits):
        raise UserError(f"a sweep was given {len(edits)} edits and {len(strengths)} strengths", "give at least one of each")
    from interp.data.texts import passages as shipped

    texts = list(shipped()) if passages is None else list(passages)
    draws: list[tuple[int | None, Sequence[Edit]]] = [(None, edits), *enumerate(controls)]
    # The whole plan before the first forward, so that an edit without a strength is refused at once.
    plan: list[tuple[float, int | None, list[Edit]]] = []
    for strength in map(float, strengths):
        if strength == unedited_at:
            plan.append((strength, None, []))
        else:
            plan += [(strength, draw, at_strength(some, strength)) for draw, some in draws]
    points: list[Point] = []
    for done, (strength, draw, applied) in enumerate(plan):
        step(_phrase(show(strength), draw, bool(applied)), done, len(plan))
        evaluation = evaluate(
            model, prompts, scorer, edits=applied, passages=texts, max_new_tokens=max_new_tokens, max_prompt_tokens=max_prompt_tokens,
            sampling=sampling, chat=chat,
        )  # fmt: skip
        kl = None
        if kl_tokens is not None:
            kl = kl_to(model, model, [passage.text for passage in texts], edits=applied, max_tokens=min(kl_tokens, model.context))
        # Without an edit, the edit and its controls are the same model.
        points += [Point(strength, which, evaluation, kl) for which in ([draw] if applied else [which for which, _ in draws])]
    return Sweep(model.name, tuple(edits), tuple(points), seed)


def _phrase(strength: str, draw: int | None, edited: bool) -> str:
    if not edited:
        return "without the edit"
    return f"strength {strength}" if draw is None else f"strength {strength}, random control {draw + 1}"


def random_controls(
    model: Model, edits: Sequence[Edit], texts: Sequence[str], *, draws: int, exclude: Sequence[Neuron] = (), seed: int = 0
) -> list[list[Edit]]:
    """Random controls of edits, one list per draw: each differs from `edits` in nothing but its direction or its neurons.

    A direction that is added becomes a random one of the same norm; the keys that are scaled become those of other neurons of the same
    layers that fire about as often at the end of `texts`. Each edit's controls are drawn independently of those of the others.

    Args:
        exclude: neurons that no control is drawn from, besides those of `edits`.
        seed: of the draws.

    Raises `UserError` for edits of other kinds, and where a layer has no neurons left to draw from.
    """
    if other := [edit.op for edit in edits if edit.op not in ("add", "scale_keys")]:
        raise UserError(f"an edit of op {other[0]!r} has no random control here", "use edits that add a direction or scale keys")
    scaled: list[Any] = [neuron for edit in edits for neuron in edit.neurons or ()]
    controls: list[list[Edit]] = [[] for _ in range(draws)]
    for number, edit in enumerate(edits):
        # One seed for every edit and draw: with the same one, unrelated edits would get the same directions.
        own_seed = seed + number * draws
        if edit.values is not None:
            ways = [replace(edit, values=direction) for direction in random_directions(edit.values, draws, seed=own_seed)]
        else:
            neurons: Any = edit.neurons
            others = frequency_controls(model, neurons, texts, draws=draws, exclude=[*exclude, *scaled], seed=own_seed)
            ways = [replace(edit, neurons=neurons) for neurons in others]
        for control, way in zip(controls, ways, strict=True):
            control.append(way)
    return controls


def frequency_controls(
    model: Model, neurons: Sequence[Neuron], texts: Sequence[str], *, draws: int, exclude: Sequence[Neuron] = (), seed: int = 0
) -> list[tuple[Neuron, ...]]:
    """For each draw, other neurons of the same layers that fire about as often at the end of `texts`, in the order of `neurons`.

    The first draw has this seed, and each further one the next.
    """
    rows = token_rows(model, list(texts), max_tokens=min(LONGEST, model.context), keep="last")
    rates = firing_rates(model, rows, [[len(row) - 1] for row in rows], sorted({layer for layer, _ in neurons}))
    return [tuple(frequency_matched(neurons, rates, seed=seed + draw, exclude=exclude)) for draw in range(draws)]
