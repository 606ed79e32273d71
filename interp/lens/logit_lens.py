"""The logit lens at every half layer: at which step does a token become likely?

A layer is read twice, after attention and after the MLP, so that each rise belongs to one of them. Residual streams are
captured for a few prompts at a time and unembedded point by point; `prompts points vocab` never exists.
"""

from __future__ import annotations

from collections.abc import Sequence
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
from interp.models.tokens import token_rows
from interp.models.unembed import unembed
from interp.stats.intervals import Interval, bootstrap_means

if TYPE_CHECKING:
    from interp.models.model import Model

STEPS = ("embed", "attention", "mlp")
# So many logits are held at once: 8 MiB in single precision.
LOGITS = 2**21


@dataclass(frozen=True, eq=False)
class Lens:
    """Probability and rank of each prompt's token, read at each point as if the model ended there.

    Attributes:
        labels: `embed`, `mid 0`, `post 0`, `mid 1`, ...: the points, in order.
        steps: what came just before each point: `embed`, `attention` or `mlp`.
        ranks: from 1, the most likely token.
    """

    probabilities: Float[Tensor, "prompt point"]
    ranks: Int[Tensor, "prompt point"]
    labels: tuple[str, ...]
    steps: tuple[str, ...]
    tokens: tuple[int, ...]

    @property
    def rises(self) -> Float[Tensor, "prompt point"]:
        """How much probability each step adds; for `embed`, all that is there."""
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
    model: Model, prompts: Sequence[str] | Sequence[Sequence[int]], tokens: Sequence[int], *, edits: Sequence[Edit] = (),
    add_bos: bool = False, batch_size: int = 64,
) -> Lens:  # fmt: skip
    """How likely is each prompt's token at its last position, after every half layer?

    The residual stream at `resid_pre.0`, then `resid_mid.l` and `resid_post.l` of each layer, goes through the final norm
    (its statistics computed anew at each point) and the unembedding; the last point is the model's own output. Edits act on
    the forward; edits at `ln_final` or `logits` come after what is read here and do not show.

    Args:
        tokens: one token id per prompt.

    Source: paper A, figure 1. Raises `UserError` for no prompts, another number of tokens, or a token out of range.
    """
    if not len(prompts):
        raise UserError("the logit lens was given no prompts", "give at least one")
    given: list[Any] = list(prompts)
    rows: list[list[int]] = token_rows(model, given, add_bos=add_bos) if isinstance(given[0], str) else [list(row) for row in given]
    if len(tokens) != len(rows):
        raise UserError(f"{len(tokens)} tokens were given for {len(rows)} prompts", "give one token id per prompt")
    wrong = next((t for t in tokens if not 0 <= t < model.d_vocab), None)
    if wrong is not None:
        raise UserError(f"token {wrong} does not exist: the vocabulary has {model.d_vocab}", "count token ids from 0")
    chosen = torch.tensor([int(token) for token in tokens])
    sites, labels, steps = _points(model)
    probabilities = torch.zeros(len(rows), len(sites))
    ranks = torch.zeros(len(rows), len(sites), dtype=torch.long)
    for start in range(0, len(rows), batch_size):
        part = slice(start, start + batch_size)
        held = capture(model, rows[part], sites, positions="last", edits=edits, batch_size=batch_size)
        states = torch.stack([held[site] for site in sites], dim=1)
        # Several points at once, so that the unembedding, which is most of the memory that is read, is read for all of them together.
        several = max(1, LOGITS // (len(states) * model.d_vocab))
        for first in range(0, len(sites), several):
            points = slice(first, first + several)
            logits = unembed(model, states[:, points])
            own = logits.gather(2, chosen[part].to(logits.device)[:, None, None].expand(*logits.shape[:2], 1))
            probabilities[part, points] = (own[..., 0] - logits.logsumexp(dim=2)).exp().cpu()
            ranks[part, points] = (logits > own).sum(dim=2).cpu() + 1
    return Lens(probabilities, ranks, labels, steps, tuple(chosen.tolist()))


@torch.no_grad()
def lens_table(
    model: Model, prompt: str, top: int = 5, *, edits: Sequence[Edit] = (), add_bos: bool = False, masked: bool = True
) -> pd.DataFrame:
    """What would the model say next if it ended after each half layer?

    Returns one row per point and token: point, label, step, rank (from 1), token, probability, id.
    """
    sites, labels, steps = _points(model)
    size = min(model.d_vocab, len(model.tokenizer))
    if not 1 <= top <= size:
        raise UserError(f"the top {top} tokens were asked for", f"ask for 1 to {size}")
    held = capture(model, token_rows(model, [prompt], add_bos=add_bos), sites, positions="last", edits=edits)
    rows = []
    for point, site in enumerate(sites):
        best = unembed(model, held[site])[0].softmax(dim=0)[:size].topk(top)
        for rank, (probability, token) in enumerate(zip(best.values.tolist(), best.indices.tolist(), strict=True)):
            word = model.tokenizer.decode([token])
            rows.append((point, labels[point], steps[point], rank + 1, mask(word) if masked else word, probability, token))
    return pd.DataFrame(rows, columns=["point", "label", "step", "rank", "token", "probability", "id"])


def _points(model: Model) -> tuple[list[str], tuple[str, ...], tuple[str, ...]]:
    sites, labels, steps = ["resid_pre.0"], ["embed"], [STEPS[0]]
    for layer in range(model.n_layers):
        sites += [f"resid_mid.{layer}", f"resid_post.{layer}"]
        labels += [f"mid {layer}", f"post {layer}"]
        steps += STEPS[1:]
    return sites, tuple(labels), tuple(steps)
