"""Preference pairs as token ids: what a preference trainer reads of one prompt and its two answers."""

from __future__ import annotations

from dataclasses import dataclass

from interp.errors import UserError


@dataclass(frozen=True)
class TokenPair:
    """The token ids of one preference pair: the prompt, the chosen (preferred) answer and the rejected one.

    The sequence that a model reads is `prompt + chosen` or `prompt + rejected`; an answer holds its end token where the trainer
    appends one. Raises `UserError` where a part is empty, because no log-probability is defined for it.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]

    def __post_init__(self) -> None:
        for part in ("prompt", "chosen", "rejected"):
            if not getattr(self, part):
                raise UserError(f"the {part} of a preference pair holds no token", "leave the pair out, or give it a BOS token or a text")
