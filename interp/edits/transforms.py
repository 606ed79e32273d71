"""Edits compiled to functions on activations, and `editing`, which applies them in a `with` block."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from einops import rearrange
from jaxtyping import Bool
from torch import Tensor

from interp.edits.edit import Edit, EditPositions
from interp.errors import UserError
from interp.models.chat import known_roles
from interp.models.hooks import Frame, Transform, Work, working
from interp.models.model import Model, Neuron, by_layer
from interp.models.positions import ROLES
from interp.models.sites import parse_site


@dataclass(frozen=True, eq=False)
class EditTransform:
    """One edit at one site: a function on the site's tensor, and the edit itself for engines that cannot run functions."""

    edit: Edit
    change: Transform

    def __call__(self, x: Tensor, frame: Frame) -> Tensor:
        """The site's tensor with the edit applied at its positions."""
        return self.change(x, frame)


def transforms_of(edits: Sequence[Edit], model: Model) -> dict[str, tuple[EditTransform, ...]]:
    """The functions that apply these edits, by site; raises `UserError` where an edit does not fit."""
    by_site: dict[str, list[EditTransform]] = {}
    for edit in edits:
        if not isinstance(edit, Edit):
            raise UserError(f"{edit!r} is not an Edit", "make one with Edit.add, Edit.scale_keys and so on")
        for site, change in _compile(edit, model):
            by_site.setdefault(site, []).append(EditTransform(edit, change))
    return {site: tuple(transforms) for site, transforms in by_site.items()}


def _compile(edit: Edit, model: Model) -> list[tuple[str, Transform]]:
    if edit.op == "scale_keys":
        return _compile_keys(edit, model)
    site = parse_site(str(edit.site), n_layers=model.n_layers, family=model.family)
    if not site.kind.edited:
        raise UserError(
            f"an edit cannot act at {site}, whose numbers belong to pairs of positions",
            f"edit q.{site.layer} or k.{site.layer}, which make the pattern, or z.{site.layer}, which it makes",
        )
    width = model.width(site.name)
    values = None if edit.values is None else edit.values.to(model.device, model.dtype)
    if values is not None and values.shape[-1] != width:
        raise UserError(f"the edit at {site} holds {values.shape[-1]} numbers, but that site is {width} wide", "use a vector of that width")
    index = None
    if edit.neurons is not None:
        flat = [n for n in edit.neurons if isinstance(n, int)]
        if any(n >= width for n in flat):
            raise UserError(f"the edit at {site} names index {max(flat)}, but that site is {width} wide", f"use 0 to {width - 1}")
        index = torch.tensor(flat, device=model.device)
    if edit.op == "add":
        assert values is not None
        return [(str(site), _everywhere(edit, lambda x, v=edit.strength * values: x + _as(v.to(x.device), x)))]
    if edit.op == "project_out":
        assert values is not None
        # In double precision, where the squares of a very small vector do not vanish.
        exact = edit.values.double()  # type: ignore[union-attr]
        unit = (exact / exact.norm()).to(model.device, model.dtype)
        return [(str(site), _everywhere(edit, lambda x, d=unit: _without(x, d.to(x.device))))]
    if edit.op == "patch":
        assert values is not None
        return [(str(site), _patch(edit, values))]
    if edit.op == "scale":
        return [(str(site), _everywhere(edit, lambda x: _on(x, index, lambda part: part * edit.strength)))]
    return [(str(site), _everywhere(edit, lambda x: _on(x, index, lambda part: torch.full_like(part, edit.strength))))]


def _compile_keys(edit: Edit, model: Model) -> list[tuple[str, Transform]]:
    neurons: Sequence[Neuron] = edit.neurons or ()  # type: ignore[assignment]
    model.check_neurons(neurons)
    by_site: list[tuple[str, Transform]] = []
    for layer, indices in by_layer(neurons).items():
        index = torch.tensor(indices, device=model.device)
        bias = model.key_biases(layer)[indices]

        def scale(x: Tensor, index: Tensor = index, bias: Tensor = bias) -> Tensor:
            still = bias.to(x.device)
            return _on(x, index, lambda part: (part - still) * edit.strength + still)

        by_site.append((f"mlp_pre.{layer}", _everywhere(edit, scale)))
    return by_site


def _rows(x: Tensor) -> Tensor:
    """The activation with heads flattened to one axis, which a direction over `head d_head` is applied to."""
    return rearrange(x, "batch pos head d_head -> batch pos (head d_head)") if x.dim() == 4 else x


def _as(vector: Tensor, x: Tensor) -> Tensor:
    return vector.view(*vector.shape[:-1], *x.shape[2:]) if x.dim() == 4 else vector


def _without(x: Tensor, unit: Tensor) -> Tensor:
    return x - ((_rows(x) @ unit).unsqueeze(-1) * unit).view(x.shape)


def _on(x: Tensor, index: Tensor | None, change: Any) -> Tensor:
    if index is None:
        return change(x)
    index = index.to(x.device)
    flat = _rows(x).clone()
    flat[..., index] = change(flat[..., index])
    return flat.view(x.shape)


def _everywhere(edit: Edit, change: Any) -> Transform:
    """A transform that applies `change` at the edit's positions, never at padding.

    Layers may be on several devices, so tensors are moved to that of `x`.
    """

    def transform(x: Tensor, frame: Frame) -> Tensor:
        where = selected(edit.positions, frame)
        if not bool(where.any()):
            return x
        return _where(where, change(x), x)

    return transform


def _patch(edit: Edit, values: Tensor) -> Transform:
    explicit = edit.positions if isinstance(edit.positions, tuple) else None

    def transform(x: Tensor, frame: Frame) -> Tensor:
        where = selected(edit.positions, frame)
        if values.dim() == 1:
            new = _as(values.to(x.device), x).expand_as(x)
        else:
            rows = tuple(range(x.shape[0])) if frame.rows is None else frame.rows
            few = max(rows) >= len(values) or (frame.rows is None and len(values) != len(rows))
            if values.dim() == 3 and len(values) != 1 and few:
                raise UserError(
                    f"the patch at {edit.site} has {len(values)} rows, which are not those of the batch", "give one row per text"
                )
            here = frame.positions.device
            slot = torch.full((int(frame.positions.max()) + 1,), -1, device=here)
            count = values.shape[-2]
            at = torch.tensor(explicit if explicit is not None else range(count), device=here)
            slot[at[at < len(slot)]] = torch.arange(count, device=here)[at < len(slot)]
            place = slot[frame.positions]
            where = where & (place >= 0)
            table = (values if values.dim() == 3 else values.unsqueeze(0)).to(here)
            row = torch.tensor(rows, device=here).unsqueeze(1) if table.shape[0] > 1 else torch.zeros_like(place[:, :1])
            new = table[row, place.clamp(min=0)].to(x.device).view(x.shape)
        return _where(where, new, x)

    return transform


def _where(where: Bool[Tensor, "batch pos"], new: Tensor, x: Tensor) -> Tensor:
    return torch.where(where.to(x.device).view(*where.shape, *[1] * (x.dim() - 2)), new, x)


def selected(positions: EditPositions, frame: Frame) -> Bool[Tensor, "batch pos"]:
    """A mask of the tokens of this forward that an edit applies to; raises `UserError` for a role that no token is known to have."""
    if positions == "all":
        return frame.real
    if positions in ROLES:
        return frame.real & of_role(positions, frame)
    if isinstance(positions, tuple):
        numbers = torch.tensor(positions, device=frame.positions.device)
        return frame.real & torch.isin(frame.positions, numbers)
    limit = frame.prompt_lengths.to(frame.positions.device).unsqueeze(1)
    if positions == "prompt":
        return frame.real & (frame.positions < limit)
    if positions == "last":
        return frame.real & (frame.positions == limit - 1)
    return frame.real & (frame.positions >= (limit if positions == "generated" else limit - 1))


def of_role(role: Any, frame: Frame) -> Bool[Tensor, "batch pos"]:
    """A mask of the tokens of this forward that have a role; what follows the prompt is the assistant's."""
    here = frame.positions.device
    codes, limit = known_roles(frame.roles, role, continued=True).to(here), frame.prompt_lengths.to(here).unsqueeze(1)
    prompt = codes.gather(1, frame.positions.clamp(max=codes.shape[1] - 1)) == ROLES.index(role)
    after = frame.positions >= limit
    return (prompt & ~after) | (after if role == "assistant" else torch.zeros_like(after))


@contextlib.contextmanager
def editing(model: Model, edits: Sequence[Edit], *, prompt_lengths: Sequence[int] | None = None) -> Iterator[None]:
    """Apply edits in every forward and generate call of this model in this context and thread.

    Args:
        edits: applied in order; nested blocks add to the outer block's edits.
        prompt_lengths: tokens of each row's prompt, for edits at `prompt` or `generated` positions of a plain forward.
            Without it a forward that starts a sequence counts as prompt and one that continues a KV cache as generated.

    Raises:
        UserError: an edit does not fit the model (site, layer, neuron or width), or, at the forward, the rows of a patch
            or the number of prompt lengths do not fit the batch.
    """
    lengths = None if prompt_lengths is None else torch.as_tensor(list(prompt_lengths), device=model.device)
    with working(model.hf, Work(transforms_of(edits, model)), lengths):
        yield
