"""One run of `bypass undo`: a copy of a model trained on windows, measured at doses, and resumed step by step.

A step is that of a plain loop in transformers: the mean loss over the predicted tokens of the batch, AdamW with betas .9 and .95 and
without weight decay at a constant rate, no clipping, no dropout. The state is written after a step, unless writing takes more than a
quarter of the time (a large model on a slow disk), so that a run that is killed loses the step in flight. A point is written as soon as
it is measured.
"""

from __future__ import annotations

import math
import shutil
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn
from transformers import PreTrainedModel
from transformers.pytorch_utils import Conv1D

from interp.elasticity.measurement import Measurement
from interp.elasticity.movement import weight_distance
from interp.elasticity.undo import Attack, Point, Run
from interp.errors import UserError
from interp.files import read_json, write_json
from interp.models.model import Model
from interp.models.modes import freeze
from interp.preferences.influence import trainable_copy
from interp.results.result import plain
from training.checkpoint import load_checkpoint, recover, save_checkpoint
from training.optimizers import preference_optimizer
from training.undo_windows import Windows

# The share of the time that writing the state may take before steps are left out.
WRITING = 0.25
STATE = "state"


class Trainee:
    """A copy of a model that is trained under an attack: all its weights, or LoRA on every linear layer of the blocks."""

    def __init__(self, start: Model, attack: Attack, optimizer: str, seed: int) -> None:
        self.hf: PreTrainedModel = trainable_copy(start)
        self.attack = attack
        if attack.rank is not None:
            self.hf.requires_grad_(False)
            _add_lora(self.hf, attack.rank, seed)
        self.parameters = [parameter for parameter in self.hf.parameters() if parameter.requires_grad]
        self.optimizer = preference_optimizer(optimizer, self.parameters, attack.rate)
        # What is measured: a frozen model of the same weights, with the adapter merged.
        self.reading = Model(freeze(start.plain_copy()), start.tokenizer, f"{start.name} ({attack.name})", bos=start.bos)
        self.start = [parameter.detach() for parameter in start.hf.parameters()]

    def step(self, ids: Tensor, labels: Tensor | None = None) -> float:
        """Take one step on a batch of windows and return its loss in nats a token, before the step; on all tokens or the labels."""
        self.optimizer.zero_grad()
        loss = self.hf(input_ids=ids, labels=ids if labels is None else labels, use_cache=False).loss
        loss.backward()
        self.optimizer.step()
        return float(loss.detach())

    def measured(self) -> Model:
        """The model with the present weights, for measuring."""
        with torch.no_grad():
            for name, value in merged(self.hf):
                self.reading.hf.get_parameter(name).copy_(value)
        return self.reading

    def distance(self) -> float:
        """The distance of the weights that were last measured from those of the start."""
        return weight_distance(list(self.reading.hf.parameters()), self.start)


def _add_lora(hf: PreTrainedModel, rank: int, seed: int) -> None:
    """Put LoRA layers of this rank into a model, with alpha twice the rank and without dropout. Raises `UserError` without peft."""
    try:
        from peft import LoraConfig, inject_adapter_in_model
    except ImportError as error:
        raise UserError("LoRA needs the library peft, which is not installed", "pip install 'bypass-workbench[train]'") from error
    transposed = any(isinstance(module, Conv1D) for module in hf.modules())
    config = LoraConfig(r=rank, lora_alpha=2 * rank, lora_dropout=0.0, target_modules="all-linear", fan_in_fan_out=transposed,
                        task_type="CAUSAL_LM")  # fmt: skip
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        inject_adapter_in_model(config, hf)
    for name, parameter in hf.named_parameters():
        parameter.requires_grad_("lora_" in name)


def merged(hf: PreTrainedModel) -> Iterator[tuple[str, Tensor]]:
    """The parameters of a model under the names that they have without an adapter, with the adapter added to the weights."""
    adapted = {name for name, module in hf.named_modules() if hasattr(module, "get_delta_weight")}
    for name, module in hf.named_modules():
        if name in adapted:
            yield f"{name}.weight", module.base_layer.weight + module.get_delta_weight("default")  # type: ignore[operator, union-attr]
    for name, parameter in hf.named_parameters():
        if "lora_" in name:
            continue
        layer, _, rest = name.partition(".base_layer.")
        if rest and layer in adapted:
            if rest != "weight":
                yield f"{layer}.{rest}", parameter
        else:
            yield name, parameter


@dataclass(frozen=True)
class Course:
    """What a run is: its arm, attack and seed, where it starts, what it reads, and the steps at which it is measured."""

    arm: str
    attack: Attack
    seed: int
    start: Model
    windows: Windows
    steps: Sequence[int]
    batch: int
    optimizer: str

    @property
    def name(self) -> str:
        """The name of the run's files."""
        method = "full" if self.attack.rank is None else f"lora-{self.attack.rank}"
        return f"{self.arm}-{method}-{self.attack.rate:g}-{self.seed}"


def run_course(
    course: Course, folder: Path, key: str, measure: Callable[[Model], Measurement], *,
    may_go_on: Callable[[int], bool] = lambda steps: True, tell: Callable[[int], object] = lambda step: None,
) -> Run:  # fmt: skip
    """The run, made from where it stands in the folder.

    Args:
        key: of everything that the run depends on; a state with another key is an error.
        may_go_on: asked with the number of steps to the next dose, which is measured; where it says no the run stops there.
        tell: called with each step that is done.

    A run whose loss is not finite ends, with a note.
    """
    file = folder / f"{course.name}.json"
    record: dict[str, Any] = read_json(file) if file.is_file() else {"points": [], "note": ""}
    points = [Point.from_json(point) for point in record["points"][: len(course.steps)]]
    if len(points) == len(course.steps) or record["note"]:
        return Run(course.arm, course.attack, course.seed, tuple(points), len(points) == len(course.steps), record["note"])
    trainee = Trainee(course.start, course.attack, course.optimizer, course.seed)
    whole = nn.ParameterList(trainee.parameters)
    state_folder = folder / f"{course.name}.{STATE}"
    recover(state_folder)
    state = load_checkpoint(state_folder, whole, trainee.optimizer, key) or {"step": 0, "path": 0.0, "loss": math.nan}
    step, path, loss = int(state["step"]), float(state["path"]), float(state["loss"])
    saved_at, save_seconds, saved_step = -math.inf, 0.0, step if state_folder.is_dir() else -1
    device = course.start.device
    note, ran_out = "", False
    for dose in course.steps[len(points) :]:
        if not may_go_on(dose - step):
            ran_out = True
            break
        while step < dose and not note:
            ids = torch.from_numpy(course.windows.ids[step * course.batch : (step + 1) * course.batch]).to(device)
            before = [parameter.detach().clone() for parameter in trainee.parameters]
            loss = trainee.step(ids)
            if not math.isfinite(loss):
                note = f"the loss is no longer finite at step {step + 1}"
                break
            step += 1
            path += weight_distance(trainee.parameters, before)
            tell(step)
            if step == dose or time.monotonic() - saved_at >= save_seconds / WRITING:
                began = time.monotonic()
                save_checkpoint(state_folder, whole, trainee.optimizer, {"step": step, "digest": key, "path": path, "loss": loss})
                saved_at, saved_step = time.monotonic(), step
                save_seconds = saved_at - began
        if note:
            break
        assert saved_step == step or not step
        reading = trainee.measured()
        if not all(bool(torch.isfinite(parameter).all()) for parameter in reading.hf.parameters()):
            note = f"the weights are no longer finite after step {step}"
            break
        measurement = measure(reading)
        if not np.isfinite(measurement.kl_base).all():
            note = f"the model's logits are no longer finite after step {step}"
            break
        points.append(
            Point(
                step, step * course.batch, step * course.batch * course.windows.ids.shape[1],
                int(course.windows.texts[step * course.batch - 1]), loss, trainee.distance(),
                path if course.attack.rank is None else None, measurement,
            )
        )  # fmt: skip
        _write(file, course, points, note="")
    if note:
        _write(file, course, points, note=note)
    if not ran_out:
        shutil.rmtree(state_folder, ignore_errors=True)
    return Run(course.arm, course.attack, course.seed, tuple(points), not ran_out and not note, note)


def _write(file: Path, course: Course, points: Sequence[Point], *, note: str) -> None:
    about = {"arm": course.arm, **asdict(course.attack), "seed": course.seed, "is_whole": len(points) == len(course.steps)}
    write_json(file, {**about, "points": [plain(point.to_json()) for point in points], "note": note})
