"""Prompts as turns of a model's chat template, as token ids with the role of every token.

A template is a Jinja program that comes with the model. transformers renders it in a sandbox, in which it can compute text and
nothing else; whatever it raises becomes a `UserError`. Its text is read without special tokens of the tokenizer's own, so a BOS token
is there once where the template writes it, and not at all where it does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, overload

import torch
from jaxtyping import Int
from torch import Tensor

from interp.errors import UserError
from interp.models.chat_spans import token_roles
from interp.models.positions import ROLES, Role
from interp.models.tokens import check_rows, token_rows, uncut_rows

if TYPE_CHECKING:
    from interp.models.model import Model

Turn = Mapping[str, str]
RAW, AS_TURNS = "raw text", "user turns of the model's chat template"
SPEAKERS = ("system", "user", "assistant")
# What a token of each role is, after "is".
MEANT = {
    "template": "the template's", "system": "the system prompt's", "user": "the user's", "assistant": "the assistant's",
}  # fmt: skip
# The codes of tokens without a role: of raw text, and of a conversation whose template hides where the turns stand.
OF_RAW_TEXT, HIDDEN = -1, -2


@dataclass(frozen=True)
class Chat:
    """How prompts become conversations: each is one user turn, after the system prompt if there is one."""

    system: str | None = None

    def turns(self, prompt: str) -> list[Turn]:
        """The conversation of one prompt."""
        start = [] if self.system is None else [{"role": "system", "content": self.system}]
        return [*start, {"role": "user", "content": prompt}]


@dataclass(frozen=True)
class ChatTokens(Sequence[int]):
    """The token ids of a rendered conversation; it is accepted wherever a row of token ids is.

    Attributes:
        roles: the role of each token, or None where the template or the tokenizer do not let it be told.
    """

    ids: tuple[int, ...]
    roles: tuple[Role, ...] | None

    def __len__(self) -> int:
        return len(self.ids)

    @overload
    def __getitem__(self, index: int) -> int: ...
    @overload
    def __getitem__(self, index: slice) -> ChatTokens: ...
    def __getitem__(self, index: int | slice) -> int | ChatTokens:
        if isinstance(index, slice):
            return ChatTokens(self.ids[index], None if self.roles is None else self.roles[index])
        return self.ids[index]


def chat_of(chat: Chat | bool | None) -> Chat | None:
    """What the argument `chat` of a function means: None for raw text, a `Chat` without system prompt for True."""
    if chat is True:
        return Chat()
    return chat or None


def prompt_format(chat: Chat | bool | None) -> str:
    """How prompts are read, in words that results and pages show."""
    asked = chat_of(chat)
    if asked is None:
        return RAW
    return AS_TURNS + ("" if asked.system is None else ", after a system prompt")


def chat_settings(chat: Chat | bool | None) -> dict[str, Any]:
    """How prompts are read, as settings of a result: `prompt_format`, and `system` where there is a system prompt."""
    asked = chat_of(chat)
    return {"prompt_format": prompt_format(chat)} | ({"system": asked.system} if asked is not None and asked.system is not None else {})


def render_chat(model: Model, conversations: Sequence[Sequence[Turn]]) -> list[ChatTokens]:
    """The token ids of conversations in the model's chat template, up to where the assistant's next answer begins.

    Args:
        conversations: each a list of turns, such as `{"role": "user", "content": "Hello"}`; roles are system, user and assistant.

    Raises `UserError` for a model without a template, for turns that are none, and where the template refuses or leaves out a turn.
    """
    template_of(model)
    for number, turns in enumerate(conversations):
        _check_turns(turns, number)
    texts = [_rendered(model, turns) for turns in conversations]
    if not texts:
        return []
    rows = uncut_rows(model, texts, bos=False)
    # Equal sequences of roles have one skeleton.
    skeletons: dict[tuple[str, ...], str] = {}
    rendered = []
    for turns, text, row in zip(conversations, texts, rows, strict=True):
        speakers = tuple(turn["role"] for turn in turns)
        if speakers not in skeletons:
            marked = [{"role": role, "content": placeholder(number)} for number, role in enumerate(speakers)]
            skeletons[speakers] = _rendered(model, marked)
        lost = next((number for number in range(len(turns)) if placeholder(number) not in skeletons[speakers]), None)
        if lost is not None:
            raise UserError(
                f"the chat template of {model.name} leaves out turn {lost}, of the role {speakers[lost]}",
                "leave the turn (or the system prompt) out",
            )
        roles = token_roles(model.tokenizer, text, row, skeletons[speakers], [(turn["role"], turn["content"]) for turn in turns])
        rendered.append(ChatTokens(tuple(row), roles))
    return rendered


def prompt_rows(
    model: Model, prompts: Sequence[str] | Sequence[Sequence[int]], chat: Chat | bool | None = False, *, bos: bool | None = None,
    max_tokens: int | None = None, keep: Literal["first", "last"] = "first",
) -> list[Any]:  # fmt: skip
    """The token ids of each prompt: as `token_rows`, or with `chat` those of the prompt as a user turn, as `ChatTokens`.

    Rows of token ids, `ChatTokens` among them, may be given in place of texts; they are read as they are.

    Args:
        bos: as in `token_rows`; a conversation has the BOS token that its template writes, and one is put before it only with True.
        max_tokens: of raw text so many are kept, the first or the last; a conversation cannot be cut, and a longer one raises `UserError`.
    """
    asked = chat_of(chat)
    conversations: list[ChatTokens] = [prompt for prompt in prompts if isinstance(prompt, ChatTokens)]
    if asked is None and not conversations:
        return list(token_rows(model, prompts, bos=bos, max_tokens=max_tokens, keep=keep))
    if conversations and len(conversations) < len(prompts):
        raise UserError("rendered conversations and other prompts are mixed", "give them in two calls")
    if not conversations:
        if isinstance(prompts, str) or not all(isinstance(prompt, str) for prompt in prompts):
            raise UserError("chat was asked for prompts that are no list of texts", "give a list of strings, or what render_chat returns")
        assert asked is not None
        conversations = render_chat(model, [asked.turns(str(prompt)) for prompt in prompts])
    if bos:
        conversations = [_with_bos(model, row) for row in conversations]
    for number, row in enumerate(conversations):
        if max_tokens is not None and len(row) > max_tokens:
            raise UserError(
                f"prompt {number} has {len(row)} tokens as a conversation, and at most {max_tokens} fit: it cannot be cut without "
                "cutting the template",
                "shorten the prompt",
            )
    check_rows(model, conversations)
    return conversations


def template_of(model: Model) -> str:
    """The source of the model's chat template; raises `UserError` where it has none."""
    try:
        return str(model.tokenizer.get_chat_template())
    except ValueError as error:
        named = isinstance(model.tokenizer.chat_template, dict)
        raise UserError(
            f"{model.name} has {'several chat templates and none called default' if named else 'no chat template'}",
            "leave chat (--chat) out to read prompts as raw text, or put the template of the model that it was tuned from, "
            "chat_template.jinja, into its folder",
        ) from error


def check_one_template(models: Sequence[Model]) -> None:
    """Raise `UserError` where models that are compared have different chat templates, or one of them has none."""
    if len({template_of(model) for model in models}) > 1:
        raise UserError(
            f"the chat templates of {' and '.join(model.name for model in models)} differ, so the same prompt would be different tokens",
            "copy one side's chat_template.jinja into the other's folder",
        )


def role_codes(rows: Sequence[Sequence[int]]) -> Int[Tensor, "batch longest"] | None:
    """The roles of every row's tokens as indices of `ROLES`, below 0 where there are none; None where no row is a conversation."""
    if not any(isinstance(row, ChatTokens) for row in rows):
        return None
    codes = torch.full((len(rows), max(len(row) for row in rows)), OF_RAW_TEXT)
    for number, row in enumerate(rows):
        if isinstance(row, ChatTokens):
            codes[number, : len(row)] = HIDDEN if row.roles is None else torch.tensor([ROLES.index(role) for role in row.roles])
    return codes


def known_roles(codes: Int[Tensor, "batch longest"] | None, role: Role, *, continued: bool = False) -> Int[Tensor, "batch longest"]:
    """The same codes, where they say which tokens of every row have this role.

    Raises `UserError` for raw text, for a conversation whose template hides it, and for one without a token of this role; the
    assistant's may be absent where the prompt is `continued`.
    """
    if codes is None or bool((codes[:, 0] == OF_RAW_TEXT).any()):
        raise UserError(
            f"positions {role!r} are asked for, but the text is raw, so that no token is {MEANT[role]}",
            "read prompts with the model's chat template (chat=True, or --chat), or name other positions, such as prompt",
        )
    if bool((codes[:, 0] == HIDDEN).any()):
        raise UserError(
            f"which tokens are {MEANT[role]} cannot be told: the chat template changes what the turns say, or the tokenizer does not "
            "tell which characters a token holds",
            "name other positions, such as prompt, generated or numbers",
        )
    absent = (codes != ROLES.index(role)).all(dim=1)
    if bool(absent.any()) and not (continued and role == "assistant"):
        raise UserError(
            f"positions {role!r} are asked for, but conversation {int(absent.nonzero()[0])} has no token that is {MEANT[role]}",
            "give a system prompt (system=, or --system)" if role == "system" else "name other positions, such as prompt",
        )
    return codes


def placeholder(number: int) -> str:
    """A text that stands for the content of a turn in a template's skeleton: of private characters, which no template writes."""
    return f"\ue000{number}\ue001"


def _with_bos(model: Model, row: ChatTokens) -> ChatTokens:
    bos = model.tokenizer.bos_token_id
    if bos is None:
        raise UserError("a BOS token was asked for, but the tokenizer has none", "leave it off: bos=False, or --no-bos")
    if row.ids and row.ids[0] == bos:
        return row
    return ChatTokens((bos, *row.ids), None if row.roles is None else ("template", *row.roles))


def _check_turns(turns: Sequence[Turn], number: int) -> None:
    fix = 'write turns as {"role": "user", "content": "Hello"}, with role system, user or assistant'
    if not len(turns):
        raise UserError(f"conversation {number} has no turns", fix)
    for turn in turns:
        if not isinstance(turn, Mapping) or turn.get("role") not in SPEAKERS or not isinstance(turn.get("content"), str):
            raise UserError(f"conversation {number} has a turn {str(turn)[:80]!r}", fix)
        try:
            turn["content"].encode()
        except UnicodeEncodeError as error:
            raise UserError(f"conversation {number} is not valid Unicode ({error.reason})", "decode it with errors='replace'") from error


def _rendered(model: Model, turns: Sequence[Turn]) -> str:
    try:
        return str(model.tokenizer.apply_chat_template([dict(turn) for turn in turns], tokenize=False, add_generation_prompt=True))
    except Exception as error:  # a template may raise anything: Jinja's errors, the sandbox's, and those of what it computes
        first = str(error).strip().splitlines()[0][:200] if str(error).strip() else type(error).__name__
        raise UserError(
            f"the chat template of {model.name} does not take {' and '.join(turn['role'] for turn in turns)} turns ({first})",
            "leave out what it does not take (such as the system prompt), correct chat_template.jinja, or leave chat (--chat) out",
        ) from error
