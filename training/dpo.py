"""Stage `dpo`: preference tuning of the base model with TRL, measured while it runs, resumable, with early stopping.

The stage ends at the first of four events: `max_steps` (or `equal_steps` with the run that a control extends), the
measure's target at most `stop_at_ratio` of what it was, `patience` measurements without a better validation loss (the
best weights are then kept), or an error. The line of a step is in the log before its checkpoint is written, and what a
resumed run does next depends on the step alone, so it ends with the weights of an uninterrupted one.

When `accelerate launch` starts several processes, each reads its share of every batch. One of them measures, decides and
writes, and sends its measurements to the others.
"""

from __future__ import annotations

import copy
import math
import shutil
import time
from collections.abc import Iterable, Sequence
from contextlib import AbstractContextManager, nullcontext
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import PrinterCallback, TrainerCallback

from interp.errors import UserError
from interp.files import replacing, write_json
from interp.models.libraries import quiet
from interp.models.loading import load_model
from interp.models.model import Model
from training.checkpoint import load_checkpoint, recover, save_as_difference, save_checkpoint, save_model
from training.controls import Pair, read_pairs, reading_order, relabel, split_pairs, steps_to_take
from training.measures.measure import Prepared, Watch, measure_named
from training.measures.stopping import StopRule
from training.optimizers import preference_optimizer
from training.parallel import Processes
from training.preference_trainer import (
    Objective,
    TokenPairTrainer,
    arguments,
    build_schedule,
    check_first,
    lora_config,
    objective,
    silent_bars,
)
from training.recipe import Recipe, base_folder
from training.sections import DpoSettings
from training.stamps import digest, made_from
from training.telemetry import Monitor, Mute, Speed

# TRL's names of what it logs at every step, under those of the telemetry schema.
LOGGED = {
    "loss": "loss", "learning_rate": "learning_rate", "entropy": "entropy", "num_tokens": "tokens", "logps/chosen": "logp_chosen",
    "logps/rejected": "logp_rejected", "rewards/margins": "margin", "rewards/accuracies": "accuracy",
}  # fmt: skip


@dataclass
class Progress:
    """The state of a run that its checkpoint stores beside weights and optimizer."""

    step: int = 0
    best_step: int = 0
    best_loss: float = math.inf
    misses: int = 0
    stopped: str | None = None


@quiet()
def tune(recipe: Recipe) -> Path:
    """Tune the base model on the pairs, resuming from the last checkpoint; return the folder of the tuned model.

    With `lora` the adapter is kept beside the model, into which it is merged; with `difference` the model is written as its
    difference from the base (`interp.models.difference`).

    Raises `UserError` where pairs or base are missing, a setting is not usable, an unfinished run was begun with other
    settings, pairs or base, the first loss is not exact, loss or gradient are no longer finite, or the launcher asks for what
    this stage does not do.
    """
    settings, processes = recipe.settings_as(DpoSettings, "dpo"), Processes()
    measure, measure_settings = measure_named(settings.measure), recipe.alternative_as("dpo", "measure")
    if processes.sharded:
        problem = "the stage dpo measures and writes whole weights in one process, and FSDP divides them over all"
        raise UserError(problem, "launch with data-parallel.yaml; where gradients and moments do not fit one GPU, set lora")
    rows = processes.rows(settings.batch)
    goal, steps = objective(settings), steps_to_take(recipe, settings)
    seed = recipe.seed if settings.seed is None else settings.seed
    pairs = relabel(read_pairs(recipe.folder("pairs") / "pairs.jsonl"), settings.labels, seed)
    train, held_out = split_pairs(pairs, settings.validation_share)
    if settings.patience is not None and not held_out:
        raise UserError("patience is set, but no pairs are held out", "set validation_share too")
    policy = load_model(base_folder(recipe), name="policy")
    check_lengths(pairs, policy)
    with processes.writer_first():
        inputs = {**made_from(recipe, "dpo"), "settings": {**recipe.stage("dpo"), "max_steps": steps}}
    reference, folder = policy.digest, recipe.run / "dpo"
    policy.hf.requires_grad_(True).to(processes.device)
    watch = Watch(processes, policy, measure.prepare(policy, recipe, measure_settings) if processes.writer else None)
    stop = StopRule.of(settings, measure, watch.before)
    with silent_bars():
        trainer = TokenPairTrainer(
            model=policy.hf, ref_model=None, args=arguments(folder / "trainer", settings, goal, steps, seed, rows),
            train_dataset=Dataset.from_list(train), eval_dataset=Dataset.from_list(held_out) if held_out else None,
            processing_class=copy.deepcopy(policy.tokenizer), peft_config=lora_config(policy.hf, settings),
            reference=reference, cache=recipe.folder("pairs") / "reference",
        )  # fmt: skip
        run = Run(trainer, watch, settings, goal, folder, inputs, measure.summary, stop)
        run.resume()
        run.train(len(train), steps, seed)
        return run.finish()


def check_lengths(pairs: Sequence[Pair], policy: Model) -> None:
    """Raise `UserError` for a pair that the model cannot read."""
    longest = max(len(pair["prompt_ids"]) + max(len(pair["chosen_ids"]), len(pair["rejected_ids"])) for pair in pairs)
    highest = max(max(max(ids) for ids in pair.values()) for pair in pairs)
    if longest > policy.context or highest >= policy.d_vocab:
        problem = f"a pair has {longest} tokens up to number {highest}, the model reads {policy.context} of {policy.d_vocab}"
        raise UserError(problem, "run the stage pairs again, with this base model and shorter prompts")


class Run(TrainerCallback):
    """One start of a run until it ends or is killed: after each step it measures, logs, decides on stopping, and writes checkpoints."""

    def __init__(
        self,
        trainer: TokenPairTrainer,
        watch: Watch,
        settings: DpoSettings,
        goal: Objective,
        folder: Path,
        made: dict[str, Any],
        summarised: tuple[str, ...] = (),
        stop: StopRule | None = None,
    ) -> None:
        self.trainer, self.watch, self.settings, self.goal = trainer, watch, settings, goal
        self.processes, self.policy = watch.processes, watch.policy
        self.folder, self.made, self.digest = folder, made, digest(made)
        self.summarised, self.stop = summarised, stop
        trainable = [parameter for parameter in trainer.model.parameters() if parameter.requires_grad]
        # A checkpoint holds the trained weights alone: in a run with an adapter not the model below it.
        self.weights: nn.Module = watch.policy.hf if not settings.lora else nn.ParameterList(trainable)
        self.optimizer = preference_optimizer(settings.optimizer, trainable, settings.learning_rate)
        self.progress = Progress()
        self.measured: tuple[int, dict[str, Any]] = 0, watch.before
        self.start = self.steps = 0
        self.seconds = 0.0
        self.first: float | None = None
        self.monitor: Monitor | Mute = Mute()
        self.speed, self.ended = Speed(), math.nan

    def resume(self) -> None:
        """Restore the last checkpoint, if there is one."""
        with self.processes.writer_first():
            recover(self.folder / "checkpoint")
        state = load_checkpoint(self.folder / "checkpoint", self.weights, self.optimizer, self.digest, self.made)
        if state is not None:
            self.progress, self.seconds = Progress(**state["progress"]), state["seconds"]
            self.start = self.progress.step
        # A scheduler that starts after step 0 reads this key of torch's.
        for group in self.optimizer.param_groups:
            group.setdefault("initial_lr", self.settings.learning_rate)

    def train(self, count: int, steps: int, seed: int) -> None:
        """Take the remaining steps, each with its pairs out of `count`."""
        order = reading_order(count, self.settings.batch, self.start, steps, seed)
        display: AbstractContextManager[Monitor | Mute] = nullcontext(Mute())
        if self.processes.writer:
            display = Monitor(self.folder / "log.jsonl", "dpo", steps, resumed=self.start, seconds=self.seconds)
        with display as monitor:
            self.monitor, self.steps = monitor, steps
            # The monitor shows what this callback would print.
            self.trainer.remove_callback(PrinterCallback)
            if not self.start:
                monitor.write(0, report=True, **self.watch.before, **self.validation())
            if order and self.progress.stopped is None:
                trainer = self.trainer
                trainer.train_dataset = trainer.train_dataset.select(order)
                self.first = trainer.first_value(self.goal) if not self.start else None
                trainer.args.max_steps = steps - self.start
                trainer.optimizer = self.optimizer
                trainer.lr_scheduler = build_schedule(self.optimizer, self.settings.warmup_steps, self.start)
                trainer.add_callback(self)
                trainer.train()
            if self.progress.stopped is not None:
                monitor.stop(self.progress.step, self.progress.stopped)

    def on_step_begin(self, *args: Any, **kwargs: Any) -> None:
        """Note when a step begins."""
        self.speed.begun = time.monotonic()

    def on_step_end(self, *args: Any, **kwargs: Any) -> None:
        """Note when the weights are updated."""
        self.ended = time.monotonic()

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> Any:
        """Measure, log, judge and checkpoint a step, when TRL has logged it and the weights are updated."""
        logs, monitor = logs or {}, self.monitor
        if "loss" not in logs:
            return control
        if self.first is not None:
            check_first(self.first, self.trainer.own_loss, float(logs["rewards/margins"]))
            self.first = None
        progress = self.progress
        progress.step = step = self.start + state.global_step
        fields: dict[str, Any] = {new: logs[name] for name, new in LOGGED.items() if name in logs}
        fields["tokens_per_second"] = self.speed.step(logs["num_tokens"], self.ended)
        last = step == self.steps
        measured = last or step % self.settings.evaluate_every == 0
        if measured:
            self.measured = step, self.watch.measure()
            fields |= self.measured[1] | self.validation()
            self.judge(fields)
        monitor.write(step, report=measured, gradient_norm=self.trainer.gradient, **fields)
        if last or progress.stopped is not None or step % (self.settings.checkpoint_every or self.settings.evaluate_every) == 0:
            record = {"step": step, "seconds": monitor.seconds, "progress": asdict(progress), "digest": self.digest, "made_from": self.made}
            save_checkpoint(self.folder / "checkpoint", self.weights, self.optimizer, record, writer=self.processes.writer)
            self.processes.wait()
        if progress.stopped is not None:
            control.should_training_stop = True
        return control

    def validation(self) -> dict[str, float]:
        """Loss and accuracy on the held-out pairs, where there are any."""
        return {} if self.trainer.eval_dataset is None else self.trainer.validate()

    def judge(self, fields: dict[str, Any]) -> None:
        """Save the weights if they are the best so far, and set `progress.stopped` where the run is to end."""
        progress, patience = self.progress, self.settings.patience
        if patience is not None:
            better = fields["validation_loss"] < progress.best_loss
            progress.misses = 0 if better else progress.misses + 1
            if better:
                progress.best_step, progress.best_loss = progress.step, fields["validation_loss"]
                if self.processes.writer:
                    keep(self.weights.named_parameters(), self.folder / "best.safetensors")
            if progress.misses >= patience:
                progress.stopped = f"{patience} measurements without a better validation loss than at step {progress.best_step}"
        if self.stop is not None and self.stop.reached(fields):
            progress.stopped = self.stop.reason

    def finish(self) -> Path:
        """Write the model that the run keeps; return its folder."""
        if self.watch.prepared is not None:
            self.write(self.watch.prepared)
        self.processes.wait()
        return self.folder / "model"

    def write(self, prepared: Prepared) -> None:
        """Write the model that the run keeps, then its summary, and remove what only a resumed run needs."""
        progress, hf = self.progress, self.policy.hf
        kept_step = progress.step
        if progress.best_step:
            restore(self.weights.named_parameters(), self.folder / "best.safetensors")
            kept_step = progress.best_step
        if self.settings.lora:
            with replacing(self.folder / "adapter") as temporary:
                self.trainer.model.save_pretrained(temporary)
            hf = self.trainer.model.merge_and_unload()
        hf.eval()
        rounded = self.settings.difference
        if rounded:
            assert self.policy.checkpoint is not None  # it was loaded by load_model
            save_as_difference(self.folder / "model", hf, self.policy.checkpoint.source, self.policy.tokenizer)
        else:
            save_model(self.folder / "model", hf, self.policy.tokenizer)
        known = self.measured[0] == kept_step and not rounded
        fields = self.measured[1] if known else prepared.measure(self.policy)
        measured = {name: fields[name] for name in self.summarised}
        before = {name: prepared.start[name] for name in measured}
        summary = {
            "steps": progress.step, "kept_step": kept_step, "stopped": progress.stopped, "before": before, "after": measured,
            "objective": asdict(self.goal), "base": self.trainer.reference, "made_from": self.made, "tokens_per_second": self.speed.mean,
        }  # fmt: skip
        write_json(self.folder / "summary.json", summary)
        for part in ("checkpoint", "trainer"):
            shutil.rmtree(self.folder / part, ignore_errors=True)
        (self.folder / "best.safetensors").unlink(missing_ok=True)


def keep(parameters: Iterable[tuple[str, nn.Parameter]], file: Path) -> None:
    """Write parameters to a file, whole or not at all."""
    with replacing(file) as temporary:
        save_file({name: parameter.detach().cpu().contiguous() for name, parameter in parameters}, temporary)


@torch.no_grad()
def restore(parameters: Iterable[tuple[str, nn.Parameter]], file: Path) -> None:
    """Read back what `keep` wrote."""
    tensors = load_file(file)
    for name, parameter in parameters:
        parameter.copy_(tensors[name])
