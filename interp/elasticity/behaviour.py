"""What a tuning was for, as one number per prompt: toxicity, refusal or any scorer on continuations, or paired word log-odds.

Every behaviour also returns continuations, because a behaviour can vanish together with the ability to speak.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol, runtime_checkable

import numpy as np
import torch
from jaxtyping import Float

from interp.data.records import content_of
from interp.errors import UserError
from interp.evaluation.toxicity import Scorer, scorer_digest
from interp.forward.generate import generate_tokens, prompt_limit
from interp.models.chat import Chat, chat_settings, prompt_rows
from interp.models.model import Model
from interp.models.tokens import batches, decoded_rows, pad
from interp.preferences.text_level import REFUSALS, refuses


@runtime_checkable
class TextScore(Protocol):
    """A score of texts: one number a text."""

    @property
    def name(self) -> str:
        """The score's name, as pages show it."""
        ...

    @property
    def digest(self) -> str:
        """A key of all that the score depends on."""
        ...

    def of(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """The score of each text."""
        ...


@dataclass(frozen=True, eq=False)
class ScorerColumn:
    """The first column of a scorer, or a named one."""

    scorer: Scorer
    column: str = ""

    @property
    def name(self) -> str:
        """The column and the scorer."""
        return f"{self._column} ({self.scorer.name})"

    @property
    def digest(self) -> str:
        """The scorer's digest and the column."""
        return f"{scorer_digest(self.scorer)}-{self._column}"

    @property
    def _column(self) -> str:
        return self.column or self.scorer.classes[0]

    def of(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """The column of each text."""
        return self.scorer.score(list(texts))[self._column].to_numpy(dtype=np.float64)


@dataclass(frozen=True)
class RefusalScore:
    """1 where a text begins as refusals do, else 0: a list of prefixes, not a judgement."""

    prefixes: tuple[str, ...] = REFUSALS
    name: str = "refusal (by prefix)"

    @property
    def digest(self) -> str:
        """A hash of the prefixes."""
        return digest_of(self.prefixes)

    def of(self, texts: Sequence[str]) -> Float[np.ndarray, " text"]:
        """Whether each text begins as a refusal."""
        return np.array([float(refuses(text, self.prefixes)) for text in texts], dtype=np.float64)


@dataclass(frozen=True, eq=False)
class Reading:
    """The behaviour of one model: the score of each prompt, that of a second score where there is one, and the continuations as tokens."""

    score: Float[np.ndarray, " prompt"]
    second: Float[np.ndarray, " prompt"] | None
    continuations: list[list[int]]


@runtime_checkable
class Behaviour(Protocol):
    """A behaviour that can be read off a model."""

    @property
    def name(self) -> str:
        """The behaviour's name, as pages show it."""
        ...

    @property
    def prompts(self) -> Sequence[str]:
        """The prompts on which it is read."""
        ...

    def rows(self, model: Model) -> list[list[int]]:
        """The prompts as token ids."""
        ...

    def read(self, model: Model) -> Reading:
        """The behaviour of a model."""
        ...

    def settings(self) -> dict[str, Any]:
        """Everything that a reading depends on apart from the model."""
        ...


@dataclass(frozen=True, eq=False)
class TextBehaviour:
    """A score of greedy continuations of prompts, and a second score of the same continuations."""

    prompts: Sequence[str]
    score: TextScore
    second: TextScore | None = None
    new_tokens: int = 20
    chat: Chat | bool = False

    @property
    def name(self) -> str:
        """The name of the first score."""
        return self.score.name

    def rows(self, model: Model) -> list[list[int]]:
        """The prompts as token ids; of longer ones the last tokens that leave room for the continuation."""
        limit = prompt_limit(model, self.new_tokens)
        return [list(row) for row in prompt_rows(model, list(self.prompts), self.chat, max_tokens=limit, keep="last")]

    def read(self, model: Model) -> Reading:
        """The scores of the greedy continuation of each prompt."""
        continuations = generate_tokens(model, self.rows(model), max_new_tokens=self.new_tokens)
        texts = decoded_rows(model, continuations)
        return Reading(self.score.of(texts), None if self.second is None else self.second.of(texts), continuations)

    def settings(self) -> dict[str, Any]:
        """The prompts, both scores and how continuations are made."""
        second = None if self.second is None else [self.second.name, self.second.digest]
        return {
            "score": [self.score.name, self.score.digest], "second": second,
            "prompts": digest_of(list(self.prompts)), "new_tokens": self.new_tokens, **chat_settings(self.chat),
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class WordOdds:
    """Paired word log-odds: after each opening, the mean over pairs of words of log π(first) - log π(second), in nats."""

    prompts: Sequence[str]
    pairs: Sequence[tuple[str, str]]
    new_tokens: int = 20
    name: str = "word log-odds"
    second: None = field(default=None, init=False)

    def rows(self, model: Model) -> list[list[int]]:
        """The openings as token ids."""
        return [list(row) for row in prompt_rows(model, list(self.prompts), False)]

    def read(self, model: Model) -> Reading:
        """The log-odds after each opening. Raises `UserError` for a word that is not one token."""
        rows = self.rows(model)
        tokens = np.array([[model.token(word) for word in pair] for pair in self.pairs])
        logps = next_log_probs(model, rows)
        scores = (logps[:, tokens[:, 0]] - logps[:, tokens[:, 1]]).mean(axis=1)
        return Reading(np.asarray(scores), None, generate_tokens(model, rows, max_new_tokens=self.new_tokens))

    def settings(self) -> dict[str, Any]:
        """The openings, the words and the length of continuations."""
        return {"score": self.name, "prompts": digest_of(list(self.prompts)), "words": digest_of([list(pair) for pair in self.pairs]),
                "new_tokens": self.new_tokens}  # fmt: skip


@torch.no_grad()
def next_log_probs(model: Model, rows: Sequence[Sequence[int]]) -> Float[np.ndarray, "row vocab"]:
    """The log-probability of each token after each row, in double precision."""
    table = np.empty((len(rows), model.d_vocab))
    for group in batches([len(row) for row in rows], batch_size=32, batch_tokens=8192):
        tokens = pad([rows[index] for index in group], model.tokenizer.pad_token_id or 0).to(model.device)
        logits = model.hf(**tokens.inputs(), use_cache=False, logits_to_keep=1).logits[:, -1]
        table[group] = logits.double().log_softmax(dim=-1).cpu().numpy()
    return table


def read_word_odds(path: Path) -> WordOdds:
    """The word log-odds that a JSON file describes: `openings`, and `pairs` of words.

    Raises `UserError` for a file without them.
    """
    fix = 'write {"openings": ["This movie is"], "pairs": [["great", "terrible"]]}'
    try:
        record = json.loads(content_of(path, "word pairs"))
    except (json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not JSON: {error}", fix) from error
    openings, pairs = (record.get(key) if isinstance(record, dict) else None for key in ("openings", "pairs"))
    if not isinstance(openings, list) or not isinstance(pairs, list) or not openings or not pairs:
        raise UserError(f"{path} does not hold `openings` and `pairs` of words", fix)
    whole = all(isinstance(pair, list) and len(pair) == 2 for pair in pairs)
    if not whole or not all(isinstance(text, str) and text.strip() for text in [*openings, *(word for pair in pairs for word in pair)]):
        raise UserError(f"{path} has an opening or a word that is no text, or a pair that is not two words", fix)
    return WordOdds(list(openings), [(pair[0], pair[1]) for pair in pairs])


def digest_of(value: Any) -> str:
    """A hash of a value that JSON can hold."""
    return hashlib.blake2b(json.dumps(value, sort_keys=True).encode(), digest_size=12).hexdigest()
