"""Preference pairs as the token ids that TRL's `DPOTrainer` trains on: chat template, end token, cut and truncation as in TRL 1.16."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

from interp.errors import UserError
from interp.models.model import Model
from interp.preferences.formats import Pair, Text
from interp.preferences.pairs import TokenPair

EosRule = Literal["auto", "yes", "no"]
EOS_RULES: tuple[EosRule, ...] = ("auto", "yes", "no")


@dataclass(frozen=True)
class TokenisedPair:
    """The token ids of a pair before and after truncation, and what the trainer does with it.

    Attributes:
        prompt, chosen, rejected: the ids after truncation.
        full: the numbers of tokens of the three parts before truncation.
        was_identical: whether both sides were the same tokens before truncation already.
        lost: the ids at the end of the prompt that are in neither sequence, because prompt and side are divided otherwise together.
        is_dropped: whether the trainer leaves the row out, because its prompt alone fills the length.
    """

    prompt: tuple[int, ...]
    chosen: tuple[int, ...]
    rejected: tuple[int, ...]
    full: tuple[int, int, int]
    was_identical: bool
    lost: tuple[int, ...]
    is_dropped: bool

    @property
    def is_truncated(self) -> bool:
        """Whether truncation took a token away."""
        return (len(self.prompt), len(self.chosen), len(self.rejected)) != self.full

    @property
    def is_identical(self) -> bool:
        """Whether both sides are the same tokens, so that the pair has no gradient."""
        return self.chosen == self.rejected

    def token_pair(self) -> TokenPair:
        """The ids alone. Raises `UserError` where a part is empty."""
        return TokenPair(self.prompt, self.chosen, self.rejected)


def tokenise(tokenizer: Any, pair: Pair, *, max_length: int | None = 1024, eos: EosRule = "auto") -> TokenisedPair:
    """The token ids of a pair as TRL has them, with truncation at the end (`keep_start`) to `max_length`.

    Args:
        eos: whether both sides end with the tokenizer's end token: `auto` as TRL, which appends it to text and leaves conversations to
            their template.

    Raises `UserError` with the row where the tokenizer has no end token or no chat template, or where its template refuses the messages.
    """
    with_chosen, with_rejected = pair.chosen, pair.rejected
    if not pair.is_conversation and eos != "no":
        end = _end(tokenizer, pair)
        with_chosen, with_rejected = (_ended(side, end) for side in (pair.chosen, pair.rejected))
    prompt = _ids(tokenizer, pair, pair.prompt, opens=True)
    chosen = _ids(tokenizer, pair, pair.prompt + with_chosen)  # type: ignore[operator]
    rejected = _ids(tokenizer, pair, pair.prompt + with_rejected)  # type: ignore[operator]
    cut = min(common_start(prompt, chosen), common_start(prompt, rejected))
    head, sides = prompt[:cut], [chosen[cut:], rejected[cut:]]
    if pair.is_conversation and eos == "yes":
        end_id = int(tokenizer.convert_tokens_to_ids(_end(tokenizer, pair)))
        sides = [side if side[-1:] == [end_id] else [*side, end_id] for side in sides]
    if pair.is_conversation and eos == "no":
        # Templates write a line break behind the end token; both go.
        sides = [_without_end(side, tokenizer) for side in sides]
    room = None if max_length is None else max(0, max_length - cut)
    return TokenisedPair(
        prompt=tuple(head[:max_length]), chosen=tuple(sides[0][:room]), rejected=tuple(sides[1][:room]),
        full=(cut, len(sides[0]), len(sides[1])), was_identical=sides[0] == sides[1], lost=tuple(prompt[cut:]),
        is_dropped=max_length is not None and cut >= max_length,
    )  # fmt: skip


def divided_otherwise(model: Model, pairs: Sequence[Pair]) -> int:
    """How many of these pairs have a text that `AutoTokenizer`, which TRL takes by itself, divides otherwise than `tokenizer.json` says.

    0 where it cannot be asked: without a folder of the model, or where it does not load.
    """
    if model.checkpoint is None:
        return 0
    from transformers import AutoTokenizer

    try:
        usual = AutoTokenizer.from_pretrained(model.checkpoint.folder, local_files_only=True, trust_remote_code=False)
    except Exception:  # a folder of an adapter has none, and a class may refuse the files
        return 0
    texts = [[text for text in (pair.prompt, pair.chosen, pair.rejected) if isinstance(text, str)] for pair in pairs]
    texts = [sides or [str(turn.get("content")) for turn in pair.chosen] for sides, pair in zip(texts, pairs, strict=True)]  # type: ignore[union-attr]
    return sum(any(usual(text)["input_ids"] != model.tokenizer(text)["input_ids"] for text in sides) for sides in texts)


def common_start(first: Sequence[int], second: Sequence[int]) -> int:
    """The number of leading ids that two sequences have in common."""
    return next((index for index, (a, b) in enumerate(zip(first, second, strict=False)) if a != b), min(len(first), len(second)))


def _end(tokenizer: Any, pair: Pair) -> str:
    if tokenizer.eos_token is None:
        raise UserError(f"{pair.place}: the tokenizer has no end token to append", "give it an eos_token, or read without: --eos no")
    return str(tokenizer.eos_token)


def _ended(text: Any, end: str) -> str:
    return str(text) if text.endswith(end) else f"{text}{end}"


def _without_end(side: list[int], tokenizer: Any) -> list[int]:
    place = next((index for index in range(len(side) - 1, -1, -1) if side[index] == tokenizer.eos_token_id), None)
    only_space = place is not None and not tokenizer.decode(side[place + 1 :]).strip()
    return side[:place] if only_space else side


def _ids(tokenizer: Any, pair: Pair, text: Text, *, opens: bool = False) -> list[int]:
    """The ids of a text with the special tokens that the tokenizer adds by itself, or of messages in its chat template.

    `opens` is whether the template also writes the beginning of the assistant's answer.
    """
    if isinstance(text, str):
        plain: list[int] = tokenizer(text=text)["input_ids"]
        return plain
    tools = json.loads(pair.tools) if isinstance(pair.tools, str) else pair.tools
    arguments: dict[str, Any] = {"tools": tools, **dict(pair.template)} | ({"add_generation_prompt": True} if opens else {})
    try:
        ids: list[int] = tokenizer.apply_chat_template(text, tokenize=True, return_dict=True, **arguments)["input_ids"]
    except Exception as error:  # a template may raise anything: Jinja's errors, the sandbox's, and those of what it computes
        reason = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"{pair.place}: the chat template does not take these messages ({reason})",
            "use a model with a chat template that takes them, or write prompt, chosen and rejected as text",
        ) from error
    return ids
