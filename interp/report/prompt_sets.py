"""`PromptSet`: experiments repeated on other prompts than the report's, as verdicts and statistics without any text of the data.

The paper's own prompts may be measured and not be shipped. So only what is computed of them is kept: no table, no figure, no summary.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.files import read_json
from interp.report.headlines import sentence_of
from interp.results.result import Result, plain

FILE = "paper.json"
# A shorter text, such as one word, may occur in a sentence of ours.
LEAST_LENGTH = 20


@dataclass(frozen=True)
class PromptSet:
    """The results of some experiments on one set of prompts.

    Attributes:
        name: the set's name, as the report shows it.
        count: the number of prompts.
        results: without tables, figures and summaries.
        left_out: the reason for each experiment that could not be run, by id.
    """

    name: str
    count: int
    results: tuple[Result, ...]
    left_out: Mapping[str, str]

    def to_json(self) -> dict[str, Any]:
        """The JSON object from which `from_json` makes it again."""
        experiments = [result.to_json() for result in self.results]
        return {"prompts": self.name, "count": self.count, "experiments": experiments, "left_out": dict(self.left_out)}

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> PromptSet:
        """The set that `to_json` wrote."""
        results = tuple(Result.from_json(item) for item in record["experiments"])
        return cls(str(record["prompts"]), int(record["count"]), results, dict(record["left_out"]))


def without_texts(result: Result) -> Result:
    """The result without what may hold texts of the data: tables, figures and summary."""
    return replace(result, tables={}, figures=(), summary=sentence_of(result) if result.sentence else "")


def check_no_text(sets: Sequence[PromptSet], texts: Sequence[str]) -> None:
    """Raise `ValueError` where a text of the data (of 20 characters or more) occurs in what would be written."""
    record = json.dumps([plain(item.to_json()) for item in sets], ensure_ascii=False)
    for text in texts:
        if len(text) >= LEAST_LENGTH and json.dumps(text, ensure_ascii=False)[1:-1] in record:
            raise ValueError("a result on other prompts holds a text of the data")


def read_prompt_sets(folder: Path) -> tuple[PromptSet, ...]:
    """The prompt sets of the report in a folder; none where it has no such file. Raises `UserError` for a damaged one."""
    path = folder / FILE
    if not path.is_file():
        return ()
    try:
        return tuple(PromptSet.from_json(item) for item in read_json(path)["sets"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(f"{path} is damaged: {error}", "run `bypass report` again") from error


def on_other_prompts(sets: Sequence[PromptSet], id: str) -> list[tuple[PromptSet, Result]]:
    """The results of one experiment in each of the sets that has it."""
    return [(item, result) for item in sets for result in item.results if result.id == id]
