"""`Processes`: the processes of a training run, which may be one, over `accelerate`.

A run in one process does not use `accelerate`. When `accelerate launch` starts several, each trains on its share of every
batch, so the number of processes changes the time that a run takes and not its result. One process writes.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, TypeVar

import torch
from torch import Tensor, nn
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.fsdp import fully_shard
from torch.optim import Optimizer

from interp.errors import UserError
from training.loss import PiecewiseLoss

Value = TypeVar("Value")


def process_count() -> int:
    """The number of processes that the launcher started; 1 without one."""
    return int(os.environ.get("WORLD_SIZE", "1"))


def is_writer() -> bool:
    """Whether this process is the one that writes files and prints."""
    return os.environ.get("RANK", "0") == "0"


class Processes:
    """The processes of a run, of which this is one."""

    def __init__(self) -> None:
        self.count, self.rank = process_count(), int(os.environ.get("RANK", "0"))
        self.accelerator: Any = None
        self.device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
        if self.count > 1:
            from accelerate import Accelerator

            self.accelerator = Accelerator(cpu=not torch.cuda.is_available())
            self.device = self.accelerator.device

    @property
    def writer(self) -> bool:
        """Whether this process writes files and prints."""
        return self.rank == 0

    @property
    def sharded(self) -> bool:
        """Whether the launcher asks for the model's weights to be divided over the processes (FSDP)."""
        return self.accelerator is not None and os.environ.get("ACCELERATE_USE_FSDP", "false").lower() == "true"

    def prepare(self, model: Any, optimizers: list[Optimizer]) -> tuple[nn.Module, list[Optimizer]]:
        """The module for forwards, and the optimizers over its weights; a sharded model is sharded in place.

        This uses PyTorch's `fully_shard` (FSDP version 2), block by block, since `accelerate` shards on GPUs only and silently
        does nothing elsewhere. Raises `UserError` for Muon and for the piecewise loss on a sharded model.
        """
        if self.accelerator is None:
            return model, optimizers
        if not self.sharded:
            return self.accelerator.prepare(model), optimizers
        if len(optimizers) > 1:
            problem = "Muon needs whole matrices, and FSDP divides them"
            raise UserError(problem, "set optimizer to adamw, or launch with data-parallel.yaml")
        if isinstance(model, PiecewiseLoss):
            problem = "the piecewise loss reads the unembedding outside of the model's own forward, where FSDP has divided it"
            raise UserError(problem, "set piecewise_loss to false, or launch with data-parallel.yaml")
        names = {id(parameter): name for name, parameter in model.named_parameters()}
        groups = [[names[id(parameter)] for parameter in group["params"]] for group in optimizers[0].param_groups]
        mesh = init_device_mesh(self.device.type, (self.count,))
        for block in model.transformer.h:
            fully_shard(block, mesh=mesh)
        fully_shard(model, mesh=mesh)
        cut = dict(model.named_parameters())
        for group, members in zip(optimizers[0].param_groups, groups, strict=True):
            group["params"] = [cut[name] for name in members]
        return model, optimizers

    def share(self, batch: Tensor, parts: int) -> list[Tensor]:
        """This process's rows of a batch, in as many parts as gradients are accumulated over; raises where they do not divide."""
        if len(batch) % (self.count * parts):
            problem = f"a batch of {len(batch)} cannot be divided over {self.count} processes and {parts} accumulated parts"
            raise UserError(problem, "change batch, accumulate, or the number of processes")
        return list(batch[self.rank :: self.count].to(self.device).chunk(parts))

    def rows(self, batch: int) -> int:
        """The number of rows of each batch in this process; raises `UserError` where the batch cannot be divided."""
        if batch % self.count:
            problem = f"a batch of {batch} cannot be divided over {self.count} processes"
            raise UserError(problem, "change batch, or the number of processes")
        return batch // self.count

    def quietly(self, forward: Any, last: bool) -> AbstractContextManager[Any]:
        """A context without synchronisation of gradients between processes, except for the last part of a batch."""
        if self.sharded:
            forward.set_requires_gradient_sync(last)
            return nullcontext()
        return nullcontext() if self.accelerator is None or last else self.accelerator.no_sync(forward)

    def mean(self, value: Tensor) -> float:
        """The mean of a number over the processes."""
        return value.item() if self.accelerator is None else self.accelerator.reduce(value, reduction="mean").item()

    @contextmanager
    def writer_first(self) -> Iterator[None]:
        """The writer goes through this block while the others wait."""
        if self.accelerator is None:
            yield
        else:
            with self.accelerator.main_process_first():
                yield

    def from_writer(self, find: Callable[[], Value]) -> Value:
        """The value of `find()` in the writer, in every process; the others wait for it."""
        if self.accelerator is None:
            return find()
        from accelerate.utils import broadcast_object_list

        values: list[Any] = [find() if self.writer else None]
        broadcast_object_list(values)
        return values[0]

    def wait(self) -> None:
        """Wait until all processes have made this call."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()
