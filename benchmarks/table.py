"""`results.json`, and the Markdown table that is generated from it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.files import write_together

FOLDER = Path(__file__).parent
RESULTS, TABLE = "results.json", "RESULTS.md"
HEAD = """# Benchmarks

Generated from `results.json` by `make bench` (`python -m benchmarks --large` adds the larger shape); do not edit. Each row does the same
work twice, in turn (A B A B) in one process, after a warm-up. The ratio is the other way's median time divided by ours: above 1 we are
faster, and 0.95 is an overhead of 5 %. In brackets, the least and the largest ratio of a turn. Memory is the growth of the resident set at
its peak. The difference is the largest between the two results, relative to the other result's largest magnitude where that exceeds 1.
"""
COLUMNS = ("case", "ours", "the straightforward way", "ours, ms", "theirs, ms", "ratio", "ours, MiB", "theirs, MiB", "difference", "equal")


def markdown(record: dict[str, Any]) -> str:
    """The text of `RESULTS.md` for a record."""
    parts = [HEAD]
    for name, run in record["shapes"].items():
        machine = run["environment"]["machine"]
        versions = run["environment"]["versions"]
        used = ", ".join(
            f"{library} {versions[library]}" for library in ("torch", "transformers", "transformer-lens") if library in versions
        )
        device = machine.get("accelerator") or "CPU"
        parts.append(f"## {name[:1].upper()}{name[1:]}\n")
        parts.append(
            f"{run['weights'].capitalize()}; {machine['cores']} cores, {machine['torch_threads']} torch threads, {device}; {used}.\n"
        )
        rows = [_row(row) for row in run["cases"]]
        aligned = ["---"] * 3 + ["--:"] * 6 + ["---"]
        parts.append("\n".join(f"| {' | '.join(cells)} |" for cells in (COLUMNS, aligned, *rows)) + "\n")
    return "\n".join(parts)


def _row(row: dict[str, Any]) -> list[str]:
    return [
        row["name"], row["ours_label"], row["theirs_label"], f"{1000 * row['ours_seconds']:.3g}", f"{1000 * row['theirs_seconds']:.3g}",
        f"{row['ratio']:.2f} ({row['ratio_low']:.2f} to {row['ratio_high']:.2f})", _mib(row["ours_mib"]), _mib(row["theirs_mib"]),
        _gap(row["difference"]), "yes" if row["equal"] else "no",
    ]  # fmt: skip


def _gap(value: float | None) -> str:
    return "–" if value is None else f"{value:.1e}" if value else "0"


def _mib(value: float | None) -> str:
    return "–" if value is None else f"{value:.1f}"


def same_place(record: dict[str, Any], shape: str, environment: dict[str, Any]) -> list[dict[str, Any]]:
    """The rows of a shape, which others may join. Raises `UserError` where they were measured elsewhere or with other libraries."""
    table = record["shapes"].get(shape)
    if table is None or table["environment"] != environment:
        raise UserError(
            f"the table of {shape} was not measured on this machine with these libraries, so single rows cannot join it",
            "measure all of it, or write elsewhere with --out",
        )
    return list(table["cases"])


def joined(before: list[dict[str, Any]], rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows of a table with some measured again, each in its place, and new ones at the end."""
    fresh = {row["name"]: row for row in rows}
    return [fresh.pop(row["name"], row) for row in before] + list(fresh.values())


def read(folder: Path = FOLDER) -> dict[str, Any]:
    """The record of earlier measurements, or an empty one."""
    file = folder / RESULTS
    return json.loads(file.read_text(encoding="utf-8")) if file.is_file() else {"shapes": {}}


def write(record: dict[str, Any], folder: Path = FOLDER) -> None:
    """Write both files together."""
    texts = {RESULTS: json.dumps(record, indent=1, ensure_ascii=False, allow_nan=False) + "\n", TABLE: markdown(record)}
    write_together(texts, folder)
