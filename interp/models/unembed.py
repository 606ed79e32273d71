"""The unembedding: logits of a residual stream."""

from __future__ import annotations

import torch
from jaxtyping import Float
from torch import Tensor

from interp.models.model import Model


def unembed(model: Model, residual: Float[Tensor, "*batch d_model"]) -> Float[Tensor, "*batch vocab"]:
    """The logits that the model would give if its last residual stream were this one."""
    # `forward` rather than a call: hooks at ln_final belong to forwards of the whole model, not to this reading.
    normed = model.final_norm.forward(residual.to(model.device, model.dtype))
    logits = model.hf.get_output_embeddings().forward(normed)
    # At least single precision; a model in double stays in double.
    logits = logits.to(torch.promote_types(logits.dtype, torch.float32))
    cap = getattr(model.hf.config, "final_logit_softcapping", None)
    return cap * torch.tanh(logits / cap) if cap else logits
