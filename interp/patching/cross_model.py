"""Cross-model patching: neurons of one model take another model's activations while both read the same text.

A stored patch cannot be used while text is generated, since the tokens depend on the patch. So both models run at each step: first
the donor, then the other model with the donor's activations in the chosen neurons.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from functools import partial
from typing import Any

import numpy as np
import torch
from jaxtyping import Bool, Float
from torch import Tensor
from transformers import DynamicCache

from interp.errors import UserError
from interp.forward.generate import before_end, decode
from interp.models.hooks import Frame, Work, working
from interp.models.model import Model
from interp.models.tokens import batches, check_rows, end_tokens, logit_tokens, next_token_losses, pad

# The neurons that are patched, by layer.
Selection = Mapping[int, Bool[Tensor, " d_mlp"]]
# The same with one row of truth values for each text of a batch, or one for all.
Masks = dict[int, Bool[Tensor, "#batch 1 d_mlp"]]


@contextmanager
def _collecting(donor: Model, layers: Iterable[int], lengths: Tensor) -> Iterator[dict[str, Tensor]]:
    """While it is open, what the donor's neurons of these layers give is kept in a dict, by site."""
    acts: dict[str, Tensor] = {}

    def collect(value: Tensor, frame: Frame, site: str) -> None:
        acts[site] = value

    sites = [f"mlp_post.{layer}" for layer in layers]
    with working(donor.hf, Work(collectors={site: (partial(collect, site=site),) for site in sites}), lengths):
        yield acts


def _replacing(model: Model, chosen: Masks, acts: Mapping[str, Tensor], lengths: Tensor) -> AbstractContextManager[Any]:
    """While it is open, the chosen neurons of the model take the activations in `acts`."""

    def replace(value: Tensor, frame: Frame, site: str, mask: Tensor) -> Tensor:
        return torch.where(mask, acts[site].to(value.device, value.dtype), value)

    masks = {f"mlp_post.{layer}": units.to(model.device) for layer, units in chosen.items()}  # broadcast over positions
    return working(model.hf, Work({site: (partial(replace, site=site, mask=mask),) for site, mask in masks.items()}), lengths)


def _masks(chosen: Sequence[Selection]) -> Masks:
    """The selections of several texts as one, with every layer that one of them names."""
    sizes = {layer: units for one in chosen for layer, units in one.items()}
    return {layer: torch.stack([one.get(layer, torch.zeros_like(units)) for one in chosen]).unsqueeze(1) for layer, units in sizes.items()}


def _check(model: Model, donor: Model, chosen: Selection) -> None:
    if (model.n_layers, model.d_mlp, model.d_vocab) != (donor.n_layers, donor.d_mlp, donor.d_vocab):
        raise UserError(f"{donor.name} and {model.name} differ in shape", "give two models of one architecture and size")
    wrong = [layer for layer, units in chosen.items() if not 0 <= layer < model.n_layers or units.shape != (model.d_mlp,)]
    if wrong:
        raise UserError(
            f"the neurons chosen at layer {wrong[0]} do not fit", f"give {model.d_mlp} truth values for layers 0 to {model.n_layers - 1}"
        )


@torch.no_grad()
def generate_with_donor(
    model: Model, donor: Model, rows: Sequence[Sequence[int]], chosen: Selection | Sequence[Selection], *, max_new_tokens: int = 20,
    batch_size: int = 256,
) -> list[list[int]]:  # fmt: skip
    """The model's continuations of these rows, the chosen neurons taking the donor's activations at every position.

    `chosen` is one selection for all rows, or one for each, so that many selections of few rows share their products of matrices.
    Greedy decoding; a row ends before the end-of-text token. With no neuron chosen this is the model's own continuation. Source:
    cross-model activation patching (Prakash et al., 2024). Raises `UserError` for models of different shape, or rows that do not fit.
    """
    selections = [chosen] * len(rows) if isinstance(chosen, Mapping) else list(chosen)
    if len(selections) != len(rows):
        raise UserError(f"{len(rows)} rows came with {len(selections)} selections of neurons", "give each row one, or one for all")
    for selection in {id(one): one for one in selections}.values():
        _check(model, donor, selection)
    check_rows(model, rows)
    continuations: list[list[int]] = [[] for _ in rows]
    for group in batches([len(row) for row in rows], batch_size=batch_size, batch_tokens=1 << 16):
        tokens = pad([rows[i] for i in group], model.tokenizer.pad_token_id or 0, "left").to(model.device)
        caches = DynamicCache(), DynamicCache()
        alike = _alike([rows[i] for i in group])
        last = partial(_last, model, donor, _masks([selections[i] for i in group]), tokens.lengths, alike, caches)
        columns = list(decode(tokens, last, max_new_tokens, partial(torch.argmax, dim=-1), ends=end_tokens(model)))
        for place, row in zip(group, torch.stack(columns, dim=1).tolist() if columns else [[] for _ in group], strict=True):
            continuations[place] = before_end(row, model)
    return continuations


def _alike(rows: Sequence[Sequence[int]]) -> tuple[list[int], list[int]]:
    """The places of the rows that differ from all before them, and for each row the number of its like among those."""
    keys = [tuple(row) for row in rows]
    numbers = {key: number for number, key in enumerate(dict.fromkeys(keys))}
    return [keys.index(key) for key in numbers], [numbers[key] for key in keys]


def _last(
    model: Model, donor: Model, chosen: Masks, lengths: Tensor, alike: tuple[list[int], list[int]],
    caches: tuple[DynamicCache, DynamicCache], inputs: Mapping[str, Tensor],
) -> Tensor:  # fmt: skip
    """The model's logits of the token after these, with the donor's activations in the chosen neurons.

    The prompts come first, which the donor reads unchanged, so that it reads each of them once for all selections.
    """
    acts: dict[str, Tensor] = {}
    if chosen:
        firsts, like = alike
        shared = len(firsts) < len(like) and not caches[0].get_seq_length()
        rows = firsts if shared else slice(None)
        with _collecting(donor, chosen, lengths[rows]) as acts:
            # The donor's logits are not read, so they are not computed.
            donor.hf.base_model(**{name: value[rows] for name, value in inputs.items()}, past_key_values=caches[0], use_cache=True)
        if shared:
            caches[0].batch_select_indices(torch.tensor(like, device=donor.device))
            acts = {site: value[like] for site, value in acts.items()}
    with _replacing(model, chosen, acts, lengths):
        logits: Tensor = model.hf(**inputs, past_key_values=caches[1], use_cache=True, logits_to_keep=1).logits
    return logits.float()[:, -1]


@torch.no_grad()
def losses_with_donor(
    model: Model, donor: Model, rows: Sequence[Sequence[int]], selections: Sequence[Selection], *, batch_size: int = 16
) -> list[list[Float[np.ndarray, " token"]]]:
    """By selection and row the loss in nats of every token but the first, when the neurons of the selection take the donor's activations.

    Each row is read by itself, by the donor once for all selections. Raises `UserError` as `generate_with_donor`.
    """
    for chosen in selections:
        _check(model, donor, chosen)
    check_rows(model, rows)
    losses: list[list[np.ndarray]] = [[np.empty(0)] * len(rows) for _ in selections]
    for group in batches([len(row) for row in rows], batch_size=batch_size, batch_tokens=logit_tokens(model)):
        tokens = pad([rows[i] for i in group], model.tokenizer.pad_token_id or 0, "right").to(model.device)
        with _collecting(donor, {layer for chosen in selections for layer in chosen}, tokens.lengths) as acts:
            donor.hf.base_model(**tokens.inputs(), use_cache=False)
        for place, chosen in enumerate(selections):
            with _replacing(model, _masks([chosen]), acts, tokens.lengths):
                logits = model.hf(**tokens.inputs(), use_cache=False).logits
            values = next_token_losses(logits.float(), tokens.ids).double().cpu().numpy()
            for number, of_row in zip(group, values, strict=True):
                losses[place][number] = of_row[: len(rows[number]) - 1]
    return losses


def perplexities_with_donor(
    model: Model, donor: Model, rows: Sequence[Sequence[int]], selections: Sequence[Selection], *, batch_size: int = 16
) -> list[float]:
    """Perplexity of the model on these rows, each read by itself, when the neurons of each selection take the donor's activations.

    Raises `UserError` as `losses_with_donor`, or where no row has two tokens.
    """
    losses = losses_with_donor(model, donor, rows, selections, batch_size=batch_size)
    if not sum(max(0, len(row) - 1) for row in rows):
        raise UserError("the rows hold no token to predict", "give rows of at least two tokens")
    return [math.exp(np.concatenate(some).mean()) for some in losses]
