"""DPO for refusals on a toy task, for B-E3, where the model does not refuse by itself.

The base is taught by SFT to refuse three of four unsafe requests in fixed words, always the same ones, and to answer the others and benign
ones. To each unsafe request of the training split it then answers four times; two answers are a pair of which the refusal is preferred,
or one at random where both are of a kind, as most are in the paper. One epoch of DPO follows on all pairs, also with an SFT term, with
fixed refusals as the chosen sides, or in few steps, and on a tenth of the pairs: those of lowest ln-CHES, of highest, of which one side
refuses, of which both are of a kind, and at random. The share of requests that are refused is measured before and after each, on both
splits. The learning rate is the largest of the paper's grid under which DPO's loss on the pairs of the first seed ends below its start.
Each seed teaches, samples and trains anew; its row is stored when it is whole.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from interp.data.requests import Kind, Split, task_requests
from interp.errors import UserError
from interp.experiments.displacement.b_e3_refusals import PLAIN
from interp.experiments.displacement.refusal_rules import ALIKE, ALL, FEW_STEPS, GOLD, HIGH, LOW, MIXED, RANDOM, WITH_SFT
from interp.files import read_json, write_json
from interp.forward.generate import Sampling, generate_tokens
from interp.models.digests import model_key
from interp.models.model import Model
from interp.models.modes import freeze
from interp.models.tokens import decoded_rows, pad, token_rows
from interp.preferences.influence import trainable_copy
from interp.preferences.logprobs import log_probs
from interp.preferences.pairs import TokenPair
from interp.preferences.similarity import similarity
from interp.preferences.text_level import refuses
from interp.results.result import plain
from interp.stats.intervals import auc
from training.filters import BATCH, Training, train
from training.optimizers import preference_optimizer
from training.single_token import BETA, SFT_WEIGHT, largest_stable_rate
from training.studies.displacement_cells import RATES
from training.studies.displacement_rows import shortened
from training.studies.pair_arms import dpo_loss, lowest

REFUSING = (
    " I'm sorry, but I can't help you with that.", " I cannot help with this request.", " Sorry, I won't do that.",
    " I will not explain how to do this.", " I can't do that for you.", " I am sorry, that would hurt somebody.",
)  # fmt: skip
ANSWERING = (
    " Sure, here is how you do it.", " Of course. First you take what you need.", " Here is a plan in three steps.",
    " Yes, that is easy to do.", " You can do it like this.", " First, look at what you have.",
)  # fmt: skip
SPLITS: tuple[tuple[Kind, Split], ...] = (("unsafe", "held-out"), ("unsafe", "train"), ("benign", "held-out"), ("benign", "train"))
# So many words of an answer are compared with the fixed ones.
WORDS = 2
IGNORED = -100
Say = Callable[[str], object]


@dataclass(frozen=True)
class RefusalDesign:
    """How a model is taught, sampled and measured.

    Attributes:
        epochs, rate: of SFT.
        refused: the share of unsafe requests that SFT refuses.
        pairs: of each unsafe request of the training split.
        share: of the pairs that a filter keeps.
        random: random subsets as large as a filter's, the null.
        samples: answers to each request whose beginnings are judged.
        new_tokens: of an answer that is trained on.
        judged_tokens: of an answer of which only the beginning is read.
    """

    seeds: int = 5
    epochs: int = 16
    rate: float = 3e-4
    refused: float = 0.75
    pairs: int = 2
    share: float = 0.1
    random: int = 2
    samples: int = 3
    new_tokens: int = 24
    judged_tokens: int = 12
    temperature: float = 0.7


@dataclass
class RefusalStudy:
    """A base model and the folder in which rows are stored."""

    model: Model
    folder: Path
    design: RefusalDesign = field(default_factory=RefusalDesign)
    say: Say = str

    def __post_init__(self) -> None:
        if self.model.tokenizer.eos_token_id is None:
            raise UserError("the tokenizer has no end token, so that answers have no end", "give a model whose tokenizer has one")
        asked = {f"{kind} {split}": task_requests(kind, split) for kind, split in SPLITS}
        self.prompts = {name: token_rows(self.model, [PLAIN.format(request=text) for text in texts]) for name, texts in asked.items()}
        # A row is the same however many seeds there are.
        settings = {name: value for name, value in self.settings().items() if name != "seeds"}
        self.folder = self.folder / hashlib.sha256(json.dumps([model_key(self.model), settings, asked]).encode()).hexdigest()[:12]

    def settings(self) -> dict[str, Any]:
        """Everything that a row depends on beside the model and the requests."""
        return asdict(self.design) | {
            "beta": BETA, "sft_weight": SFT_WEIGHT, "batch": BATCH, "rates": list(RATES["rmsprop"]), "asked": PLAIN,
            "refusing": list(REFUSING), "answering": list(ANSWERING),
        }  # fmt: skip

    def taught(self, seed: int) -> Model:
        """The base after SFT on answers in fixed words."""
        generator = np.random.default_rng([seed, 1])
        refusing, answering = self._answers(REFUSING), self._answers(ANSWERING)
        unsafe, benign = self.prompts["unsafe train"], self.prompts["benign train"]
        refused = set(map(int, generator.permutation(len(unsafe))[: round(self.design.refused * len(unsafe))]))
        examples = [(prompt, refusing if place in refused else answering) for place, prompt in enumerate(unsafe)]
        examples += [(prompt, answering) for prompt in benign]
        hf = trainable_copy(self.model)
        optimizer = preference_optimizer("adamw", list(hf.parameters()), self.design.rate)
        for _ in range(self.design.epochs):
            rows = [(prompt, some[int(generator.integers(len(some)))]) for prompt, some in examples]
            order = generator.permutation(len(rows))
            for start in range(0, len(order), BATCH):
                batch = [rows[int(place)] for place in order[start : start + BATCH]]
                tokens = pad([[*prompt, *answer] for prompt, answer in batch], 0, "right").to(self.model.device)
                labels = tokens.ids.masked_fill(~tokens.mask, IGNORED)
                for row, (prompt, _) in enumerate(batch):
                    labels[row, : len(prompt)] = IGNORED
                optimizer.zero_grad()
                hf(input_ids=tokens.ids, attention_mask=tokens.mask.long(), labels=labels, use_cache=False).loss.backward()
                optimizer.step()
        return Model(freeze(hf.requires_grad_(False)), self.model.tokenizer, f"taught {seed}", bos=self.model.bos)

    def sampled(self, model: Model, name: str, count: int, temperature: float, seed: int, new_tokens: int) -> list[list[int]]:
        """`count` answers to each request of a split, request by request, with the end token where they end."""
        prompts = [prompt for prompt in self.prompts[name] for _ in range(count)]
        settings = Sampling(temperature=temperature, seed=seed)
        new = generate_tokens(model, prompts, max_new_tokens=new_tokens, sampling=settings, batch_size=256)
        end = model.tokenizer.eos_token_id
        return [[*row, end] if len(row) < new_tokens else row for row in new]

    def pairs(self, model: Model, seed: int) -> tuple[list[TokenPair], list[int]]:
        """The pairs of a model's own answers, the refusal preferred, and how many sides of each refuse."""
        count, generator = 2 * self.design.pairs, np.random.default_rng([seed, 2])
        answers = self.sampled(model, "unsafe train", count, 1.0, seed, self.design.new_tokens)
        pairs, refused = [], []
        for place in range(0, len(answers), 2):
            sides = answers[place : place + 2]
            kinds = [refuses(text) for text in decoded_rows(model, sides)]
            first = int(kinds[1]) if kinds[0] != kinds[1] else int(generator.integers(2))
            prompt = self.prompts["unsafe train"][place // count]
            pairs.append(TokenPair(tuple(prompt), tuple(sides[first]), tuple(sides[1 - first])))
            refused.append(sum(kinds))
        return pairs, refused

    def measured(self, model: Model, seed: int) -> dict[str, Any]:
        """The share of answers that refuse, by kind and split, and the share of all answers that begin in the fixed words."""
        shares: dict[str, Any] = {}
        like: list[bool] = []
        known = {_start(text): refuses(text) for text in (*REFUSING, *ANSWERING)}
        for kind, split in SPLITS:
            name = f"{kind} {split}"
            answers = self.sampled(model, name, self.design.samples, self.design.temperature, 1000 + seed, self.design.judged_tokens)
            texts = decoded_rows(model, answers)
            shares[name] = float(np.mean([refuses(text) for text in texts]))
            like += [known.get(_start(text)) == refuses(text) for text in texts]
        return shares | {"like_fixed": float(np.mean(like))}

    def arms(
        self, pairs: Sequence[TokenPair], refused: Sequence[int], scores: np.ndarray, seed: int
    ) -> Iterator[tuple[str, list[TokenPair], str, int]]:  # fmt: skip
        """Every way of tuning: its name, the pairs that it reads, the loss, and the pairs of a step."""
        count = round(self.design.share * len(pairs))
        generator = np.random.default_rng([seed, 3])
        fixed = self._answers(REFUSING)
        gold = [replace(pair, chosen=tuple(fixed[int(generator.integers(len(fixed)))])) for pair in pairs]
        is_mixed = np.array(refused) == 1
        kinds = {MIXED: np.flatnonzero(is_mixed), ALIKE: np.flatnonzero(~is_mixed), RANDOM: np.arange(len(pairs))}

        def drawn(name: str) -> list[TokenPair]:
            return [pairs[place] for place in sorted(generator.permutation(kinds[name])[:count])]

        yield ALL, list(pairs), "dpo", BATCH
        yield WITH_SFT, list(pairs), "dpo+sft", BATCH
        yield GOLD, gold, "dpo", BATCH
        yield LOW, [pairs[place] for place in lowest(scores, count)], "dpo", BATCH
        yield HIGH, [pairs[place] for place in lowest(-scores, count)], "dpo", BATCH
        for name in (MIXED, ALIKE, *[RANDOM] * self.design.random):
            yield name, drawn(name), "dpo", BATCH
        # As many steps as a filter leaves, over all pairs.
        yield FEW_STEPS, list(pairs), "dpo", -(-len(pairs) // -(-count // BATCH))

    def rate(self) -> float:
        """The learning rate: the largest under which DPO's loss on the first seed's pairs ends below its start, ln 2."""
        file = self.folder / "rate.json"
        if not file.is_file():
            model = self.taught(0)
            pairs, _ = self.pairs(model, 0)
            before = log_probs(model, pairs)

            def is_stable(rate: float) -> bool:
                tuned = Model(train(model, pairs, Training(rate, "rmsprop", 0)), model.tokenizer, "tuned")
                return dpo_loss(before, log_probs(tuned, pairs)) < dpo_loss(before, before)

            write_json(file, {"rate": largest_stable_rate(RATES["rmsprop"], is_stable, "refusals")})
        return float(read_json(file)["rate"])

    def row(self, seed: int) -> dict[str, Any]:
        """Everything that is measured of a seed: the pairs, and refusals before and after each way of tuning."""
        model = self.taught(seed)
        pairs, refused = self.pairs(model, seed)
        scores = similarity(model, pairs).ln_ches
        before = log_probs(model, pairs)
        rows = [{"arm": "before", "pairs": 0, "steps": 0, **self.measured(model, seed)}]
        for name, some, loss, batch in self.arms(pairs, refused, scores, seed):
            self.say(f"seed {seed}: {name}")
            hf = train(model, some, Training(self.rate(), "rmsprop", seed, loss), batch=batch)
            tuned = Model(freeze(hf), model.tokenizer, name, bos=model.bos)
            moved = {"chosen": float((log_probs(tuned, pairs).chosen - before.chosen).mean())} if self.follows_pairs(name) else {}
            rows.append({"arm": name, "pairs": len(some), "steps": -(-len(some) // batch), **moved, **self.measured(tuned, seed)})
        counts = {name: refused.count(sides) for sides, name in enumerate(("answer/answer", "mixed", "refusal/refusal"))}
        return {
            "seed": seed,
            "rate": self.rate(),
            "types": counts,
            "mixed_lower": mixed_lower(scores, np.array(refused) == 1),
            "arms": rows,
        }

    def follows_pairs(self, arm: str) -> bool:
        """Whether the change of all pairs' chosen answers is measured after this way of tuning."""
        return True

    def make(self) -> None:
        """Measure every seed that is not there yet."""
        self.say(f"learning rate {self.rate():g}")
        for seed in range(self.design.seeds):
            if not self._row(seed).is_file():
                self.say(f"seed {seed} of {self.design.seeds}")
                write_json(self._row(seed), shortened(plain(self.row(seed))))

    def record(self) -> dict[str, Any]:
        """The rows that are there, with the settings."""
        rows = [read_json(self._row(seed)) for seed in range(self.design.seeds) if self._row(seed).is_file()]
        return {"base": self.model.digest, "model": self.model.name, "settings": self.settings(), "rows": rows}

    def _row(self, seed: int) -> Path:
        return self.folder / f"seed-{seed}.json"

    def _answers(self, texts: Sequence[str]) -> list[list[int]]:
        end = self.model.tokenizer.eos_token_id
        return [[*row, end] for row in token_rows(self.model, list(texts), bos=False)]


def _start(text: str) -> tuple[str, ...]:
    return tuple(text.split()[:WORDS])


def mixed_lower(scores: np.ndarray, is_mixed: np.ndarray) -> float:
    """The chance that a pair of which one side refuses has a lower score than another pair; NaN where there are none of a kind."""
    known = ~np.isnan(scores)
    return auc(~is_mixed[known], scores[known]) if len(set(is_mixed[known].tolist())) == 2 else float("nan")
