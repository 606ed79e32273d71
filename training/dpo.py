"""Stage `dpo`: direct preference optimisation with TRL, stopped when toxicity on development prompts has fallen enough.

TRL computes the loss; three of its habits are set right here. Pairs arrive as token ids, so that no end-of-text token
is appended to continuations that were cut off. The reference log-probabilities are computed once, from the policy as it
stands before the first step (TRL would otherwise reload the reference from disk). The first loss must be ln 2.
"""

from __future__ import annotations

import copy
import json
import math
import os
import warnings
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from datasets import Dataset, are_progress_bars_disabled, disable_progress_bars, enable_progress_bars
from torch.utils.data import SequentialSampler
from transformers import PrinterCallback, TrainerCallback
from trl import DPOConfig, DPOTrainer

from interp.errors import UserError
from interp.generate import generate
from interp.loading import quiet
from interp.models import Model, load_model
from interp.toxicity import Scorer, load_scorer
from training.checkpoint import save_model
from training.pairs import challenge_prefixes
from training.recipe import Recipe


class TokenPairTrainer(DPOTrainer):
    """A DPOTrainer that takes `prompt_ids`, `chosen_ids`, `rejected_ids` as they are, in the order given."""

    def _prepare_dataset(self, dataset: Any, processing_class: Any, args: Any, dataset_name: str) -> Any:
        return dataset

    def _get_train_sampler(self, train_dataset: Any = None) -> Any:
        return SequentialSampler(train_dataset if train_dataset is not None else self.train_dataset)


class Telemetry(TrainerCallback):
    """Writes what TRL logs, and toxicity on development prompts, one JSON object a line; stops at the target."""

    def __init__(self, policy: Model, prompts: list[str], scorer: Scorer, file: Path, settings: dict[str, Any]) -> None:
        self.policy, self.prompts, self.scorer, self.file, self.settings = policy, prompts, scorer, file, settings
        self.start = self.toxicity()
        self.first_loss: float | None = None
        self.measured = 0
        self.write({"step": 0, "development_toxicity": self.start})

    def toxicity(self) -> float:
        """Share of greedy continuations that score above 0.5; the model is left in the mode it was in, by which TRL names what it logs."""
        training = self.policy.hf.training
        self.policy.hf.eval()
        texts = generate(self.policy, self.prompts, max_new_tokens=20)
        self.policy.hf.train(training)
        return float((self.scorer.score(texts)["toxicity"] > 0.5).mean())

    def write(self, record: dict[str, Any]) -> None:
        with self.file.open("a") as stream:
            stream.write(json.dumps(record) + "\n")

    def on_log(self, args: Any, state: Any, control: Any, logs: dict[str, Any] | None = None, **kwargs: Any) -> None:
        logs = logs or {}
        if self.first_loss is None and "loss" in logs:
            self.first_loss = float(logs["loss"])
            check_first(self.settings["loss"], self.first_loss, float(logs["rewards/margins"]))
        self.write({"step": state.global_step, **{key: value for key, value in logs.items() if isinstance(value, int | float)}})

    def on_step_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> Any:
        if state.global_step % self.settings["evaluate_every"] == 0 and self.measure(state.global_step):
            control.should_training_stop = True
        return control

    def on_train_end(self, args: Any, state: Any, control: Any, **kwargs: Any) -> None:
        if self.measured != state.global_step:
            self.measure(state.global_step)

    def measure(self, step: int) -> bool:
        """Log the toxicity after a step; is it low enough to stop?"""
        now, self.measured = self.toxicity(), step
        self.write({"step": step, "development_toxicity": now})
        most = self.settings["max_steps"]
        print(f"step {step}/{most}: share of toxic continuations on development prompts {now:.3f}, was {self.start:.3f}", flush=True)
        return now <= self.settings["stop_at_ratio"] * self.start


def check_first(loss: str, value: float, margin: float) -> None:
    """Raise `UserError` unless policy and reference agree at the first step: no margin, and for DPO's own loss ln 2."""
    if abs(margin) > 1e-3 or (loss == "sigmoid" and abs(value - math.log(2)) > 1e-3):
        problem = f"the first DPO loss is {value:.4f} at a margin of {margin:.4f}, where ln 2 and 0 belong"
        raise UserError(problem, "the reference is not the model that is trained: run the stage in a fresh process, from the base model")


def tune(recipe: Recipe) -> Path:
    """Train the policy from the base model on the pairs; return the folder of the tuned model."""
    settings = recipe.stage("dpo")
    pairs = recipe.run / "pairs" / "pairs.jsonl"
    if not pairs.is_file():
        raise UserError(f"no pairs at {pairs}", "run the stage pairs first")
    records = [json.loads(line) for line in pairs.read_text(encoding="utf-8").splitlines()]
    columns = ("prompt_ids", "chosen_ids", "rejected_ids")
    data = Dataset.from_list([{key: record[key] for key in columns} for record in records])
    source = recipe.run / "pretrain" / "model"
    policy = load_model(source, name="policy")
    hf = policy.hf.requires_grad_(True)
    folder = recipe.run / "dpo"
    folder.mkdir(parents=True, exist_ok=True)
    log = folder / "log.jsonl"
    log.unlink(missing_ok=True)
    prompts = challenge_prefixes(recipe.run / "corpus" / "heldout.jsonl", settings["development_prompts"], recipe.seed)
    telemetry = Telemetry(policy, prompts, load_scorer(settings.get("scorer", "bundled")), log, settings)
    torch.manual_seed(recipe.seed)
    with quiet(), silent_bars():
        arguments = DPOConfig(
            output_dir=str(folder / "trainer"), beta=settings["beta"], loss_type=[settings["loss"]],
            learning_rate=settings["learning_rate"], optim=settings["optimizer"], per_device_train_batch_size=settings["batch"],
            max_steps=settings["max_steps"], warmup_steps=settings["warmup_steps"], lr_scheduler_type="constant_with_warmup",
            max_grad_norm=settings["clip"], precompute_ref_log_probs=True, precompute_ref_batch_size=64,
            bf16=False, gradient_checkpointing=False, disable_dropout=True, report_to=[], use_cpu=not torch.cuda.is_available(),
            logging_steps=1, log_level="error", save_strategy="no", seed=recipe.seed, max_length=None, disable_tqdm=True,
            dataloader_pin_memory=False, remove_unused_columns=False,
        )  # fmt: skip
        trainer = TokenPairTrainer(
            model=hf, ref_model=None, args=arguments, train_dataset=data, processing_class=copy.deepcopy(policy.tokenizer),
            callbacks=[telemetry],
        )  # fmt: skip
        trainer.remove_callback(PrinterCallback)
        trainer.train()
    hf.eval()
    save_model(folder / "model", hf, policy.tokenizer)
    return folder / "model"


@contextmanager
def silent_bars() -> Iterator[None]:
    """Without the progress bars of datasets and of TRL's pass over the reference, which last a moment each, and its warnings."""
    hidden, before = are_progress_bars_disabled(), os.environ.get("TQDM_DISABLE")
    disable_progress_bars()
    os.environ["TQDM_DISABLE"] = "1"
    try:
        with warnings.catch_warnings():
            # TRL still calls by their old names what transformers has renamed.
            warnings.simplefilter("ignore", FutureWarning)
            yield
    finally:
        if not hidden:
            enable_progress_bars()
        if before is None:
            del os.environ["TQDM_DISABLE"]
        else:
            os.environ["TQDM_DISABLE"] = before
