"""The logit lens at every half layer: probability and rank of a token as the forward goes on.

A layer is read twice, after attention and after the MLP, so that each rise belongs to one of them. Residual streams are captured
for a few prompts at a time and unembedded a few points at a time, so that `prompts points vocab` is never in memory.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import pandas as pd
import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.lexicon import mask
from interp.edits.edit import Edit
from interp.errors import UserError
from interp.forward.capture import capture
from interp.models.chat import Chat, prompt_rows
from interp.models.unembed import unembed
from interp.stats.intervals import Interval, bootstrap_means

if TYPE_CHECKING:
    from interp.models.model import Model

STEPS = ("embed", "attention", "mlp")
# The number of logits in memory at once: 8 MiB in single precision.
LOGITS = 2**21


@dataclass(frozen=True, eq=False)
class Lens:
    """Probability and rank of each prompt's token, and the likeliest tokens, read at each point as if the model ended there.

    Attributes:
        tokens: the token that is followed, one per prompt.
        top_ids, top_probabilities: the likeliest tokens at each point, best first; empty where none were asked for.
        words: the text of each of these ids.
        labels: `embed`, `mid 0`, `post 0`, `mid 1`, ...: the points, in order.
        steps: what came just before each point: `embed`, `attention` or `mlp`.
        ranks: from 1, the most likely token.
    """

    probabilities: Float[Tensor, "prompt point"]
    ranks: Int[Tensor, "prompt point"]
    labels: tuple[str, ...]
    steps: tuple[str, ...]
    tokens: tuple[int, ...]
    top_ids: Int[Tensor, "prompt point top"]
    top_probabilities: Float[Tensor, "prompt point top"]
    words: Mapping[int, str]

    def top(self, *, masked: bool = True) -> pd.DataFrame:
        """One row per prompt, point and likely token: prompt, point, label, step, rank (from 1), token, probability, id.

        Raises `UserError` where no top tokens were asked for. Profanity is masked unless `masked` is False.
        """
        if not self.top_ids.shape[2]:
            raise UserError("this lens follows tokens and has no top tokens", "ask for them, as in logit_lens(..., top=5)")
        words = {token: mask(word) if masked else word for token, word in self.words.items()}
        rows = [
            (prompt, point, self.labels[point], self.steps[point], rank + 1, words[token], probability, token)
            for prompt, points in enumerate(zip(self.top_ids.tolist(), self.top_probabilities.tolist(), strict=True))
            for point, columns in enumerate(zip(*points, strict=True))
            for rank, (token, probability) in enumerate(zip(*columns, strict=True))
        ]
        return pd.DataFrame(rows, columns=["prompt", "point", "label", "step", "rank", "token", "probability", "id"])

    @property
    def rises(self) -> Float[Tensor, "prompt point"]:
        """The probability that each step adds; for `embed`, the probability itself."""
        return torch.diff(self.probabilities, dim=1, prepend=torch.zeros(len(self.probabilities), 1))

    def intervals(self, *, draws: int = 2000, seed: int = 0) -> list[Interval]:
        """Mean probability at each point, with its bootstrap interval over prompts."""
        return bootstrap_means(self.probabilities.numpy(), draws=draws, seed=seed)

    def to_frame(self, *, draws: int = 2000, seed: int = 0) -> pd.DataFrame:
        """One row per point: point, label, layer (-1 for the embedding), step, probability with low and high, rise with
        rise_low and rise_high (each a mean over prompts with its bootstrap interval), and the median rank."""
        levels = self.intervals(draws=draws, seed=seed)
        rises = bootstrap_means(self.rises.numpy(), draws=draws, seed=seed)
        return pd.DataFrame({
            "point": range(len(self.labels)), "label": self.labels, "layer": [(point + 1) // 2 - 1 for point in range(len(self.labels))],
            "step": self.steps,
            "probability": [i.value for i in levels], "low": [i.low for i in levels], "high": [i.high for i in levels],
            "rise": [i.value for i in rises], "rise_low": [i.low for i in rises], "rise_high": [i.high for i in rises],
            "median_rank": self.ranks.double().quantile(0.5, dim=0).tolist(),
        })  # fmt: skip


@torch.no_grad()
def logit_lens(
    model: Model, prompts: Sequence[str] | Sequence[Sequence[int]], tokens: Sequence[int] | None = None, top: int | None = None, *,
    edits: Sequence[Edit] = (), bos: bool | None = None, chat: Chat | bool = False, batch_size: int = 64,
) -> Lens:  # fmt: skip
    """The probability and rank of each prompt's token, and the likeliest tokens, if the model ended after each half layer.

    The residual stream at `resid_pre.0`, then `resid_mid.l` and `resid_post.l` of each layer, at the prompts' last position, goes
    through the final norm (its statistics computed anew at each point) and the unembedding; the last point is the model's own
    output. Edits act on the forward; edits at `ln_final` or `logits` come after what is read here and do not show.

    Args:
        tokens: the token id to follow, one per prompt; unless given, the one that the model itself finds likeliest.
        chat: read the prompts as user turns of the model's chat template; their last position is the last before the answer.
        top: how many of the likeliest tokens `Lens.top` lists at each point: 5 unless tokens are given, else none.

    Source: paper A, figure 1. Raises `UserError` for no prompts, another number of tokens, a token out of range, or a `top` that
    is not from 1 to the size of the vocabulary.
    """
    if not len(prompts):
        raise UserError("the logit lens was given no prompts", "give at least one")
    texts: list[Any] = list(prompts)
    rows: list[Any] = prompt_rows(model, texts, chat, bos=bos)
    # A padded vocabulary has rows that no text can hold.
    size = min(model.d_vocab, len(model.tokenizer))
    if top is not None and not 1 <= top <= size:
        raise UserError(f"the top {top} tokens were asked for", f"ask for 1 to {size}")
    count = top or (min(5, size) if tokens is None else 0)
    followed = None if tokens is None else torch.tensor(_checked(tokens, len(rows), model))
    sites, labels, steps = _points(model)
    shape = (len(rows), len(sites))
    probabilities, top_probabilities = torch.zeros(shape), torch.zeros(*shape, count)
    ranks, top_ids = torch.zeros(shape, dtype=torch.long), torch.zeros(*shape, count, dtype=torch.long)
    token_ids: list[int] = []
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        acts = capture(model, rows[part], sites, positions="last", edits=edits, batch_size=batch_size)
        states = torch.stack([acts[site] for site in sites], dim=1)
        chosen = unembed(model, states[:, -1])[:, :size].argmax(dim=1) if followed is None else followed[part]
        token_ids += chosen.tolist()
        # Several points at once: the unembedding is most of the memory that is read, and is then read once for all of them.
        several = max(1, LOGITS // (len(states) * model.d_vocab))
        for first in range(0, len(sites), several):
            points = slice(first, first + several)
            logits = unembed(model, states[:, points])
            value = logits.gather(2, chosen.to(logits.device)[:, None, None].expand(*logits.shape[:2], 1))
            probabilities[part, points] = (value[..., 0] - logits.logsumexp(dim=2)).exp().cpu()
            ranks[part, points] = (logits > value).sum(dim=2).cpu() + 1
            if count:
                best = logits.softmax(dim=2)[..., :size].topk(count, dim=2)
                top_probabilities[part, points], top_ids[part, points] = best.values.cpu(), best.indices.cpu()
    words = {token: model.tokenizer.decode([token]) for token in top_ids.unique().tolist()}
    return Lens(probabilities, ranks, labels, steps, tuple(token_ids), top_ids, top_probabilities, words)


def _checked(tokens: Sequence[int], count: int, model: Model) -> list[int]:
    if len(tokens) != count:
        raise UserError(f"{len(tokens)} tokens were given for {count} prompts", "give one token id per prompt")
    wrong = next((token for token in tokens if not 0 <= token < model.d_vocab), None)
    if wrong is not None:
        raise UserError(f"token {wrong} does not exist: the vocabulary has {model.d_vocab}", "count token ids from 0")
    return [int(token) for token in tokens]


def _points(model: Model) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    sites, labels, steps = ["resid_pre.0"], ["embed"], [STEPS[0]]
    for layer in range(model.n_layers):
        sites += [f"resid_mid.{layer}", f"resid_post.{layer}"]
        labels += [f"mid {layer}", f"post {layer}"]
        steps += STEPS[1:]
    return sites, tuple(labels), tuple(steps)
