"""DPO for refusals on a chat model as it is, for B-E3.

The model answers each unsafe request of the toy task's training split twice; of two answers the refusal is preferred, or one at random
where both are of a kind. One epoch of DPO follows on all pairs, also with an SFT term, and on a fifth of them: those of lowest ln-CHES,
of highest, of which one side refuses, and at random. The share of other requests that is refused is measured before and after each.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np

from interp.data.requests import requests, task_requests
from interp.errors import UserError
from interp.experiments.displacement.refusal_rules import ALL, HIGH, LOW, MIXED, RANDOM, WITH_SFT
from interp.models.chat import prompt_rows
from interp.models.digests import model_key
from interp.models.model import Model
from interp.models.tokens import decoded_rows
from interp.preferences.pairs import TokenPair
from interp.preferences.text_level import refuses
from training.filters import BATCH
from training.studies.pair_arms import lowest
from training.studies.refusal_task import RefusalDesign, RefusalStudy

CHAT = RefusalDesign(seeds=3, pairs=1, share=0.2, samples=2, judged_tokens=16)
MEASURED = ("unsafe held-out", "benign held-out")


class ChatRefusalStudy(RefusalStudy):
    """A chat model and the folder in which rows are stored."""

    def __post_init__(self) -> None:
        if not self.model.tokenizer.chat_template:
            raise UserError(f"{self.model.name} has no chat template", "give a chat model, or use the toy task")
        asked = {
            "unsafe train": task_requests("unsafe", "train"),
            "unsafe held-out": [*task_requests("unsafe", "held-out"), *requests("unsafe")],
            "benign held-out": [*task_requests("benign", "held-out"), *requests("benign")],
        }  # fmt: skip
        self.prompts = {name: [list(row) for row in prompt_rows(self.model, texts, chat=True)] for name, texts in asked.items()}
        settings = {name: value for name, value in self.settings().items() if name != "seeds"}
        self.folder = self.folder / hashlib.sha256(json.dumps([model_key(self.model), settings, asked]).encode()).hexdigest()[:12]

    def settings(self) -> dict[str, Any]:
        """Everything that a row depends on beside the model and the requests; what only the toy task has is left out."""
        rest = ("epochs", "refused", "refusing", "answering")
        kept = {name: value for name, value in super().settings().items() if name not in rest}
        return kept | {"asked": "chat template"}

    def taught(self, seed: int) -> Model:
        """The model as it is."""
        return self.model

    def measured(self, model: Model, seed: int) -> dict[str, Any]:
        """The share of answers to held-out requests that refuse, by kind, and how many answers these are."""
        shares: dict[str, Any] = {}
        for name in MEASURED:
            answers = self.sampled(model, name, self.design.samples, self.design.temperature, 1000 + seed, self.design.judged_tokens)
            shares[name] = float(np.mean([refuses(text) for text in decoded_rows(model, answers)]))
        return shares

    def arms(
        self, pairs: Sequence[TokenPair], refused: Sequence[int], scores: np.ndarray, seed: int
    ) -> Iterator[tuple[str, list[TokenPair], str, int]]:  # fmt: skip
        """Every way of tuning: its name, the pairs that it reads, the loss, and the pairs of a step."""
        count = round(self.design.share * len(pairs))
        generator = np.random.default_rng([seed, 3])
        mixed = np.flatnonzero(np.array(refused) == 1)

        def drawn(places: np.ndarray) -> list[TokenPair]:
            return [pairs[place] for place in sorted(generator.permutation(places)[:count])]

        yield ALL, list(pairs), "dpo", BATCH
        yield WITH_SFT, list(pairs), "dpo+sft", BATCH
        yield LOW, [pairs[place] for place in lowest(scores, count)], "dpo", BATCH
        yield HIGH, [pairs[place] for place in lowest(-scores, count)], "dpo", BATCH
        yield MIXED, drawn(mixed), "dpo", BATCH
        for _ in range(self.design.random):
            yield RANDOM, drawn(np.arange(len(pairs))), "dpo", BATCH

    def follows_pairs(self, arm: str) -> bool:
        """Only after tuning on all of them."""
        return arm in (ALL, WITH_SFT)
