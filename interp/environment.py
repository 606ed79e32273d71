"""The versions of the libraries and the machine that a result was computed with."""

from __future__ import annotations

import os
import platform
from collections.abc import Sequence
from importlib import metadata
from typing import Any

import torch

LIBRARIES = (
    "bypass-workbench", "torch", "transformers", "safetensors", "einops", "jaxtyping", "pandas", "plotly", "detoxify",
    "transformer-lens", "nnsight", "trl", "streamlit",
)  # fmt: skip


def versions(libraries: Sequence[str] = LIBRARIES) -> dict[str, str]:
    """Versions of Python and of those of the libraries that are installed, by distribution name."""
    by_name = {"python": platform.python_version()}
    for name in libraries:
        try:
            by_name[name] = metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return by_name


def machine() -> dict[str, Any]:
    """Processor, cores and accelerator."""
    return {
        "system": platform.system(), "machine": platform.machine(), "cores": os.cpu_count(), "torch_threads": torch.get_num_threads(),
        "accelerator": torch.cuda.get_device_name(0) if torch.cuda.is_available() else None,
    }  # fmt: skip
