"""Cases around training: PPLM pairs in a batch, and steps of DPO with the reference computed once."""

from __future__ import annotations

import contextlib
import io
import tempfile
from collections.abc import Iterator
from typing import Any

import torch
from datasets import Dataset
from torch import Tensor
from trl import DPOConfig, DPOTrainer

from benchmarks.measure import Case, largest_difference
from interp import Model
from interp.directions.probe import bundled_probe
from interp.evaluation.toxicity import LexiconScorer
from interp.forward.generate import Sampling, generate_tokens
from interp.models.libraries import quiet
from interp.models.tokens import token_rows
from training.generators import pplm
from training.generators.task import Task
from training.preference_trainer import silent_bars

STEPS, BATCH, NEW = 8, 8, 20


def tuning(model: Model, prompts: list[str]) -> Iterator[Case]:
    """Every case of this file."""
    yield pairs(model, prompts)
    yield steps(model, prompts)


def pairs(model: Model, prompts: list[str]) -> Case:
    """PPLM for 16 prompts as one batch, against the same code one prompt at a time; tokens must be the same."""
    rows = token_rows(model, prompts)[:16]
    settings = {"new_tokens": 4, "pplm": {"iterations": 5}}

    def draft(batch: int) -> Tensor:
        task = Task(model, rows, {**settings, "pplm": {**settings["pplm"], "batch": batch}}, 0, LexiconScorer(), bundled_probe)  # type: ignore[dict-item]
        by_row = {row: draft for block in pplm.make(task) for row, draft in zip(block.rows, block.drafts, strict=True)}
        return torch.tensor([by_row[row].rejected for row in sorted(by_row)]).float()

    return Case(
        "PPLM pairs", lambda: draft(len(rows)), lambda: draft(1), f"{len(rows)} prompts in a batch", "the same, one prompt at a time",
        largest_difference, tolerance=0.0, memory=False, turns=3,
    )  # fmt: skip


def steps(model: Model, prompts: list[str]) -> Case:
    """Steps of DPO by TRL with the reference log-probabilities precomputed, against TRL with the reference model beside the policy.

    Both train a fresh copy; loading, the pass over the reference and all are included. The result is the loss at each step.
    """
    rows = token_rows(model, prompts)[: STEPS * BATCH // 4]
    sides = [
        generate_tokens(model, rows, max_new_tokens=NEW, sampling=Sampling(temperature=1.0, seed=seed), stop_at_end=False)
        for seed in (1, 2)
    ]
    texts = [
        {"prompt": prompt, "chosen": model.tokenizer.decode(first), "rejected": model.tokenizer.decode(second)}
        for prompt, first, second in zip(prompts, *sides, strict=False)
    ]
    data = Dataset.from_list(texts)

    def train(precompute: bool) -> Tensor:
        with quiet(), silent_bars(), tempfile.TemporaryDirectory() as folder, contextlib.redirect_stdout(io.StringIO()):
            arguments = DPOConfig(
                output_dir=folder, beta=0.1, learning_rate=1e-6, per_device_train_batch_size=BATCH, max_steps=STEPS, logging_steps=1,
                precompute_ref_log_probs=precompute, precompute_ref_batch_size=64, save_strategy="no", report_to=[], use_cpu=True,
                bf16=False, gradient_checkpointing=False, disable_tqdm=True, seed=0, dataloader_pin_memory=False, log_level="error",
            )  # fmt: skip
            reference: Any = None if precompute else model.plain_copy()
            trainer = DPOTrainer(
                model=model.plain_copy().train().requires_grad_(True), ref_model=reference, args=arguments, train_dataset=data,
                processing_class=model.tokenizer,
            )  # fmt: skip
            trainer.train()
            return torch.tensor([record["loss"] for record in trainer.state.log_history if "loss" in record])

    return Case(
        f"{STEPS} steps of DPO", lambda: train(True), lambda: train(False), "TRL, reference computed once",
        "TRL, reference model beside the policy", largest_difference, memory=False, turns=2,
    )  # fmt: skip
