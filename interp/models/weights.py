"""Weights beyond neurons, by their meaning: output projections, norms, position embeddings, biases."""

from __future__ import annotations

import torch
from einops import rearrange
from jaxtyping import Float
from torch import Tensor, nn

from interp.models.model import Model


def frozen_norm(model: Model, layer: int, name: str, raw: Float[Tensor, "*pos d_model"]) -> Float[Tensor, "*pos d_model"]:
    """What a norm between a component and the stream multiplies each coordinate by, frozen; ones where there is none.

    Args:
        name: `attn_out` or `mlp_out`.
        raw: what the component gives before such a norm.
    """
    norm = model.hf.get_submodule(f"{model.architecture.blocks}.{layer}.{model.architecture.taps[name].path}")
    if "norm" not in type(norm).__name__.lower():
        return torch.ones_like(raw)
    gain = norm.get_parameter("weight").double() + model.architecture.norm_offset
    return gain * (raw.square().mean(dim=-1, keepdim=True) + _epsilon(norm)).rsqrt()


def output_projection(model: Model, layer: int) -> tuple[Float[Tensor, "head d_head d_model"], Float[Tensor, " d_model"]]:
    """What each head of a layer writes per unit of `head_out`, and the bias; in double precision."""
    module = model.hf.get_submodule(f"{model.architecture.blocks}.{layer}.{model.architecture.taps['head_out'].path}")
    weight = module.get_parameter("weight").double()
    weight = weight if model.family == "gelu" else weight.T
    bias = dict(module.named_parameters()).get("bias")
    constant = bias.double() if bias is not None else torch.zeros(model.d_model, dtype=torch.float64, device=weight.device)
    return rearrange(weight, "(head d_head) d_model -> head d_head d_model", head=model.n_heads), constant


def _position_embedding(model: Model, position: int) -> Float[Tensor, " d_model"]:
    if model.family == "gelu":
        return model.hf.get_submodule("transformer.wpe").get_parameter("weight")[position].double()
    return torch.zeros(model.d_model, dtype=torch.float64, device=model.device)


def _unembedding_bias(model: Model, token: int, against: int | None) -> Float[Tensor, ""]:
    bias = dict(model.hf.get_output_embeddings().named_parameters()).get("bias")
    if bias is None:
        return torch.zeros((), dtype=torch.float64, device=model.device)
    return bias[token].double() - (bias[against].double() if against is not None else 0)


def _epsilon(norm: nn.Module) -> float:
    return float(getattr(norm, "variance_epsilon", None) or norm.eps)  # type: ignore[arg-type]
