"""The states of preference pairs that predict their answers' tokens: the input of the unembedding, after the final norm.

For a prompt of p tokens and an answer of n these are n states, at positions p-1 to p+n-2: the k-th one predicts the answer's k-th
token. The state at the answer's last token predicts nothing of the pair and is never read. An end token counts as one of the answer.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.errors import UserError
from interp.models.hooks import Work, active, working
from interp.models.model import Model
from interp.models.modes import check_no_dropout
from interp.preferences.packed import PackedRow, batch_tokens_on, packable, packed_groups, packed_row, packed_states
from interp.preferences.pairs import TokenPair


@dataclass(frozen=True, eq=False)
class AnswerStates:
    """The states of one pair that predict the tokens of its chosen and of its rejected answer; `number` is the pair's place."""

    number: int
    chosen: Float[Tensor, "chosen d_model"]
    rejected: Float[Tensor, "rejected d_model"]


def check_pairs(model: Model, pairs: Sequence[TokenPair]) -> None:
    """Raise `UserError` for a pair that the model cannot read: beyond its context, or with ids outside of its vocabulary."""
    for number, pair in enumerate(pairs):
        longest = len(pair.prompt) + max(len(pair.chosen), len(pair.rejected))
        if longest > model.context:
            problem = f"pair {number} has {longest} tokens with its longer answer, but the model reads at most {model.context}"
            raise UserError(problem, "shorten its prompt or its answers as the trainer will (max_length)")
        ids = (*pair.prompt, *pair.chosen, *pair.rejected)
        if min(ids) < 0 or max(ids) >= model.d_vocab:
            problem = f"pair {number} holds token ids from {min(ids)} to {max(ids)}"
            raise UserError(problem, f"use ids from 0 to {model.d_vocab - 1}: those of this model's own tokenizer")


def measured_model(model: Model) -> PreTrainedModel:
    """The Hugging Face model that pairs are measured with: the model's own, or a copy in single precision where it is in half.

    States in bfloat16 put ln-CHES off by up to a half. Raises `UserError` where dropout is active, and for edits of
    logits, or of a model in half precision.
    """
    check_no_dropout(model)
    transforms = active(model.hf).transforms
    if "logits" in transforms:
        raise UserError("an edit at logits is active, and pairs are measured before them", "leave the edit out, or edit ln_final")
    if model.dtype in (torch.float32, torch.float64):
        return model.hf
    if transforms:
        problem = f"{model.name} is in {str(model.dtype).removeprefix('torch.')} and edited, and pairs are measured in single precision"
        raise UserError(problem, "load it with dtype=torch.float32")
    return model.plain_copy().float()


def answer_states(model: Model, pairs: Sequence[TokenPair], *, batch_tokens: int | None = None) -> Iterator[AnswerStates]:
    """The states that predict the answers' tokens, pair by pair, those of similar length one after the other.

    Pairs are read as packed rows where that is exact. Two plain rows are read where the model's attention takes no mask of this
    kind, where a text is longer than a window of attention, and where edits are active: their positions are those of plain rows, whose
    prompts are those of the pairs.

    Args:
        batch_tokens: padded tokens that are read together; by default 256 on a CPU, more on other devices.

    Raises:
        UserError: as `check_pairs` and `measured_model`.
    """
    check_pairs(model, pairs)
    if pairs:
        yield from states_by(measured_model(model), model, pairs, batch_tokens=batch_tokens)


def states_by(hf: PreTrainedModel, model: Model, pairs: Sequence[TokenPair], *, batch_tokens: int | None = None) -> Iterator[AnswerStates]:
    """As `answer_states`, by the model that `measured_model` returned, and without its checks."""
    size = batch_tokens or batch_tokens_on(model.device)
    rows = [packed_row(pair) for pair in pairs]
    edited = bool(active(model.hf).transforms)
    together = [number for number, row in enumerate(rows) if not edited and packable(hf, [row])]
    for group in packed_groups([rows[number] for number in together], size):
        numbers = [together[place] for place in group]
        for number, states in zip(numbers, _packed(hf, [rows[number] for number in numbers], model.device), strict=True):
            chosen, rejected = rows[number].predicting
            yield AnswerStates(number, states[chosen], states[rejected])
    yield from _apart(hf, model, pairs, sorted(set(range(len(pairs))) - set(together)), size)


@torch.no_grad()
def _packed(hf: PreTrainedModel, rows: Sequence[PackedRow], device: torch.device) -> Float[Tensor, "batch pos d_model"]:
    return packed_states(hf, rows, device)


def _apart(hf: PreTrainedModel, model: Model, pairs: Sequence[TokenPair], numbers: Sequence[int], size: int) -> Iterator[AnswerStates]:
    """The states of some pairs by two plain rows each; rows of one length are read together."""
    # Without padding: beyond a window of attention it has nothing to attend to, which in double precision makes NaN of everything.
    by_length: dict[int, list[tuple[int, int]]] = {}
    for number in numbers:
        for side, answer in enumerate((pairs[number].chosen, pairs[number].rejected)):
            by_length.setdefault(len(pairs[number].prompt) + len(answer) - 1, []).append((number, side))
    waiting: dict[int, Tensor] = {}
    for length, entries in sorted(by_length.items(), reverse=True):
        step = max(1, size // length)
        for start in range(0, len(entries), step):
            group = entries[start : start + step]
            answers = [(pairs[number].prompt, (pairs[number].chosen, pairs[number].rejected)[side]) for number, side in group]
            for (number, side), (prompt, _), row in zip(group, answers, _plain(hf, model, answers), strict=True):
                states = row[len(prompt) - 1 :]
                if number not in waiting:
                    waiting[number] = states
                    continue
                other = waiting.pop(number)
                yield AnswerStates(number, *((other, states) if side else (states, other)))


@torch.no_grad()
def _plain(
    hf: PreTrainedModel, model: Model, answers: Sequence[tuple[tuple[int, ...], tuple[int, ...]]]
) -> Float[Tensor, "batch pos d_model"]:
    """The states of prompts with their answers, all of one length, without the answers' last tokens."""
    ids = torch.tensor([[*prompt, *answer[:-1]] for prompt, answer in answers], device=model.device)
    with working(hf, Work(), torch.tensor([len(prompt) for prompt, _ in answers], device=model.device)):
        states: Tensor = hf.base_model(input_ids=ids, use_cache=False).last_hidden_state
    return states
