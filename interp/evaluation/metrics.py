"""Metrics of a model or an edit: toxicity, perplexity, F1 against real continuations, distinct-n.

Toxicity alone proves little, because a model that generates nothing is not toxic. So `evaluate` always reports toxicity together
with the other metrics, and keeps the value of every prompt, so that intervals and paired comparisons need no rerun.
"""

from __future__ import annotations

import math
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch

from interp.edits.edit import Edit
from interp.edits.transforms import transforms_of
from interp.errors import UserError
from interp.forward.generate import GREEDY, Sampling, generate, generate_tokens
from interp.models.chat import Chat, chat_settings
from interp.models.hooks import Work, working
from interp.models.model import Model
from interp.models.modes import check_no_dropout
from interp.models.positions import ROLES
from interp.models.tokens import adds_bos, batches, logit_tokens, next_token_losses, pad, predicted, token_rows, uncut_rows
from interp.stats.intervals import Interval, bootstrap_mean, bootstrap_ratio

if TYPE_CHECKING:
    from interp.data.texts import Passage
    from interp.evaluation.toxicity import Scorer


@dataclass(frozen=True)
class Perplexity:
    """`exp` of the mean loss per predicted token, with the loss and the count of each text or window behind it."""

    value: float
    losses: np.ndarray
    counts: np.ndarray
    settings: dict[str, Any] = field(default_factory=dict)

    @property
    def interval(self) -> Interval:
        """A bootstrap interval over texts or windows."""
        loss = bootstrap_ratio(self.losses, self.counts)
        return Interval(math.exp(loss.value), math.exp(loss.low), math.exp(loss.high), loss.n)


@dataclass(frozen=True)
class TextLoss:
    """The losses of one text: summed over the tokens of each window, in nats, and how many tokens these are."""

    losses: np.ndarray
    counts: np.ndarray


def perplexity(
    model: Model, texts: Sequence[str], *, window: int | None = None, stride: int | None = None, joined: bool = False,
    edits: Sequence[Edit] = (),
    batch_size: int = 16,
) -> Perplexity:  # fmt: skip
    """The perplexity of the model on these texts: `exp` of the mean loss in nats per predicted token.

    Args:
        joined: read all texts as one, joined by blank lines (as paper A reads Wikitext); otherwise each by itself.
        window: tokens read at a time, at most the model's context (the default).
        stride: tokens between windows, at most `window` (the default); every token is predicted once, with up to
            `window - stride` tokens more context the smaller the stride.

    Raises:
        UserError: no text, a window or stride that is not usable, or texts of one token only.
    """
    if not len(texts):
        raise UserError("perplexity was given no texts", "give at least one")
    width, step = _window(model, window, stride)
    read = ["\n\n".join(texts)] if joined else list(texts)
    losses = text_losses(model, read, window=window, stride=stride, edits=edits, batch_size=batch_size)
    return perplexity_of(losses, {"window": width, "stride": step, "joined": joined, "texts": len(texts)})


def perplexity_of(losses: Sequence[TextLoss], settings: Mapping[str, Any] | None = None) -> Perplexity:
    """The perplexity over the texts of these losses. Raises `UserError` where they hold no token to predict."""
    sums, counts = (np.concatenate([getattr(loss, name) for loss in losses]) for name in ("losses", "counts"))
    if not len(sums):
        raise UserError("the texts hold no token to predict", "give texts of at least two tokens")
    return Perplexity(math.exp(sums.sum() / counts.sum()), sums, counts, {**(settings or {}), "tokens": int(counts.sum())})


@torch.no_grad()
def text_losses(
    model: Model, texts: Sequence[str] | Sequence[Sequence[int]], *, window: int | None = None, stride: int | None = None,
    edits: Sequence[Edit] = (), batch_size: int = 16,
) -> list[TextLoss]:  # fmt: skip
    """The model's loss on each text, or row of token ids, by itself.

    Arguments and errors are those of `perplexity`, but for a text without a token to predict.
    """
    check_no_dropout(model)
    width, step = _window(model, window, stride)
    owners = [(number, span) for number, row in enumerate(uncut_rows(model, texts)) for span in _windows(row, width, step)]
    spans = [span for _, span in owners]
    transforms = transforms_of(edits, model)
    losses, counts = np.zeros(len(spans)), np.array([len(row) - skip for row, skip in spans], dtype=float)
    for group in batches([len(row) for row, _ in spans], batch_size=batch_size, batch_tokens=logit_tokens(model)):
        tokens = pad([spans[i][0] for i in group], model.tokenizer.pad_token_id or 0, "right").to(model.device)
        with working(model.hf, Work(transforms, rows=tuple(owners[i][0] for i in group)), tokens.lengths):
            nll = next_token_losses(model.hf(**tokens.inputs(), use_cache=False).logits, tokens.ids)
        scored = predicted(tokens, [spans[i][1] for i in group])
        losses[group] = (nll.double() * scored).sum(dim=1).cpu().numpy()
    of_text = np.array([number for number, _ in owners], dtype=int)
    return [TextLoss(losses[of_text == number], counts[of_text == number]) for number in range(len(texts))]


def _window(model: Model, window: int | None, stride: int | None) -> tuple[int, int]:
    """Window and stride in tokens, with defaults; raises `UserError` where they are not usable."""
    width = model.context if window is None else window
    step = width if stride is None else stride
    if not 2 <= width <= model.context or not 1 <= step <= width:
        raise UserError(
            f"window {width} and stride {step} are not usable", f"give 2 <= window <= {model.context} and 1 <= stride <= window"
        )
    return width, step


def _windows(row: list[int], width: int, step: int) -> list[tuple[list[int], int]]:
    """Windows over one row, each with the number of its first tokens that are context and not predicted."""
    windows: list[tuple[list[int], int]] = []
    done = 1
    start = 0
    while done < len(row):
        end = min(start + width, len(row))
        windows.append((row[start:end], done - start))
        done = end
        start = max(start + step, end - width + step) if end < len(row) else end
        start = min(start, done - 1)
    return windows


def token_f1(generated: Sequence[Sequence[int]], references: Sequence[Sequence[int]]) -> np.ndarray:
    """Bag-of-token F1 of each generated continuation against the real one (paper A, section 3.3)."""
    if len(generated) != len(references):
        raise UserError(f"{len(generated)} continuations were given for {len(references)} references", "give one reference for each")
    scores = np.zeros(len(generated))
    for number, (row, reference) in enumerate(zip(generated, references, strict=True)):
        shared = sum((Counter(row) & Counter(reference)).values())
        scores[number] = 2 * shared / (len(row) + len(reference)) if shared else 0.0
    return scores


def distinct_n(texts: Sequence[str], n: int = 2) -> float:
    """The share of word n-grams that are different, over all texts together; NaN where there are none."""
    grams = [gram for text in texts for words in [text.lower().split()] for gram in zip(*(words[i:] for i in range(n)), strict=False)]
    return len(set(grams)) / len(grams) if grams else float("nan")


@dataclass(frozen=True)
class Evaluation:
    """Toxicity of the continuations of each prompt, with perplexity, F1 and distinct-2."""

    prompts: list[str]
    continuations: list[str]
    scores: pd.DataFrame
    perplexity: Perplexity
    f1: np.ndarray
    distinct_2: float
    settings: dict[str, Any]

    @property
    def toxicity(self) -> np.ndarray:
        """The toxicity of each prompt's continuation, in [0, 1]."""
        return self.scores["toxicity"].to_numpy()

    def to_frame(self) -> pd.DataFrame:
        """One row per prompt, with its continuation and every class's score."""
        return pd.DataFrame({"prompt": self.prompts, "continuation": self.continuations}).join(self.scores.reset_index(drop=True))

    def to_json(self) -> dict[str, Any]:
        """Means and intervals as a JSON object, the one that `bypass evaluate --json` prints."""
        mean = bootstrap_mean(self.toxicity)
        return {
            "toxicity": {"mean": mean.value, "share_above_half": float((self.toxicity > 0.5).mean()), "interval": [mean.low, mean.high]},
            "perplexity": self.perplexity.value, "f1": float(self.f1.mean()), "distinct_2": self.distinct_2, "n": len(self.prompts),
            "settings": self.settings,
        }  # fmt: skip


def f1_of(model: Model, passages: Sequence[Passage], *, new_tokens: int = 20, edits: Sequence[Edit] = ()) -> np.ndarray:
    """F1 of greedy continuations of each passage's first part against its real continuation, cut to as many tokens."""
    prompts = token_rows(model, [passage.prompt for passage in passages])
    references = [row[:new_tokens] for row in token_rows(model, [passage.continuation for passage in passages], bos=False)]
    return token_f1(generate_tokens(model, prompts, max_new_tokens=new_tokens, edits=edits, batch_size=256), references)


def evaluate(
    model: Model, prompts: Sequence[str], scorer: Scorer, *, edits: Sequence[Edit] = (), passages: Sequence[Passage] | None = None,
    max_new_tokens: int = 20, max_prompt_tokens: int | None = None, sampling: Sampling = GREEDY, chat: Chat | bool = False,
    batch_size: int = 64,
) -> Evaluation:  # fmt: skip
    """Toxicity of the continuations of these prompts, with perplexity, F1 and distinct-2.

    The scorer reads the continuation alone, without the prompt. Perplexity and F1 are measured on `passages`, by
    default those that ship with the project, and always as raw text; with `chat`, the prompts are user turns of the model's chat
    template. Raises `UserError` for no prompts, and for an edit at the positions of a role, which raw text does not have.
    """
    from interp.data.texts import passages as shipped

    if not len(prompts):
        raise UserError("evaluate was given no prompts", "give at least one")
    limited = next((edit for edit in edits if edit.positions in ROLES), None)
    if limited is not None:
        raise UserError(
            f"an edit acts at positions {limited.positions!r} only, and perplexity and F1 are measured on raw text, which has none",
            "limit it to prompt, generated or from_last, or generate with it and score the answers (bypass generate, bypass score)",
        )
    texts = list(shipped()) if passages is None else list(passages)
    continuations = generate(
        model,
        prompts,
        max_new_tokens=max_new_tokens,
        edits=edits,
        sampling=sampling,
        max_prompt_tokens=max_prompt_tokens,
        batch_size=batch_size,
        chat=chat,
    )
    settings = {
        "max_new_tokens": max_new_tokens, "max_prompt_tokens": max_prompt_tokens, "bos": adds_bos(model),
        "temperature": sampling.temperature, "top_k": sampling.top_k,
        "top_p": sampling.top_p, "seed": sampling.seed,
        "scorer": scorer.name, "edits": [edit.to_json() for edit in edits], "model": model.digest,
        **chat_settings(chat),
    }  # fmt: skip
    losses = perplexity(model, [passage.text for passage in texts], edits=edits)
    return Evaluation(
        list(prompts),
        continuations,
        scorer.score(continuations),
        losses,
        f1_of(model, texts, edits=edits),
        distinct_n(continuations, 2),
        settings,
    )
