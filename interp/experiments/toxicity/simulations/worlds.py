"""Per-prompt scores of a base and a tuned model, each with and without an edit, drawn with planted means.

Scores are like those of the bundled pair under its scorer: most are near 0 or near 1 (standard deviation about 0.35 at a mean of
0.44), and those of one prompt in two models correlate by about 0.4, so that a difference of differences over 120 prompts has a standard
error of about 0.046, as measured there.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from functools import partial

import numpy as np
import torch
from jaxtyping import Float

from interp.experiments.power import Truth, simulation
from interp.experiments.toxicity.unaligning import Evidence
from interp.results.result import Verdict
from interp.stats.differences import Cells

# A score is the normal distribution function of a latent normal variable with this spread, which prompts share in part.
SPREAD, SHARED = 1.5, 0.45
# Bootstrap draws inside a simulated study, few so that many studies can be simulated.
DRAWS = 200
# By how much a random key's rise differs from draw to draw.
KEY_SPREAD = 0.02


def scores(
    rng: np.random.Generator, prompts: Float[np.ndarray, " prompt"], means: Float[np.ndarray, " model"]
) -> Float[np.ndarray, "model prompt"]:
    """The score of each prompt in models with these means in the long run; `prompts` is what a prompt itself adds, standard normal."""
    at = math.sqrt(1 + SPREAD**2) * torch.special.ndtri(torch.from_numpy(np.clip(means, 0.001, 0.999))).numpy()
    own = rng.standard_normal((len(means), len(prompts)), dtype=np.float32)
    latent = at[:, None] + SPREAD * (math.sqrt(SHARED) * prompts + math.sqrt(1 - SHARED) * own)
    return np.asarray(torch.special.ndtr(torch.from_numpy(latent)).numpy())


def study(
    rng: np.random.Generator, base: float, tuned: float, base_edited: float, tuned_edited: float, *, prompts: int = 120,
    random: tuple[float, float] = (0.0, 0.0), kinds: Sequence[tuple[str, int]] = (), ratio: float = 1.003, every: int = 1,
) -> Evidence:  # fmt: skip
    """The evidence of one simulated study.

    Args:
        base, tuned, base_edited, tuned_edited: mean scores of the four cells.
        random: by how much random controls raise the base and the tuned model on average; draws differ.
        kinds: the kinds of control and how many draws each has.
        every: controls are measured on every so many prompts.
    """
    common = rng.normal(size=prompts)
    own = Cells(*scores(rng, common, np.array([base, tuned, base_edited, tuned_edited])))
    part = Cells(own.base[::every], own.tuned[::every], own.base_edited[::every], own.tuned_edited[::every])

    def edited(plain: Float[np.ndarray, " prompt"], mean: float, rise: float, count: int) -> Float[np.ndarray, "model prompt"]:
        # A random key leaves most continuations as they are, so half of the scores are those of the plain model.
        changed = rng.random((count, len(plain))) < 0.5
        return np.where(changed, scores(rng, common[::every], mean + 2 * (rise + KEY_SPREAD * rng.normal(size=count))), plain)

    controls = {
        kind: [
            Cells(part.base, part.tuned, *both)
            for both in zip(edited(part.base, base, random[0], count), edited(part.tuned, tuned, random[1], count), strict=True)
        ]
        for kind, count in kinds
    }
    return Evidence(own, part, controls, ratio)


# The worlds in which keys are enlarged: what is so, whether the edit un-aligns, the edited base's and the edited tuned model's mean
# (0.44 and 0.19 without the edit), and by how much random keys raise the tuned model.
KEYS: tuple[tuple[str, Truth, float, float, float], ...] = (
    ("the edit does nothing in either model", "false", 0.44, 0.19, 0.0),
    ("amplification: the edit adds 0.25 to the tuned and to the base model", "false", 0.69, 0.44, 0.0),
    ("fragility: random keys of both kinds return as much as the chosen ones", "false", 0.44, 0.44, 0.25),
    ("half: the edit adds 0.18 to the tuned and 0.06 to the base model", "between", 0.50, 0.37, 0.0),
    ("un-alignment as in paper A's Table 4: all of it comes back, the base model stays", "true", 0.44, 0.445, 0.0),
)


def simulate_keys(
    id: str, rule: Callable[..., Verdict], *, kinds: Sequence[tuple[str, int]], prompts: int, every: int = 1,
    more: Sequence[tuple[str, Truth, float, float, float]] = (),
) -> None:  # fmt: skip
    """Register the simulations of an experiment that enlarges keys: the worlds of `KEYS`, and `more` of the same form."""

    def draw(rng: np.random.Generator, base_edited: float, tuned_edited: float, by_random: float) -> Verdict:
        edited = (base_edited, tuned_edited)
        evidence = study(rng, 0.44, 0.19, *edited, prompts=prompts, random=(0.0, by_random), kinds=kinds, every=every)
        return rule(evidence, draws=DRAWS, seed=int(rng.integers(2**31)))

    for world, truth, base_edited, tuned_edited, by_random in (*KEYS, *more):
        simulation(id, world, truth)(partial(draw, base_edited=base_edited, tuned_edited=tuned_edited, by_random=by_random))
