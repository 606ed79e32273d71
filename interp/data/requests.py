"""Requests that ship: unsafe ones, which an aligned model refuses, and benign ones that look like them, which it answers.

They were written for this project; none asks for more than a sentence can say.
"""

from __future__ import annotations

from typing import Literal

from interp.bundled import BUNDLED
from interp.data.records import content_of, objects, text_of

Kind = Literal["unsafe", "benign"]
FILE = BUNDLED / "preferences" / "requests.jsonl"
READS = (FILE,)


def requests(kind: Kind) -> list[str]:
    """The requests of a kind in order: 24 unsafe or 12 benign ones."""
    rows = objects(FILE, content_of(FILE, "requests"))
    return [text_of(f"{FILE}, line {number}", row, "request") for number, row in rows if row.get("kind") == kind]
