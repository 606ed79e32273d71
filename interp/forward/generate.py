"""`generate` and `stream`: continuations under edits, the same with and without a KV cache, in any batch.

The decoding loop is this project's own for three reasons: positions are absolute under any padding, each row's random numbers
depend on the seed and its place in the list (not on the batch), and edits know which tokens are prompt.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import DynamicCache

from interp.edits.edit import Edit
from interp.edits.transforms import transforms_of
from interp.errors import UserError
from interp.models.chat import Chat, prompt_rows, role_codes
from interp.models.hooks import Transform, Work, active, working
from interp.models.model import Model
from interp.models.modes import check_no_dropout
from interp.models.tokens import Tokens, batches, check_rows, decoded_rows, end_tokens, pad, positions_of, uncut_rows


@dataclass(frozen=True)
class Sampling:
    """Sampling settings: greedy decoding at temperature 0, otherwise sampling from the top k and top p."""

    temperature: float = 0.0
    top_k: int | None = None
    top_p: float | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if not (self.temperature >= 0 and self.temperature < float("inf")):
            raise UserError(f"temperature {self.temperature} is not usable", "give 0 for greedy decoding, or a positive number")
        if self.top_k is not None and self.top_k < 1:
            raise UserError(f"top_k {self.top_k} is not usable", "give at least 1")
        if self.top_p is not None and not 0 < self.top_p <= 1:
            raise UserError(f"top_p {self.top_p} is not usable", "give a number above 0, at most 1")


GREEDY = Sampling()
# Prompts that are read together: so many that a product of matrices is efficient, so few that they are of similar length.
PREFILL = 32


def generate(
    model: Model, prompts: Sequence[str] | Sequence[Sequence[int]], *, max_new_tokens: int = 20, edits: Sequence[Edit] = (),
    sampling: Sampling = GREEDY, bos: bool | None = None, max_prompt_tokens: int | None = None, batch_size: int = 64, cache: bool = True,
    stop_at_end: bool = True, chat: Chat | bool = False,
) -> list[str]:  # fmt: skip
    """The model's continuations of the prompts, without the prompts, in order.

    Args:
        prompts: texts, or rows of token ids, such as the conversations that `render_chat` returns.
        bos: whether a prompt begins with the BOS token; unless given, as the model's tokenizer does.
        max_prompt_tokens: of a longer prompt only the LAST tokens are read, after the BOS token where there is one; `prompt_limit`
            gives the most that fit. Unless given, a prompt that does not fit is an error.
        chat: read each prompt as a user turn of the model's chat template, so that the continuation is the assistant's answer; a
            `Chat` sets the system prompt. False reads raw text.

    Raises:
        UserError: an empty prompt, one that leaves no room in the context, an edit that does not fit, or `chat` without a template.
    """
    rows = prompt_rows(model, prompts, chat, bos=bos, max_tokens=max_prompt_tokens, keep="last")
    continuations = generate_tokens(
        model, rows, max_new_tokens=max_new_tokens, edits=edits, sampling=sampling, batch_size=batch_size, cache=cache,
        stop_at_end=stop_at_end,
    )  # fmt: skip
    return decoded_rows(model, continuations)


def generate_tokens(
    model: Model, rows: Sequence[Sequence[int]], *, max_new_tokens: int = 20, edits: Sequence[Edit] = (), sampling: Sampling = GREEDY,
    batch_size: int = 64, cache: bool = True, stop_at_end: bool = True,
) -> list[list[int]]:  # fmt: skip
    """The continuations of rows of token ids, as token ids; a row ends before the first of the model's `end_tokens` when `stop_at_end`."""
    transforms = transforms_of(edits, model)
    return continue_rows(model, rows, transforms, max_new_tokens, sampling, batch_size, cache, stop_at_end)


def continue_rows(
    model: Model, rows: Sequence[Sequence[int]], transforms: Mapping[str, tuple[Transform, ...]], max_new_tokens: int, sampling: Sampling,
    batch_size: int, cache: bool, stop_at_end: bool,
) -> list[list[int]]:  # fmt: skip
    """`generate_tokens` with edits that are compiled already, by site."""
    check_rows(model, rows)
    _check_room(model, rows, max_new_tokens)
    continuations: list[list[int]] = [[] for _ in rows]
    for group in batches([len(row) for row in rows], batch_size=batch_size, batch_tokens=1 << 16):
        tokens = pad([rows[i] for i in group], model.tokenizer.pad_token_id or 0, "left").to(model.device)
        steps = _decode(
            model, tokens, transforms, max_new_tokens, sampling, group, cache, stop_at_end, role_codes([rows[i] for i in group])
        )
        columns = torch.stack(list(steps), dim=1).tolist() if max_new_tokens else [[] for _ in group]
        for index, row in zip(group, columns, strict=True):
            continuations[index] = before_end(row, model) if stop_at_end else row
    return continuations


def stream(
    model: Model, prompt: str, *, max_new_tokens: int = 20, edits: Sequence[Edit] = (), sampling: Sampling = GREEDY,
    bos: bool | None = None, max_prompt_tokens: int | None = None, chat: Chat | bool = False,
) -> Iterator[str]:  # fmt: skip
    """The continuation of one prompt, piece by piece while it is generated; joined, the pieces equal `generate`'s text."""
    rows = prompt_rows(model, [prompt], chat, bos=bos, max_tokens=max_prompt_tokens, keep="last")
    _check_room(model, rows, max_new_tokens)
    transforms = transforms_of(edits, model)
    steps = _decode(model, pad(rows, 0).to(model.device), transforms, max_new_tokens, sampling, [0], True, True, role_codes(rows))
    ends = end_tokens(model)
    ids: list[int] = []
    yielded = ""
    for step in steps:
        if int(step[0]) in ends:
            break
        ids.append(int(step[0]))
        (text,) = decoded_rows(model, [ids])
        if not text.endswith("\ufffd"):
            yield text[len(yielded) :]
            yielded = text
    remaining = decoded_rows(model, [ids])[0][len(yielded) :]
    if remaining:
        yield remaining


def prompt_limit(model: Model, new_tokens: int, most: int | None = None) -> int:
    """The number of tokens of a prompt that leave room for `new_tokens`, and at most `most`: longer prompts lose their beginning.

    Raises `UserError` where there is no room for a prompt.
    """
    room = model.context - new_tokens
    if room < 1:
        raise UserError(f"{new_tokens} new tokens leave no room for a prompt in the context of {model.context}", "ask for fewer tokens")
    return room if most is None else min(room, most)


def count_cut(model: Model, prompts: Sequence[str] | Sequence[Sequence[int]], limit: int, *, bos: bool | None = None) -> int:
    """The number of prompts that are longer than `limit` tokens."""
    return sum(len(row) > limit for row in uncut_rows(model, prompts, bos=bos))


def note_on_cut(count: int, total: int, limit: int) -> str:
    """The sentence that says how many prompts lost their beginning."""
    which = "The prompt is" if total == 1 else f"{count} of {total} prompts are"
    return f"{which} longer than {limit} tokens: only the last {limit} are read."


def continued_with(
    model: Model, prompts: Sequence[str], token: str, *, max_tokens: int | None = None, chat: Chat | bool | None = False
) -> list[str]:  # fmt: skip
    """The prompts that the model continues with this one token, greedily; of longer ones the last `max_tokens` are read.

    Raises `UserError` for a text of several tokens, and where no prompt is continued with it.
    """
    ids = uncut_rows(model, [token], bos=False)[0]
    if len(ids) != 1:
        raise UserError(
            f"the next token {token!r} is {len(ids)} tokens of this model", "give one token, with the space before it if it has one"
        )
    rows = [list(row) for row in prompt_rows(model, prompts, chat, max_tokens=max_tokens, keep="last")]
    firsts = generate_tokens(model, rows, max_new_tokens=1, stop_at_end=False, batch_size=256)
    chosen = [prompt for prompt, first in zip(prompts, firsts, strict=True) if first == ids]
    if not chosen:
        raise UserError(f"the model continues none of {len(prompts)} prompts with {token!r}", "give other prompts, or another token")
    return chosen


def _check_room(model: Model, rows: Sequence[Sequence[int]], new: int) -> None:
    if new < 0:
        raise UserError(f"max_new_tokens is {new}", "give 0 or more")
    longest = max((len(row) for row in rows), default=0)
    if longest + new > model.context:
        raise UserError(
            f"a prompt of {longest} tokens and {new} new ones do not fit into the model's context of {model.context}",
            "shorten the prompt (max_prompt_tokens or --max-prompt-tokens keeps its end) or ask for fewer tokens",
        )


def _decode(
    model: Model, tokens: Tokens, transforms: Mapping[str, tuple[Transform, ...]], new: int, sampling: Sampling, rows: Sequence[int],
    cache: bool, stop_at_end: bool, roles: Int[Tensor, "batch longest"] | None = None,
) -> Iterator[Int[Tensor, " batch"]]:  # fmt: skip
    """The next token of every row, step by step.

    Edits are active only while a forward runs, so that a paused stream does not change other forwards.
    """
    check_no_dropout(model)
    past = DynamicCache() if cache else None
    generators = [torch.Generator().manual_seed(sampling.seed * 1_000_003 + row) for row in rows]

    def run(inputs: dict[str, Tensor], some: Sequence[int], past: DynamicCache | None) -> Tensor:
        """The logits at the last position of some of the rows."""
        work = Work(transforms, rows=tuple(rows[i] for i in some), roles=None if roles is None else roles[list(some)])
        with torch.no_grad(), working(model.hf, work, tokens.lengths[list(some)]):
            logits: Tensor = model.hf(**inputs, past_key_values=past, use_cache=cache, logits_to_keep=1).logits
        return logits[:, -1].float()

    def forward(inputs: dict[str, Tensor]) -> Tensor:
        # Functions of the caller's own (`hooked`) are called once per token, with every row.
        if past is not None and not past.get_seq_length() and not active(model.hf).transforms:
            return prefill(inputs, tokens.lengths.tolist(), run, past)
        return run(inputs, range(len(rows)), past)

    def pick(logits: Tensor) -> Tensor:
        return choose(logits, sampling, generators)

    return decode(tokens, forward, new, pick, ends=end_tokens(model) if stop_at_end else (), cache=cache)


def prefill(
    inputs: dict[str, Tensor],
    lengths: Sequence[int],
    run: Callable[[dict[str, Tensor], Sequence[int], DynamicCache], Tensor],
    past: DynamicCache,
) -> Float[Tensor, "batch vocab"]:
    """The logits at the last position of prompts padded on the left, whose keys and values are put into `past`.

    Prompts of similar length are read together, so that little padding is; later steps read one token of every row.

    Args:
        run: returns the logits at the last position for the inputs of some of the rows, their numbers and a cache for them.
    """
    parts = batches(lengths, batch_size=PREFILL, batch_tokens=1 << 16)
    if len(parts) == 1:
        return run(inputs, range(len(lengths)), past)
    width = max(lengths)
    caches = [DynamicCache() for _ in parts]
    # A part's rows end where all rows do: what is left out at their beginning is padding.
    logits = [
        run({name: value[part, width - lengths[part[0]] :] for name, value in inputs.items()}, part, cache)
        for part, cache in zip(parts, caches, strict=True)
    ]
    for layer in range(len(caches[0].layers)):
        whole = []
        for name in ("keys", "values"):
            tensors = [getattr(cache.layers[layer], name) for cache in caches]
            both = tensors[0].new_zeros((len(lengths), tensors[0].shape[1], width, tensors[0].shape[3]))
            for part, tensor in zip(parts, tensors, strict=True):
                both[part, :, width - tensor.shape[2] :] = tensor
            whole.append(both)
        past.update(*whole, layer)
    order = torch.tensor([row for part in parts for row in part]).argsort()
    return torch.cat(logits)[order.to(logits[0].device)]


def decode(
    tokens: Tokens, forward: Callable[[dict[str, Tensor]], Tensor], new: int, pick: Callable[[Tensor], Tensor], *,
    ends: Sequence[int], cache: bool = True,
) -> Iterator[Int[Tensor, " batch"]]:  # fmt: skip
    """The next token of every row, step by step.

    Args:
        tokens: the prompts, padded on the left.
        forward: returns the logits at the last position, `batch vocab`, for the inputs of one step.
        pick: returns the tokens chosen by those logits, `batch`.
        ends: once a row has chosen one of these tokens it repeats the first of them, and decoding stops when all rows have.
        cache: whether `forward` has a KV cache, so that after the first step it is called with the newest token only.
    """
    ids, mask = tokens.ids, tokens.mask
    ended = torch.zeros(len(ids), dtype=torch.bool, device=ids.device)
    last = torch.tensor(list(ends), dtype=ids.dtype, device=ids.device)
    for step in range(new):
        fresh = slice(-1, None) if cache and step else slice(None)
        chosen = pick(forward({"input_ids": ids[:, fresh], "attention_mask": mask.long(), "position_ids": positions_of(mask)[:, fresh]}))
        if len(last):
            chosen = torch.where(ended, last[0], chosen)
            ended = ended | torch.isin(chosen, last)
        yield chosen
        if len(last) and bool(ended.all()):
            return
        ids = torch.cat([ids, chosen.unsqueeze(1)], dim=1)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)


def choose(logits: Float[Tensor, "batch vocab"], sampling: Sampling, generators: Sequence[torch.Generator]) -> Int[Tensor, " batch"]:
    """The next token of each row under the sampling settings."""
    if sampling.temperature == 0:
        return logits.argmax(dim=-1)
    scaled = logits / sampling.temperature
    if sampling.top_k is not None and sampling.top_k < scaled.shape[-1]:
        floor = scaled.topk(sampling.top_k, dim=-1).values[:, -1:]
        scaled = scaled.masked_fill(scaled < floor, float("-inf"))
    if sampling.top_p is not None and sampling.top_p < 1:
        ordered, order = scaled.sort(dim=-1, descending=True)
        before = ordered.softmax(dim=-1).cumsum(dim=-1) - ordered.softmax(dim=-1)
        drop = torch.zeros_like(scaled, dtype=torch.bool).scatter(1, order, before >= sampling.top_p)
        scaled = scaled.masked_fill(drop, float("-inf"))
    chances = scaled.softmax(dim=-1).cpu()
    drawn = [torch.multinomial(row, 1, generator=generator) for row, generator in zip(chances, generators, strict=True)]
    return torch.cat(drawn).to(logits.device)


def before_end(row: list[int], model: Model) -> list[int]:
    """The tokens of a row before the first of the model's end tokens."""
    ends = end_tokens(model)
    return row[: next((place for place, token in enumerate(row) if token in ends), len(row))]
