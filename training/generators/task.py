"""The interface of pair generators: `Generator`, its input `Task`, and its output, blocks of `Draft`s.

A generator yields blocks, so that finished work can be saved and continued after a kill. It knows nothing of files, filters or
manifests: the drafts of all generators are processed in `training/pairs.py`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from interp.directions.probe import Probe
from interp.errors import UserError
from interp.evaluation.toxicity import Scorer
from interp.models.model import Model
from training.settings import read_section

Options = TypeVar("Options")


@dataclass(frozen=True)
class Draft:
    """One pair before it is scored, as token ids: two continuations of one prompt."""

    prompt: list[int]
    chosen: list[int]
    rejected: list[int]


@dataclass(frozen=True)
class Block:
    """Drafts made together; `rows` are the indices of their prompts in the task (or of the records of a pairs file)."""

    rows: list[int]
    drafts: list[Draft]


@dataclass(frozen=True)
class Task:
    """The input of a generator: model, prompts, settings, scorer and probe.

    Attributes:
        prompts: token ids of each prompt; empty for a generator that brings its own.
        settings: the recipe's `[pairs]` section; a generator's own settings are the table of its name in it.
        probe: loads the probe of this model; raises `UserError` where there is none. Only a generator that uses it calls it.
        done: rows drafted before a kill. A generator that yields several blocks leaves out those that hold nothing else.
    """

    base: Model
    prompts: list[list[int]]
    settings: Mapping[str, Any]
    seed: int
    scorer: Scorer
    probe: Callable[[], Probe]
    done: frozenset[int] = frozenset()


@dataclass(frozen=True)
class Generator:
    """A named function that makes pairs, with its settings and properties.

    Attributes:
        make: makes the drafts, block by block.
        options: its settings with their defaults filled in, as the manifest records them; raises `UserError` for bad ones.
        uses_probe: whether the toxic side was made with the probe that the analysis looks for afterwards (circularity).
        own_prompts: whether the prompts come with the pairs.
    """

    name: str
    make: Callable[[Task], Iterator[Block]]
    options: Callable[[Mapping[str, Any]], dict[str, Any]]
    uses_probe: bool
    own_prompts: bool = False


def read_options(kind: type[Options], settings: Mapping[str, Any], name: str) -> Options:
    """The table `[pairs.NAME]` of the settings as a dataclass.

    Raises `UserError` for a setting that is unknown, missing or wrongly typed.
    """
    table = settings.get(name, {})
    return read_section(kind, table, f"section [pairs.{name}]" if isinstance(table, Mapping) else f"pairs.{name}")


def check_range(name: str, value: float, low: float, high: float = float("inf")) -> None:
    """Raise `UserError` unless `low <= value <= high`."""
    if not low <= value <= high:
        raise UserError(f"{name} is {value}", f"give {low} or more" if high == float("inf") else f"give {low} to {high}")


def check_room(model: Model, prompts: Sequence[Sequence[int]], new: int) -> None:
    """Raise `UserError` unless the longest prompt and `new` tokens more fit into the model's context."""
    longest = max((len(row) for row in prompts), default=0)
    if longest + new > model.context:
        raise UserError(
            f"a prompt of {longest} tokens and {new} more do not fit into the model's context of {model.context}",
            "lower max_prompt_tokens or new_tokens",
        )
