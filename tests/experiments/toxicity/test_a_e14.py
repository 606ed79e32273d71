"""The rule of A-E14: version 1 tossed a coin where nothing is so, and beta cancels under RMSprop until beta times margin is large."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from torch.nn.functional import logsigmoid

from interp.experiments.power import Simulation, rates
from interp.experiments.toxicity.a_e14_rule import compared, judge
from interp.experiments.toxicity.simulations.a_e14 import BASE, cannot_be_seen, runs, without_effect_by_version_1
from training.optimizers import preference_optimizer


def test_version_1_failed_in_half_of_the_studies_without_any_effect_and_the_new_rule_in_none_that_cannot_see_it() -> None:
    old = rates([Simulation("A-E14", "version 1", "false", without_effect_by_version_1)], draws=2000).iloc[0]
    assert old["fails"] == pytest.approx(0.52, abs=0.04)
    assert old["holds"] < 0.01
    new = rates([Simulation("A-E14", "beta cancels", "true", cannot_be_seen)], draws=50).iloc[0]
    assert new["inconclusive"] == 1.0


def change(optimizer: str, beta: float, steps: int, rate: float) -> tuple[torch.Tensor, float]:
    """The change of a linear policy by DPO on fixed pairs, with the optimizer that runs use, and its mean margin in nats."""
    generator = torch.Generator().manual_seed(0)
    pairs = torch.randn(steps, 8, 30, generator=generator) + 0.3
    weights = torch.nn.Parameter(torch.zeros(30))
    stepper = preference_optimizer(optimizer, [weights], rate)
    for batch in pairs:
        stepper.zero_grad()
        (-logsigmoid(beta * (batch @ weights)).mean()).backward()
        stepper.step()
    moved = weights.detach()
    return moved, float((pairs[-5:] @ moved).mean())


@pytest.mark.oracle
def test_beta_cancels_under_rmsprop_while_beta_times_margin_is_small_and_not_beyond() -> None:
    low, margin = change("rmsprop", 0.001, 40, 0.005)
    same, _ = change("rmsprop", 0.01, 40, 0.005)
    assert 0.01 * margin < 0.1
    assert torch.cosine_similarity(low, same, dim=0) > 0.999
    assert float(same.norm() / low.norm()) == pytest.approx(1, abs=0.02)
    strong, held_back = change("rmsprop", 10.0, 40, 0.005)
    assert 10 * held_back > 2
    assert float(strong.norm() / low.norm()) < 0.9
    # Under SGD beta is a factor of the learning rate, which a run that is stopped at equal toxicity undoes.
    slow, fast = (change("sgd", beta, 40, 0.005)[0] for beta in (0.001, 0.01))
    assert float(fast.norm() / slow.norm()) == pytest.approx(10, rel=0.02)


def test_each_strength_is_compared_with_the_weakest_and_the_level_is_corrected() -> None:
    table = runs(np.random.default_rng(0), 0.7, 1.3)
    both = compared(table, BASE)
    assert [one.betas for one in both] == [(0.02, 1.0), (0.02, 4.0)]
    (alone,) = compared([run for run in table if run["beta"] != 1.0], BASE)
    assert alone.size.high - alone.size.low < both[1].size.high - both[1].size.low
    assert alone.found[0] < both[1].found[0]
    assert judge(both) == "holds"
    assert judge([]) == "inconclusive"
