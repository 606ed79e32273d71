"""`python -m benchmarks`: measure every case, and write `results.json` and the table made from it."""

from __future__ import annotations

import os

os.environ.setdefault("HF_HUB_OFFLINE", "1")
os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
os.environ.setdefault("TRANSFORMERS_VERBOSITY", "error")

import argparse
import sys
from dataclasses import replace
from itertools import chain
from pathlib import Path

from benchmarks import table
from benchmarks.cases import LARGE, SMALL, Shape, cases, make_model
from benchmarks.measure import Measured, measure
from benchmarks.reporting import reporting
from interp.environment import machine, versions
from interp.errors import UserError


def run(shape: Shape, only: str, report: bool = False) -> tuple[list[Measured], str]:
    """Measure the cases whose name contains `only`; return them and what the weights were."""
    model = make_model(shape)
    results = []
    last = [reporting()] if report and shape.ships else []
    for case in chain(cases(model, shape), last):
        if only not in case.name:
            continue
        measured = measure(case, shape.turns)
        results.append(measured)
        sys.stderr.write(
            f"{case.name}: {measured.ratio:.2f} times ({measured.ratio_low:.2f} to {measured.ratio_high:.2f}), "
            f"{1000 * measured.ours_seconds:.1f} against {1000 * measured.theirs_seconds:.1f} ms, difference {measured.difference:.1e}\n"
        )
    return results, "the base that ships" if model.checkpoint else "random weights"


def main(arguments: list[str] | None = None) -> int:
    """Run the benchmarks of the command line; return the exit code, 1 where results differ."""
    parser = argparse.ArgumentParser(prog="python -m benchmarks", description=__doc__)
    parser.add_argument("--large", action="store_true", help="also GPT2-medium's shape (minutes)")
    parser.add_argument("--report", action="store_true", help="also the whole report, twice (a quarter of an hour)")
    parser.add_argument("--only", default="", help="a part of a case's name; the other rows stay as they are")
    parser.add_argument("--turns", type=int, help="turns per case")
    parser.add_argument("--out", type=Path, default=table.FOLDER, help="where results.json and RESULTS.md go")
    options = parser.parse_args(arguments)
    if options.turns is not None and options.turns < 1:
        parser.error("--turns must be at least 1")
    record = table.read(options.out)
    wrong = []
    for shape in (SMALL, LARGE) if options.large else (SMALL,):
        shape = replace(shape, turns=options.turns or shape.turns)
        sys.stderr.write(f"{shape.name}\n")
        try:
            environment = {"machine": machine(), "versions": versions()}
            before = table.same_place(record, shape.name, environment) if options.only else []
            results, weights = run(shape, options.only, options.report)
        except UserError as error:
            sys.stderr.write(f"benchmarks: {error}\n")
            return 2
        wrong += [measured.name for measured in results if not measured.equal]
        rows = table.joined(before, [measured.to_json() for measured in results])
        record["shapes"][shape.name] = {"weights": weights, "environment": environment, "cases": rows}
    table.write(record, options.out)
    if wrong:
        sys.stderr.write(f"results differ: {', '.join(wrong)}\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main())
