"""In which precision a stage of training computes: bfloat16 where the hardware multiplies it, single precision elsewhere.

A CPU without instructions for bfloat16 still takes it and computes it by way of single precision, more slowly and without a
word. A run keeps the precision that it began with, wherever it goes on, because its checkpoint remembers it: otherwise the
machine on which it is resumed would decide what it makes.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
from torch import nn

from training.optimizers import chosen

DTYPES = {"fp32": torch.float32, "bf16": torch.bfloat16}


def multiplies_bf16(device: torch.device) -> bool:
    """Whether this device has instructions for products of bfloat16 numbers."""
    if device.type == "cuda":
        return torch.cuda.is_bf16_supported(including_emulation=False)
    return device.type == "cpu" and any(held is True and "bf16" in name for name, held in torch.cpu.get_capabilities().items())


def precision_of(settings: dict[str, Any], device: torch.device, state: Mapping[str, Any] | None = None) -> str:
    """`bf16` or `fp32`: what the checkpoint's state says it began with, else the recipe, else what suits the device."""
    wanted = chosen(settings, "precision")
    if state and "precision" in state:
        return str(state["precision"])
    if wanted != "auto":
        return wanted
    return "bf16" if multiplies_bf16(device) else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward in that precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def round_weights(model: nn.Module, settings: dict[str, Any]) -> torch.dtype:
    """Round the weights, in place, to what the recipe has them `stored` in; return that dtype.

    A model that is tuned later is rounded before anything is measured on it: a rounding in between would pass for tuning.
    """
    dtype = DTYPES[chosen(settings, "stored")]
    if dtype != torch.float32:
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    return dtype
