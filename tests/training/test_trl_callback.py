"""The callback in a run of TRL's own trainer: what it logs against the models before and after, and that the run is the same without it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from peft import LoraConfig
from trl import DPOConfig, DPOTrainer

from interp import Model, UserError
from interp.preferences.influence import gradient_scores
from interp.preferences.logprobs import log_probs
from interp.preferences.watch import watch
from tests.preferences.invented_pairs import rows
from training.trl_callback import DisplacementCallback, trained_pairs

STEPS, PAIRS = 5, 12


def trainer_of(model: Model, folder: Path, adapter: Any = None, **options: Any) -> DPOTrainer:
    config = DPOConfig(
        output_dir=str(folder), max_steps=STEPS, per_device_train_batch_size=4, learning_rate=1e-2, report_to=[], use_cpu=True,
        logging_steps=1, save_strategy="no", seed=1, max_length=32, disable_tqdm=True, bf16=False, gradient_checkpointing=False, **options,
    )  # fmt: skip
    data = [{name: row[name] for name in ("prompt", "chosen", "rejected")} for row in rows(24)[:20]]
    return DPOTrainer(
        model=model.plain_copy(), args=config, train_dataset=Dataset.from_list(data), processing_class=model.tokenizer, peft_config=adapter
    )


@pytest.fixture(scope="module")
def runs(gpt2: Model, tmp_path_factory: pytest.TempPathFactory) -> tuple[DPOTrainer, DPOTrainer, DisplacementCallback]:
    with_it, without = (trainer_of(gpt2, tmp_path_factory.mktemp(name)) for name in ("with", "without"))
    callback = DisplacementCallback(with_it, pairs=PAIRS, every=2, gradients=3)
    with_it.add_callback(callback)
    for trainer in (with_it, without):
        trainer.train()
    return with_it, without, callback


def test_the_first_and_the_last_entry_are_those_of_the_models_before_and_after(
    gpt2: Model, runs: tuple[DPOTrainer, DPOTrainer, DisplacementCallback]
) -> None:
    trainer, _, callback = runs
    entries = [entry for entry in trainer.state.log_history if "displacement/chosen" in entry]
    assert [entry["step"] for entry in entries] == [0, 2, 4, STEPS]
    assert len(callback.pairs) == PAIRS
    before, after = log_probs(gpt2, callback.pairs), log_probs(Model(trainer.model.eval(), gpt2.tokenizer, "after"), callback.pairs)
    assert entries[0]["displacement/chosen"] == entries[0]["displacement/rejected"] == entries[0]["displacement/fell"] == 0
    for side in ("chosen", "rejected"):
        change = getattr(after, side) - getattr(before, side)
        assert entries[-1][f"displacement/{side}"] == pytest.approx(change.mean(), abs=1e-3)
        assert abs(change).max() > 0.1
    assert entries[-1]["displacement/fell"] == pytest.approx((after.chosen < before.chosen).mean())
    entanglement = gradient_scores(gpt2, callback.pairs[:3]).entanglement
    assert entries[0]["displacement/entanglement"] == pytest.approx(entanglement.mean(), rel=1e-4)
    assert entries[0]["displacement/entangled"] == np.mean(entanglement > 1)


def test_the_run_and_what_trl_logs_are_the_same_without_it(runs: tuple[DPOTrainer, DPOTrainer, DisplacementCallback]) -> None:
    trainer, without, _ = runs
    for mine, theirs in zip(trainer.model.parameters(), without.model.parameters(), strict=True):
        assert torch.equal(mine, theirs)
    logged, plain = (
        [{name: entry[name] for name in ("loss", "logps/chosen", "rewards/margins")} for entry in run.state.log_history if "loss" in entry]
        for run in (trainer, without)
    )
    assert len(logged) == STEPS
    assert logged == plain


def test_pairs_watch_reads_the_log_of_such_a_run(runs: tuple[DPOTrainer, DPOTrainer, DisplacementCallback], tmp_path: Path) -> None:
    trainer, _, _ = runs
    (tmp_path / "trainer_state.json").write_text(json.dumps({"log_history": trainer.state.log_history}), encoding="utf-8")
    assert watch(tmp_path).steps == (1, STEPS)


def test_an_adapter_is_read_through(gpt2: Model, tmp_path: Path) -> None:
    trainer = trainer_of(gpt2, tmp_path, LoraConfig(r=2, target_modules=["c_attn"], task_type="CAUSAL_LM", fan_in_fan_out=True))
    callback = DisplacementCallback(trainer, pairs=4, every=100, gradients=1)
    trainer.add_callback(callback)
    trainer.train()
    last = [entry for entry in trainer.state.log_history if "displacement/chosen" in entry][-1]
    merged = Model(trainer.model.merge_and_unload().eval(), gpt2.tokenizer, "merged")
    change = log_probs(merged, callback.pairs).chosen - log_probs(gpt2, callback.pairs).chosen
    assert last["step"] == STEPS
    assert last["displacement/chosen"] == pytest.approx(change.mean(), abs=1e-3)
    assert abs(change).max() > 0.01


def test_what_cannot_be_measured_is_refused(gpt2: Model, tmp_path: Path) -> None:
    trainer = trainer_of(gpt2, tmp_path)
    with pytest.raises(UserError, match="every=0"):
        DisplacementCallback(trainer, every=0)
    # The collator cuts at the end: of a pair whose prompt fills the length nothing is left.
    trainer.args.max_length = 1
    with pytest.raises(UserError, match="no pair"):
        trained_pairs(trainer, 4)
    trainer.train_dataset = Dataset.from_list([{"prompt": "a", "chosen": "b"}])
    with pytest.raises(UserError, match="prompt, chosen"):
        trained_pairs(trainer, 4)
