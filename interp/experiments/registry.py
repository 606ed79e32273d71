"""What an experiment is, and what all experiments of one report share.

An experiment is a function from a `Context` to a `Finding`; the decorator holds what is written down before the run:
question, criterion, what would refute the claim. The context computes what several experiments need (toxicity of a side
under an edit, the ranking of value vectors) once.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd

from interp.edits import Edit
from interp.errors import UserError
from interp.generate import generate, generate_tokens
from interp.metrics import Perplexity, distinct_n, f1_of, perplexity
from interp.models import Model, ModelPair
from interp.neurons import Ranking, rank_values
from interp.probe import Probe
from interp.results import Figure, Verdict
from interp.texts import Passage
from interp.tokens import token_rows
from interp.toxicity import Scorer

if TYPE_CHECKING:
    from torch import Tensor

Progress = Callable[[str], None]
TOP_KEYS = 7


@dataclass(frozen=True)
class Finding:
    """What one run found: the part of a `Result` that depends on the data."""

    verdict: Verdict
    summary: str
    statistic: dict[str, float]
    null: dict[str, float]
    interval: dict[str, tuple[float, float]]
    tables: dict[str, pd.DataFrame]
    figures: tuple[Figure, ...]
    settings: dict[str, Any] = field(default_factory=dict)


@dataclass(frozen=True)
class Experiment:
    """A registered experiment: its identity, and what was written down before any run."""

    id: str
    claim: str
    title: str
    question: str
    criterion: str
    refuted_by: str
    caveat: str
    run: Callable[[Context], Finding]


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(
    id: str, *, claim: str, title: str, question: str, criterion: str, refuted_by: str, caveat: str
) -> Callable[[Callable[[Context], Finding]], Callable[[Context], Finding]]:
    """Register a function as an experiment of the report, in the order of registration."""

    def register(run: Callable[[Context], Finding]) -> Callable[[Context], Finding]:
        if id in EXPERIMENTS:
            raise ValueError(f"two experiments are called {id}")
        EXPERIMENTS[id] = Experiment(id, claim, title, question, criterion, refuted_by, caveat, run)
        return run

    return register


def find_experiments(only: Sequence[str] | None) -> list[Experiment]:
    """All experiments, or those named by id or claim in any case; raises `UserError` for an unknown one."""
    if not only:
        return list(EXPERIMENTS.values())
    known = {name.lower(): item for item in EXPERIMENTS.values() for name in (item.id, item.claim)}
    unknown = [name for name in only if name.lower() not in known]
    if unknown:
        raise UserError(f"there is no experiment {', '.join(unknown)}", f"use one of {', '.join(EXPERIMENTS)}")
    wanted = {known[name.lower()].id for name in only}
    return [item for item in EXPERIMENTS.values() if item.id in wanted]


@dataclass(eq=False)
class Context:
    """One report's pair, data and shared measurements.

    Attributes:
        draws: how many random controls each null takes.
        say: called with a short phrase when a long step begins.
    """

    pair: ModelPair
    probe: Probe
    scorer: Scorer
    prompts: list[str]
    passages: list[Passage]
    seed: int = 0
    draws: int = 20
    quick: bool = False
    new_tokens: int = 20
    say: Progress = lambda text: None
    _kept: dict[Any, Any] = field(default_factory=dict)

    def settings(self) -> dict[str, Any]:
        """What a result depends on beyond the experiment's own settings."""
        return {
            "prompts": len(self.prompts), "passages": len(self.passages), "new_tokens": self.new_tokens, "draws": self.draws,
            "seed": self.seed, "quick": self.quick, "scorer": self.scorer.name, "decoding": "greedy",
        }  # fmt: skip

    @property
    def direction(self) -> Tensor:
        """The probe's toxic direction."""
        return self.probe.direction

    @cached_property
    def ranking(self) -> Ranking:
        """The 128 value vectors of the base model nearest to the probe's direction (paper A's MLP.v_toxic)."""
        return rank_values(self.pair.base, self.direction, top=min(128, self.pair.base.n_layers * self.pair.base.d_mlp))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def prompt_rows(self) -> list[list[int]]:
        """The challenge prompts as token ids, cut where they would leave no room for the continuation."""
        room = self.pair.base.context - self.new_tokens
        return self._once("rows", lambda: token_rows(self.pair.base, self.prompts, max_tokens=room))

    def continuations(self, model: Model, edits: Sequence[Edit] = ()) -> list[str]:
        """Greedy continuations of the challenge prompts."""
        room = self.pair.base.context - self.new_tokens
        make = lambda: generate(model, self.prompts, max_new_tokens=self.new_tokens, edits=edits, max_prompt_tokens=room)  # noqa: E731
        return self._once(("continuations", model.name, *edits), make)

    def base_tokens(self) -> list[list[int]]:
        """The base model's greedy continuations as token ids, on which both sides are forced."""
        make = lambda: generate_tokens(self.pair.base, self.prompt_rows(), max_new_tokens=self.new_tokens, stop_at_end=False)  # noqa: E731
        return self._once("base tokens", make)

    def toxicity(self, model: Model, edits: Sequence[Edit] = ()) -> np.ndarray:
        """Toxicity of each challenge prompt's continuation, without the prompt, from 0 to 1."""
        make = lambda: self.scorer.score(self.continuations(model, edits))["toxicity"].to_numpy().astype(float)  # noqa: E731
        return self._once(("toxicity", model.name, *edits), make)

    def perplexity(self, model: Model, edits: Sequence[Edit] = ()) -> Perplexity:
        """Perplexity on the passages, each read by itself."""
        make = lambda: perplexity(model, [passage.text for passage in self.passages], edits=edits)  # noqa: E731
        return self._once(("perplexity", model.name, *edits), make)

    def f1(self, model: Model, edits: Sequence[Edit] = ()) -> np.ndarray:
        """F1 of the continuation of each passage's first part."""
        return self._once(("f1", model.name, *edits), lambda: f1_of(model, self.passages, edits=edits))

    def distinct(self, model: Model, edits: Sequence[Edit] = ()) -> float:
        """Share of different word pairs in the continuations of the challenge prompts."""
        return distinct_n(self.continuations(model, edits), 2)
