"""`convert_policy`: writes the `policy.pt` of a DPO trainer as a folder of safetensors that loads strictly.

Such a file holds weights alone, so they are checked against the model that was tuned: every name and every shape has to
agree, because a tensor that is dropped or left at its initial value would give a different model. The precision of the file is
kept: widening it would hide from the comparison of two sides that one of them was rounded.
"""

from __future__ import annotations

import pickle
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from interp.errors import UserError
from interp.files import replacing
from interp.models.checkpoints import IGNORED_TENSORS, open_checkpoint, read_weights
from interp.models.tokenizer import read_tokenizer

PREFIXES = ("module.", "_orig_mod.", "_fsdp_wrapped_module.", "policy.")
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
    state = _without_prefixes(_read_state(source))
    dtype = _precision(source, state)
    checkpoint = open_checkpoint(like)
    hf = read_weights(checkpoint, dtype)
    tokenizer = read_tokenizer(checkpoint, hf)
    state = _fitted(source, str(like), state, hf.state_dict(), tied=bool(hf.config.tie_word_embeddings))
    hf.load_state_dict(state, strict=True)
    with replacing(target, shared=True) as temporary:
        hf.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
    return target


def _read_state(file: Path) -> dict[str, Tensor]:
    if not file.is_file():
        raise UserError(f"there is no file {file}", "give the path of a policy.pt")
    try:
        content = torch.load(file, map_location="cpu", weights_only=True)
    except pickle.UnpicklingError as error:
        raise UserError(f"{file} {_why_not_plain(error)}", _fix_of(error)) from error
    except (RuntimeError, EOFError, ValueError, OSError, KeyError, AttributeError, UnicodeDecodeError) as error:
        reason = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        raise UserError(f"{file} is not a checkpoint of torch, or is damaged: {reason}", "copy or download it again") from error
    state = content
    for key in ("state", "state_dict", "model"):
        if isinstance(content, Mapping) and isinstance(content.get(key), Mapping):
            state = content[key]
            break
    if not isinstance(state, Mapping) or not state or not all(isinstance(k, str) and isinstance(v, Tensor) for k, v in state.items()):
        is_mapping = isinstance(content, Mapping)
        keys = f"the keys {', '.join(map(str, list(content)[:5]))}" if is_mapping else f"a {type(content).__name__}"
        raise UserError(
            f"{file} holds {keys}, and no weights by name under `state`", "save it as torch.save({'state': model.state_dict()}, FILE)"
        )
    return dict(state)


def _why_not_plain(error: Exception) -> str:
    text = str(error)
    if "numpy" in text or "_codecs" in text:
        return "holds numpy values beside the weights (trainers store their metrics so), and reading those could run code"
    if "Unsupported global" in text or "Unsupported class" in text or "GLOBAL" in text:
        return "holds objects beside the weights, and reading those could run code"
    return f"is not a checkpoint of torch, or is damaged: {text.strip().splitlines()[0] if text.strip() else type(error).__name__}"


def _fix_of(error: Exception) -> str:
    if "not a checkpoint" in _why_not_plain(error):
        return "copy or download it again"
    return (
        'where you trust the file, save its weights alone: python -c "import torch; '
        "torch.save({'state': torch.load('FILE', weights_only=False)['state']}, 'clean.pt')\""
    )


def _without_prefixes(state: dict[str, Tensor]) -> dict[str, Tensor]:
    """The state with the prefixes of wrappers (DDP, FSDP, compile) removed from every name."""
    while prefix := next((p for p in PREFIXES if all(name.startswith(p) for name in state)), None):
        state = {name.removeprefix(prefix): tensor for name, tensor in state.items()}
    return state


def _precision(file: Path, state: Mapping[str, Tensor]) -> torch.dtype:
    weights = {name: tensor for name, tensor in state.items() if not name.endswith(IGNORED_TENSORS) or tensor.is_floating_point()}
    masks = (".attn.bias", ".attn.masked_bias")
    dtypes = {tensor.dtype for name, tensor in weights.items() if tensor.is_floating_point() and not name.endswith(masks)}
    if len(dtypes) != 1:
        names = ", ".join(sorted(str(dtype).removeprefix("torch.") for dtype in dtypes)) or "no floating-point numbers"
        raise UserError(f"the weights in {file} are of mixed precision: {names}", "save all of them in one dtype")
    return next(iter(dtypes))


def _fitted(file: Path, like: str, state: dict[str, Tensor], expected: Mapping[str, Tensor], *, tied: bool) -> dict[str, Any]:
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
    for names, what in ((expected.keys() - state.keys(), "lacks"), (state.keys() - expected.keys(), "has a surplus of")):
        if names:
            raise UserError(
                f"{file} {what} {len(names)} tensors against {like}, first {min(names)}", "name the model it was tuned from with --like"
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
