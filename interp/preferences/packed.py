"""Packed rows: a preference pair as one row in which both answers stand behind one copy of their prompt and do not see each other.

A row holds `p + n+ + n- - 2` tokens where two plain rows hold `2p + n+ + n-`: the prompt is read once, and the last token of an
answer, which predicts nothing, is left out. A mask limits what each token attends to, and positions restart after the prompt, so
that the states are those of the two plain rows up to rounding.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.tokens import batches
from interp.preferences.pairs import TokenPair

# Padded tokens that are read together: on a CPU few, because its caches are small; on a GPU a whole batch.
BATCH_TOKENS = {"cpu": 256}
LARGE_BATCH_TOKENS = 1 << 14
MANY_ROWS = 1024


@dataclass(frozen=True)
class PackedRow:
    """A pair as one row: the prompt's tokens, then each answer without its last token.

    `prompt`, `chosen` and `rejected` are numbers of tokens; those of the answers count the last one too.
    """

    tokens: list[int]
    prompt: int
    chosen: int
    rejected: int

    @property
    def parts(self) -> list[int]:
        """The part that each token belongs to: 0 for the prompt, 1 and 2 for the answers."""
        return [0] * self.prompt + [1] * (self.chosen - 1) + [2] * (self.rejected - 1)

    @property
    def positions(self) -> list[int]:
        """The position of each token in the text that it belongs to."""
        return [*range(self.prompt + self.chosen - 1), *range(self.prompt, self.prompt + self.rejected - 1)]

    @property
    def predicting(self) -> tuple[list[int], list[int]]:
        """The places in the row that predict the chosen answer's tokens, and those that predict the rejected answer's."""
        last, second = self.prompt - 1, self.prompt + self.chosen - 1
        return [*range(last, last + self.chosen)], [last, *range(second, second + self.rejected - 1)]


def packed_row(pair: TokenPair) -> PackedRow:
    """The pair as one row."""
    tokens = [*pair.prompt, *pair.chosen[:-1], *pair.rejected[:-1]]
    return PackedRow(tokens, len(pair.prompt), len(pair.chosen), len(pair.rejected))


def packable(hf: PreTrainedModel, rows: Sequence[PackedRow]) -> bool:
    """Whether attention can be limited by a mask: its implementation takes one, and no layer's window is shorter than a text."""
    config = hf.config.get_text_config()
    window = getattr(config, "sliding_window", None)
    longest = max(max(row.positions) + 1 for row in rows)
    return config._attn_implementation in ("eager", "sdpa") and (not window or longest <= window)


def batch_tokens_on(device: torch.device) -> int:
    """The number of padded tokens that are read together on a device."""
    return BATCH_TOKENS.get(device.type, LARGE_BATCH_TOKENS)


def packed_groups(rows: Sequence[PackedRow], batch_tokens: int) -> list[list[int]]:
    """The numbers of rows of similar length that are read together, the longest first."""
    return batches([len(row.tokens) for row in rows], batch_size=MANY_ROWS, batch_tokens=batch_tokens)


def packed_states(hf: PreTrainedModel, rows: Sequence[PackedRow], device: torch.device | None = None) -> Float[Tensor, "batch pos d_model"]:
    """The states after the final norm of rows that are read together; they carry gradients unless the caller has switched these off.

    `device` is where token ids go; by default that of the embedding.
    """
    device, dtype = device or hf.get_input_embeddings().weight.device, hf.dtype
    width = max(len(row.tokens) for row in rows)
    ids, positions, parts = (
        torch.tensor([[*values, *[filler] * (width - len(values))] for values in lists])
        for lists, filler in (
            ([row.tokens for row in rows], 0),
            ([row.positions for row in rows], 0),
            # Padding is a part of its own: it sees itself, so that no row of attention is empty, and nothing else sees it.
            ([row.parts for row in rows], 3),
        )
    )
    earlier = torch.ones(width, width, dtype=torch.bool).tril()
    seen = earlier & ((parts[:, None, :] == 0) | (parts[:, None, :] == parts[:, :, None]))
    mask = torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, torch.finfo(dtype).min)[:, None]
    inputs = {"input_ids": ids, "position_ids": positions, "attention_mask": mask}
    states: Tensor = hf.base_model(**{name: value.to(device) for name, value in inputs.items()}, use_cache=False).last_hidden_state
    return states
