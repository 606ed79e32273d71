"""Pairs that people or other models wrote, read from a file: jsonl, csv or tsv with `prompt`, `chosen` and `rejected`.

ParaDetox's columns are read too (`toxic`, and `neutral` or `neutral1`; further rewrites of the same text are ignored, so that no
text weighs more than others). Such texts have no prompt. The common beginning of both sides is then used as their prompt, since DPO
learns nothing from it; where they differ from the first token on, the prompt is the tokenizer's BOS token, as at a document's start.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.models.model import Model
from training.generators.task import Block, Draft, Generator, Task, read_options
from training.recipe import data_file
from training.sources import rows

COLUMNS = (("chosen", "rejected"), ("neutral", "toxic"), ("neutral1", "toxic"))


@dataclass(frozen=True)
class PairsFile:
    """Settings of the file generator.

    Attributes:
        path: the path or glob of the files, below `BYPASS_DATA` unless it is absolute.
        strip_prompt: for a file whose sides begin with their prompt: true takes it off them, false leaves it there, so that it is
            read twice. Without a choice such a file is refused.
    """

    path: str
    strip_prompt: bool | None = None


def make(task: Task) -> Iterator[Block]:
    """The file's pairs in random order, at most `prompts` of them, all in one block.

    Sides follow the prompt as they are written, without a space between, and are cut to `new_tokens`. A pair whose prompt is
    longer than `max_prompt_tokens` is left out. Raises `UserError` for a record that is no pair, where none is left, and where sides
    repeat their prompt and `strip_prompt` does not say what to do.
    """
    options = read_options(PairsFile, task.settings, "file")
    paths = data_file(options.path)
    records = without_prompts([record for path in paths for record in read_pairs(path)], options.strip_prompt)
    random.Random(task.seed).shuffle(records)
    new = task.settings["new_tokens"]
    room = min(task.settings["max_prompt_tokens"], task.base.context - new)
    drafts: list[Draft] = []
    for start in range(0, len(records), 1000):
        drafts += [draft for draft in as_tokens(task.base, records[start : start + 1000], new) if len(draft.prompt) <= room]
        if len(drafts) >= task.settings["prompts"]:
            break
    if not drafts:
        problem = f"none of the {len(records)} pairs in {', '.join(map(str, paths))} has a prompt of at most {room} tokens"
        raise UserError(problem, "raise max_prompt_tokens, or lower new_tokens")
    drafts = drafts[: task.settings["prompts"]]
    yield Block(list(range(len(drafts))), drafts)


def read_pairs(path: Path) -> Iterator[tuple[str, str, str]]:
    """(prompt, chosen, rejected) of each record; raises `UserError` naming a record that lacks a side, or whose side is no text."""
    for number, row in enumerate(rows(path), 1):
        sides = next((names for names in COLUMNS if set(names) <= row.keys()), None)
        if sides is None:
            problem = f"record {number} of {path} has no pair, only {', '.join(map(str, row)) or 'nothing'}"
            raise UserError(problem, "give the columns prompt, chosen and rejected, or toxic and neutral")
        texts = [row.get("prompt") or "", row[sides[0]], row[sides[1]]]
        for name, text in zip(("prompt", *sides), texts, strict=True):
            if not isinstance(text, str) or (name != "prompt" and not text.strip()):
                raise UserError(f"record {number} of {path} has no text as {name!r}", "give a text, or remove the record")
        prompt, chosen, rejected = (text.encode("utf-8", "replace").decode("utf-8") for text in texts)
        yield prompt, chosen, rejected


def without_prompts(records: list[tuple[str, str, str]], strip: bool | None) -> list[tuple[str, str, str]]:
    """The pairs, those whose sides both repeat their prompt without it where `strip` is true.

    Raises `UserError` where `strip` is None and half of the pairs with a prompt, or more, repeat it: the prompt would be read twice, and
    the sides would be cut off earlier.
    """
    repeats = [bool(prompt.strip()) and all(side.startswith(prompt) for side in sides) for prompt, *sides in records]
    prompted = sum(bool(prompt.strip()) for prompt, *_ in records)
    if strip is None and sum(repeats) and 2 * sum(repeats) >= prompted:
        raise UserError(
            f"{sum(repeats)} of {prompted} pairs repeat their prompt at the beginning of both sides, so that it would be read twice",
            "set strip_prompt = true in [pairs.file] to take it off the sides, or false to leave it there",
        )
    if not strip:
        return records
    stripped = [
        (prompt, chosen[len(prompt) :], rejected[len(prompt) :]) if repeated else (prompt, chosen, rejected)
        for (prompt, chosen, rejected), repeated in zip(records, repeats, strict=True)
    ]
    return [record for record in stripped if record[1].strip() and record[2].strip()]


def as_tokens(base: Model, records: list[tuple[str, str, str]], new: int) -> Iterator[Draft]:
    """Token ids of each pair, its sides cut to `new` tokens; an empty prompt becomes the sides' common beginning, or BOS."""
    columns = [base.tokenizer(list(texts), add_special_tokens=False)["input_ids"] for texts in zip(*records, strict=True)]
    for prompt, chosen, rejected in zip(*columns, strict=True):
        if not prompt:
            shared = shared_length(chosen, rejected)
            prompt, chosen, rejected = chosen[:shared] or [bos_of(base)], chosen[shared:], rejected[shared:]
        yield Draft(prompt, chosen[:new], rejected[:new])


def shared_length(first: list[int], second: list[int]) -> int:
    """The length in tokens of the common beginning of two rows, leaving at least one token of each."""
    most = min(len(first), len(second)) - 1
    return next((at for at in range(most) if first[at] != second[at]), most)


def bos_of(base: Model) -> int:
    """The token at a document's start: BOS, or end-of-text where the tokenizer has no BOS."""
    token = base.tokenizer.bos_token_id if base.tokenizer.bos_token_id is not None else base.tokenizer.eos_token_id
    if token is None:
        raise UserError(f"a pair has no prompt, and the tokenizer of {base.name} has no BOS token to stand in", "give prompts")
    return int(token)


def options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `[pairs.file]`."""
    return asdict(read_options(PairsFile, settings, "file"))


GENERATOR = Generator("file", make, options_of, uses_probe=False, own_prompts=True)
