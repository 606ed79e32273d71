"""The unembedding: logits of a residual stream."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor
from transformers import PreTrainedModel

from interp.models.model import Model


def unembed(model: Model, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
    """The logits of a residual stream that leaves the last block: final norm, unembedding, and soft cap where the model has one."""
    # `forward` and not a call, because hooks at ln_final must act in forwards of the whole model only.
    normed = model.final_norm.forward(residual.to(model.device, model.dtype))
    return head_logits(model.hf, normed)


def head_logits(hf: PreTrainedModel, normed: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
    """The logits of states after the final norm: unembedding, and soft cap where the model has one."""
    logits = hf.get_output_embeddings().forward(normed)
    # At least single precision; a model in double stays in double.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cap = getattr(hf.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits
