"""Writes docs/criteria.md: every version of every criterion with the time when it was recorded.

`python -m interp.experiments.criteria_page > docs/criteria.md`; a test compares the two.
"""

from __future__ import annotations

import sys
from collections import Counter

from interp.experiments import displacement, elasticity, toxicity  # noqa: F401  (registers them)
from interp.experiments.criteria import Criterion, Replaced, read_replaced
from interp.experiments.displacement.criteria import CRITERIA as OF_PAPER_B
from interp.experiments.elasticity.criteria import CRITERIA as OF_PAPER_C
from interp.experiments.registry import Experiment, find_experiments
from interp.experiments.toxicity.criteria import CRITERIA, FILE

# The commits that added the two pairs, on the clock of the times in the file.
FIRST_PAIR, SHIPPED_PAIR = "2026-11-21 15:59 UTC", "2026-11-21 18:37 UTC"
PHASES = ("before any pair", "before the pair that ships", "after the pair that ships")
HEAD = """# The criteria, and when each was recorded

What decides each verdict, in every version that is judged, generated from
[`criteria.toml`](../interp/experiments/toxicity/criteria.toml) of paper A and those of
[paper B](../interp/experiments/displacement/criteria.toml) and [paper C](../interp/experiments/elasticity/criteria.toml) by
`python -m interp.experiments.criteria_page > docs/criteria.md`; a test compares the two. A criterion is not edited once a
result was seen under it: a change is a new version, the newest one decides, and the report prints the verdict under each. A version
that was fixed after a result was seen says so, and its verdict is marked *exploratory* wherever it is shown. How often each rule is
wrong when the truth is known stands in `docs/verdicts.md`.

**What was known when.** The pair that ships is the second one. The first was added on {first}; on it A-E2 and A-E12 were
inconclusive. For the second the base model was trained further; a first tuning of it lowered toxicity on the report's own prompts by
37 % only, after which the rule that stops tuning (`stop_at_ratio`) went from 0.45 to 0.25, once. It was added on {ships}.
So the prompts that ship were looked at while the pair was made, also where the criterion is older than the pair; the prompts of the
paper were not. Times are those of commits: work can be older than its commit, not younger.

{counts}
"""
PAPER_B = """
# Paper B: likelihood displacement

These judge runs that were made for them, from the base model of the pair that ships. Each was recorded before the first of its runs,
unless a version says that it is exploratory.
"""
PAPER_C = """
# Paper C: elasticity

C-E8 judges small models of which everything is known, the others runs that were made for them from the base model of the pair that ships.
Each was recorded before the first of its runs, unless a version says that it is exploratory.
"""


def phase(recorded: str) -> str:
    """When a criterion was recorded, against the two pairs. Times of the form YYYY-MM-DD HH:MM sort as text; a bare day sorts first."""
    if recorded < FIRST_PAIR:
        return PHASES[0]
    return PHASES[1] if recorded < SHIPPED_PAIR else PHASES[2]


def page() -> str:
    """The page as Markdown."""
    replaced = read_replaced(FILE)
    first = Counter(phase(versions[0].recorded) for versions in CRITERIA.values())
    newest = sum(bool(versions[-1].exploratory) for versions in CRITERIA.values())
    counts = f"Of {len(CRITERIA)} experiments, the first version was recorded " + ", ".join(f"{name} for {first[name]}" for name in PHASES)
    counts += f". The version in force is exploratory on the pair that ships for {newest}."
    parts = [HEAD.format(first=FIRST_PAIR, ships=SHIPPED_PAIR, counts=counts)]
    for item in find_experiments(sorted(CRITERIA)):
        parts.append(_title(item))
        parts.extend(_older(old) for old in replaced if old.id == item.id)
        parts.extend(_version(version, f", {phase(version.recorded)}") for version in item.criteria)
    for head, criteria in ((PAPER_B, OF_PAPER_B), (PAPER_C, OF_PAPER_C)):
        parts.append(head)
        for item in find_experiments(sorted(criteria)):
            parts.extend((_title(item), *map(_version, item.criteria)))
    return "".join(parts)


def _title(item: Experiment) -> str:
    return f"\n## {item.id}: {item.title}\n"


def _older(old: Replaced) -> str:
    return f"\n**Before version 1**, recorded {old.recorded}, no longer judged: {old.text} *{old.why}*\n"


def _version(item: Criterion, when: str = "") -> str:
    mark = f" Exploratory: {item.exploratory}" if item.exploratory else ""
    return f"\n**Version {item.version}**, recorded {item.recorded}{when}.{mark}\n\n- {item.text}\n- Refuted by: {item.refuted_by}\n"


if __name__ == "__main__":
    sys.stdout.write(page())
