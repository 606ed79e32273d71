"""The training loop of language models, shared by the stages `pretrain`, `continue` and `sharpen`.

The windows and the learning rate of a step are functions of seed and step, so a run that is killed and resumed
takes exactly the steps that an uninterrupted one takes. A checkpoint is written only after the gradient of the next step was
finite with its weights, so that a run that diverges leaves the last good one behind.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from torch import nn
from torch.optim import Optimizer
from transformers import GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.errors import UserError
from training import packing
from training.checkpoint import gathered, load_checkpoint, recover, save_checkpoint, save_model
from training.evaluation import Passages, bits_per_byte, held_out_loss, samples
from training.loss import PiecewiseLoss
from training.optimizers import build_optimizers, learning_rate
from training.parallel import Processes
from training.precision import autocast, precision_of, round_weights
from training.sections import PretrainSettings, SharpenSettings
from training.sparsity import PricedLoss, layers_of
from training.stamps import digest
from training.telemetry import Monitor, Mute, group_norms


@dataclass(frozen=True)
class Task:
    """The model, data and settings of a run; `made` is the record of its inputs (see `training.stamps.made_from`)."""

    title: str
    folder: Path
    settings: dict[str, Any]
    seed: int
    made: Mapping[str, Any]
    model: GPT2LMHeadModel
    tokenizer: PreTrainedTokenizerFast
    tokens: np.ndarray
    heldout: np.ndarray
    passages: dict[str, Passages]


def train(task: Task, processes: Processes) -> Path:
    """Train to the last step, resuming from the checkpoint where there is one; return the folder of the model.

    Raises `UserError` where the checkpoint is of another recipe or corpus or is damaged, the batch cannot be divided, or the
    loss is no longer finite (the last good checkpoint is then kept).
    """
    settings, folder = task.settings, task.folder
    every, total = settings["checkpoint_every"], packing.steps_of(len(task.tokens), settings)
    key = digest(task.made)
    identity: dict[str, Any] = {"digest": key, "made_from": task.made}
    model = task.model.to(processes.device)
    whole: nn.Module = PiecewiseLoss(model) if settings.get("piecewise_loss") else model
    priced: PricedLoss | None = None
    if "fresh_mlps" in settings:
        price, rising = settings["activation_price"], settings.get("price_warmup_steps", SharpenSettings.price_warmup_steps)
        whole = priced = PricedLoss(whole, model, layers_of(model, settings), price, rising)
    if settings.get("attention"):
        model.set_attn_implementation(settings["attention"])
    forward, optimizers = processes.prepare(whole, build_optimizers(model, settings))
    with processes.writer_first():
        recover(folder / "checkpoint")
    # All processes read together, since sharding a tensor is a call that all of them must make.
    state = load_checkpoint(folder / "checkpoint", model, optimizers, key, task.made)
    start, seconds = (state["step"], state["seconds"]) if state else (0, 0.0)
    precision = precision_of(settings, processes.device, state)
    identity["precision"] = precision
    if settings.get("compile"):
        forward = cast(nn.Module, torch.compile(forward))
    watch: AbstractContextManager[Any] = nullcontext(Mute())
    if processes.writer:
        watch = Monitor(folder / "log.jsonl", task.title, total, resumed=start, seconds=seconds)
    with watch as monitor:
        model.train()
        for step in range(start, total):
            for optimizer in optimizers:
                for group in optimizer.param_groups:
                    group["lr"] = learning_rate(step, total, settings)
            if priced is not None:
                priced.at(step)
            loss = _gradient(task, processes, forward, step, precision)
            logged = (step + 1) % settings.get("log_every", PretrainSettings.log_every) == 0
            norms = {"gradient_norm": _norms(model)} if logged else {}
            norm = float(gathered(nn.utils.clip_grad_norm_(model.parameters(), settings["clip"])))
            if not math.isfinite(norm):
                raise UserError(f"the loss or its gradient is not finite at step {step}", _fix(step))
            if step > start and step % every == 0:
                _keep(task, processes, model, optimizers, {"step": step, **identity, "seconds": monitor.seconds})
            for optimizer in optimizers:
                optimizer.step()
                optimizer.zero_grad(set_to_none=True)
            done = step + 1
            if done == total:
                round_weights(model, settings)
            measured = done % settings["evaluate_every"] == 0 or done == total
            if logged or measured:
                rate, tokens = learning_rate(step, total, settings), done * settings["batch"] * settings["context"]
                record = {"loss": processes.mean(loss), "learning_rate": rate, "tokens": tokens, **norms}
                if measured:
                    record |= _measure(task, processes, model)
                    if not math.isfinite(record["held_out_loss"]):
                        raise UserError(f"the held-out loss is not finite after step {step}", _fix(step))
                monitor.write(done, report=measured, **record)
            else:
                monitor.show(done)
        if total > start:
            _keep(task, processes, model, optimizers, {"step": total, **identity, "seconds": monitor.seconds})
    _finish(task, processes, model)
    return folder / "model"


def _fix(step: int) -> str:
    return f"lower learning_rate or clip, or lengthen warmup_steps; the last good checkpoint, of a step before {step}, is kept"


def _gradient(task: Task, processes: Processes, forward: nn.Module, step: int, precision: str) -> torch.Tensor:
    """Accumulate the gradient of a step; return the mean loss over this process's share of the batch."""
    accumulated = task.settings.get("accumulate", PretrainSettings.accumulate)
    parts = processes.share(packing.window(task.tokens, step, task.settings, task.seed), accumulated)
    total = torch.zeros((), device=processes.device)
    for number, ids in enumerate(parts):
        with processes.quietly(forward, last=number == len(parts) - 1):
            with autocast(precision, processes.device):
                loss = forward(input_ids=ids, labels=ids).loss / len(parts)
            loss.backward()
        total += loss.detach()
    return total


def _norms(model: nn.Module) -> dict[str, float]:
    return group_norms((name, gathered(p.grad)) for name, p in model.named_parameters() if p.grad is not None)


def _measure(task: Task, processes: Processes, model: GPT2LMHeadModel) -> dict[str, Any]:
    """Held-out loss, bits per byte and samples; every process must call this, since a sharded model needs all of them."""
    model.eval()
    device, end = processes.device, task.tokenizer.eos_token_id
    fields = {
        "held_out_loss": held_out_loss(model, task.heldout, task.settings["context"], device=device),
        "bits_per_byte": {name: bits_per_byte(model, text, end, device) for name, text in task.passages.items()},
        "samples": samples(model, task.tokenizer, task.settings.get("sample_prompts", PretrainSettings.sample_prompts), device),
    }
    model.train()
    return fields


def _keep(task: Task, processes: Processes, model: nn.Module, optimizers: list[Optimizer], state: dict[str, Any]) -> None:
    save_checkpoint(task.folder / "checkpoint", model, optimizers, state, writer=processes.writer)
    processes.wait()


def _finish(task: Task, processes: Processes, model: GPT2LMHeadModel) -> None:
    model.eval()
    if processes.sharded:
        whole = {name: gathered(parameter.detach()).cpu() for name, parameter in model.named_parameters()}
        model = GPT2LMHeadModel(task.model.config)
        with torch.no_grad():
            for name, parameter in model.named_parameters():
                parameter.copy_(whole[name])
    if processes.writer:
        save_model(task.folder / "model", model.to(round_weights(model, task.settings)), task.tokenizer)
    processes.wait()
