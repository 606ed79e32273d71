"""Written reports: the one of a given pair, and the folder where it is or will be.

Nothing here needs a model of the pair that ships, so its report can be shown before torch has been imported.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

import streamlit as st

from app import settings, state
from app.settings import Source
from interp.errors import UserError
from interp.report.page import Report, read_report

if TYPE_CHECKING:
    from interp import ModelPair

FILE = "report.json"
# The digests of both sides, base first; they say which weights these are.
Digests = tuple[str, str]


@dataclass(frozen=True)
class PairReport:
    """The folder of a pair's report, the report if there is one, and the name of another pair whose report is in the report folder.

    `shipped`: the folder that the report ships in with this version; what is added to it is written to `folder`. None for others.
    """

    folder: Path
    report: Report | None
    other: str | None = None
    shipped: Path | None = None


def find_report(pair_digests: Digests) -> PairReport:
    """The report of exactly the pair with these digests. Raises `UserError` for a damaged one.

    Where the report folder holds the report of another pair, this pair's has a folder of its own in it.
    """
    folder = settings.report_folder()
    first, other = read(folder), None
    if first is not None:
        if digests_in(first) == pair_digests:
            return PairReport(folder, first)
        folder = folder / "pairs" / "-".join(digest[:12] for digest in pair_digests)
        other = str(first.pair.get("name", "another pair"))
    report = read(folder) if first is not None else None
    for place in settings.SHIPPED_REPORTS if report is None else ():
        shipped = read(place)
        if shipped is not None and digests_in(shipped) == pair_digests:
            return PairReport(folder, shipped, other, place)
    return PairReport(folder, report, other)


def digests(source: Source) -> Digests:
    """The digests of a pair. Those of the pair that ships come from its report where its files are unchanged, without loading it."""
    known = _shipped() if source is None else None
    return known or digests_of(state.load_pair(source))


def digests_of(pair: ModelPair) -> Digests:
    """The digests of a loaded pair."""
    return pair.base.digest, pair.tuned.digest


@st.cache_data(show_spinner=False)
def _shipped() -> Digests | None:
    report = read(settings.SHIPPED_REPORT)
    if report is None:
        return None
    for side in ("base", "tuned"):
        for name, expected in report.pair[side]["files"].items():
            try:
                with (settings.BUNDLE / side / name).open("rb") as stream:
                    if hashlib.file_digest(stream, "sha256").hexdigest() != expected:
                        return None
            except OSError:
                # Loading the pair says what is wrong with the file.
                return None
    return digests_in(report)


def digests_in(report: Report) -> Digests:
    """The digests of the pair that a report was made of."""
    sides = [report.pair.get(side) for side in ("base", "tuned")]
    base, tuned = (str(about.get("digest")) if isinstance(about, dict) else "" for about in sides)
    return base, tuned


def read(folder: Path) -> Report | None:
    """The report in a folder as it is now, or None; parsed again only when its file has changed."""
    file = folder / FILE
    try:
        status = file.stat()
    except OSError:
        return None
    return _read(str(folder), status.st_mtime_ns, status.st_size)


@st.cache_resource(show_spinner="Reading the report …", max_entries=4)
def _read(folder: str, changed: int, size: int) -> Report:
    try:
        return read_report(folder)
    except UserError:
        raise
    except (ValueError, TypeError, KeyError, AttributeError, IndexError) as error:
        raise UserError(f"{FILE} in {Path(folder).name} is damaged ({error!r})", "run `bypass report` again") from error
