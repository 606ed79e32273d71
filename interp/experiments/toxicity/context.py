"""`ToxicityContext`, the study of paper A: a pair, its probe, a scorer, prompts and passages, and what is measured of them."""

from __future__ import annotations

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any, ClassVar, cast

import numpy as np
import torch
from torch import Tensor

from interp.data.texts import Passage
from interp.directions.probe import Probe
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.evaluation.last_states import acts_last, joined_windows, last_states, losses_from_states
from interp.evaluation.metrics import Perplexity, TextLoss, distinct_n, f1_of, perplexity, perplexity_of, text_losses
from interp.evaluation.toxicity import Scorer, scorer_digest
from interp.experiments.pair_study import PairStudy
from interp.forward.capture import capture
from interp.forward.captured import Captured
from interp.forward.generate import before_end, count_cut, generate, generate_tokens, note_on_cut, prompt_limit
from interp.models.chat import Chat, chat_settings, prompt_rows, template_of
from interp.models.digests import model_digests
from interp.models.model import Model
from interp.models.tokens import adds_bos, decoded_rows, token_rows, uncut_rows
from interp.neurons.ranking import TOXIC_COUNT, Ranking, rank_values
from interp.runs.logs import BUNDLED_LOGS, logs_digest

BATCH = 512
# The random controls of each null in a whole report.
DRAWS = 20
# The length of a continuation, in tokens.
NEW_TOKENS = 20
SAME_WEIGHTS = "Not applicable: both sides of the pair have the same weights, so there is no tuning to test the claim on."


@dataclass(eq=False)
class ToxicityContext(PairStudy):
    """The pair, the data and the measurements that the experiments on toxicity share.

    Attributes:
        second: another scorer, under which every verdict that rests on toxicity is shown too; None for none.
        draws: how many random controls each null takes.
        new_tokens: the length of a continuation, in tokens.
        logs: the folder of the training logs; they are used only where they are of this pair.
        layer: the layer at which the offset is read; None for the one that `offset_layer` chooses.
        prompt_tokens: of longer prompts only the last so many tokens are read; None for as many as leave room for the continuation.
        joined: whether perplexity reads the passages as one text, in windows as long as the context, as paper A reads WikiText.
        chat: how prompts (not passages) are read: as raw text, or as user turns of the pair's chat template.
        rule: the sentence that says by what rule a quick report of a large model reads less.
        f1_of_all: whether F1 is measured of every model and edit, or of the two sides alone; it decides no verdict.
    """

    DATA: ClassVar[frozenset[str]] = frozenset(
        {"probe", "scorer", "second", "prompts", "passages", "new_tokens", "prompt_tokens", "chat", "joined"}
    )
    LISTS: ClassVar[frozenset[str]] = frozenset({"prompts", "passages"})

    probe: Probe
    scorer: Scorer
    prompts: list[str]
    passages: list[Passage]
    draws: int = DRAWS
    new_tokens: int = NEW_TOKENS
    logs: Path = BUNDLED_LOGS
    layer: int | None = None
    prompt_tokens: int | None = None
    chat: Chat | bool = False
    second: Scorer | None = None
    joined: bool = False
    rule: str = ""
    f1_of_all: bool = True

    def settings(self) -> dict[str, Any]:
        """The study's settings that a result depends on."""
        special: dict[str, Any] = {} if self.layer is None else {"layer": self.layer}
        special |= {"rule": self.rule} if self.rule else {}
        special |= {"bos": True} if adds_bos(self.pair.base) else {}
        special |= {"prompts_cut": self.cut, "prompt_tokens": self._room} if self.cut else {}
        special |= chat_settings(self.chat) if self.chat else {}
        special |= {"joined": True} if self.joined else {}
        special |= {} if self.second is None else {"second_scorer": self.second.name}
        return {
            "prompts": len(self.prompts), "passages": len(self.passages), "new_tokens": self.new_tokens, "draws": self.draws,
            "seed": self.seed, "quick": self.quick, "scorer": self.scorer.name, "decoding": "greedy",
        } | special  # fmt: skip

    def fingerprint(self) -> list[Any]:
        """The settings, both sides' weights, tokenizer and forward settings, the prompts and passages, the probe and the scorer."""
        metrics = {name: round(value, 6) for name, value in self.probe.metrics.items()}
        probe = [[round(x, 6) for x in vector.flatten().tolist()] for vector in (self.direction, self.probe.difference_in_means)]
        return [
            *super().fingerprint(), model_digests(self.pair.base), model_digests(self.pair.tuned), self.prompts,
            [[passage.prompt, passage.continuation] for passage in self.passages], probe, metrics, self.probe.settings,
            *[scorer_digest(scorer) for scorer in (self.scorer, self.second) if scorer is not None],
            *([template_of(self.pair.base)] if self.chat else []),
        ]  # fmt: skip

    def optional_data(self) -> Mapping[str, Callable[[], str]]:
        """The digest of the training logs, which few experiments read."""
        return {"logs": lambda: logs_digest(self.logs)}

    def notes(self) -> list[str]:
        """What is to be known of the pair and the prompts before any result."""
        cut = [note_on_cut(self.cut, len(self.prompts), self._room)] if self.cut else []
        return [*super().notes(), *([self.rule] if self.rule else []), *cut]

    def not_applicable(self, about: str) -> str | None:
        """Why a claim on the tuning cannot be tested: both sides have the same weights."""
        return SAME_WEIGHTS if about == "pair" and self.pair.same_weights else None

    @property
    def direction(self) -> Tensor:
        """The probe's toxic direction."""
        return self.probe.direction

    @cached_property
    def ranking(self) -> Ranking:
        """The 128 value vectors of the base model nearest to the probe's direction (paper A's MLP.v_toxic)."""
        return rank_values(self.pair.base, self.direction, top=min(TOXIC_COUNT, self.pair.base.n_layers * self.pair.base.d_mlp))

    @property
    def _room(self) -> int:
        return prompt_limit(self.pair.base, self.new_tokens, self.prompt_tokens)

    def prompt_rows(self) -> list[list[int]]:
        """The challenge prompts as token ids: of longer ones the last, so that the continuation fits into the context."""
        return cast(list[list[int]], self.measured("rows", lambda: self.rows_of(self.prompts), of=self.pair.base))

    def rows_of(self, prompts: Sequence[str]) -> list[list[int]]:
        """The token ids of other prompts, read as the challenge prompts are.

        Raises `UserError` for a prompt that does not fit as a conversation, which is never cut.
        """
        return [list(row) for row in prompt_rows(self.pair.base, prompts, self.chat, max_tokens=self._room, keep="last")]

    @cached_property
    def cut(self) -> int:
        """The number of prompts that are longer than the context allows, of which the last tokens are read; none as conversations."""
        return 0 if self.chat else count_cut(self.pair.base, self.prompts, self._room)

    def continuations(self, model: Model, edits: Sequence[Edit] = ()) -> list[str]:
        """Greedy continuations of the challenge prompts."""

        def make(prompts: list[str]) -> list[str]:
            return generate(
                model, prompts, max_new_tokens=self.new_tokens, edits=edits, max_prompt_tokens=self._room, batch_size=BATCH, chat=self.chat,
            )  # fmt: skip

        def every() -> list[str]:
            if not edits and any(model is side for side in self.pair.sides.values()):
                # Both sides are forced on these tokens as well, so that they are generated once.
                return decoded_rows(model, [before_end(row, model) for row in self.greedy_tokens(model)])
            return self.measured_items("continuations", self.prompts, make, of=model, edits=edits)

        return list(self.measured("continuations", every, of=model, edits=edits))

    def greedy_tokens(self, model: Model) -> list[list[int]]:
        """A model's greedy continuations as token ids, all `new_tokens` long, so that both sides can be forced on them."""

        def make(rows: list[tuple[int, ...]]) -> list[list[int]]:
            return generate_tokens(model, rows, max_new_tokens=self.new_tokens, stop_at_end=False, batch_size=BATCH)

        def every() -> list[list[int]]:
            return self.measured_items("greedy tokens", list(map(tuple, self.prompt_rows())), make, of=model)

        return cast(list[list[int]], self.measured("greedy tokens", every, of=model))

    def base_tokens(self) -> list[list[int]]:
        """The base model's greedy continuations, on which both sides are forced."""
        return self.greedy_tokens(self.pair.base)

    def toxicity(self, model: Model, edits: Sequence[Edit] = ()) -> np.ndarray:
        """Toxicity of each challenge prompt's continuation, without the prompt, from 0 to 1."""

        def score(texts: list[str]) -> list[float]:
            return self.scorer.score(texts)["toxicity"].astype(float).tolist()

        def every() -> np.ndarray:
            return np.array(self.measured_items("toxicity of texts", self.continuations(model, edits), score))

        return np.asarray(self.measured("toxicity", every, of=model, edits=edits))

    def second_toxicity(self, model: Model, edits: Sequence[Edit] = ()) -> np.ndarray | None:
        """The same continuations' toxicity by the second scorer; None where there is none."""
        second = self.second
        if second is None:
            return None

        def score(texts: list[str]) -> list[float]:
            return second.score(texts)["toxicity"].astype(float).tolist()

        def every() -> np.ndarray:
            return np.array(self.measured_items("second toxicity of texts", self.continuations(model, edits), score))

        return np.asarray(self.measured("second toxicity", every, of=model, edits=edits))

    def perplexity(self, model: Model, edits: Sequence[Edit] = ()) -> Perplexity:
        """Perplexity on the passages, each read by itself unless `joined`; measured once for a model and its edits."""

        def make(passages: list[Passage]) -> list[TextLoss]:
            rows = uncut_rows(model, [passage.text for passage in passages])
            if acts_last(model, edits) and max(map(len, rows)) <= model.context:
                return losses_from_states(model, rows, self._states(model, passages), edits)
            return text_losses(model, [passage.text for passage in passages], edits=edits)

        def every() -> Perplexity:
            if self.joined:
                return self.read_passages(model, edits)
            return perplexity_of(self.measured_items("losses", self.passages, make, of=model, edits=edits))

        return cast(Perplexity, self.measured("perplexity", every, of=model, edits=edits))

    def read_passages(self, model: Model, edits: Sequence[Edit] = ()) -> Perplexity:
        """`perplexity` without keeping it, for strengths that are tried once."""
        return perplexity(model, [passage.text for passage in self.passages], joined=self.joined, edits=edits)

    def _states(self, model: Model, passages: Sequence[Passage]) -> list[Tensor]:
        """The residual stream that leaves the last block at every position of each passage."""

        def make(some: list[Passage]) -> list[Tensor]:
            return last_states(model, token_rows(model, [passage.text for passage in some], max_tokens=model.context))

        return self.measured_items("states of passages", passages, make, of=model)

    def final_states(self, model: Model) -> tuple[Tensor, Tensor]:
        """The last residual stream at every position of some passages (`token d_model`), and the token that follows each."""

        def read() -> tuple[Tensor, Tensor]:
            if self.joined:
                rows = joined_windows(model, [passage.text for passage in self.passages], 60)
                by_row = last_states(model, rows)
            else:
                some = self.passages[:: max(1, len(self.passages) // 60)]
                rows, by_row = token_rows(model, [passage.text for passage in some], max_tokens=model.context), self._states(model, some)
            states = torch.cat([state[:-1] for state in by_row])
            return states.to(model.device, model.dtype), torch.tensor([token for row in rows for token in row[1:]], device=model.device)

        return cast(tuple[Tensor, Tensor], self.measured("final states", read, of=model))

    @cached_property
    def offset_layer(self) -> int:
        """The layer at which the offset is read: `layer` where it is set, else the one with most value vectors nearest to the probe.

        The first layer, below which no MLP writes, does not count; of equal layers the later one is taken.

        Raises `UserError` for a model of one layer.
        """
        if self.layer is not None:
            return self.layer
        layers = [layer for layer, _ in self.ranking.neurons]
        if self.pair.base.n_layers < 2:
            raise UserError("a model of one layer has no MLP below another", "give a model of two layers or more")
        return max(range(1, self.pair.base.n_layers), key=lambda layer: (layers.count(layer), layer))

    def last_states(self, model: Model) -> Captured:
        """The residual stream after every attention and every MLP, at the last position of each challenge prompt, of a side of the pair."""
        sites = [f"{name}.{layer}" for layer in range(model.n_layers) for name in ("resid_mid", "resid_post")]
        states: Captured = self.measured("last states", lambda: capture(model, self.prompt_rows(), sites), of=model)
        return states

    def mean_states(self, model: Model) -> Captured:
        """Each challenge prompt's means over its positions, of one side: residual stream, attention output and neurons of every layer."""
        names = ("attn_out", "resid_mid", "mlp_post")
        sites = ["resid_pre.0", *(f"{name}.{layer}" for layer in range(model.n_layers) for name in names)]

        def read() -> Captured:
            return capture(model, self.prompt_rows(), sites, positions="mean")

        states: Captured = self.measured("mean states", read, of=model)
        return states

    def f1(self, model: Model, edits: Sequence[Edit] = ()) -> np.ndarray:
        """F1 of the continuation, of at most 20 tokens, of each passage's first part; one NaN where it is not measured of this model."""
        if not self.f1_of_all and (edits or model not in self.pair.sides.values()):
            return np.array([math.nan])

        def make(passages: list[Passage]) -> list[float]:
            return f1_of(model, passages, new_tokens=min(self.new_tokens, NEW_TOKENS), edits=edits).tolist()

        def every() -> np.ndarray:
            return np.array(self.measured_items("f1", self.passages, make, of=model, edits=edits))

        return np.asarray(self.measured("f1", every, of=model, edits=edits))

    def distinct(self, model: Model, edits: Sequence[Edit] = ()) -> float:
        """Share of different word pairs in the continuations of the challenge prompts."""
        return distinct_n(self.continuations(model, edits), 2)
