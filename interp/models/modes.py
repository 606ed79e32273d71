"""The mode of a model: frozen and without dropout for reading, or in training."""

from __future__ import annotations

from torch import nn
from transformers import PreTrainedModel

from interp.errors import UserError
from interp.models.model import Model


def freeze(hf: PreTrainedModel) -> PreTrainedModel:
    """The same model in evaluation mode (no dropout) with weights that do not require gradients."""
    frozen: PreTrainedModel = hf.eval().requires_grad_(False)
    return frozen


def check_no_dropout(model: Model) -> None:
    """Raise `UserError` where dropout is active, because its activations then differ from forward to forward."""
    for part in model.hf.modules():
        rate = part.p if isinstance(part, nn.Dropout) else getattr(part, "attention_dropout", 0.0)
        if part.training and isinstance(rate, float) and rate > 0:
            problem = f"{model.name} is in training mode with a dropout of {rate:g}, so no two forwards of it agree"
            raise UserError(problem, "call model.hf.eval() first, and model.hf.train() afterwards")
