"""The case of the whole report: experiments that share their measurements, against the same experiments each by itself."""

from __future__ import annotations

import math
import tempfile
from dataclasses import replace
from typing import Any

from benchmarks.measure import Case
from interp import ModelPair
from interp.experiments.run import run_report
from interp.experiments.toxicity.make import make_context
from interp.results.result import Result


def reporting() -> Case:
    """`bypass report --quick` on the bundled pair, with one context for all experiments or a fresh one for each."""
    context = make_context(ModelPair.bundled(), quick=True)

    def run(only: list[str] | None) -> dict[str, Result]:
        with tempfile.TemporaryDirectory() as folder:
            return {result.id: result for result in run_report(replace(context), folder, only=only).results}

    known = run(None)

    def apart() -> dict[str, Result]:
        return {name: result for name in known for result in run([name]).values()}

    return Case(
        "the whole report, quick", lambda: run(None), apart, f"run_report, {len(known)} experiments",
        "each experiment in a report of its own", _differ, memory=False, turns=1,
    )  # fmt: skip


def _differ(first: dict[str, Any], second: dict[str, Any]) -> float:
    """The largest difference of a statistic; infinite where experiments or verdicts differ."""
    if {name: item.verdict for name, item in first.items()} != {name: item.verdict for name, item in second.items()}:
        return math.inf
    pairs = [(value, second[name].statistic[key]) for name, item in first.items() for key, value in item.statistic.items()]
    return max(abs(a - b) for a, b in pairs if not (math.isnan(a) and math.isnan(b)))
