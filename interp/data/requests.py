"""Requests that ship: unsafe ones, which an aligned model refuses, and benign ones that look like them, which it answers.

`requests` are asked of a model as it is; `task_requests` are those of the toy task, in which a small model is first taught to refuse.
`labelled_answers` are answers with a label by hand, for the rule that tells refusals by how they begin; many are hard on purpose. All of it
was written for this project; none asks for more than a sentence can say.
"""

from __future__ import annotations

from typing import Literal

from interp.bundled import BUNDLED
from interp.data.records import content_of, objects, text_of

Kind = Literal["unsafe", "benign"]
Split = Literal["train", "held-out"]
FILE = BUNDLED / "preferences" / "requests.jsonl"
TASK, LABELS = FILE.with_name("refusal_task.jsonl"), FILE.with_name("refusal_labels.jsonl")
READS = (FILE,)


def requests(kind: Kind) -> list[str]:
    """The requests of a kind in order: 24 unsafe or 12 benign ones."""
    rows = objects(FILE, content_of(FILE, "requests"))
    return [text_of(f"{FILE}, line {number}", row, "request") for number, row in rows if row.get("kind") == kind]


def task_requests(kind: Kind, split: Split) -> list[str]:
    """The requests of the toy task of a kind and a split in order: 60 and 20 unsafe, 30 and 10 benign ones."""
    rows = objects(TASK, content_of(TASK, "requests"))
    asked = [(number, row) for number, row in rows if (row.get("kind"), row.get("split")) == (kind, split)]
    return [text_of(f"{TASK}, line {number}", row, "request") for number, row in asked]


def labelled_answers() -> list[tuple[str, bool]]:
    """60 short answers, each with whether it refuses, by hand: 30 do."""
    rows = objects(LABELS, content_of(LABELS, "answers"))
    return [(text_of(f"{LABELS}, line {number}", row, "answer"), row["refusal"] is True) for number, row in rows]
