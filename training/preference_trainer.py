"""A subclass of TRL's DPO trainer that takes token ids, keeps the order of rows, caches the reference and checks the first loss.

TRL computes the losses. Five of its behaviours are changed. Pairs arrive as token ids, so that no end-of-text token is appended
to continuations that were cut off. The reference is the policy as it stands before the first step (TRL would otherwise reload
it from disk). The rows come in the order in which they are given, so that a run can be resumed at any step. Each token is read
once (`training.pair_forward`). And a loss or a gradient that is not finite ends the run before the weights are touched.

In several processes each reads its part of every batch, and `accelerate` takes the mean of their gradients. That is the
gradient of the batch for means over pairs; the SFT term, a mean over tokens, is weighted by each process's share of them.

Quantities of the same name in the papers and in TRL differ by the length T of a completion (all of ours are equally long):
- IPO: TRL divides log-probabilities by T. Its `beta` is T times the tau of paper B, its loss that of the paper over T squared.
- The SFT term: TRL takes the mean over tokens, so a weight of w is paper B's lambda = w / T.
"""

from __future__ import annotations

import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from accelerate.utils import is_peft_model, send_to_device
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch import Tensor
from torch.utils.data import DataLoader, SequentialSampler
from transformers.pytorch_utils import Conv1D
from trl import DPOConfig, DPOTrainer

from interp.errors import UserError
from training.pair_forward import add_pair_forward
from training.reference import with_reference
from training.sections import DpoSettings
from training.telemetry import gradient_norms

LOSSES = ("sigmoid", "ipo", "sft")


@dataclass(frozen=True)
class Objective:
    """A weighted sum of TRL's losses, by TRL's names."""

    losses: tuple[str, ...]
    weights: tuple[float, ...]
    beta: float

    def first_value(self, chosen_loss: float) -> float:
        """The loss before the first step, when policy and reference agree; `chosen_loss` in nats per token of the chosen side."""
        exact = {"sigmoid": math.log(2), "ipo": 1 / (2 * self.beta) ** 2, "sft": chosen_loss}
        return sum(weight * exact[loss] for loss, weight in zip(self.losses, self.weights, strict=True))


def objective(settings: DpoSettings) -> Objective:
    """The objective of a recipe's section: `method` "dpo" with `loss` (a name or a list, with `loss_weights`), or "sft".

    Raises `UserError` for a loss that is not known, and for weights that do not fit.
    """
    alone = settings.method == "sft"
    losses = ("sft",) if alone else (settings.loss,) if isinstance(settings.loss, str) else tuple(settings.loss)
    asked = settings.loss_weights if not alone and settings.loss_weights is not None else [1.0] * len(losses)
    weights = tuple(map(float, asked))
    if not losses or not set(losses) <= set(LOSSES) or (not alone and losses == ("sft",)):
        raise UserError(
            f"the loss {settings.loss!r} is not usable", f"give one of or a list of {', '.join(LOSSES)}; for sft alone set method"
        )
    if len(weights) != len(losses) or not all(math.isfinite(weight) and weight > 0 for weight in weights):
        raise UserError(f"loss_weights {list(weights)} do not fit the losses {list(losses)}", "give one positive weight for each loss")
    return Objective(losses, weights, float(settings.beta))


def check_first(expected: float, value: float, margin: float) -> None:
    """Raise `UserError` unless policy and reference agree at the first step: the loss as expected, and a margin of 0."""
    if not (abs(value - expected) <= 1e-3 * max(1.0, expected) and abs(margin) <= 1e-3):
        problem = f"the first loss is {value:.4f} at a margin of {margin:.4f}, where {expected:.4f} and 0 belong"
        raise UserError(problem, "the reference is not the model that is trained: run the stage again, from the base model")


class TokenPairTrainer(DPOTrainer):
    """A DPOTrainer that takes `prompt_ids`, `chosen_ids`, `rejected_ids` as they are, in the order given.

    `reference` is the digest of the policy before training, and `cache` the folder of its log-probabilities; after a step
    `gradient` holds the norms of the batch's gradient by parameter group, before clipping, and `own_loss` the loss of this
    process's part of the batch.
    """

    loss_weights: list[float]

    def __init__(self, *args: Any, reference: str, cache: Path, **settings: Any) -> None:
        self.reference, self.cache = reference, cache
        self.gradient: dict[str, float] = {}
        self.own_loss = math.nan
        super().__init__(*args, **settings)

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)

    def _precompute_ref_logps(self, dataset: Dataset, name: str, batch_size: int) -> Dataset:
        # TRL has added its own forward before it calls this, and has computed nothing yet.
        add_pair_forward(self.model.get_base_model() if is_peft_model(self.model) else self.model)

        def compute() -> tuple[Tensor, Tensor]:
            sides = [self.compute_ref_log_probs(self.model, batch) for batch in self.batches(dataset, batch_size)]
            return torch.cat([chosen for chosen, _ in sides]), torch.cat([rejected for _, rejected in sides])

        # One process computes, and the others find its file.
        with self.accelerator.main_process_first():
            return with_reference(dataset, self.reference, self.cache, compute)

    def batches(self, dataset: Dataset, size: int) -> Iterator[dict[str, Tensor]]:
        """All rows in order, in every process, on its device."""
        for batch in DataLoader(dataset, batch_size=size, collate_fn=self.data_collator):
            yield send_to_device(batch, self.accelerator.device)

    def training_step(self, model: Any, inputs: dict[str, Tensor], *args: Any, **kwargs: Any) -> Tensor:
        """TRL's step, with the SFT term weighted by this process's tokens; raises `UserError` where loss or gradient is not finite."""
        weights, share = self.loss_weights, self.token_share(inputs)
        self.loss_weights = [weight * share if loss == "sft" else weight for loss, weight in zip(self.loss_types, weights, strict=True)]
        try:
            loss = super().training_step(model, inputs, *args, **kwargs)
        finally:
            self.loss_weights = weights
        self.own_loss, self.gradient = float(loss), gradient_norms(self.model)
        whole = float(self.accelerator.reduce(loss, reduction="mean"))
        if not (math.isfinite(whole) and math.isfinite(self.gradient["all"])):
            problem = f"the loss is {whole} and the norm of its gradient {self.gradient['all']}"
            raise UserError(problem, "lower the learning rate; the last checkpoint is kept")
        return loss

    def token_share(self, inputs: dict[str, Tensor]) -> float:
        """This process's number of chosen tokens, relative to the mean over processes."""
        own = inputs["completion_mask"].chunk(2)[0].sum().float()
        return float(own / self.accelerator.reduce(own, reduction="mean"))

    @torch.no_grad()
    def validate(self) -> dict[str, float]:
        """Loss and accuracy on the held-out pairs, each counted once; every process reads them all and gets the same values."""
        training, sums, count = self.model.training, torch.zeros(2, dtype=torch.float64), 0
        # TRL stores its metrics by the mode of the model.
        self.model.eval()
        for batch in self.batches(self.eval_dataset, self.args.per_device_eval_batch_size):
            rows, loss = len(batch["ref_chosen_logps"]), self.compute_loss(self.model, batch)
            sums += rows * torch.tensor([float(loss), self._metrics["eval"]["rewards/accuracies"][-1]])
            count += rows
        self._metrics["eval"].clear()
        self.model.train(training)
        return dict(zip(("validation_loss", "validation_accuracy"), (sums / count).tolist(), strict=True))

    def first_value(self, goal: Objective) -> float:
        """The exact loss of this process's part of the first batch before training, from the reference's log-probabilities."""
        part, processes = self.args.per_device_train_batch_size, self.accelerator.num_processes
        rows, first = self.train_dataset[: part * processes], part * self.accelerator.process_index
        chosen = rows["ref_chosen_logps"][first : first + part]
        return goal.first_value(-sum(chosen) * processes / sum(map(len, rows["chosen_ids"])))


def arguments(folder: Path, settings: DpoSettings, goal: Objective, steps: int, seed: int, rows: int) -> DPOConfig:
    """TRL's configuration: `rows` of each batch in this process, full precision, no dropout, no saving or reporting by TRL."""
    config = DPOConfig(
        output_dir=str(folder), beta=goal.beta, loss_type=list(goal.losses), loss_weights=list(goal.weights), max_steps=steps,
        per_device_train_batch_size=rows, per_device_eval_batch_size=64, max_grad_norm=settings.clip,
        precompute_ref_log_probs=True, precompute_ref_batch_size=64, bf16=False, gradient_checkpointing=False, disable_dropout=True,
        report_to=[], use_cpu=not torch.cuda.is_available(), logging_steps=1, log_level="error", save_strategy="no", seed=seed,
        max_length=None, disable_tqdm=True, dataloader_pin_memory=False, remove_unused_columns=False, logging_nan_inf_filter=False,
        ddp_find_unused_parameters=False,
    )  # fmt: skip
    # Without a launcher, the trainer would take every GPU of the machine and a batch for each of them.
    config._n_gpu = 1
    return config


def build_schedule(optimizer: torch.optim.Optimizer, warmup: int, done: int) -> torch.optim.lr_scheduler.LambdaLR:
    """Linear warm-up over `warmup` steps, then constant, starting after `done` steps."""
    return torch.optim.lr_scheduler.LambdaLR(optimizer, lambda step: min(1.0, (done + step + 1) / max(1, warmup)))


def lora_config(model: torch.nn.Module, settings: DpoSettings) -> Any:
    """peft's configuration of the recipe's `lora` table (`rank`, `alpha`), on every linear layer of the blocks; None for full training.

    Raises `UserError` for a table without a usable rank.
    """
    table = settings.lora
    if not table:
        return None
    if not isinstance(table, dict) or not isinstance(table.get("rank"), int) or table["rank"] < 1:
        raise UserError(f"lora is {table!r}", "give a table such as `lora = { rank = 8, alpha = 16 }`")
    from peft import LoraConfig

    transposed = any(isinstance(module, Conv1D) for module in model.modules())
    return LoraConfig(
        r=table["rank"], lora_alpha=table.get("alpha", 2 * table["rank"]), lora_dropout=0.0, target_modules="all-linear",
        fan_in_fan_out=transposed, task_type="CAUSAL_LM",
    )  # fmt: skip


@contextmanager
def silent_bars() -> Iterator[None]:
    """A context without the short progress bars of datasets and of TRL's passes, and without TRL's warnings."""
    hidden, before = are_progress_bars_disabled(), os.environ.get("TQDM_DISABLE")
    disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with warnings.catch_warnings():
            # TRL still uses old names that transformers has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if not hidden:
            enable_progress_bars()
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
