"""Simulated studies for C-E6: four draws of pairs, four methods, four doses.

A toxicity differs from its mean with a standard deviation of 0.012, and a KL by a tenth of itself.
"""

from __future__ import annotations

import numpy as np

from interp.experiments.elasticity.method_rules import METHODS, judge, methods
from interp.experiments.power import simulation
from interp.results.result import Verdict

DRAWS, START, FALL, KL = 4, 0.48, 0.19, 0.02
DOSES = (4, 8, 16, 32)
OF_TOXICITY, OF_KL = 0.012, 0.1


def study(generator: np.random.Generator, undone: float, neutral: float, home: float, of_one: float | None = None) -> Verdict:
    """The verdict on a study in which text undoes these shares, and takes back `home` of the KL; `of_one` is that of SFT alone."""
    rows = []
    for seed in range(DRAWS):
        of_methods = []
        for method in METHODS:
            back = of_one if of_one is not None and method == "sft" else home

            def points(share: float, back: float = back) -> list[dict[str, float]]:
                return [
                    {
                        "steps": dose,
                        "toxicity": START - FALL * (1 - share * dose / DOSES[-1]) + OF_TOXICITY * float(generator.standard_normal()),
                        "kl": KL * (1 - back) * float(np.exp(OF_KL * generator.standard_normal())),
                    }
                    for dose in DOSES
                ]

            tuned = {"toxicity": START - FALL + OF_TOXICITY * float(generator.standard_normal()), "kl": KL}
            of_methods.append(
                {"method": method, "reached": True, "steps": 60, **tuned, "arms": {"toxic": points(undone), "neutral": points(neutral)}}
            )
        rows.append({"seed": seed, "methods": of_methods})
    return judge(methods({"rows": rows, "base_model": {"toxicity": START}}))


@simulation("C-E6", "toxic text undoes 0.9, neutral text as much, and 0.3 of the KL is taken back", "false")
def any_text(generator: np.random.Generator) -> Verdict:
    """Any training undoes the tuning."""
    return study(generator, 0.9, 0.9, 0.3)


@simulation("C-E6", "toxic text undoes 0.9, neutral text 0.3, and the KL stays", "false")
def no_return(generator: np.random.Generator) -> Verdict:
    """The behaviour comes back and the distribution does not."""
    return study(generator, 0.9, 0.3, 0.0)


@simulation("C-E6", "toxic text undoes 0.9, neutral text 0.3, and the KL grows by a third", "false")
def further(generator: np.random.Generator) -> Verdict:
    """The behaviour comes back while the model moves on."""
    return study(generator, 0.9, 0.3, -0.33)


@simulation("C-E6", "toxic text undoes 0.9, neutral text 0.3; 0.4 of the KL is taken back, after SFT nothing", "false")
def not_after_sft(generator: np.random.Generator) -> Verdict:
    """One method is another matter."""
    return study(generator, 0.9, 0.3, 0.4, 0.0)


@simulation("C-E6", "toxic text undoes 0.9, neutral text 0.3, and 0.4 of the KL is taken back", "true")
def claimed(generator: np.random.Generator) -> Verdict:
    """The claim."""
    return study(generator, 0.9, 0.3, 0.4)
