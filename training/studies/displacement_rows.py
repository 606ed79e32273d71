"""One run of the study of displacement as a row of numbers: a few points of each curve, and what is read off all of its steps."""

from __future__ import annotations

from typing import Any

from interp.data.lexicon import mask
from interp.preferences.mass import SETS, TokenSets, argmax_mass, displacement, largest_gains, mass_by_set
from training.single_token import Curve

POINTS = (0, 1, 2, 3, 5, 10, 25, 50, 75, 100)
GAINS_AT, TOP = (5, 25, 100), 3
DIGITS = 5


def row_of(curve: Curve, sets: TokenSets, tokenizer: Any) -> dict[str, Any]:
    """The row of a run.

    `mass` has the probability of each set at `steps`; `preferred` its displacement over all steps, `log_change` that of its logarithm;
    `rise` is by how much each set rises above its start at its highest, `integral` its mean over all steps; `gaining` the tokens that
    have gained most since the start, apart from those of the pair's own two; `argmax` the most probable token at the start other than
    these two, with its mass at `steps`.
    """
    last = len(curve.losses) - 1
    steps = [step for step in POINTS if step <= last]
    steps += [last] if last not in steps else []
    masses = {name: values.numpy() for name, values in mass_by_set(curve.log_probs, sets).items()}
    pair = (*sets.preferred, *sets.dispreferred)
    first = argmax_mass(curve.log_probs, without=pair)
    # Of the log-probabilities: a probability that has fallen to 0 by rounding still has a logarithm.
    logs = curve.log_probs[:, list(sets.preferred)].double().logsumexp(dim=1).numpy()
    moved, logged = displacement(masses["preferred"]), displacement(logs)
    gaining = {
        str(step): [
            [mask(tokenizer.decode([token])), rounded(rise)]
            for token, rise in largest_gains(curve.log_probs[0], curve.log_probs[step], TOP, without=pair)
        ]
        for step in GAINS_AT
        if step <= last
    }
    return {
        "falls": curve.falls, "steps": steps, "loss": [rounded(curve.losses[step]) for step in steps],
        "mass": {name: [rounded(masses[name][step]) for step in steps] for name in SETS},
        "preferred": {name: rounded(value) for name, value in vars(moved).items()}, "log_change": rounded(logged.change),
        "rise": {name: rounded(values.max() - values[0]) for name, values in masses.items()},
        "integral": {name: rounded(values.mean()) for name, values in masses.items()},
        "argmax": {"token": mask(tokenizer.decode([first.token])), "mass": [rounded(first.masses[step]) for step in steps]},
        "entanglement": {str(step): rounded(value) for step, value in curve.entanglement.items()}, "gaining": gaining,
    }  # fmt: skip


def rounded(value: Any) -> float:
    """A number to five significant digits, as it is written."""
    return float(f"{float(value):.{DIGITS}g}")


def shortened(value: Any) -> Any:
    """The same JSON value with five significant digits in every fraction."""
    if isinstance(value, dict):
        return {name: shortened(item) for name, item in value.items()}
    if isinstance(value, list):
        return [shortened(item) for item in value]
    return rounded(value) if isinstance(value, float) else value
