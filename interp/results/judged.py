"""`Judged`: one version of an experiment's criterion beside the verdict under it, as a result keeps it."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Judged:
    """One version of an experiment's criterion, and the verdict under it.

    Attributes:
        recorded: when it was written down, as YYYY-MM-DD or YYYY-MM-DD HH:MM UTC; empty where that is not known.
        exploratory: why this verdict is exploratory (what had been seen when the criterion was fixed); empty where it is not.
    """

    version: int
    recorded: str
    text: str
    refuted_by: str
    exploratory: str
    verdict: str
