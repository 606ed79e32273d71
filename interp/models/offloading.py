"""Models over several devices: the placement of layers, reading offloaded parameters, and the digest of all weights."""

from __future__ import annotations

import hashlib
import zlib
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from transformers import PreTrainedModel

from interp.errors import UserError

DEVICE_MAPS = ("auto", "balanced", "balanced_low_0", "sequential")
# So many bytes are read by CRC-32 sooner than by operations of torch.
FEW_BYTES = 2**17


@dataclass(frozen=True)
class Placement:
    """The placement of a model over several devices: accelerate's `device_map`, and a folder for layers that go to disk."""

    device_map: str | Mapping[str, Any]
    folder: Path | None = None

    def arguments(self) -> dict[str, Any]:
        """Keyword arguments for `from_pretrained`; raises `UserError` where accelerate is missing or the map is not one."""
        if find_spec("accelerate") is None:
            raise UserError("device_map needs the library accelerate", "pip install 'bypass-workbench[train]', or leave device_map out")
        if not isinstance(self.device_map, Mapping) and self.device_map not in DEVICE_MAPS:
            raise UserError(f"device_map is {self.device_map!r}", f"use {', '.join(DEVICE_MAPS)}, or a mapping from module to device")
        if isinstance(self.device_map, Mapping) and "disk" in self.device_map.values() and self.folder is None:
            raise UserError("device_map puts layers on disk, but no folder is given for them", "give offload_folder")
        device_map = dict(self.device_map) if isinstance(self.device_map, Mapping) else self.device_map
        return {"device_map": device_map, "offload_folder": None if self.folder is None else str(self.folder)}


def parameter_values(module: nn.Module, name: str) -> Any:
    """The values of a module's parameter without gradient, or None where it has none; an offloaded one is read from accelerate's store.

    They share memory with the parameter, unless it is offloaded.
    """
    parameter = getattr(module, name)
    if parameter is None:
        return None
    if not parameter.is_meta:
        return parameter.detach()
    hook = getattr(module, "_hf_hook", None)
    for part in getattr(hook, "hooks", [hook]):
        weights = getattr(part, "weights_map", None)
        if weights is not None:
            return weights[name].to(parameter.dtype)
    raise UserError(f"the weights of {type(module).__name__} are not in memory", "load the model with load_model")


def parameters_of(hf: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """Every parameter with its name, sorted by name; offloaded ones are read one at a time."""
    for name, parameter in sorted(hf.named_parameters(), key=lambda item: item[0]):
        path, _, leaf = name.rpartition(".")
        yield name, parameter_values(hf.get_submodule(path), leaf) if parameter.is_meta else parameter


def weights_digest(hf: PreTrainedModel) -> str:
    """A hash of every parameter's name, shape and bytes; the same for an unembedding that is the embedding and for one that equals it."""
    digest = hashlib.blake2b(digest_size=16)
    copy = _copy_of_the_embedding(hf)
    for name, tensor in parameters_of(hf):
        if name == copy:
            continue
        digest.update(f"{name}{tuple(tensor.shape)}{tensor.dtype}".encode())
        digest.update(tensor.detach().cpu().contiguous().view(torch.uint8).numpy().data)
    return digest.hexdigest()


def _copy_of_the_embedding(hf: PreTrainedModel) -> str | None:
    """The name of the unembedding's matrix where it is a parameter of its own with the values of the embedding."""
    head = hf.get_output_embeddings()
    if head is None:
        return None
    embedding = hf.get_input_embeddings()
    if head.weight is embedding.weight or head.weight.shape != embedding.weight.shape:
        return None
    values = [parameter_values(module, "weight") for module in (head, embedding)]
    if values[0].device != values[1].device or not torch.equal(*values):
        return None
    return next((name for name, parameter in hf.named_parameters() if parameter is head.weight), None)


def checksums(hf: PreTrainedModel) -> tuple[tuple[int, int, int], ...]:
    """For each parameter in memory its address, its count of changes in place, and a checksum, by which a change is noticed.

    torch does not count writes through `.data` or numpy. The checksum is about twenty times as fast as `weights_digest`.
    """
    return tuple((p.data_ptr(), p._version, _checksum(p.detach())) for p in hf.parameters() if not p.is_meta)


def _checksum(values: Tensor) -> int:
    """The sum of the bytes, read as 64-bit integers and weighted by row, modulo 2 ** 64; of few bytes their CRC-32.

    The weights are odd, so that a change within one row that changes its sum always changes the whole; they differ, so that rows that
    trade places are noticed too. Of few bytes the sum costs a dozen operations of torch, five times as much as the CRC, which always
    notices a change of one number of up to 32 bits.
    """
    data = values.reshape(-1).view(torch.uint8)
    if data.numel() <= FEW_BYTES and data.device.type == "cpu":
        return zlib.crc32(data.numpy().data)
    missing = -data.numel() % 8
    if missing or data.storage_offset() % 8:
        data = torch.cat([data, data.new_zeros(missing)])
    words = data.view(torch.int64)
    rows = len(values) if values.dim() > 1 and len(words) and len(words) % len(values) == 0 else len(words)
    sums = words.reshape(rows, -1).sum(dim=1) if rows else words
    return int((sums * (2 * torch.arange(rows, device=sums.device) + 1)).sum())
