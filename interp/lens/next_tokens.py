"""Next-token predictions from last residual streams: rank, logit and log-probability of one token, and the top tokens.

Only the final norm and the unembedding come after the last stream, so a vector can be subtracted there for many prompts and many
controls without another forward. The unembedding runs in pieces, so that `batch vocab` is never in memory for all prompts at once.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float, Int
from torch import Tensor

from interp.data.lexicon import is_toxic_word
from interp.errors import UserError
from interp.models.unembed import unembed

if TYPE_CHECKING:
    from interp.models.model import Model

PIECE = 64


@dataclass(frozen=True, eq=False)
class NextTokens:
    """Rank, logit and log-probability of one token per prompt, and the most likely tokens.

    Attributes:
        ranks: from 1, the most likely.
        logits: above the mean over the vocabulary, since a constant added to all logits changes nothing.
        log_probs: in nats.
        top: the ids of the most likely tokens, best first.
    """

    ranks: Int[Tensor, " batch"]
    logits: Float[Tensor, " batch"]
    log_probs: Float[Tensor, " batch"]
    top: Int[Tensor, "batch top"]

    def words(self, model: Model, prompt: int) -> list[str]:
        """The most likely tokens of one prompt, as text."""
        return [model.tokenizer.decode([token]) for token in self.top[prompt].tolist()]


@torch.no_grad()
def next_tokens(model: Model, states: Float[Tensor, "batch d_model"], tokens: Sequence[int], *, top: int = 5) -> NextTokens:
    """Rank, logit and log-probability of each prompt's token, given the model's last residual stream.

    Args:
        states: at `resid_post` of the last layer, at the prompts' last position, changed or not.
        tokens: one id per prompt.

    Raises `UserError` for another number of tokens than prompts, or one out of range.
    """
    size = min(model.d_vocab, len(model.tokenizer))
    if len(tokens) != len(states) or not len(states) or not all(0 <= token < size for token in tokens):
        raise UserError(f"{len(tokens)} tokens were given for {len(states)} prompts", f"give one id from 0 to {size - 1} per prompt")
    ids = torch.tensor(list(tokens))
    parts: list[tuple[Tensor, ...]] = []
    for piece, followed in zip(states.split(PIECE), ids.split(PIECE), strict=True):
        # A padded vocabulary has rows that no text can hold.
        logits = unembed(model, piece)[:, :size].cpu()
        value = logits.gather(1, followed.unsqueeze(1))
        ranks = (logits > value).sum(dim=1) + 1
        best = logits.topk(min(top, size), dim=1).indices
        parts.append((ranks, value[:, 0] - logits.mean(dim=1), value[:, 0] - logits.logsumexp(dim=1), best))
    return NextTokens(*(torch.cat(column) for column in zip(*parts, strict=True)))


def toxic_token_ids(model: Model) -> list[int]:
    """The ids of all tokens that, as a whole, are profanity, a slur or an insult of the word list."""
    return [token for token in range(min(model.d_vocab, len(model.tokenizer))) if is_toxic_word(model.tokenizer.decode([token]))]


@torch.no_grad()
def likeliest(model: Model, states: Float[Tensor, "batch d_model"], among: Sequence[int]) -> list[int]:
    """For each prompt the most likely of the tokens `among`. Raises `UserError` where none are given."""
    if not len(among):
        raise UserError("no tokens were given to choose from", "give at least one id")
    ids = torch.tensor(list(among))
    return [int(ids[row]) for piece in states.split(PIECE) for row in unembed(model, piece).cpu()[:, ids].argmax(dim=1)]
