"""The forward of pairs against TRL's unmodified trainer: losses, metrics, gradients and the reference, in full and with an adapter."""

from __future__ import annotations

import copy
import random
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM, Gemma2Config, LlamaConfig, LlamaForCausalLM, MistralConfig, PreTrainedTokenizerFast
from trl import DPOTrainer
from trl.trainer.utils import add_fused_lm_head

from interp.preferences.packed import packable
from tests.conftest import glu_settings, make_hf, save
from training import pair_forward
from training.pair_forward import add_pair_forward, joined, token_values
from training.preference_trainer import Objective, TokenPairTrainer, arguments, lora_config, silent_bars
from training.sections import DpoSettings

COUNT = 6
OBJECTIVES = {
    "sigmoid": Objective(("sigmoid",), (1.0,), 0.3),
    "ipo": Objective(("ipo",), (1.0,), 0.3),
    "sft": Objective(("sft",), (1.0,), 0.3),
    "mixed": Objective(("sigmoid", "sft"), (1.0, 0.4), 0.3),
}


class Unmodified(DPOTrainer):
    """TRL's trainer as it is, but that it takes token ids: it would tokenise texts and append an end token."""

    def _prepare_dataset(self, dataset: Any, *args: Any) -> Any:
        return dataset


@pytest.fixture(autouse=True)
def _small_groups(monkeypatch: pytest.MonkeyPatch) -> None:
    """Several groups of rows and several pieces of logits in one batch."""
    monkeypatch.setattr(pair_forward, "GROUP", 30)
    monkeypatch.setattr(pair_forward, "PIECE", 7)


@pytest.fixture
def pairs() -> list[dict[str, Any]]:
    draw = random.Random(1)

    def tokens(least: int, most: int) -> list[int]:
        return [draw.randrange(5, 270) for _ in range(draw.randint(least, most))]

    return [{"prompt_ids": tokens(1, 9), "chosen_ids": tokens(1, 7), "rejected_ids": tokens(1, 7)} for _ in range(COUNT)]


def step_of(
    kind: type[DPOTrainer], folder: Path, pairs: list[dict[str, Any]], goal: Objective, lora: bool, tokenizer: Any, place: Path
) -> tuple[dict[str, float], dict[str, torch.Tensor], list[list[float]]]:
    """The metrics, the gradients and the reference's log-probabilities of one batch, for a policy that has left its reference."""
    hf = AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32)
    settings = DpoSettings(
        loss="sigmoid", beta=goal.beta, optimizer="sgd", learning_rate=0.1, warmup_steps=0, batch=COUNT, clip=10.0, max_steps=1,
        evaluate_every=1, lora={"rank": 2} if lora else None,
    )  # fmt: skip
    torch.manual_seed(0)
    own: dict[str, Any] = {"reference": "base", "cache": place / "reference"} if kind is TokenPairTrainer else {}
    with silent_bars():
        trainer = kind(
            model=hf, ref_model=None, args=arguments(place / kind.__name__, settings, goal, 1, 0, COUNT),
            train_dataset=Dataset.from_list(pairs),
            processing_class=copy.deepcopy(tokenizer), peft_config=lora_config(hf, settings), **own,
        )  # fmt: skip
        generator = torch.Generator().manual_seed(3)
        trained = {name: p for name, p in trainer.model.named_parameters() if p.requires_grad}
        with torch.no_grad():
            for parameter in trained.values():
                parameter.add_(0.05 * torch.randn(parameter.shape, generator=generator))
        trainer.model.train()
        batch = trainer.data_collator([trainer.train_dataset[number] for number in range(COUNT)])
        loss = trainer.compute_loss(trainer.model, batch)
        loss.backward()
    metrics = {name: values[-1] for name, values in trainer._metrics["train"].items()}
    columns = [trainer.train_dataset[f"ref_{side}_logps"] for side in ("chosen", "rejected")]
    gradients = {name: torch.zeros_like(p) if p.grad is None else p.grad for name, p in trained.items()}
    return metrics | {"loss": float(loss.detach())}, gradients, [list(column) for column in columns]


def check_equal(folder: Path, pairs: list[dict[str, Any]], goal: Objective, lora: bool, tokenizer: Any, place: Path) -> dict[str, float]:
    theirs, their_gradients, their_reference = step_of(Unmodified, folder, pairs, goal, lora, tokenizer, place)
    ours, gradients, reference = step_of(TokenPairTrainer, folder, pairs, goal, lora, tokenizer, place)
    assert ours.keys() == theirs.keys()
    for name, value in theirs.items():
        assert ours[name] == pytest.approx(value, rel=1e-5, abs=1e-5), name
    for column, other in zip(reference, their_reference, strict=True):
        assert column == pytest.approx(other, rel=1e-5)
    assert gradients.keys() == their_gradients.keys()
    whole = max(float(gradient.norm()) for gradient in their_gradients.values())
    for name, gradient in their_gradients.items():
        assert float((gradients[name] - gradient).norm()) <= 1e-5 * whole, name
    return theirs


@pytest.mark.parametrize("goal", OBJECTIVES.values(), ids=OBJECTIVES)
@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_losses_metrics_and_gradients_are_those_of_trl(
    make_folder: Callable[..., Path], pairs: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, kind: str,
    lora: bool, goal: Objective,
) -> None:  # fmt: skip
    theirs = check_equal(make_folder(kind), pairs, goal, lora, tokenizer, tmp_path)
    assert abs(theirs["rewards/margins"]) > 1e-4


@pytest.mark.parametrize("lora", [False, True], ids=["full", "lora"])
def test_capped_logits_and_layers_with_a_window_are_those_of_trl(
    pairs: list[dict[str, Any]], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, lora: bool
) -> None:
    settings = glu_settings()
    for name, config in {
        "capped": Gemma2Config(**settings, head_dim=16, sliding_window=64, final_logit_softcapping=5.0),
        "narrow": MistralConfig(**settings, sliding_window=4),
    }.items():
        folder = save(make_hf(config, tokenizer), tokenizer, tmp_path / name)
        check_equal(folder, pairs, OBJECTIVES["sigmoid"], lora, tokenizer, tmp_path / f"{name}-run")


def test_values_and_gradients_are_exact_for_a_large_vocabulary(monkeypatch: pytest.MonkeyPatch) -> None:
    generator = torch.Generator().manual_seed(0)
    head = torch.nn.Linear(16, 40_000, bias=True).requires_grad_(False)
    head.weight.copy_(0.4 * torch.randn(head.weight.shape, generator=generator) + 0.2)
    states, targets = torch.randn(9, 16, generator=generator), torch.randint(0, 40_000, (9,), generator=generator)
    hf = LlamaForCausalLM(LlamaConfig(**glu_settings(), vocab_size=8))
    monkeypatch.setattr(hf, "lm_head", head)
    exact = states.double().requires_grad_()
    logits = torch.nn.functional.linear(exact, head.weight.double(), head.bias.double())
    logps = logits.log_softmax(dim=1)
    entropy = -(logps.exp() * logps).sum(dim=1)
    targets[0] = logits[0].argmax()
    of_targets = logps.gather(1, targets[:, None])[:, 0]
    (of_targets * torch.arange(1, 10)).sum().backward()
    states.requires_grad_()
    values = token_values(hf, states, targets)
    (values[0] * torch.arange(1, 10)).sum().backward()
    for measured, expected in zip(values[:3], (of_targets, entropy, logits.mean(dim=1)), strict=True):
        assert torch.allclose(measured.double(), expected, rtol=0, atol=1e-5)
    assert values[3].tolist() == [True] + [False] * 8
    assert (states.grad - exact.grad).norm() <= 1e-5 * exact.grad.norm()


def test_a_pair_is_one_row_whose_sides_do_not_see_each_other(llama_folder: Path) -> None:
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 10, 0, 0]])
    labels = torch.tensor([[-100, -100, 7, 8, 9], [-100, -100, 10, -100, -100]])
    mask = torch.tensor([[1, 1, 1, 1, 1], [1, 1, 1, 0, 0]])
    (row,) = joined(ids, mask, labels) or []
    assert (row.tokens, row.parts, row.positions) == ([5, 6, 7, 8], [0, 0, 1, 1], [0, 1, 2, 3])
    assert row.predicting == ([1, 2, 3], [1])
    # Without a prompt, with different ones, and without a completion, TRL's own forward is used.
    assert joined(ids, mask, ids) is None
    assert joined(torch.tensor([[4, 6, 7, 8, 9], [5, 6, 10, 0, 0]]), mask, labels) is None
    assert joined(ids, mask, labels.where(torch.tensor([[True], [False]]), -100)) is None
    hf = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    assert packable(hf, [row])
    hf.config.sliding_window = 3
    assert not packable(hf, [row])
    hf.config.sliding_window = 4
    assert packable(hf, [row])


def test_fewer_tokens_are_read_and_other_calls_are_unchanged(llama_folder: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    ids = torch.tensor([[5, 6, 7, 8, 9], [5, 6, 10, 11, 12]])
    labels = ids.masked_fill(torch.tensor([True, True, False, False, False]), -100)
    inputs = {"input_ids": ids, "attention_mask": torch.ones_like(ids)}
    with torch.no_grad():
        before = hf(**inputs, labels=ids)
        add_fused_lm_head(hf)
        add_pair_forward(hf)
        forward = hf.forward
        add_pair_forward(hf)
        assert hf.forward == forward
        after = hf(**inputs, labels=ids)
        sizes: list[int] = []
        hf.model.layers[0].register_forward_pre_hook(lambda module, args: sizes.append(args[0].shape[0] * args[0].shape[1]))
        hf(**inputs, labels=labels, fused_lm_head=True)
    assert torch.equal(before.logits, after.logits)
    assert torch.equal(before.loss, after.loss)
    # Two tokens of the prompt, and two of the three of each side.
    assert sizes == [6]
