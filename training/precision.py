"""The precision of training: bfloat16 where the hardware multiplies it, single precision elsewhere.

A CPU without instructions for bfloat16 still accepts it and emulates it in single precision, more slowly and without a
warning. A run keeps the precision that it began with, which its checkpoint stores: otherwise its result would depend on the
machine on which it is resumed.
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
    return device.type == "cpu" and any(supported is True and "bf16" in name for name, supported in torch.cpu.get_capabilities().items())


def precision_of(settings: dict[str, Any], device: torch.device, state: Mapping[str, Any] | None = None) -> str:
    """`bf16` or `fp32`: that of the checkpoint's state, else the recipe's, else the one that suits the device."""
    asked = chosen(settings, "precision")
    if state and "precision" in state:
        return str(state["precision"])
    if asked != "auto":
        return asked
    return "bf16" if multiplies_bf16(device) else "fp32"


def autocast(precision: str, device: torch.device) -> torch.autocast:
    """The context of a forward in that precision."""
    return torch.autocast(device.type, dtype=torch.bfloat16, enabled=precision == "bf16")


@torch.no_grad()
def round_weights(model: nn.Module, settings: dict[str, Any]) -> torch.dtype:
    """Round the weights, in place, to the recipe's `stored` dtype; return that dtype.

    A model that is tuned later is rounded before anything is measured on it, so that no rounding is taken for an effect of tuning.
    """
    dtype = DTYPES[chosen(settings, "stored")]
    if dtype != torch.float32:
        for parameter in model.parameters():
            parameter.copy_(parameter.to(dtype))
    return dtype
