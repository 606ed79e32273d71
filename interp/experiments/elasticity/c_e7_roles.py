"""C-E7: C-E2 with the roles swapped, negative reviews first."""

from __future__ import annotations

from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.criteria import CRITERIA
from interp.experiments.elasticity.rebound_rules import C_E7
from interp.experiments.elasticity.rebound_words import finding_of
from interp.experiments.registry import Finding, experiment


@experiment(
    "C-E7",
    claim="C-C6",
    title="The same with the roles swapped",
    question="Does a model that was tuned on negative reviews go back to its base under positive ones, and the faster the more negative ones there were?",
    criterion=CRITERIA["C-E7"],
    caveat="One swap of roles, by supervised tuning; the paper's other methods (PPO, DPO, KTO, SimPO) are not run. In preparation 400 negative reviews moved the behaviour of the base by -0.24 nats only, so that there may be little to undo; that was "
    "known when the criterion was fixed.",
    does_not_show="That the two directions are alike: the base leans to the positive side, so that the same number of reviews moves it less one way than the other.",
    reads="elasticity",
    about="base",
)
def run(context: ElasticityContext) -> Finding:
    return finding_of(context.courses(), "negative", C_E7["seeds"])
