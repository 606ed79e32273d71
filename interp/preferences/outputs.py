"""The files of an audit: numbers for programs, the page, and the pairs that a filter keeps and drops, in a form that TRL loads."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from interp.files import replacing, write_together
from interp.preferences.audit import Audit
from interp.preferences.files import write_rows
from interp.preferences.formats import written_row
from interp.results.result import plain

PARQUET = "audit.parquet"
FILTERED = ("kept.jsonl", "dropped.jsonl", "random.jsonl")


def write_audit(audit: Audit, folder: Path, page: str) -> list[str]:
    """Write `audit.json`, `audit.csv`, `index.html`, `audit.parquet` where pyarrow is installed, and the rows of a filter.

    Returns the names of the files. Of an earlier audit in the folder nothing stays but its blocks of scores.
    """
    files = {
        "audit.json": json.dumps(plain(audit.to_json()), ensure_ascii=False, indent=1, allow_nan=False),
        "audit.csv": audit.frame.to_csv(index=False), "index.html": page, **filtered(audit),
    }  # fmt: skip
    write_together(files, folder)
    has_parquet = find_spec("pyarrow") is not None
    if has_parquet:
        with replacing(folder / PARQUET) as temporary:
            audit.frame.to_parquet(temporary, index=False)
    names = [*files, *([PARQUET] if has_parquet else [])]
    for name in {PARQUET, *FILTERED} - set(names):
        (folder / name).unlink(missing_ok=True)
    return names


def filtered(audit: Audit) -> dict[str, str]:
    """The rows that the filter keeps and drops, and a random subset of as many, as jsonl by file name; empty without a filter."""
    if audit.selection is None:
        return {}

    def rows(positions: Sequence[int]) -> str:
        return write_rows(written_row(audit.data, audit.pairs[position]) for position in positions)

    parts = (audit.selection.kept, audit.selection.dropped, audit.selection.random)
    return {name: rows(positions) for name, positions in zip(FILTERED, parts, strict=True)}
