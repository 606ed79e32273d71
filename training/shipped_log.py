"""A run's log as it ships: without the prompts of its samples, which are beginnings of other people's texts."""

from __future__ import annotations

import json
from pathlib import Path

from interp.files import write_text


def ship_log(source: Path, target: Path) -> None:
    """Write a log of `interp.runs.schema` with a number in place of each sample's prompt; the continuations are the model's own."""
    lines = []
    for line in source.read_text(encoding="utf-8").splitlines():
        record = json.loads(line)
        if "samples" in record:
            record["samples"] = [[f"development prompt {n}", text] for n, (_, text) in enumerate(record["samples"], start=1)]
        lines.append(json.dumps(record))
    write_text(target, "\n".join(lines) + "\n")
