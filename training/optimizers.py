"""Optimizers of pretraining, with their learning rate as a function of the recipe and the step, and those of preference tuning.

Muon orthogonalises the momentum of matrices, which is meant for the 2-D weights inside the blocks; embeddings, norms and
biases stay with AdamW. Its updates are scaled to AdamW's usual size, so that one learning rate serves both.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from typing import Any

import torch
from torch import nn
from torch.optim import Optimizer

from interp.errors import UserError
from interp.models.parameters import parameter_group
from training.sections import DpoSettings, PretrainSettings
from training.settings import choices

CHOICES = {name: choices(PretrainSettings, name) for name in ("optimizer", "decay", "precision", "stored")}

# Those of preference tuning.
PREFERENCE = choices(DpoSettings, "optimizer")


def chosen(settings: dict[str, Any], name: str) -> str:
    """A setting that is one of a few words, by default the first of them; raises `UserError` for another."""
    value = settings.get(name, CHOICES[name][0])
    if value not in CHOICES[name]:
        raise UserError(f"the recipe sets {name} to {value!r}", f"use one of {', '.join(CHOICES[name])}")
    return str(value)


def build_optimizers(model: nn.Module, settings: dict[str, Any]) -> list[Optimizer]:
    """AdamW over all weights, or Muon over the matrices of the blocks and AdamW over the others; vectors do not decay.

    Source of Muon: Jordan et al. 2024; its scale that matches AdamW's: Liu et al. 2025 (arXiv 2502.16982), section 2.2.
    """
    named = [(name, parameter) for name, parameter in model.named_parameters() if parameter.requires_grad]
    matrices: list[nn.Parameter] = []
    if chosen(settings, "optimizer") == "muon":
        matrices = [p for name, p in named if p.dim() == 2 and parameter_group(name) in {"attention", "mlp"}]
    orthogonalised = {id(parameter) for parameter in matrices}
    others = [parameter for _, parameter in named if id(parameter) not in orthogonalised]
    rate, decay = settings["learning_rate"], settings["weight_decay"]
    groups = [
        {"params": [p for p in others if p.dim() > 1], "weight_decay": decay},
        {"params": [p for p in others if p.dim() <= 1], "weight_decay": 0.0},
    ]
    optimizers: list[Optimizer] = [torch.optim.AdamW(groups, lr=rate, betas=(0.9, 0.95), fused=True)]
    if matrices:
        optimizers.append(torch.optim.Muon(matrices, lr=rate, weight_decay=decay, momentum=0.95, adjust_lr_fn="match_rms_adamw"))
    return optimizers


def preference_optimizer(name: str, parameters: Iterable[nn.Parameter], rate: float) -> Optimizer:
    """RMSprop or SGD with torch's defaults, or AdamW with betas .9 and .95; no weight decay. Raises `UserError` for another name."""
    parameters = list(parameters)
    if name == "rmsprop":
        return torch.optim.RMSprop(parameters, lr=rate)
    if name == "sgd":
        return torch.optim.SGD(parameters, lr=rate)
    if name == "adamw":
        return torch.optim.AdamW(parameters, lr=rate, betas=(0.9, 0.95), weight_decay=0.0)
    raise UserError(f"there is no optimizer {name!r}", f"use one of {', '.join(PREFERENCE)}")


def learning_rate(step: int, total: int, settings: dict[str, Any]) -> float:
    """The rate of a step (from 0): linear warm-up to the peak, then a cosine or a straight line down to the final rate."""
    peak, final, warmup = settings["learning_rate"], settings["final_learning_rate"], settings["warmup_steps"]
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    if chosen(settings, "decay") == "linear":
        return peak + (final - peak) * progress
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))
