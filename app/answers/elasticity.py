"""What a run of `bypass undo` showed, for the page Elasticity: its sentences, its curves by dose, and its numbers.

The record that ships, a visitor's finished run and one that goes on are read through the same code, that of the command's own page.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import pandas as pd

from interp.elasticity.undo import ARMS, UndoRecord
from interp.elasticity.undo_cells import cells_of, dose_frame
from interp.elasticity.undo_page import FILES, dose_figures, sides_frame
from interp.elasticity.undo_texts import FOLDER
from interp.errors import UserError
from interp.files import read_json
from interp.models.pair import ModelPair
from interp.results.result import Figure, number, show_number

SHIPPED = FOLDER / FILES[0]
# The command that makes the record which ships, run where docs/undo.md says how the texts are made.
COMMAND = "bypass undo --texts toxic.jsonl --quick"
COLUMNS = (
    "arm",
    "attack",
    "steps",
    "samples",
    "tokens",
    "texts",
    "score",
    "second score",
    "share undone",
    "share low",
    "share high",
    "KL to base",
)


@dataclass(frozen=True, eq=False)
class Curves:
    """The behaviour and KL by arm, attack and dose (`dose_frame`), beside the two models before training (`sides_frame`)."""

    doses: pd.DataFrame
    sides: pd.DataFrame
    behaviour: str

    @property
    def attacks(self) -> list[str]:
        """The ways of training that have a dose, by name."""
        return list(self.doses["attack"].unique()) if len(self.doses) else []


@dataclass(frozen=True, eq=False)
class Outcome:
    """A run that came to its end: its curves, its verdict in sentences, and what it was."""

    curves: Curves
    sentences: tuple[str, ...]
    limits: tuple[str, ...]
    about: Mapping[str, Any]
    file: str


@lru_cache(maxsize=1)
def shipped() -> Outcome | None:
    """The run on the pair that ships; None where this version has none."""
    return outcome_in(SHIPPED) if SHIPPED.is_file() else None


def outcome_in(file: Path) -> Outcome:
    """What an `undo.json` says. Raises `UserError` for another file, and for one of an earlier version."""
    record = read_json(file, fix="run `bypass undo` again")
    try:
        doses = pd.DataFrame(record["doses"])
        # Ends of an interval that has none are written as text.
        values = {name: doses[name].map(number) for name in doses.columns.difference(["arm", "attack"])}
        curves = Curves(doses.assign(**values), pd.DataFrame(record["sides"]), record["behaviour"])
        return Outcome(curves, tuple(record["sentences"]), tuple(record["does_not_show"]), record["about"], record["file"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{file.name} is no summary of `bypass undo` of this version", "run `bypass undo` again") from error


def curves_of(record: UndoRecord, behaviour: str) -> Curves:
    """The curves of what has been measured by now."""
    cells = cells_of(record)
    return Curves(dose_frame(cells), sides_frame(record), behaviour)


def strongest(curves: Curves) -> str:
    """The way of training under which the texts in question undo most at their last dose; the first where they were not trained on."""
    rows = curves.doses[curves.doses["arm"] == "opposite"]
    if rows.empty:
        return curves.attacks[0]
    last = rows.sort_values("steps").groupby("attack", sort=False).tail(1)
    return str(last.loc[last["share undone"].idxmax(), "attack"])


def figures_of(curves: Curves, attack: str) -> list[Figure]:
    """Behaviour and KL to the base by step and arm, under one way of training. Raises `UserError` for one that there is not."""
    if attack not in curves.attacks:
        raise UserError(f"there are no runs with {attack[:40]!r}", f"choose one of {', '.join(curves.attacks)}")
    return dose_figures(curves.doses[curves.doses["attack"] == attack], curves.sides, curves.behaviour)


def table(curves: Curves) -> pd.DataFrame:
    """Every dose in numbers, with what its arm stands for."""
    rows = curves.doses[list(COLUMNS)]
    return rows.assign(**{"what it is": rows["arm"].map(ARMS)})


def scope(outcome: Outcome) -> str:
    """How much the run rests on, in a sentence: pair, texts, prompts, seeds."""
    seeds = int(outcome.curves.doses["seeds"].max()) if len(outcome.curves.doses) else 0
    texts = outcome.about["arms"].get("opposite", outcome.file)
    orders = "one order of the texts (one seed)" if seeds == 1 else f"{seeds} orders of the texts (seeds)"
    return f"One pair ({outcome.about['pair']}), one set of texts ({texts}), {orders}, and one behaviour: {outcome.curves.behaviour}."


def is_of(outcome: Outcome, pair: ModelPair) -> bool:
    """Whether the run was on models of these weights."""
    return all(str(outcome.about[name]).startswith(f"{model.digest}-") for name, model in pair.sides.items())


def last_doses(curves: Curves, attack: str) -> list[tuple[str, str, str]]:
    """By arm at its last dose: its name with the step, the share undone, and its interval with KL to base before and after."""
    before = float(curves.sides.set_index("model").loc["tuned", "KL to base"])
    rows = curves.doses[curves.doses["attack"] == attack].sort_values("steps").groupby("arm", sort=False).tail(1)
    entries = []
    for row in rows.to_dict("records"):
        share, low, high = (show_number(float(row[name]), "share") for name in ("share undone", "share low", "share high"))
        start = 0.0 if row["arm"] == "from_base" else before
        kl = f"KL to base {show_number(start)} → {show_number(float(row['KL to base']))}"
        entries.append((f"{row['arm']}: undone at step {int(row['steps'])}", share, f"{low} to {high}; {kl}"))
    return entries
