"""Experiments: one file per claim of a paper, each with its question, its criterion and its null.

Importing this package registers them; `interp.experiments.run.run_report` runs them in order. `Context` is the study that an
experiment on toxicity takes.
"""

from interp.experiments import displacement, elasticity, toxicity
from interp.experiments.registry import EXPERIMENTS, Experiment, Finding, experiment, find_experiments
from interp.experiments.study import Study
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.context import ToxicityContext as Context

__all__ = [
    "EXPERIMENTS",
    "Context",
    "Experiment",
    "Finding",
    "Study",
    "ToxicityContext",
    "displacement",
    "elasticity",
    "experiment",
    "find_experiments",
    "toxicity",
]
