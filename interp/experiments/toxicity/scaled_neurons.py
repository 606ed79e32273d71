"""Neurons of the base model whose activations are multiplied by a factor, as ways without training (W-E1).

Each row is named by what its factor does: ×0 switches neurons off, ×0.5 halves them, a negative factor inverts them. Inverting
subtracts what the neurons write several times over, so it says nothing of what happens without them.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

from interp.edits.edit import Edit
from interp.experiments.toxicity import shared
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.together import continue_together
from interp.models.model import Neuron, by_layer
from interp.stats.nulls import activity_matched, random_neurons
from interp.steering.strength import effect_of

NEURONS = 16
FACTORS = (0.0, 0.5)
# The factor that is matched in perplexity lies between 1 and 1 - MOST.
MOST = 4.0


def scaled(neurons: Sequence[Neuron], factor: float | int) -> tuple[Edit, ...]:
    """Edits that multiply the activations of these neurons by `factor`."""
    return tuple(Edit.scale(f"mlp_post.{layer}", factor, indices) for layer, indices in sorted(by_layer(neurons).items()))


def factor_at(context: ToxicityContext, neurons: Sequence[Neuron], goal: float) -> float:
    """The factor below 1 at which the base model's loss on the passages is `goal`; 1 - `MOST` where the loss is still below it there."""

    def make(strength: float) -> tuple[Edit, ...]:
        return scaled(neurons, 1 - strength)

    return 1 - shared.match_edits(context, context.pair.base, make, goal, most=MOST, first=1.0).strength


def neuron_rows(context: ToxicityContext, held_out: ToxicityContext, goal: float) -> tuple[list[dict[str, Any]], list[dict[str, Any]]]:
    """The rows of the toxic neurons switched off, halved, and scaled by the factor matched in perplexity, and their controls' rows.

    The strength of a row is its factor. The first row is the one that is matched in perplexity. Its controls are random neurons of
    the same layers at a factor of their own with the same perplexity, and, as for every row, neurons of the same layers that are as
    active and write as strongly, at the same factor; "null" names that control in each row.
    """
    base, toxic = context.pair.base, context.ranking.neurons[:NEURONS]
    context.say("factor of the toxic neurons at the same perplexity")
    matched = factor_at(held_out, toxic, goal)
    states = context.mean_states(base)
    activity = {layer: states[f"mlp_post.{layer}"].double().mean(dim=0) for layer, _ in toxic}
    active = activity_matched(base, toxic, activity, seed=context.seed, exclude=context.ranking.neurons)
    continue_together(held_out, base, [scaled(neurons, factor) for factor in (matched, *FACTORS) for neurons in (toxic, active)])
    ways: list[dict[str, Any]] = []
    controls: list[dict[str, Any]] = []
    for factor in (matched, *FACTORS):
        kind, name = "way" if factor == matched else "way, not matched", effect_of(factor)
        control = f"base with equally active neurons {name} (null)"
        rows = ((ways, f"base with {len(toxic)} toxic neurons {name}", toxic, kind), (controls, control, active, "null"))
        for some, label, neurons, what in rows:
            context.say(label)
            edits = scaled(neurons, factor)
            row = shared.row_of(held_out, label, base, edits, kind=what, strength=factor)
            some.append(row | {"_second": held_out.second_toxicity(base, edits)})
        ways[-1]["null"] = control
    others = random_neurons(base, toxic, seed=context.seed, exclude=context.ranking.neurons)
    context.say("factor of random neurons at the same perplexity")
    factor = factor_at(held_out, others, goal)
    name = f"base with random neurons {effect_of(factor)} (null)"
    return ways, [*controls, shared.row_of(held_out, name, base, scaled(others, factor), kind="null", strength=factor)]
