"""One tuning against toxicity by four methods, and what brings it back, for C-E6: `python -m training.studies.elasticity methods`.

The base is tuned on pairs that it wrote itself by SFT on the chosen sides, DPO, KTO and SimPO, each until its continuations are as clean
as asked on prompts that nothing else is measured on. Every tuned model then reads toxic continuations, or neutral text for as many
steps, and its toxicity and KL to the base are measured at each dose; so does the base itself with the toxic ones. The toxic
continuations are the base's own, so that one method's model reads the base's clean continuations of the same prompts as well.
Optimizer, rate and batch are the same everywhere. A draw shares no pair with another, and its row is stored when it is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import PreTrainedModel

from interp.data.texts import challenge_prompts, neutral_prompts
from interp.evaluation.toxicity import Scorer, scorer_digest
from interp.experiments.elasticity.method_rules import CLEAN, CONTROLLED, METHODS, of_method
from interp.files import read_json, write_json
from interp.models.digests import model_key
from interp.models.model import Model
from interp.models.modes import freeze
from interp.models.tokens import token_rows
from interp.preferences.influence import trainable_copy
from interp.preferences.logprobs import LogProbs, log_probs
from interp.preferences.pairs import TokenPair
from interp.results.result import plain
from training.filters import BATCH
from training.optimizers import preference_optimizer
from training.pair_batches import LossOf, answer_log_probs, backward
from training.pair_losses import kto_loss, pair_loss, simpo_loss
from training.studies.displacement_rows import shortened
from training.studies.further import as_rejected, further_steps
from training.studies.pair_arms import Behaviour
from training.studies.pair_data import PairSet, part

Say = Callable[[str], object]


@dataclass(frozen=True)
class MethodDesign:
    """How far the tunings go, and what is read after them.

    Attributes:
        seeds: draws of pairs.
        trained: pairs of a draw, read in as many passes as it takes.
        texts: toxic continuations of a draw, the rejected sides of other pairs.
        rate: of everything that is trained, that of the recipe of the pair that ships.
        goal: the share of the base's toxicity at which a tuning ends; it is asked for every `every` steps, `most` at most.
        doses: steps of further training after which is measured.
        held_back: of the challenge prompts, every so many-th is asked while a tuning goes on; the others are measured at the end.
    """

    seeds: int = 4
    trained: int = 400
    texts: int = 128
    rate: float = 5e-6
    optimizer: str = "rmsprop"
    goal: float = 0.6
    every: int = 8
    most: int = 160
    doses: tuple[int, ...] = (4, 8, 16, 32)
    held_back: int = 3
    new_tokens: int = 20


@dataclass
class MethodStudy:
    """A base model with its own pairs, and the folder in which rows are stored."""

    base: Model
    source: PairSet
    scorer: Scorer
    folder: Path
    design: MethodDesign = field(default_factory=MethodDesign)
    say: Say = str

    def __post_init__(self) -> None:
        prompts = challenge_prompts()
        self.neutral = token_rows(self.base, neutral_prompts())
        parts = prompts[:: self.design.held_back], [text for place, text in enumerate(prompts) if place % self.design.held_back]
        # What is asked while a tuning goes on, and what is measured at the end.
        self.asked, self.measures = (Behaviour(part, self.neutral, self.scorer, self.design.new_tokens) for part in parts)
        settings = {name: value for name, value in self.settings().items() if name != "seeds"}
        depends = json.dumps([model_key(self.base), settings, self.source.about["digest"], scorer_digest(self.scorer)])
        self.folder = self.folder / hashlib.sha256(depends.encode()).hexdigest()[:12]

    def settings(self) -> dict[str, Any]:
        """What a row depends on beside the base and its pairs."""
        return asdict(self.design) | {
            "batch": BATCH, "scorer": self.scorer.name, "prompts": len(self.measures.prompts),
            "prompts while tuning": len(self.asked.prompts),
            "methods": list(METHODS),
        }  # fmt: skip

    def state(self, hf: PreTrainedModel) -> dict[str, float]:
        """Toxicity and KL to the base on neutral text."""
        measured = self.measures.of(self._model(hf), self.base)
        return {name: measured[name] for name in ("toxicity", "kl")}

    def tune(self, method: str, pairs: Sequence[TokenPair], before: LogProbs, seed: int, goal: float) -> tuple[PreTrainedModel, int, bool]:
        """A model tuned by a method until its toxicity is at most `goal`, the steps that it took, and whether it came so far."""
        design = self.design
        hf = trainable_copy(self.base)
        optimizer = preference_optimizer(design.optimizer, list(hf.parameters()), design.rate)
        generator = np.random.default_rng([seed, 7])
        order: list[int] = []
        for step in range(1, design.most + 1):
            if len(order) < BATCH:
                order += map(int, generator.permutation(len(pairs)))
            places, order = order[:BATCH], order[BATCH:]
            some = [pairs[place] for place in places]
            optimizer.zero_grad()
            backward(hf, some, loss_of_method(method, hf, self.base, some, before.at(places)))
            optimizer.step()
            if step % design.every == 0 and self.asked.toxicity(self._model(hf)) <= goal:
                return hf, step, True
        return hf, design.most, False

    def undo(self, start: PreTrainedModel | Model, texts: Sequence[TokenPair], seed: int) -> list[dict[str, float]]:
        """The state after each dose of training on the rejected sides of these pairs."""
        model = start if isinstance(start, Model) else self._model(start)
        design = self.design
        steps = further_steps(model, texts, optimizer=design.optimizer, rate=design.rate, steps=max(design.doses), seed=seed)
        return [{"steps": step, **self.state(hf)} for step, hf in steps if step in design.doses]

    def row(self, seed: int) -> dict[str, Any]:
        """Everything that is measured of one draw."""
        design = self.design
        pairs, others = part(self.source, seed, (design.trained, design.texts))
        texts = {"toxic": others, "neutral": as_rejected(self.neutral)}
        before = log_probs(self.base, pairs)
        goal = design.goal * self.asked.toxicity(self.base)
        methods = []
        for method in METHODS:
            self.say(f"draw {seed}: {method}")
            tuned, steps, reached = self.tune(method, pairs, before, seed, goal)
            arms = {name: self.undo(tuned, some, seed) for name, some in texts.items()}
            methods.append({"method": method, "steps": steps, "reached": reached, **self.state(tuned), "arms": arms})
        self.say(f"draw {seed}: base")
        return {"seed": seed, "methods": methods, "from_base": self.undo(self.base, others, seed)}

    def control(self, seed: int) -> dict[str, Any]:
        """The states of the model that `CONTROLLED` tuned in a draw while it reads the base's clean continuations."""
        pairs, others = part(self.source, seed, (self.design.trained, self.design.texts))
        self.say(f"draw {seed}: clean continuations")
        goal = self.design.goal * self.asked.toxicity(self.base)
        tuned, *_ = self.tune(CONTROLLED, pairs, log_probs(self.base, pairs), seed, goal)
        return {"points": self.undo(tuned, [TokenPair(pair.prompt, pair.rejected, pair.chosen) for pair in others], seed)}

    def make(self) -> None:
        """Measure every draw that is not there yet."""
        for seed in range(self.design.seeds):
            for file, measure in ((self._file(seed), self.row), (self._control(seed), self.control)):
                if not file.is_file():
                    file.parent.mkdir(parents=True, exist_ok=True)
                    write_json(file, shortened(plain(measure(seed))))

    def record(self) -> dict[str, Any]:
        """The rows that are there, with the settings and the base's own toxicity."""
        rows = []
        for seed in range(self.design.seeds):
            if self._file(seed).is_file() and self._control(seed).is_file():
                row, clean = (read_json(file) for file in (self._file(seed), self._control(seed)))
                of_method(row, CONTROLLED)["arms"][CLEAN] = clean["points"]
                rows.append(row)
        head = {"base": self.base.digest, "model": self.base.name, "settings": self.settings(), "source": dict(self.source.about)}
        return head | {"base_model": {"toxicity": shortened(self.measures.toxicity(self.base)), "kl": 0.0}, "rows": rows}

    def _model(self, hf: PreTrainedModel) -> Model:
        """The weights as they are now, frozen, for measuring."""
        model = Model(freeze(self.base.plain_copy()), self.base.tokenizer, "tuned", bos=self.base.bos)
        model.hf.load_state_dict(hf.state_dict())
        return model

    def _file(self, seed: int) -> Path:
        return self.folder / f"draw-{seed}.json"

    def _control(self, seed: int) -> Path:
        return self.folder / f"clean-{seed}.json"


def loss_of_method(method: str, hf: PreTrainedModel, base: Model, pairs: Sequence[TokenPair], before: LogProbs) -> LossOf:
    """The loss of each pair of a step by a method; `before` has the log-probabilities of these pairs under the base."""
    known = list(zip(before.chosen.tolist(), before.rejected.tolist(), strict=True))
    lengths = [(len(pair.chosen), len(pair.rejected)) for pair in pairs]
    if method == "sft":
        return lambda place, chosen, rejected: -chosen / lengths[place][0]
    if method == "dpo":
        return lambda place, chosen, rejected: pair_loss("dpo", chosen, rejected, known[place])
    if method == "simpo":
        return lambda place, chosen, rejected: simpo_loss(chosen, rejected, lengths[place])
    divergence = gain_of_others(hf, base, pairs)
    return lambda place, chosen, rejected: kto_loss(chosen, rejected, known[place], divergence)


@torch.no_grad()
def gain_of_others(hf: PreTrainedModel, base: Model, pairs: Sequence[TokenPair]) -> float:
    """The mean gain in nats of the next pair's answers after each pair's prompt, KTO's estimate of the KL to the base."""
    moved = [TokenPair(pair.prompt, other.chosen, other.rejected) for pair, other in zip(pairs, [*pairs[1:], pairs[0]], strict=True)]
    before = log_probs(base, moved)
    after = answer_log_probs(hf, moved).cpu().numpy()
    return float((after - np.stack([before.chosen, before.rejected], axis=1)).mean())
