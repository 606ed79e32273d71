"""Experiments: one file per claim of a paper, each with its question, its criterion and its null.

Importing this package registers them; `interp.experiments.run.run_report` runs them in order.
"""

from interp.experiments import toxicity
from interp.experiments.registry import EXPERIMENTS, Context, Experiment, Finding, experiment, find_experiments

__all__ = ["EXPERIMENTS", "Context", "Experiment", "Finding", "experiment", "find_experiments", "toxicity"]
