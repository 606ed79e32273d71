"""`Experiment`, `Finding`, and the table of all registered experiments.

An experiment is a function from a `Study` to a `Finding`. The decorator takes the question, every version
of the criterion with the time it was recorded, what would refute the claim, and what the result does not show. The annotation of
the function's parameter says which kind of study it needs.
"""

from __future__ import annotations

import inspect
import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal, TypeVar

import pandas as pd

from interp.errors import UserError
from interp.experiments.criteria import Criteria, Criterion
from interp.experiments.study import Study
from interp.results.groups import PAPERS, REPORTED_WITH
from interp.results.result import Figure, Verdict

AnyStudy = TypeVar("AnyStudy", bound=Study)
About = Literal["pair", "base"]


@dataclass(frozen=True)
class Finding:
    """The part of a `Result` that depends on the data: verdict, numbers, tables and figures of one run.

    Attributes:
        verdict: under the newest version of the criterion.
        sentence: what was found, in one plain sentence with the number, its interval and its null.
        earlier: the verdict under each earlier version of the criterion, by its number.
    """

    verdict: Verdict
    summary: str
    statistic: dict[str, float]
    null: dict[str, float]
    interval: dict[str, tuple[float, float]]
    tables: dict[str, pd.DataFrame]
    figures: tuple[Figure, ...]
    settings: dict[str, Any] = field(default_factory=dict)
    sentence: str = ""
    earlier: dict[int, Verdict] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A registered experiment: its identity, its question, and all versions of its criterion.

    Attributes:
        criteria: all versions of its criterion; the newest one decides.
        does_not_show: what a reader may take the result for and it is not, in one sentence.
        study: the kind of study that `run` takes.
        runs: the grids of training runs that it reads, by the name that `runs_of` takes; without them it is left out.
        reads: further data of the study on which its result depends, by the names in `Study.optional_data`.
        about: `pair` for a claim on what tuning changed, `base` for one on the base model alone, which needs no tuned side.
    """

    id: str
    claim: str
    title: str
    question: str
    criteria: Criteria
    caveat: str
    run: Callable[[Any], Finding]
    study: type[Study]
    runs: tuple[str, ...] = ()
    reads: tuple[str, ...] = ()
    about: About = "pair"
    does_not_show: str = ""

    @property
    def criterion(self) -> Criterion:
        """The newest version of its criterion."""
        return self.criteria[-1]

    @property
    def paper(self) -> str:
        """The letter of the paper in whose report it stands; empty for a user's own, which stands in every report."""
        letter, dash, _ = self.id.partition("-")
        return REPORTED_WITH.get(letter, "") if dash else ""


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(
    id: str,
    *,
    claim: str,
    title: str,
    question: str,
    criterion: str | Criteria,
    caveat: str,
    refuted_by: str = "",
    does_not_show: str = "",
    runs: str | Sequence[str] = (),
    reads: str | Sequence[str] = (),
    about: About = "pair",
) -> Callable[[Callable[[AnyStudy], Finding]], Callable[[AnyStudy], Finding]]:
    """Register a function as an experiment of the report, in the order of registration.

    The function's parameter must be annotated with the kind of study that it takes.

    Args:
        criterion: when the claim holds and when it fails: all versions out of a file (`interp.experiments.criteria`), or one text.
        refuted_by: the result that would refute the claim, where `criterion` is a text.
        runs: the grid of training runs (or several) that the function reads with `runs_of`, such as "displacement/single-token".
        reads: the names of further data of the study that it reads (see `Study.optional_data`), such as "logs".
        about: `base` for a claim on the base model alone: it is tested also where both sides have the same weights.
    """
    grids, data = ((value,) if isinstance(value, str) else tuple(value) for value in (runs, reads))

    def register(run: Callable[[AnyStudy], Finding]) -> Callable[[AnyStudy], Finding]:
        if id in EXPERIMENTS:
            raise ValueError(f"two experiments are called {id}")
        versions = (Criterion(1, "", criterion, refuted_by),) if isinstance(criterion, str) else criterion
        kind = study_of(id, run)
        EXPERIMENTS[id] = Experiment(id, claim, title, question, versions, caveat, run, kind, grids, data, about, does_not_show)
        return run

    return register


def study_of(id: str, run: Callable[..., Finding]) -> type[Study]:
    """The kind of study that an experiment's function takes. Raises `TypeError` where its parameter is not annotated with one."""
    parameter = next(iter(inspect.signature(run, eval_str=True).parameters.values()), None)
    kind = parameter.annotation if parameter is not None else None
    if not (isinstance(kind, type) and issubclass(kind, Study)):
        raise TypeError(f"{id}: annotate the function's parameter with the kind of study that it takes, such as run(context: Context)")
    return kind


def _place(item: Experiment) -> tuple[str, str, int, str]:
    """The key by which experiments are sorted: the papers' by paper and number; others follow as registered."""
    parts = re.fullmatch(r"([A-Z])-([A-Z])(\d+)([a-z]?)", item.id)
    return (parts[1], parts[2], int(parts[3]), parts[4]) if parts and parts[1] in PAPERS else ("~", "", 0, "")


DEFAULT_PAPERS = ("A",)


def find_experiments(only: Sequence[str] | None, papers: Sequence[str] | None = None) -> list[Experiment]:
    """The experiments of the report in order: those of the papers, or those that are named.

    Args:
        only: ids or claims (all experiments that test one), in any case.
        papers: letters of papers, in any case; without them those of paper A, and with `only` those of any paper.

    Raises `UserError` for an unknown name or paper, and where none of those named is of these papers.
    """
    letters = _letters(papers if papers or only else DEFAULT_PAPERS)
    every = sorted(EXPERIMENTS.values(), key=_place)
    of_papers = [item for item in every if not letters or not item.paper or item.paper in letters]
    if not only:
        return of_papers
    names = {name.lower() for name in only}
    known = {name.lower() for item in EXPERIMENTS.values() for name in (item.id, item.claim)}
    unknown = [name for name in only if name.lower() not in known]
    if unknown:
        raise UserError(f"there is no experiment {', '.join(unknown)}", f"use one of {', '.join(EXPERIMENTS)}")
    chosen = [item for item in of_papers if {item.id.lower(), item.claim.lower()} & names]
    if not chosen:
        raise UserError(f"{', '.join(only)} is not of paper {', '.join(sorted(letters))}", "leave out --paper, or name its paper")
    return chosen


def _letters(papers: Sequence[str] | None) -> set[str]:
    """The letters of papers in capitals. Raises `UserError` for one that is no paper."""
    letters = {paper.upper() for paper in papers or ()}
    unknown = sorted(letters - PAPERS.keys())
    if unknown:
        raise UserError(f"there is no paper {', '.join(unknown)}", f"use one of {', '.join(PAPERS)}")
    return letters
