"""Weights other than those of neurons, by meaning: output projections, norms, position embeddings, biases."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

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
