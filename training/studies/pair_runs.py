"""Which preference pairs lower which chosen answers, for experiments B-E2, B-E4 and B-E5: `python -m training.studies.displacement pairs`.

For each source of pairs and each seed, one stretch of pairs is trained on and another held out; stretches of different seeds share no pair.

    ranks    one epoch of DPO on all pairs: how the scores that need no gradient rank the falls of their chosen answers
    filters  one epoch of DPO on all pairs, on the half that each filter keeps, and on random halves of as many steps
    losses   one epoch on all pairs by each loss, measured while it runs

The epoch of DPO on all pairs is the same run in all three, and is made once for a draw. The learning rate is the largest of the paper's
grid under which the loss on a stretch that no seed has ends below its start. Every row is stored in the folder of runs as soon as it is
measured, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import numpy as np
from transformers import PreTrainedModel

from interp.data.paper import SETTING
from interp.data.texts import challenge_prompts, neutral_prompts
from interp.errors import UserError
from interp.evaluation.toxicity import Scorer, scorer_digest
from interp.files import read_json, write_json
from interp.models.digests import model_key
from interp.models.model import Model
from interp.preferences.logprobs import LogProbs, log_probs
from interp.preferences.pairs import TokenPair
from interp.results.result import plain
from training.filters import BATCH, Training, train
from training.pair_losses import LOSSES, PairLoss
from training.single_token import BETA, SFT_WEIGHT, TAU, largest_stable_rate
from training.studies import pair_arms as arms
from training.studies.displacement_cells import RATES
from training.studies.displacement_rows import shortened
from training.studies.pair_data import HH, LONGEST, PARADETOX, PairSet, hh_pairs, own_pairs, paradetox_pairs, part

KINDS = ("ranks", "filters", "losses")
# The arms of which behaviour is measured too; of the random halves the first.
WITH_BEHAVIOUR = ("all", "influence", "worst", "ches", "random")
Say = Callable[[str], object]


@dataclass(frozen=True)
class PairDesign:
    """How many runs are made, and of how many pairs each.

    Attributes:
        seeds: draws of pairs; each has its own pairs and its own order of reading.
        trained, held_out: pairs of a draw; a filter keeps half of the former.
        longest: pairs of more tokens, as one packed row, are not used.
        random: random halves of a draw.
        alone: draws of each source in which every pair is also trained on by itself, for one step.
        every: of the challenge prompts, every so many-th is continued.
        losses: what is trained on beside DPO.
    """

    seeds: int = 3
    trained: int = 64
    held_out: int = 32
    longest: int = LONGEST
    random: int = 2
    alone: int = 1
    every: int = 4
    new_tokens: int = 20
    measured_every: int = 2
    optimizer: str = "rmsprop"
    losses: tuple[PairLoss, ...] = LOSSES


@dataclass
class Draw:
    """One draw of pairs: those that are trained on and those held out, with their log-probabilities under the model."""

    source: str
    seed: int
    training: Training
    pairs: list[TokenPair]
    test: list[TokenPair]
    before: LogProbs
    test_before: LogProbs

    @property
    def head(self) -> dict[str, Any]:
        """How a row of this draw begins."""
        return {"source": self.source, "seed": self.seed, "rate": self.training.learning_rate}


@dataclass
class Epoch:
    """One epoch on all pairs of a draw by one loss: the model after it, and the course of the held-out pairs."""

    tuned: Model
    base: Model
    course: list[dict[str, float]]
    measures: arms.Behaviour

    @cached_property
    def behaviour(self) -> dict[str, float]:
        """What the model generates, and how far it is from the base."""
        return self.measures.of(self.tuned, self.base)


@dataclass
class PairStudy:
    """A model, the sources of pairs, and the folder in which rows are stored."""

    model: Model
    folder: Path
    sources: Sequence[PairSet]
    scorer: Scorer
    design: PairDesign = field(default_factory=PairDesign)
    say: Say = str

    def __post_init__(self) -> None:
        self.behaviour = arms.Behaviour(
            challenge_prompts()[:: self.design.every], neutral_prompts(), self.scorer, self.design.new_tokens
        )  # fmt: skip
        self._draw: Draw | None = None
        self._epoch: Epoch | None = None
        # A row is the same however many seeds and losses there are.
        settings = {name: value for name, value in self.settings().items() if name not in ("seeds", "alone", "losses")}
        depends = json.dumps([model_key(self.model), settings, scorer_digest(self.scorer)])
        self.folder = self.folder / hashlib.sha256(depends.encode()).hexdigest()[:12]

    def settings(self) -> dict[str, Any]:
        """What rows depend on beside their source and seed."""
        return asdict(self.design) | {
            "batch": BATCH, "beta": BETA, "tau": TAU, "sft_weight": SFT_WEIGHT, "rates": list(RATES["rmsprop"]),
            "scorer": self.scorer.name, "prompts": len(self.behaviour.prompts),
        }  # fmt: skip

    def stored(self, source: PairSet, name: str, make: Callable[[], Any]) -> Any:
        """A value out of the folder, or computed now and stored there."""
        file = self.folder / f"{source.name}-{str(source.about['digest'])[:8]}" / f"{name}.json"
        if not file.is_file():
            self.say(f"{source.name} {name}")
            file.parent.mkdir(parents=True, exist_ok=True)
            write_json(file, shortened(plain(make())))
        return read_json(file)

    def rate(self, source: PairSet) -> float:
        """The learning rate for a source: the largest under which DPO's loss on the calibration pairs ends below its start, ln 2."""
        pairs, _ = part(source, 0, (self.design.trained, self.design.held_out))
        before = log_probs(self.model, pairs)

        def stable(rate: float) -> bool:
            after = log_probs(self.tuned(pairs, Training(rate, self.design.optimizer, 0)), pairs)
            return arms.dpo_loss(before, after) < arms.dpo_loss(before, before)

        stored = self.stored(source, "rate", lambda: {"rate": largest_stable_rate(RATES["rmsprop"], stable, source.name)})
        return float(stored["rate"])

    def tuned(self, pairs: Sequence[TokenPair], training: Training, **options: Any) -> Model:
        """The model after one epoch on these pairs."""
        return Model(train(self.model, pairs, training, **options), self.model.tokenizer, "tuned")

    def draw(self, source: PairSet, seed: int) -> Draw:
        """The draw of a seed; the last one is remembered."""
        if self._draw is None or (self._draw.source, self._draw.seed) != (source.name, seed):
            pairs, test = part(source, seed + 1, (self.design.trained, self.design.held_out))
            training = Training(self.rate(source), self.design.optimizer, seed)
            self._draw = Draw(source.name, seed, training, pairs, test, log_probs(self.model, pairs), log_probs(self.model, test))
            self._epoch = None
        return self._draw

    def epoch(self, draw: Draw, loss: str = "dpo") -> Epoch:
        """One epoch on all pairs of a draw; that of DPO is remembered."""
        if loss == "dpo" and self._epoch is not None:
            return self._epoch
        course: list[dict[str, float]] = []
        steps = -(-len(draw.pairs) // BATCH)

        def measure(step: int, policy: PreTrainedModel, value: float) -> None:
            if step % self.design.measured_every == 0 or step == steps:
                now = log_probs(Model(policy, self.model.tokenizer, "policy"), draw.test)
                course.append({"step": step, "loss_before": value, **arms.changes(draw.test_before, now, draw.test)})

        tuned = self.tuned(draw.pairs, replace(draw.training, loss=loss), after_step=measure, reference=draw.before)
        epoch = Epoch(tuned, self.model, course, self.behaviour)
        if loss == "dpo":
            self._epoch = epoch
        return epoch

    def ranks(self, draw: Draw) -> dict[str, Any]:
        """One draw of `ranks`: the correlation of each score with the falls of the pairs that are trained on, and what the run did."""
        before, pairs = draw.before, draw.pairs
        scores = arms.forward_columns(self.model, pairs)
        after = log_probs(self.epoch(draw).tuned, pairs)
        correlations = {"epoch": arms.rank_correlations(scores, before.chosen - after.chosen)}
        like = arms.described(pairs, {name: scores[name] for name in ("edit_similarity", "ches")})
        return draw.head | {"correlations": correlations, "trained": arms.changes(before, after, pairs), "like": like}

    def filters(self, draw: Draw) -> dict[str, Any]:
        """One draw of `filters`: the correlation of each score with the falls in the run on all pairs, and every arm's outcome."""
        design, pairs, test = self.design, draw.pairs, draw.test
        exact, shares = arms.gradient_columns(self.model, pairs)
        scores = arms.forward_columns(self.model, pairs).join(exact)
        half = len(pairs) // 2
        subsets: list[tuple[str, list[int]]] = [("all", list(range(len(pairs))))]
        subsets += [(name, arms.lowest(scores[by], half)) for name, by in arms.FILTERS.items() if scores[by].nunique() > 1]
        for number in range(design.random):
            chosen = np.random.default_rng([draw.seed, 5, number]).choice(len(pairs), half, replace=False)
            subsets.append(("random", sorted(map(int, chosen))))
        rows: list[dict[str, Any]] = []
        correlations: dict[str, Any] = {}
        for name, places in subsets:
            some = [pairs[place] for place in places]
            epoch = self.epoch(draw) if name == "all" else None
            tuned = epoch.tuned if epoch else self.tuned(some, draw.training, reference=draw.before.at(places))
            if epoch:
                fall = draw.before.chosen - log_probs(tuned, pairs).chosen
                correlations = {"epoch": arms.rank_correlations(scores, fall)}
                shares |= {"fell_in_epoch": float((fall > 0).mean())}
                if draw.seed < design.alone:
                    step = -arms.alone(self.model, pairs, design.optimizer, draw.training.learning_rate)
                    correlations["alone"] = arms.rank_correlations(scores, step)
                    shares["fell_alone"] = float((step > 0).mean())
            mean = {by: scores[by].iloc[places] for by in ("length_difference", "edit_similarity", "ches", "harm")}
            row = {"arm": name, "pairs": len(some), "steps": -(-len(some) // BATCH), "like": arms.described(some, mean)}
            row |= {"held_out": arms.changes(draw.test_before, log_probs(tuned, test), test)}
            if name in WITH_BEHAVIOUR and name not in [other["arm"] for other in rows]:
                row |= epoch.behaviour if epoch else self.behaviour.of(tuned, self.model)
            rows.append(row)
        return draw.head | {"shares": shares, "correlations": correlations, "arms": rows}

    def _loss(self, source: PairSet, seed: int, loss: str) -> dict[str, Any]:
        """The course of the held-out pairs of a draw by a loss, and what the model does at the end."""
        epoch = self.epoch(self.draw(source, seed), loss)
        return {"loss": loss, "course": epoch.course} | epoch.behaviour

    def losses(self, source: PairSet, seed: int) -> dict[str, Any]:
        """One draw of `losses`: the row of each loss, each stored by itself."""
        names = ("dpo", *(name for name in self.design.losses if name != "dpo"))
        rows = [self.stored(source, f"losses-{seed}-{name}", partial(self._loss, source, seed, name)) for name in names]
        return {"source": source.name, "seed": seed, "rate": self.rate(source), "losses": rows}

    def row(self, kind: str, source: PairSet, seed: int) -> dict[str, Any]:
        """One row of a kind, measured if it is not there."""
        if kind == "losses":
            return self.losses(source, seed)
        measure = {"ranks": self.ranks, "filters": self.filters}[kind]
        stored: dict[str, Any] = self.stored(source, f"{kind}-{seed}", lambda: measure(self.draw(source, seed)))
        return stored

    def record(self, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
        """The rows of these kinds, each measured if it is not there, with the settings, the sources and the base's own behaviour."""
        rows: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        for seed in range(self.design.seeds):
            for source in self.sources:
                for kind in kinds:
                    rows[kind].append(self.row(kind, source, seed))
        start = shortened(plain(self.behaviour.of(self.model, self.model)))
        about: list[Mapping[str, Any]] = [{"source": source.name, **source.about, "rate": self.rate(source)} for source in self.sources]
        head = {"base": self.model.digest, "model": self.model.name, "settings": self.settings(), "sources": about, "base_model": start}
        return head | rows


def sources(model: Model, run: Path, names: Sequence[str] | None = None) -> list[PairSet]:
    """The sources of pairs of these names, or all.

    Raises `UserError` for another name, where the run holds none of this base, or `BYPASS_DATA` names no folder.
    """
    data = os.environ.get(SETTING)
    if not data:
        raise UserError(f"{SETTING} names no folder", f"set {SETTING} to the folder that holds {HH} and {PARADETOX}")
    known = {
        "own": lambda: own_pairs(run, model), "hh": lambda: hh_pairs(Path(data), model),
        "paradetox": lambda: paradetox_pairs(Path(data), model),
    }  # fmt: skip
    if missing := [name for name in names or () if name not in known]:
        raise UserError(f"there is no source {missing[0]!r}", f"use {', '.join(known)}")
    return [known[name]() for name in names or known]
