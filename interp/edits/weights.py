"""Changes of weights, each returned as a new model: interpolation, orthogonalisation, projection of value matrices.

Unlike an edit, which acts at a site during a forward, these change the weights. Each works on a copy, so the weights of the
models passed in stay bit for bit as they were.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import UserError
from interp.models.model import Model
from interp.models.modes import freeze
from interp.models.tying import untie
from interp.models.weights import writers

if TYPE_CHECKING:
    from transformers import PreTrainedModel

Real = float | int


@torch.no_grad()
def interpolated(base: Model, tuned: Model, share: Real, *, only: Callable[[str], bool] | None = None) -> Model:
    """`base + share * (tuned - base)` in every tensor: 0 is the base model and 1 the tuned one, both bit for bit.

    Beyond 0 and 1 it extrapolates. Source: task vectors (Ilharco et al., 2023). Raises `UserError` for models whose tensors differ
    in name or shape, and where `only` selects none.

    Args:
        only: whether a tensor, by its name in `named_parameters`, is changed; the others stay the base's. With a share of 1 this swaps
            some of the weights between the sides. A tensor that two modules share goes by its first name.
    """
    copy = base.plain_copy()
    other = dict(tuned.hf.named_parameters())
    selected = [(name, parameter) for name, parameter in copy.named_parameters() if only is None or only(name)]
    if not selected:
        raise UserError(f"no tensor of {base.name} is selected", "select some by their names in named_parameters")
    for name, parameter in selected:
        if name not in other or other[name].shape != parameter.shape:
            raise UserError(f"the tensor {name} of {base.name} has no counterpart in {tuned.name}", "give two models of one shape")
        parameter.lerp_(other[name].to(parameter.device, parameter.dtype), float(share))
    return Model(freeze(copy), base.tokenizer, f"{base.name} + {share:g} × ({tuned.name} − {base.name})", bos=base.bos)


@torch.no_grad()
def orthogonalised(model: Model, direction: Float[Tensor, " d_model"], strength: Real = 1.0) -> Model:
    """A model that no longer writes along a direction: every matrix and bias that writes to the residual stream loses it.

    With unit direction d, each written row w becomes `w - strength * (w . d) d`: embeddings, positions, attention and MLP outputs.
    At strength 1 this equals removing d from everything that is written while the model runs. Where the unembedding shares its
    tensor with the embedding, it first gets a copy of its own and stays unchanged. Source: Arditi et al. (2024), weight
    orthogonalisation. Raises `UserError` for a direction of another width, or an architecture that writes through a norm.
    """
    unit = _unit(model, direction)
    _check_writes(model)
    copy = _untied(model)
    for module in copy.modules():
        if isinstance(module, nn.Embedding) and module.embedding_dim == model.d_model:
            _remove_rows(module.weight, unit, strength)
    changed = Model(freeze(copy), model.tokenizer, f"{model.name}, orthogonalised", bos=model.bos)
    for layer in range(model.n_layers):
        for rows, bias in writers(changed, layer):
            _remove_rows(rows, unit, strength)
            if bias is not None:
                _remove_rows(bias, unit, strength)
    return changed


@torch.no_grad()
def values_projected(model: Model, bases: Mapping[int, Float[Tensor, "direction d_model"]], strength: Real = 1.0) -> Model:
    """A model whose value vectors, in the layers named, lose a subspace: `v <- v - strength * P v`.

    Args:
        bases: for each layer orthonormal rows that span the subspace.

    Source: the edit of ProFS (Uppaal et al., 2025). Raises `UserError` for rows of another width or not orthonormal, and for an
    architecture that norms what its layers write.
    """
    _check_writes(model)
    changed = Model(freeze(model.plain_copy()), model.tokenizer, f"{model.name}, values projected", bos=model.bos)
    for layer, rows in bases.items():
        wide = rows.to(model.device, torch.float64)
        square = torch.eye(len(rows), dtype=torch.float64, device=wide.device)
        if rows.shape[1] != model.d_model or not torch.allclose(wide @ wide.T, square, atol=1e-4):
            raise UserError(
                f"the subspace at layer {layer} has rows of shape {tuple(rows.shape)} that are not orthonormal",
                f"give unit rows of {model.d_model} numbers at right angles, for example from an SVD",
            )
        values = changed.value_vectors(layer)
        values.sub_((float(strength) * (values.double() @ wide.T) @ wide).to(values.dtype))
    return changed


def _remove_rows(rows: Tensor, unit: Float[Tensor, " d_model"], strength: Real) -> None:
    along = rows.double() @ unit
    rows.sub_((float(strength) * (along.unsqueeze(-1) * unit if rows.dim() == 2 else along * unit)).to(rows.dtype))


def _untied(model: Model) -> PreTrainedModel:
    copy = model.plain_copy()
    untie(copy)
    return copy


def _unit(model: Model, direction: Tensor) -> Float[Tensor, " d_model"]:
    if direction.dim() != 1 or direction.shape[0] != model.d_model:
        raise UserError(f"a direction of shape {tuple(direction.shape)} was given", f"give one vector of {model.d_model} numbers")
    exact = direction.detach().to(model.device, torch.float64)
    if not 0 < float(exact.norm()) < float("inf"):
        raise UserError(f"the direction has norm {float(exact.norm())}", "give a finite direction that is not zero")
    return exact / exact.norm()


def _check_writes(model: Model) -> None:
    if model.architecture.writes_through_norm:
        raise UserError(
            f"{model.name} sends what its layers write through a norm, so no weight matrix writes to the residual stream itself",
            "project the direction out while the model runs: Edit.project_out at attn_out and mlp_out",
        )
