"""C-E2: whether a model goes back towards its base under opposite text, the faster the more it was tuned."""

from __future__ import annotations

from interp.experiments.elasticity.context import ElasticityContext
from interp.experiments.elasticity.criteria import CRITERIA
from interp.experiments.elasticity.rebound_rules import C_E2
from interp.experiments.elasticity.rebound_words import finding_of
from interp.experiments.registry import Finding, experiment


@experiment(
    "C-E2",
    claim="C-C3",
    title="The more a model was tuned, the faster it falls back",
    question="Does a model that was tuned on positive reviews go back to its base under negative ones, and the faster the more positive ones there were?",
    criterion=CRITERIA["C-E2"],
    caveat="In preparation, on other draws and two seeds, 400 negative reviews undid 99 % after 200 positive ones and 83 % after 1000, and the KL to the base rose from 0.096 to 0.132 and from 0.169 to 0.187; that was known when the criterion was "
    "fixed. The behaviour is log-odds of words after openings about films, not a classifier on generations; the model is small, and the amounts are a tenth of the paper's.",
    does_not_show="How a large model or a safety tuning behaves: it shows whether what comes back under opposite text is a return to the base.",
    reads="elasticity",
    about="base",
)
def run(context: ElasticityContext) -> Finding:
    return finding_of(context.courses(), "positive", C_E2["seeds"])
