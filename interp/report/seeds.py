"""The verdicts of the same experiments under several seeds: whether a verdict depends on random draws.

Another seed draws other random controls and bootstrap samples; the pair, its probe and its continuations stay the same.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import pandas as pd

from interp.results.result import Result, is_number, show_number

LEFT_OUT = "left out"


@dataclass(frozen=True)
class SeedRow:
    """One experiment under all seeds: its verdicts in the order of the seeds, and the range of its headline statistic and null.

    A verdict is "left out" where the experiment could not be run under that seed. `statistic` and `null` are (least, most), or
    None where there is no number.
    """

    id: str
    title: str
    verdicts: tuple[str, ...]
    key: str
    statistic: tuple[float, float] | None
    null: tuple[float, float] | None

    @property
    def same(self) -> bool:
        """Whether the verdict is the same under all seeds."""
        return len(set(self.verdicts)) == 1


@dataclass(frozen=True)
class Seeds:
    """The seeds that were run, and a row per experiment."""

    seeds: tuple[int, ...]
    rows: tuple[SeedRow, ...]

    def to_json(self) -> dict[str, Any]:
        """The JSON object for `report.json`: `seeds`, and per experiment id, verdict by seed, whether they are the same, and ranges."""
        return {
            "seeds": list(self.seeds),
            "experiments": [
                {"id": row.id, "same": row.same, "verdicts": self._by_seed(row), "measured_as": row.key, "statistic": row.statistic,
                 "null": row.null}
                for row in self.rows
            ],
        }  # fmt: skip

    def to_frame(self) -> pd.DataFrame:
        """A frame for readers with one row per experiment."""
        return pd.DataFrame([
            {"experiment": row.id, "claim": row.title, "same verdict": row.same, **{f"seed {s}": v for s, v in self._by_seed(row).items()},
             "effect": _shown(row.statistic, row.key), "null": _shown(row.null, row.key), "measured as": row.key.replace("_", " ")}
            for row in self.rows
        ])  # fmt: skip

    def _by_seed(self, row: SeedRow) -> dict[str, str]:
        return {str(seed): verdict for seed, verdict in zip(self.seeds, row.verdicts, strict=True)}


def seeds_of(results_by_seed: Mapping[int, Sequence[Result]]) -> Seeds:
    """The comparison of the results of the same experiments by seed, in the order in which they first appear."""
    by_seed = {seed: {result.id: result for result in results} for seed, results in results_by_seed.items()}
    names = dict.fromkeys(result.id for results in results_by_seed.values() for result in results)
    return Seeds(tuple(results_by_seed), tuple(_row([results.get(name) for results in by_seed.values()]) for name in names))


def _row(results: Sequence[Result | None]) -> SeedRow:
    present = [result for result in results if result is not None]
    key = next(iter(present[0].statistic), "")
    verdicts = tuple(LEFT_OUT if result is None else result.verdict for result in results)
    statistic = _range([result.statistic.get(key) for result in present])
    null = _range([result.null.get(key) for result in present])
    return SeedRow(present[0].id, present[0].title, verdicts, key, statistic, null)


def _range(values: Sequence[Any]) -> tuple[float, float] | None:
    # NaN is left out: it differs from itself.
    numbers = [float(value) for value in values if is_number(value) and value == value]
    return (min(numbers), max(numbers)) if numbers else None


def _shown(ends: tuple[float, float] | None, key: str) -> str:
    if ends is None:
        return "–"
    low, high = (show_number(end, key) for end in ends)
    return low if low == high else f"{low} to {high}"
