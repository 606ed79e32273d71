"""`convert_policy`: writes the weights of another tool, such as the `policy.pt` of a DPO trainer, as a folder that loads strictly.

Such a file holds weights alone, so they are checked against the model that was tuned: every name and every shape has to
agree, because a tensor that is dropped or left at its initial value would give a different model. The precision of the file is
kept: widening it would hide from the comparison of two sides that one of them was rounded.
"""

from __future__ import annotations

import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from torch import Tensor
from transformers import PreTrainedTokenizerBase

from interp.errors import Notice, UserError
from interp.files import is_full_disk, replacing
from interp.models.checkpoints import IGNORED_TENSORS, open_checkpoint, read_weights
from interp.models.folders import TOKENIZER_FILES
from interp.models.states import VALUE_HEADS, odd_prefix, read_state, without_prefixes
from interp.models.tokenizer import read_tokenizer, tokenizer_in

HEAD = "lm_head.weight"


def convert_policy(file: str | Path, like: str | Path, out: str | Path) -> Path:
    """Write the weights of `file` (under `state`, or bare) as a folder with the configuration and tokenizer of `like`.

    Args:
        like: a folder or hub id of the model that the policy was tuned from.
        out: a folder that does not exist yet; it is written as a whole or not at all.

    Raises:
        UserError: the file is missing, damaged, no plain checkpoint, or its tensors differ from those of `like` in name
            or shape, are of mixed precision or not finite; or `out` exists.
    """
    source, target = Path(file), Path(out)
    if target.exists():
        raise UserError(f"{target} exists already", "remove it, or name another folder")
    state = read_state(source)
    dtype = _precision(source, state)
    checkpoint = open_checkpoint(like)
    hf = read_weights(checkpoint, dtype)
    tokenizer = read_tokenizer(checkpoint, hf)
    expected = hf.state_dict()
    state, heads = _without_value_heads(state, expected)
    state, prefixes = without_prefixes(state, expected)
    state, padding = _without_padding_tokens(source, state, expected, tokenizer)
    state = _fitted(source, str(like), state, expected, prefixes, tied=bool(hf.config.tie_word_embeddings))
    hf.load_state_dict(state, strict=True)
    with _naming_full_disk(target), replacing(target, shared=True) as temporary:
        hf.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    for what in (heads, padding):
        if what:
            warnings.warn(f"{target}: {what}", Notice, stacklevel=2)
    return target


@contextmanager
def _naming_full_disk(target: Path) -> Iterator[None]:
    """Raise `UserError` with the path where the disk is full: the writer of safetensors says neither its name nor an error number."""
    try:
        yield
    except (OSError, SafetensorError) as error:
        if is_full_disk(error):
            problem = f"{target} could not be written: No space left on device"
            raise UserError(problem, "free some space, or name another folder, and run it again: nothing half-written was left") from error
        raise


def _without_value_heads(state: dict[str, Tensor], expected: Mapping[str, Tensor]) -> tuple[dict[str, Tensor], str]:
    """The state without the value heads of trainers, which are no part of the language model, and what was left out in words."""
    heads = [name for name in state if name not in expected and any(f".{head}" in f".{name}" for head in VALUE_HEADS)]
    note = f"left out the value head of the trainer ({', '.join(sorted(heads)[:2])})" if heads else ""
    return {name: tensor for name, tensor in state.items() if name not in heads}, note


def _without_padding_tokens(
    source: Path, state: dict[str, Tensor], expected: Mapping[str, Tensor], tokenizer: PreTrainedTokenizerBase
) -> tuple[dict[str, Tensor], str]:
    """The state without the rows of padding tokens that a folder's tokenizer has beyond those of the model, and their names in words.

    Raises `UserError` where a folder's tokenizer differs in more than that: its weights belong to its own tokens.
    """
    if not source.is_dir() or not any((source / name).is_file() for name in TOKENIZER_FILES):
        return state, ""
    own, vocabulary = tokenizer_in(source).get_vocab(), tokenizer.get_vocab()
    extra = {token: number for token, number in own.items() if vocabulary.get(token) != number}
    foreign = {token for token in extra if "pad" not in token.lower()} | (vocabulary.keys() - own.keys())
    if foreign:
        problem = f"the tokenizer in {source} is another one than the model's, first at {min(foreign)!r}"
        raise UserError(problem, "name the model it was tuned from with --like")
    embeddings = [name for name in state if name in expected and name.endswith(("wte.weight", "embed_tokens.weight", HEAD))]
    rows = {name: len(expected[name]) for name in embeddings if len(state[name]) > len(expected[name])}
    if not rows or any(number < min(rows.values()) for number in extra.values()):
        return state, ""
    cut = {name: tensor[: rows[name]].clone() if name in rows else tensor for name, tensor in state.items()}
    return cut, f"took out {', '.join(map(repr, extra)) or 'rows without a token'}, which the model it was tuned from does not have"


def _precision(file: Path, state: Mapping[str, Tensor]) -> torch.dtype:
    weights = {name: tensor for name, tensor in state.items() if not name.endswith(IGNORED_TENSORS) or tensor.is_floating_point()}
    masks = (".attn.bias", ".attn.masked_bias")
    dtypes = {tensor.dtype for name, tensor in weights.items() if tensor.is_floating_point() and not name.endswith(masks)}
    if len(dtypes) != 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)) or "no floating-point numbers"
        raise UserError(f"the weights in {file} are of mixed precision: {names}", "save all of them in one dtype")
    return next(iter(dtypes))


def _fitted(
    file: Path, like: str, state: dict[str, Tensor], expected: Mapping[str, Tensor], prefixes: list[str], *, tied: bool
) -> dict[str, Any]:
    """The state with exactly the names and shapes of the model; raises `UserError` where it differs."""
    # Old versions stored the causal mask as a buffer; a name that the model knows is never dropped.
    state = {name: tensor for name, tensor in state.items() if name in expected or not name.endswith(IGNORED_TENSORS)}
    embedding = next((name for name in expected if name.endswith(("wte.weight", "embed_tokens.weight"))), None)
    if tied and embedding in state:
        if HEAD in state and not torch.equal(state[HEAD], state[embedding]):
            raise UserError(
                f"{file} has an output matrix of its own, but {like} ties it to the embedding", "name the model it was tuned from"
            )
        state[HEAD] = state[embedding]
    surplus = sorted(state.keys() - expected.keys())
    for names, what in ((expected.keys() - state.keys(), "lacks"), (state.keys() - expected.keys(), "has a surplus of")):
        if names:
            without = f", without the prefix{'es' if len(prefixes) > 1 else ''} {' and '.join(prefixes)}" if prefixes else ""
            odd = (
                odd_prefix(min(names), expected) if what != "lacks" else next(filter(None, (odd_prefix(n, expected) for n in surplus)), "")
            )
            raise UserError(
                f"{file} {what} {len(names)} tensors against {like}, first {min(names)}{without}",
                f"rename them: their names begin with {odd}, a prefix that is not known here"
                if odd
                else "name the model it was tuned from with --like",
            )
    for name, tensor in state.items():
        if tensor.shape != expected[name].shape:
            raise UserError(
                f"{name} has shape {tuple(tensor.shape)} in {file}, but {tuple(expected[name].shape)} in {like}",
                "name the model it was tuned from with --like",
            )
        if not bool(torch.isfinite(tensor).all()):
            raise UserError(f"{name} in {file} holds NaN or infinity: the training diverged", "use an earlier checkpoint")
    return state
