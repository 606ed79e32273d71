"""Writes docs/verdicts.md: how often the rule of each experiment says what, in simulated studies with a known truth."""

from __future__ import annotations

from pathlib import Path

import pandas as pd

from interp.experiments.displacement.simulations import simulations as of_paper_b
from interp.experiments.elasticity.simulations import simulations as of_paper_c
from interp.experiments.power import AT_MOST, DRAWS, rates, wrong
from interp.experiments.toxicity.simulations import simulations as of_paper_a

PAGE = Path(__file__).resolve().parents[2] / "docs" / "verdicts.md"
HEAD = f"""# How often each rule is wrong

Each experiment has a rule that turns its numbers into *holds*, *fails* or *inconclusive*. Here the rule in force is given
simulated studies whose truth is known, {DRAWS} for each world. A rule is usable if it says *holds* in at most {AT_MOST:.0%} of the
studies in which the claim is false, and *fails* in at most {AT_MOST:.0%} of those in which it is true; *inconclusive* is never wrong,
and says that a study of this size cannot tell. Worlds *between* have an effect that is too small for the criterion, so no verdict
is wrong there. The simulations stand in the folders `simulations/` below `interp/experiments/`; each says what it resamples or plants.
`python -m interp.experiments.verdicts_page` writes this page.

"""


def page(table: pd.DataFrame) -> str:
    """The page as Markdown, from a table of `rates`."""
    lines = ["| experiment | world | the claim is | holds | fails | inconclusive | wrong |", "|---|---|---|---|---|---|---|"]
    return HEAD + "\n".join([*lines, *map(line_of, table.to_dict("records"))]) + "\n"


def line_of(row: dict[str, object]) -> str:
    """One world as a row of the page's table, from a row of `rates`."""
    shares = " | ".join(f"{row[verdict]:.1%}" for verdict in ("holds", "fails", "inconclusive"))
    mark = "–" if row["claim is"] == "between" else f"{wrong(pd.Series(row)):.1%}"
    return f"| {row['experiment']} | {row['world']} | {row['claim is']} | {shares} | {mark} |"


if __name__ == "__main__":
    PAGE.write_text(page(rates([*of_paper_a(), *of_paper_b(), *of_paper_c()])), encoding="utf-8")
