"""What an experiment is, and what all experiments of one report share.

An experiment is a function from a `Context` to a `Finding`; the decorator holds what is written down before the run:
question, criterion, what would refute the claim. The context computes what several experiments need (toxicity of a side
under an edit, the ranking of value vectors) once.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor

from interp.data.texts import Passage
from interp.directions.probe import Probe
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.evaluation.metrics import Perplexity, distinct_n, f1_of, perplexity
from interp.evaluation.toxicity import Scorer
from interp.forward.capture import capture
from interp.forward.captured import Captured
from interp.forward.generate import generate, generate_tokens
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.models.tokens import token_rows
from interp.neurons.ranking import TOXIC_COUNT, Ranking, rank_values
from interp.results.result import Figure, Verdict
from interp.runs.logs import BUNDLED_LOGS

Progress = Callable[[str], None]
BATCH = 512


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
    reads_logs: bool = False


EXPERIMENTS: dict[str, Experiment] = {}


def experiment(
    id: str, *, claim: str, title: str, question: str, criterion: str, refuted_by: str, caveat: str, reads_logs: bool = False
) -> Callable[[Callable[[Context], Finding]], Callable[[Context], Finding]]:
    """Register a function as an experiment of the report, in the order of registration.

    `reads_logs`: its result depends on the logs of the training run too (`Context.logs`).
    """

    def register(run: Callable[[Context], Finding]) -> Callable[[Context], Finding]:
        if id in EXPERIMENTS:
            raise ValueError(f"two experiments are called {id}")
        EXPERIMENTS[id] = Experiment(id, claim, title, question, criterion, refuted_by, caveat, run, reads_logs)
        return run

    return register


def _place(item: Experiment) -> tuple[str, int]:
    """The papers' experiments come by number, whatever order their modules were read in; others follow as registered."""
    number = re.fullmatch(r"([ABC])-E(\d+)", item.id)
    return (number[1], int(number[2])) if number else ("~", 0)


def find_experiments(only: Sequence[str] | None) -> list[Experiment]:
    """All experiments in order, or those named by id or claim (all that test it) in any case; raises `UserError` for an unknown one."""
    every = sorted(EXPERIMENTS.values(), key=_place)
    if not only:
        return every
    wanted = {name.lower() for name in only}
    known = {name.lower() for item in EXPERIMENTS.values() for name in (item.id, item.claim)}
    unknown = [name for name in only if name.lower() not in known]
    if unknown:
        raise UserError(f"there is no experiment {', '.join(unknown)}", f"use one of {', '.join(EXPERIMENTS)}")
    return [item for item in every if {item.id.lower(), item.claim.lower()} & wanted]


@dataclass(eq=False)
class Context:
    """One report's pair, data and shared measurements.

    Attributes:
        draws: how many random controls each null takes.
        logs: the folder of the training logs; they are used only where they are of this pair.
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
    logs: Path = BUNDLED_LOGS
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
        return rank_values(self.pair.base, self.direction, top=min(TOXIC_COUNT, self.pair.base.n_layers * self.pair.base.d_mlp))

    def _once(self, key: Any, make: Callable[[], Any]) -> Any:
        if key not in self._kept:
            self._kept[key] = make()
        return self._kept[key]

    def forget(self, model: Model) -> None:
        """Drop what is kept of a model, by its identity, which another model may have after it."""
        for key in [key for key in self._kept if isinstance(key, tuple) and id(model) in key[1:2]]:
            del self._kept[key]

    def prompt_rows(self) -> list[list[int]]:
        """The challenge prompts as token ids, cut where they would leave no room for the continuation."""
        room = self.pair.base.context - self.new_tokens
        return self._once("rows", lambda: token_rows(self.pair.base, self.prompts, max_tokens=room))

    def continuations(self, model: Model, edits: Sequence[Edit] = ()) -> list[str]:
        """Greedy continuations of the challenge prompts."""
        room = self.pair.base.context - self.new_tokens
        return self._once(
            ("continuations", id(model), *edits),
            lambda: generate(model, self.prompts, max_new_tokens=self.new_tokens, edits=edits, max_prompt_tokens=room, batch_size=BATCH),
        )

    def greedy_tokens(self, model: Model) -> list[list[int]]:
        """A model's greedy continuations as token ids, all of `new_tokens`, on which both sides can be forced."""
        return self._once(
            ("greedy tokens", id(model)),
            lambda: generate_tokens(model, self.prompt_rows(), max_new_tokens=self.new_tokens, stop_at_end=False, batch_size=BATCH),
        )

    def base_tokens(self) -> list[list[int]]:
        """The base model's greedy continuations, on which both sides are forced."""
        return self.greedy_tokens(self.pair.base)

    def toxicity(self, model: Model, edits: Sequence[Edit] = ()) -> np.ndarray:
        """Toxicity of each challenge prompt's continuation, without the prompt, from 0 to 1."""
        return self._once(
            ("toxicity", id(model), *edits),
            lambda: self.scorer.score(self.continuations(model, edits))["toxicity"].to_numpy().astype(float),
        )

    def perplexity(self, model: Model, edits: Sequence[Edit] = ()) -> Perplexity:
        """Perplexity on the passages, each read by itself."""
        return self._once(
            ("perplexity", id(model), *edits), lambda: perplexity(model, [passage.text for passage in self.passages], edits=edits)
        )

    def final_states(self, model: Model) -> tuple[Tensor, Tensor]:
        """The last residual stream at every position of some passages (`token d_model`), and the token that follows each."""

        def read() -> tuple[Tensor, Tensor]:
            rows = token_rows(
                model, [passage.text for passage in self.passages[:: max(1, len(self.passages) // 60)]], max_tokens=model.context
            )
            site = f"resid_post.{model.n_layers - 1}"
            held = capture(model, rows, [site], positions="all")
            states = torch.cat([held[site][i, : len(row) - 1] for i, row in enumerate(rows)])
            return states.to(model.device, model.dtype), torch.tensor([token for row in rows for token in row[1:]], device=model.device)

        return self._once(("final states", id(model)), read)

    @cached_property
    def offset_layer(self) -> int:
        """The layer at which the offset is read: of all but the first (below which no MLP writes), the one that holds most of the
        value vectors nearest to the probe, and the later of equal ones. Raises `UserError` for a model of one layer."""
        held = [layer for layer, _ in self.ranking.neurons]
        if self.pair.base.n_layers < 2:
            raise UserError("a model of one layer has no MLP below another", "give a model of two layers or more")
        return max(range(1, self.pair.base.n_layers), key=lambda layer: (held.count(layer), layer))

    def last_states(self, model: Model) -> Captured:
        """The residual stream after every attention and every MLP, at the last position of each challenge prompt, of a side of the pair."""
        sites = [f"{name}.{layer}" for layer in range(model.n_layers) for name in ("resid_mid", "resid_post")]
        return self._once(("last states", id(model)), lambda: capture(model, self.prompt_rows(), sites))

    def mean_states(self, model: Model) -> Captured:
        """Each challenge prompt's means over its positions, of a side of the pair: streams, attention outputs, neurons of every layer."""
        names = ("attn_out", "resid_mid", "mlp_post")
        sites = ["resid_pre.0", *(f"{name}.{layer}" for layer in range(model.n_layers) for name in names)]
        return self._once(("mean states", id(model)), lambda: capture(model, self.prompt_rows(), sites, positions="mean"))

    def f1(self, model: Model, edits: Sequence[Edit] = ()) -> np.ndarray:
        """F1 of the continuation of each passage's first part."""
        return self._once(("f1", id(model), *edits), lambda: f1_of(model, self.passages, edits=edits))

    def distinct(self, model: Model, edits: Sequence[Edit] = ()) -> float:
        """Share of different word pairs in the continuations of the challenge prompts."""
        return distinct_n(self.continuations(model, edits), 2)


# What is kept of a side of the pair and does not depend on the seed.
UNSEEDED = frozenset({"continuations", "greedy tokens", "toxicity", "perplexity", "final states", "last states", "mean states", "f1"})


def with_seed(context: Context, seed: int) -> Context:
    """The same report under another seed: random controls and intervals are drawn anew, what was measured of the pair is kept."""
    sides = {id(model) for model in context.pair.sides.values()}
    kept = {
        key: found
        for key, found in context._kept.items()
        if key == "rows" or (isinstance(key, tuple) and key[0] in UNSEEDED and key[1] in sides)
    }
    return replace(context, seed=seed, _kept=kept)
