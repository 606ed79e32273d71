"""Weights by meaning: value vectors as they are written, output projections, norms, position embeddings, biases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from interp.errors import UserError
from interp.models.model import Model
from interp.models.offloading import parameter_values


def frozen_norm(model: Model, layer: int, name: str, raw: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos d_model"]:
    """The factor per coordinate of the norm between a component and the residual stream, with its scale frozen; ones where there is none.

    Args:
        name: `attn_out` or `mlp_out`.
        raw: the component's output before that norm.
    """
    if not model.architecture.writes_through_norm:
        return torch.ones_like(raw)
    norm = model.part(layer, model.architecture.taps[name].path)
    gain: Tensor = parameter_values(norm, "weight")
    return (gain.double() + model.architecture.norm_offset) * (raw.square().mean(dim=-1, keepdim=True) + norm_epsilon(norm)).rsqrt()


def written_values(model: Model, layer: int) -> Float[Tensor, "d_mlp d_model"]:
    """The value vectors of a layer as they reach the residual stream, one row per neuron.

    Where a norm follows the MLP (Gemma 2 and 3), each is multiplied by that norm's gain; what is written per unit of activation is
    then this vector divided by the norm's scale, one number for all neurons of the layer at a position. Elsewhere they are the
    value vectors themselves.
    """
    values = model.value_vectors(layer)
    if not model.architecture.writes_through_norm:
        return values
    gain: Tensor = parameter_values(model.part(layer, model.architecture.taps["mlp_out"].path), "weight")
    return values * (gain + model.architecture.norm_offset)


def check_neurons_add_up(model: Model) -> None:
    """Raise `UserError` where a norm follows the MLP: what its neurons write then depends on one another's activations."""
    if model.architecture.writes_through_norm:
        raise UserError(
            f"{model.name} norms what its MLP writes, so that the neurons' parts do not add up", "use an architecture without that norm"
        )


def output_projection(model: Model, layer: int) -> tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, " d_model"]]:
    """The output projection of a layer's attention, split by head, and its bias; in double precision."""
    weight = model.projection(layer, model.architecture.output).double()
    bias = model.projection_bias(layer, model.architecture.output)
    constant = bias.double() if bias is not None else torch.zeros(model.d_model, dtype=torch.float64, device=weight.device)
    return rearrange(weight, "(head d_head) d_model -> head d_head d_model", head=model.n_heads), constant


def writers(model: Model, layer: int) -> list[tuple[Float[Tensor, "d_in d_model"], Float[Tensor, " d_model"] | None]]:
    """The matrices of a layer that write to the residual stream, one row per input, each with its bias: attention's, then the MLP's.

    They are views: a change of them in place changes the model.
    """
    paths = (model.architecture.output, model.architecture.value)
    return [(model.projection(layer, path), model.projection_bias(layer, path)) for path in paths]


def mlp_norm(model: Model, layer: int) -> nn.Module:
    """The norm before the MLP of a layer."""
    norm: nn.Module = model.part(layer, model.architecture.taps["resid_mid"].path)
    return norm


def folded_keys(model: Model, layer: int, neurons: Sequence[int]) -> Float[Tensor, "neuron d_model"]:
    """The key vectors of these neurons times the gain of the norm before them; centred where that norm subtracts the mean."""
    keys = model.key_vectors(layer)[torch.tensor(list(neurons), device=model.device)].detach()
    folded: Tensor = keys * (parameter_values(mlp_norm(model, layer), "weight") + model.architecture.norm_offset)
    return folded - folded.mean(dim=1, keepdim=True) if model.architecture.norm == "layer" else folded


def position_embedding(model: Model, position: int) -> Float[Tensor, " d_model"]:
    """The embedding of a position, in double precision; zeros where positions are rotary."""
    if model.architecture.positions is None:
        return torch.zeros(model.d_model, dtype=torch.float64, device=model.device)
    embeddings: Tensor = parameter_values(model.hf.get_submodule(model.architecture.positions), "weight")
    return embeddings[position].double()


def unembedding_bias(model: Model, token: int, against: int | None) -> Float[Tensor, ""]:
    """The unembedding's bias for a token, or its difference from that of `against`; in double precision."""
    bias: Tensor | None = parameter_values(model.hf.get_output_embeddings(), "bias")
    if bias is None:
        return torch.zeros((), dtype=torch.float64, device=model.device)
    return bias[token].double() - (bias[against].double() if against is not None else 0)


def norm_epsilon(norm: nn.Module) -> float:
    """The epsilon of a norm, which is added to the variance before the root."""
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)  # type: ignore[arg-type]
