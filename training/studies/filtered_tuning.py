"""What leaving pairs out by their influence does to a tuning against toxicity, and which neurons carry it, for B-E6 and B-E7.

`python -m training.studies.filtered_tuning` tunes the base with DPO on pairs that it wrote itself: on all of a draw, on the half that a
filter keeps, and on random halves of as many steps. Of every model it measures the toxicity of continuations, the KL to the base, the
toxicity with a few toxic keys enlarged (paper A's un-alignment), and toxicity and KL after a few steps on toxic continuations and on
neutral text (paper C's). Of the model tuned on all pairs it measures what remains of the changes of held-out answers' log-probabilities
when groups of neurons keep the base's activations. A draw shares no pair with another; its row is stored when it is whole.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from functools import cached_property
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from interp.data.texts import neutral_prompts
from interp.diffing.groups import masks_by_layer
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.evaluation.toxicity import scorer_digest
from interp.experiments.toxicity.a_e9_activations import activities
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.make import make_context
from interp.files import read_json, write_json
from interp.models.digests import model_key
from interp.models.model import Model, Neuron
from interp.models.modes import freeze
from interp.models.pair import ModelPair
from interp.models.tokens import token_rows
from interp.neurons.ranking import rank_values
from interp.patching.cross_model import Selection, losses_with_donor
from interp.preferences.logprobs import LogProbs, log_probs
from interp.preferences.pairs import TokenPair
from interp.results.result import plain
from interp.runs.logs import FILES
from interp.runs.trajectory import RUNS_SETTING
from interp.stats.nulls import activity_matched
from interp.steering.unalign import FACTOR, KEYS
from training.filters import BATCH, Training, train
from training.single_token import BETA
from training.studies import pair_arms
from training.studies.displacement import model_named
from training.studies.displacement_rows import shortened
from training.studies.further import further_steps
from training.studies.pair_data import PairSet, own_pairs, part

# By name of an arm: the column of scores of which the low values are kept.
ARMS = {"influence": "harm", "worst": "benefit", "ches": "ches"}
ALL, RANDOM = "all", "random"
# The groups of neurons whose base activations are kept, and which of them are drawn.
TOXIC, MATCHED, EVERY = "toxic neurons", "equally active neurons", "all neurons"
Say = Callable[[str], object]


@dataclass(frozen=True)
class FilterDesign:
    """How large the runs are.

    Attributes:
        seeds: draws of pairs.
        trained, held_out: pairs of a draw; a filter keeps half of the former.
        random: random halves of a draw.
        rate: of DPO, that of the recipe of the pair that ships; further training has the same.
        every: of the challenge prompts, every so many-th is continued.
        steps: of further training, of `BATCH` texts each.
        neurons: the toxic neurons whose activations are put back.
        matched: draws of equally active ones.
    """

    seeds: int = 5
    trained: int = 432
    held_out: int = 48
    random: int = 2
    rate: float = 5e-6
    optimizer: str = "rmsprop"
    every: int = 2
    steps: int = 16
    neurons: int = 128
    matched: int = 2


@dataclass
class FilterStudy:
    """A base model with its own pairs, prompts and probe, and the folder in which rows are stored."""

    context: ToxicityContext
    source: PairSet
    folder: Path
    design: FilterDesign = field(default_factory=FilterDesign)
    say: Say = str

    def __post_init__(self) -> None:
        self.base: Model = self.context.pair.base
        prompts = self.context.prompt_rows()[:: self.design.every]
        self.neutral = token_rows(self.base, neutral_prompts())
        self.measures = pair_arms.Behaviour(prompts, self.neutral, self.context.scorer, self.context.new_tokens)
        settings = {name: value for name, value in self.settings().items() if name != "seeds"}
        depends = json.dumps([model_key(self.base), settings, self.source.about["digest"], scorer_digest(self.context.scorer)])
        self.folder = self.folder / hashlib.sha256(depends.encode()).hexdigest()[:12]

    def settings(self) -> dict[str, Any]:
        """What a row depends on beside the base and its pairs."""
        return asdict(self.design) | {
            "batch": BATCH, "beta": BETA, "scorer": self.context.scorer.name, "prompts": len(self.measures.prompts),
            "keys": KEYS, "factor": FACTOR, "new_tokens": self.context.new_tokens,
        }  # fmt: skip

    def state(self, model: Model) -> dict[str, float]:
        """The toxicity of a model, and its KL to the base on neutral text."""
        measured = self.measures.of(model, self.base)
        return {name: measured[name] for name in ("toxicity", "kl")}

    def unaligned(self, model: Model) -> float:
        """The toxicity of a model with the keys nearest to the probe, by its own ranking, enlarged."""
        keys = rank_values(model, self.context.direction, top=KEYS).neurons
        return self.measures.toxicity(model, [Edit.scale_keys(keys, FACTOR)])

    @cached_property
    def start(self) -> dict[str, float]:
        """The base's own values."""
        return self.state(self.base) | {"unaligned": self.unaligned(self.base)}

    def undone(self, model: Model, texts: Sequence[TokenPair], seed: int) -> dict[str, float]:
        """Toxicity and KL after some steps of training on the rejected sides of these pairs, in the optimizer and rate of the tuning."""
        design = self.design
        steps = further_steps(model, texts, optimizer=design.optimizer, rate=design.rate, steps=design.steps, seed=seed)
        *_, (_, hf) = steps
        return self.state(self._model(hf, "undone"))

    def row(self, seed: int) -> dict[str, Any]:
        """Everything that is measured of one draw."""
        design = self.design
        pairs, test = part(self.source, seed, (design.trained, design.held_out))
        # The next draw's pairs were neither trained on nor held out.
        others, _ = part(self.source, (seed + 1) % design.seeds, (design.trained, design.held_out))
        texts = {
            "toxic": others[: design.steps * BATCH],
            "neutral": [TokenPair(row[:1], row[1:2], row[1:]) for row in map(tuple, self.neutral)],
        }
        before, test_before = log_probs(self.base, pairs), log_probs(self.base, test)
        exact, shares = pair_arms.gradient_columns(self.base, pairs)
        scores = pair_arms.forward_columns(self.base, pairs).join(exact)
        half = len(pairs) // 2
        subsets = [(ALL, list(range(len(pairs))))]
        subsets += [(name, pair_arms.lowest(scores[by], half)) for name, by in ARMS.items() if scores[by].nunique() > 1]
        for draw in range(design.random):
            subsets.append((RANDOM, sorted(map(int, np.random.default_rng([seed, 5, draw]).choice(len(pairs), half, replace=False)))))
        rows: list[dict[str, Any]] = []
        neurons: dict[str, Any] = {}
        for name, places in subsets:
            self.say(f"draw {seed}: {name}")
            training = Training(design.rate, design.optimizer, seed)
            tuned = self._model(train(self.base, [pairs[place] for place in places], training, reference=before.at(places)), name)
            row = {"arm": name, "pairs": len(places), "steps": -(-len(places) // BATCH), "harm": float(scores["harm"].iloc[places].mean())}
            row |= {"held_out": pair_arms.changes(test_before, log_probs(tuned, test), test)}
            row |= self.state(tuned) | {"unaligned": self.unaligned(tuned)}
            if name != ALL and name not in [other["arm"] for other in rows]:
                row |= {f"after {kind}": self.undone(tuned, some, seed) for kind, some in texts.items()}
            if name == ALL:
                neurons = self.carried(tuned, test, test_before, seed)
            rows.append(row)
        return {"seed": seed, "shares": shares, "arms": rows, "neurons": neurons}

    @cached_property
    def groups(self) -> tuple[list[Neuron], dict[int, Tensor]]:
        """The toxic neurons by the base's own ranking, and how active every neuron of their layers is."""
        toxic = self.context.ranking.neurons[: self.design.neurons]
        return toxic, activities(self.context, sorted({layer for layer, _ in toxic}))

    def carried(self, tuned: Model, test: Sequence[TokenPair], before: LogProbs, seed: int) -> dict[str, Any]:
        """By group of neurons that keep the base's activations: the changes of held-out answers' log π that are left, in nats."""
        toxic, activity = self.groups
        selections: dict[str, Selection] = {"none": {}, TOXIC: self._selected(toxic)}
        for draw in range(self.design.matched):
            drawn = activity_matched(self.base, toxic, activity, seed=100 * seed + draw, exclude=toxic)
            selections[f"{MATCHED} {draw}"] = self._selected(drawn)
        selections[EVERY] = {layer: torch.ones(self.base.d_mlp, dtype=torch.bool) for layer in range(self.base.n_layers)}
        known = {"chosen": before.chosen, "rejected": before.rejected}
        sides = {side: [(pair.prompt, getattr(pair, side)) for pair in test] for side in known}
        changes = {side: answer_changes(tuned, self.base, rows, list(selections.values()), known[side]) for side, rows in sides.items()}
        return {name: {side: float(values[place].mean()) for side, values in changes.items()} for place, name in enumerate(selections)}

    def _selected(self, neurons: Sequence[Neuron]) -> Selection:
        mask = np.zeros(self.base.n_layers * self.base.d_mlp, dtype=bool)
        mask[[layer * self.base.d_mlp + index for layer, index in neurons]] = True
        return masks_by_layer(mask, self.base.d_mlp)

    def _model(self, hf: Any, name: str) -> Model:
        return Model(freeze(hf.requires_grad_(False)), self.base.tokenizer, name, bos=self.base.bos)

    def make(self) -> None:
        """Measure every draw that is not there yet."""
        for seed in range(self.design.seeds):
            if not self._file(seed).is_file():
                write_json(self._file(seed), shortened(plain(self.row(seed))))

    def record(self) -> dict[str, Any]:
        """The rows that are there, with the settings and the base's own values."""
        rows = [read_json(self._file(seed)) for seed in range(self.design.seeds) if self._file(seed).is_file()]
        head = {"base": self.base.digest, "model": self.base.name, "settings": self.settings(), "source": dict(self.source.about)}
        return head | {"base_model": shortened(plain(self.start)), "rows": rows}

    def _file(self, seed: int) -> Path:
        return self.folder / f"draw-{seed}.json"


def answer_changes(
    tuned: Model, base: Model, answers: Sequence[tuple[Sequence[int], Sequence[int]]], selections: Sequence[Selection], before: np.ndarray
) -> list[np.ndarray]:
    """By selection of neurons that take the base's activations: each answer's change of log-probability from the base, in nats.

    `answers` are prompts with answers, and `before` the base's log-probabilities of these.
    """
    rows = [[*prompt, *answer] for prompt, answer in answers]
    losses = losses_with_donor(tuned, base, rows, selections)
    after = [np.array([-one[len(prompt) - 1 :].sum() for one, (prompt, _) in zip(some, answers, strict=True)]) for some in losses]
    return [values - before for values in after]


def main(arguments: Sequence[str] | None = None) -> int:
    """The command line; bad input is one line on stderr and exit code 2."""
    parser = argparse.ArgumentParser("python -m training.studies.filtered_tuning", description=str(__doc__).split("\n", 1)[0])
    parser.add_argument("--model", default="bundled", metavar="NAME", help="a folder, a hub id, or a name as smollm2 [default: bundled]")
    parser.add_argument("--own", metavar="RUN", default="shipped", help="the run whose stage `pairs` the model wrote [default: shipped]")
    parser.add_argument("--seeds", type=int, default=FilterDesign.seeds, help="draws of pairs [default: 5]")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--out", type=Path, metavar="FILE", help="[default: filtered_tuning.json in the study's folder of runs]")
    options = parser.parse_args(arguments)
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    runs = Path(os.environ.get(RUNS_SETTING, "runs"))
    folder = runs / "displacement" / "filtered_tuning"
    try:
        base = model_named(options.model, options.device)
        context = make_context(ModelPair(base, base))
        source = own_pairs(runs / options.own, base)
        study = FilterStudy(context, source, folder, FilterDesign(seeds=options.seeds), lambda line: sys.stderr.write(f"{line}\n"))
        study.make()
        file = options.out or folder / FILES["filtered_tuning"][0]
        write_json(file, study.record())
    except UserError as error:
        sys.stderr.write(f"filtered_tuning: {error}\n")
        return 2
    sys.stdout.write(f"{len(study.record()['rows'])} draws in {file}\n")
    return 0


if __name__ == "__main__":
    torch.set_num_threads(int(os.environ.get("OMP_NUM_THREADS", "1")))
    sys.exit(main())
