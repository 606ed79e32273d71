"""Which preference pairs lower which chosen answers, for experiments B-E2, B-E4 and B-E5: `python -m training.studies.displacement pairs`.

For each source of pairs and each seed, one stretch of pairs is trained on and another held out; stretches of different seeds share no pair.

    ranks    one epoch of DPO on all pairs: how the scores that need no gradient rank the falls of their chosen answers
    filters  one epoch of DPO on all pairs, on the half that each filter keeps, and on random halves of as many steps
    losses   one epoch on all pairs by each loss, measured while it runs

The learning rate is the largest of the paper's grid under which the loss on a stretch that no seed has ends below its start. Every row is
stored in the folder of runs as soon as it is measured, so an interrupted study goes on where it stopped.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from functools import partial
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
from interp.preferences.logprobs import log_probs
from interp.preferences.pairs import TokenPair
from interp.results.result import plain
from training.filters import BATCH, Training, train
from training.pair_losses import LOSSES
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
        # A row is the same however many seeds there are.
        settings = {name: value for name, value in self.settings().items() if name not in ("seeds", "alone")}
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

    def ranks(self, source: PairSet, seed: int) -> dict[str, Any]:
        """One draw of `ranks`: the correlation of each score with the falls of the pairs that are trained on, and what the run did."""
        training = Training(self.rate(source), self.design.optimizer, seed)
        pairs, _ = part(source, seed + 1, (self.design.trained, self.design.held_out))
        before, scores = log_probs(self.model, pairs), arms.forward_columns(self.model, pairs)
        after = log_probs(self.tuned(pairs, training), pairs)
        correlations = {"epoch": arms.rank_correlations(scores, before.chosen - after.chosen)}
        head = {"source": source.name, "seed": seed, "rate": training.learning_rate}
        like = arms.described(pairs, {name: scores[name] for name in ("edit_similarity", "ches")})
        return head | {"correlations": correlations, "trained": arms.changes(before, after, pairs), "like": like}

    def filters(self, source: PairSet, seed: int) -> dict[str, Any]:
        """One draw of `filters`: the correlation of each score with the falls in the run on all pairs, and every arm's outcome."""
        design, training = self.design, Training(self.rate(source), self.design.optimizer, seed)
        pairs, test = part(source, seed + 1, (design.trained, design.held_out))
        before, test_before = log_probs(self.model, pairs), log_probs(self.model, test)
        exact, shares = arms.gradient_columns(self.model, pairs)
        scores = arms.forward_columns(self.model, pairs).join(exact)
        half = len(pairs) // 2
        subsets: list[tuple[str, list[int]]] = [("all", list(range(len(pairs))))]
        subsets += [(name, arms.lowest(scores[by], half)) for name, by in arms.FILTERS.items() if scores[by].nunique() > 1]
        for draw in range(design.random):
            chosen = np.random.default_rng([seed, 5, draw]).choice(len(pairs), half, replace=False)
            subsets.append(("random", sorted(map(int, chosen))))
        rows: list[dict[str, Any]] = []
        correlations: dict[str, Any] = {}
        for name, places in subsets:
            some = [pairs[place] for place in places]
            tuned = self.tuned(some, training)
            if name == "all":
                fall = before.chosen - log_probs(tuned, pairs).chosen
                correlations = {"epoch": arms.rank_correlations(scores, fall)}
                shares |= {"fell_in_epoch": float((fall > 0).mean())}
                if seed < design.alone:
                    step = -arms.alone(self.model, pairs, design.optimizer, training.learning_rate)
                    correlations["alone"] = arms.rank_correlations(scores, step)
                    shares["fell_alone"] = float((step > 0).mean())
            mean = {by: scores[by].iloc[places] for by in ("length_difference", "edit_similarity", "ches", "harm")}
            row = {"arm": name, "pairs": len(some), "steps": -(-len(some) // BATCH), "like": arms.described(some, mean)}
            row |= {"held_out": arms.changes(test_before, log_probs(tuned, test), test)}
            if name in WITH_BEHAVIOUR and name not in [other["arm"] for other in rows]:
                row |= self.behaviour.of(tuned, self.model)
            rows.append(row)
        head = {"source": source.name, "seed": seed, "rate": training.learning_rate}
        return head | {"shares": shares, "correlations": correlations, "arms": rows}

    def losses(self, source: PairSet, seed: int) -> dict[str, Any]:
        """One draw of `losses`: by loss the course of the held-out pairs, and at the end behaviour and the trained pairs."""
        design, rate = self.design, self.rate(source)
        pairs, test = part(source, seed + 1, (design.trained, design.held_out))
        test_before = log_probs(self.model, test)
        steps = -(-len(pairs) // BATCH)
        rows = []
        for loss in LOSSES:
            course: list[dict[str, float]] = []

            def measure(step: int, policy: PreTrainedModel, value: float, course: list[dict[str, float]] = course) -> None:
                if step % design.measured_every == 0 or step == steps:
                    now = log_probs(Model(policy, self.model.tokenizer, "policy"), test)
                    course.append({"step": step, "loss_before": value, **arms.changes(test_before, now, test)})

            tuned = self.tuned(pairs, Training(rate, design.optimizer, seed, loss), after_step=measure)
            rows.append({"loss": loss, "course": course} | self.behaviour.of(tuned, self.model))
        return {"source": source.name, "seed": seed, "rate": rate, "losses": rows}

    def rows(self) -> Iterator[tuple[str, PairSet, str, Callable[[], dict[str, Any]]]]:
        """Every row in the order in which they are measured: kind, source, name, and the function that measures it."""
        measures = {"ranks": self.ranks, "filters": self.filters, "losses": self.losses}
        for kind, measure in measures.items():
            for seed in range(self.design.seeds):
                for source in self.sources:
                    yield kind, source, f"{kind}-{seed}", partial(measure, source, seed)

    def record(self, kinds: Sequence[str] = KINDS) -> dict[str, Any]:
        """The rows of these kinds, each measured if it is not there, with the settings, the sources and the base's own behaviour."""
        rows: dict[str, list[Any]] = {kind: [] for kind in KINDS}
        for kind, source, name, make in self.rows():
            if kind in kinds:
                rows[kind].append(self.stored(source, name, make))
        start = shortened(plain(self.behaviour.of(self.model, self.model)))
        about: list[Mapping[str, Any]] = [{"source": source.name, **source.about, "rate": self.rate(source)} for source in self.sources]
        head = {"base": self.model.digest, "model": self.model.name, "settings": self.settings(), "sources": about, "base_model": start}
        return head | rows


def sources(model: Model, run: Path) -> list[PairSet]:
    """All sources of pairs. Raises `UserError` where the run holds none of this base, or `BYPASS_DATA` names no folder."""
    data = os.environ.get(SETTING)
    if not data:
        raise UserError(f"{SETTING} names no folder", f"set {SETTING} to the folder that holds {HH} and {PARADETOX}")
    return [own_pairs(run, model), hh_pairs(Path(data), model), paradetox_pairs(Path(data), model)]
