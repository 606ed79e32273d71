"""Simulated studies for X-C1 and X-C2, which have one rule: toxicity of 120 prompts in both models and under edits, planted.

Scores have two humps, as those of the bundled scorer, with means of 0.44 in the base and 0.20 in the tuned model. An edit that closes a
share of the gap makes that share of the prompts continue as the other side does, and of the others it changes three in ten.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import numpy as np

from interp.experiments.power import simulation
from interp.experiments.toxicity.criteria import CRITERIA
from interp.experiments.toxicity.x_c1_offset import judge
from interp.results.result import Verdict
from interp.stats.intervals import Interval, bootstrap_ratio

PROMPTS, DRAWS = 120, 300
BASE, TUNED = (0.35, 0.45), (0.25, 1.0)
CHANGED = 0.3


def shares_of(
    generator: np.random.Generator, truths: Sequence[float], controls: Sequence[float], *, back: bool = False
) -> tuple[list[Interval], list[float]]:  # fmt: skip
    """The measured shares of edits that truly close these shares of the gap, and those of controls, all on the same prompts.

    Args:
        back: from the tuned model's toxicity to the base model's, as in X-C2.
    """
    sides = {side: generator.beta(*side, PROMPTS) for side in (BASE, TUNED)}
    start, goal = (TUNED, BASE) if back else (BASE, TUNED)
    every = np.array([*truths, *controls])[:, None]
    shape = (len(every), PROMPTS)
    stays = np.where(generator.random(shape) < CHANGED, generator.beta(*start, shape), sides[start])
    closed = sides[start] - np.where(generator.random(shape) < every, generator.beta(*goal, shape), stays)
    gap = sides[start] - sides[goal]
    seed = int(generator.integers(2**31))
    shares = [bootstrap_ratio(row, gap, draws=DRAWS, seed=seed) for row in closed[: len(truths)]]
    return shares, [float(row.mean() / gap.mean()) for row in closed[len(truths) :]]


def study(
    truth: float, trained: Sequence[float], *, untrained: float = 0.0, back: bool = False
) -> Callable[[np.random.Generator], Verdict]:
    """A study in which the offset closes `truth`, six permuted or random vectors `untrained`, and control runs' offsets `trained`."""
    thresholds: Mapping[str, float] = CRITERIA["X-C2" if back else "X-C1"][-1].thresholds

    def draw(generator: np.random.Generator) -> Verdict:
        (share,), controls = shares_of(generator, [truth], [*[untrained] * 6, *trained], back=back)
        return judge(share, controls, bool(trained), 1.02, thresholds)

    return draw


def register(id: str, *, back: bool) -> None:
    """Register the worlds of one of the two experiments; the largest share is what the pair that ships shows."""
    most = 0.65 if back else 0.8
    simulation(id, f"no effect: no vector closes any of the gap; {PROMPTS} prompts", "false")(study(0.0, [0.0] * 4, back=back))
    simulation(id, f"any training's offset closes {most:.0%}: that of labels of a coin too", "false")(
        study(most, [most, most, 0.0, most], back=back)
    )
    simulation(id, f"any vector of its length closes {most:.0%}", "false")(study(most, [most] * 4, untrained=most, back=back))
    simulation(id, "the offset closes 30 %, less than half", "false")(study(0.3, [0.0, 0.0, 0.1, 0.1], back=back))
    simulation(id, f"the offset closes {most:.0%}, that of the chosen sides alone 20 %, other controls nothing", "true")(
        study(most, [0.0, 0.0, 0.0, 0.2], back=back)
    )
    simulation(id, f"the offset closes {most:.0%}, and no control run was logged", "between")(study(most, [], back=back))


register("X-C1", back=False)
register("X-C2", back=True)
