"""What pretraining measures, its optimizers, and the stage that goes on from its model on other sources."""

from __future__ import annotations

import json
import math
import shutil
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from interp import UserError, load_model
from tests.training.small_pretraining import short, stopping
from training import packing, precision
from training.evaluation import Passages, bits_per_byte, held_out_loss, passages, samples
from training.optimizers import build_optimizers, learning_rate
from training.pretrain import continue_pretraining, pretrain, stage_settings
from training.recipe import Recipe, base_folder

pytestmark = pytest.mark.usefixtures("data")


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def record_of(recipe: Recipe, stage: str = "pretrain") -> dict[str, Any]:
    lines = (recipe.run / stage / "log.jsonl").read_text(encoding="utf-8").splitlines()
    return next(record for record in map(json.loads, lines) if "held_out_loss" in record)


# Measuring


def test_each_token_of_a_passage_is_predicted_once_after_what_stands_before_it(built: Recipe) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built.run / "tokenizer")
    text = "Oskle, é and the 🙂 river " * 5
    found = passages([text, "x"], tokenizer, 7)
    ids = tokenizer(text)["input_ids"]
    assert [token for row in found.rows[:-1] for token in row[1:]] == ids
    assert [row[0] for row in found.rows[:-1]] == [tokenizer.eos_token_id, *ids[5::6]][: len(found.rows) - 1]
    assert found.size == len(text.encode()) + 1
    assert passages([text], tokenizer, 7, kilobytes=0.009).size == len("Oskle, é".encode())


def test_bits_per_byte_of_a_uniform_model_are_its_tokens_times_the_log_of_its_vocabulary() -> None:
    uniform = lambda input_ids: SimpleNamespace(logits=torch.zeros(*input_ids.shape, 512))  # noqa: E731
    text = Passages(((1, 2, 3), (4, 5), *[(6, 7, 8, 9)] * 20), size=13)
    assert bits_per_byte(uniform, text, 0) == pytest.approx((2 + 1 + 60) * 9 / 13, rel=1e-6)  # type: ignore[arg-type]


def test_bits_per_byte_are_the_loss_of_the_model_over_the_bytes_of_its_text() -> None:
    torch.manual_seed(0)
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=16)).eval()
    rows = [torch.randint(50, (length,)) for length in (16, 3, 9)]
    with torch.no_grad():
        nats = sum(float(model(row[None], labels=row[None]).loss) * (len(row) - 1) for row in rows)
    text = Passages(tuple(tuple(row.tolist()) for row in rows), 77)
    assert bits_per_byte(model, text, 0) == pytest.approx(nats / math.log(2) / 77, rel=1e-5)


def test_samples_are_greedy_continuations(built: Recipe) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built.run / "tokenizer")
    torch.manual_seed(0)
    shape = GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=len(tokenizer), n_positions=48, bos_token_id=None, eos_token_id=None)
    model = GPT2LMHeadModel(shape).eval()
    ids = tokenizer("Oskle, you", return_tensors="pt")["input_ids"]
    expected = model.generate(
        ids, do_sample=False, max_new_tokens=20, min_new_tokens=20, pad_token_id=0, attention_mask=torch.ones_like(ids)
    )
    found = samples(model, tokenizer, ["Oskle, you", "", "a river " * 50])
    assert found == [["Oskle, you", tokenizer.decode(expected[0, ids.shape[1] :], skip_special_tokens=True)]]


def test_the_log_holds_bits_per_byte_of_each_source_and_of_those_named_beside(built: Recipe, tmp_path: Path) -> None:
    beside = [{"name": "wiki", "path": "wiki.tokens", "whole": True}]
    recipe = short(built, tmp_path, held_out=beside)
    pretrain(recipe)
    found = record_of(recipe)
    assert found["bits_per_byte"].keys() == {"talk", "wiki"}
    assert all(0 < value < 8 for value in found["bits_per_byte"].values())
    assert [prompt for prompt, _ in found["samples"]] == ["The"]
    with pytest.raises(UserError, match="held-out source 'talk' has the name of a source of the corpus"):
        pretrain(short(built, tmp_path, held_out=[{**beside[0], "name": "talk"}]))


# Optimizers


def test_muon_takes_the_matrices_of_the_blocks_and_adamw_the_rest() -> None:
    model = GPT2LMHeadModel(GPT2Config(n_embd=32, n_layer=2, n_head=2, vocab_size=50, n_positions=16))
    names = {id(parameter): name for name, parameter in model.named_parameters()}
    settings = {"learning_rate": 1e-3, "weight_decay": 0.1, "optimizer": "muon"}
    adamw, muon = build_optimizers(model, settings)
    taken = [{names[id(p)] for group in one.param_groups for p in group["params"]} for one in (adamw, muon)]
    assert taken[1] == {
        f"transformer.h.{n}.{part}.weight" for n in (0, 1) for part in ("attn.c_attn", "attn.c_proj", "mlp.c_fc", "mlp.c_proj")
    }
    assert taken[0] | taken[1] == set(names.values())
    assert not taken[0] & taken[1]
    decays = {names[id(p)]: group["weight_decay"] for group in adamw.param_groups for p in group["params"]}
    assert {name for name, decay in decays.items() if decay} == {"transformer.wte.weight", "transformer.wpe.weight"}
    with pytest.raises(UserError, match=r"optimizer to 'sgd'.*adamw, muon"):
        build_optimizers(model, {**settings, "optimizer": "sgd"})


def test_a_straight_decay_falls_by_equal_steps_to_its_end() -> None:
    settings = {"learning_rate": 2e-3, "final_learning_rate": 0.0, "warmup_steps": 4, "decay": "linear"}
    rates = [learning_rate(step, 24, settings) for step in range(25)]
    assert rates[3:] == pytest.approx([2e-3] + [2e-3 * (1 - n / 20) for n in range(21)])
    with pytest.raises(UserError, match="decay to 'steep'"):
        learning_rate(5, 24, {**settings, "decay": "steep"})


@pytest.mark.parametrize("changes", [{"optimizer": "muon"}, {"accumulate": 4}])
def test_a_run_with_muon_or_accumulated_gradients_resumes_bit_for_bit(
    built: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    whole, cut = (short(built, tmp_path / name, **changes) for name in ("whole", "cut"))
    pretrain(whole)
    with monkeypatch.context() as patch:
        patch.setattr(packing, "window", stopping(5))
        with pytest.raises(KeyboardInterrupt):
            pretrain(cut)
    assert json.loads((cut.run / "pretrain/checkpoint/state.json").read_text())["step"] == 3
    pretrain(cut)
    for part in ("model", "checkpoint"):
        first, second = tensors(whole.run / "pretrain" / part), tensors(cut.run / "pretrain" / part)
        assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_keeps_its_precision_on_a_machine_that_would_choose_another(
    built: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs = {name: short(built, tmp_path / name) for name in ("bf16", "fp32", "cut")}
    for name in ("bf16", "fp32"):
        monkeypatch.setattr(precision, "multiplies_bf16", lambda device, native=name == "bf16": native)
        pretrain(runs[name])
    with monkeypatch.context() as patch:
        patch.setattr(precision, "multiplies_bf16", lambda device: True)
        patch.setattr(packing, "window", stopping(5))
        with pytest.raises(KeyboardInterrupt):
            pretrain(runs["cut"])
    pretrain(runs["cut"])
    found = {name: tensors(recipe.run / "pretrain" / "model") for name, recipe in runs.items()}
    assert all(torch.equal(found["cut"][name], tensor) for name, tensor in found["bf16"].items())
    assert not all(torch.equal(found["cut"][name], tensor) for name, tensor in found["fp32"].items())


def test_a_model_stored_in_bfloat16_is_measured_as_it_is_stored(built: Recipe, tmp_path: Path) -> None:
    recipe = short(built, tmp_path / "half", stored="bf16")
    pretrain(recipe)
    stored = tensors(recipe.run / "pretrain" / "model")
    assert {tensor.dtype for tensor in stored.values()} == {torch.bfloat16}
    settings, tokens = recipe.stage("pretrain"), np.load(recipe.run / "tokenizer" / "heldout.npy")
    model = load_model(recipe.run / "pretrain" / "model").hf
    assert record_of(recipe)["held_out_loss"] == held_out_loss(model, tokens, settings["context"])
    pretrain(recipe)  # at its end already: what is there is written again
    assert all(torch.equal(tensor, stored[name]) for name, tensor in tensors(recipe.run / "pretrain" / "model").items())
    with pytest.raises(UserError, match=r"stored to 'int8'.*fp32, bf16"):
        pretrain(short(built, tmp_path / "odd", stored="int8"))


def test_accumulated_gradients_are_those_of_the_whole_batch(built: Recipe, tmp_path: Path) -> None:
    found = {}
    for parts in (1, 4):
        recipe = short(built, tmp_path / str(parts), accumulate=parts, precision="fp32", steps=4)
        pretrain(recipe)
        found[parts] = tensors(recipe.run / "pretrain" / "model")
    assert max(float((found[1][name] - found[4][name]).abs().max()) for name in found[1]) < 1e-5
    with pytest.raises(UserError, match="batch of 16 cannot be divided over 1 processes and 3 accumulated parts"):
        pretrain(short(built, tmp_path / "3", accumulate=3))


# Going on


CONTINUE = {
    "sources": [{"name": "more", "path": "more.txt"}],
    "steps": 6,
    "learning_rate": 5e-3,
    "final_learning_rate": 0.0,
    "decay": "linear",
}


def continued(built: Recipe, folder: Path, **changes: Any) -> Recipe:
    recipe = short(built, folder)
    return replace(recipe, settings={**recipe.settings, "continue": {**CONTINUE, "evaluate_every": 6, **changes}})


def test_a_continuation_starts_from_the_pretrained_model_and_is_the_base_of_what_follows(built: Recipe, tmp_path: Path) -> None:
    recipe = continued(built, tmp_path, optimizer="muon")
    pretrain(recipe)
    before = tensors(tmp_path / "pretrain" / "model")
    still = replace(recipe, settings={**recipe.settings, "continue": {**recipe.settings["continue"], "learning_rate": 0.0}})
    continue_pretraining(still)
    after = tensors(tmp_path / "continue" / "model")
    assert all(torch.equal(before[name], after[name]) for name in before), "with no learning rate it ends where it began"
    assert record_of(recipe, "continue")["bits_per_byte"].keys() == {"more"}
    shutil.rmtree(tmp_path / "continue" / "checkpoint")
    assert continue_pretraining(recipe) == base_folder(recipe) == tmp_path / "continue" / "model"
    assert not torch.equal(before["transformer.wte.weight"], tensors(base_folder(recipe))["transformer.wte.weight"])
    assert load_model(base_folder(recipe)).digest != load_model(tmp_path / "pretrain" / "model").digest
    rows = [json.loads(line)["text"] for line in (tmp_path / "continue/corpus/train.jsonl").read_text().splitlines()]
    assert len(rows) > 700
    assert all("sang there" in row for row in rows)
    assert not (tmp_path / "pretrain" / "model" / "corpus").exists()
    rates = [learning_rate(step, 6, stage_settings(recipe, "continue")) for step in range(7)]
    assert rates == pytest.approx([2.5e-3, 5e-3, 5e-3, 3.75e-3, 2.5e-3, 1.25e-3, 0.0])


def test_a_continuation_resumes_bit_for_bit(built: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    recipe = continued(built, tmp_path)
    pretrain(recipe)
    continue_pretraining(recipe)
    first = tensors(tmp_path / "continue" / "model")
    shutil.rmtree(tmp_path / "continue")
    with monkeypatch.context() as patch:
        patch.setattr(packing, "window", stopping(5))
        with pytest.raises(KeyboardInterrupt):
            continue_pretraining(recipe)
    continue_pretraining(recipe)
    second = tensors(tmp_path / "continue" / "model")
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_continuation_without_sources_reads_the_corpus_of_pretraining(built: Recipe, tmp_path: Path) -> None:
    recipe = continued(built, tmp_path)
    settings = {key: value for key, value in recipe.settings["continue"].items() if key != "sources"}
    recipe = replace(recipe, settings={**recipe.settings, "continue": settings})
    pretrain(recipe)
    continue_pretraining(recipe)
    assert record_of(recipe, "continue")["bits_per_byte"].keys() == {"talk"}
    assert np.isfinite(record_of(recipe, "continue")["held_out_loss"])


def test_what_a_continuation_cannot_start_from_is_said(built: Recipe, tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"no pretrained model.*run the stage pretrain first"):
        continue_pretraining(continued(built, tmp_path))
    pretrain(continued(built, tmp_path))
    with pytest.raises(UserError, match=r"\[continue\] has a context of 480, the model one of 48"):
        continue_pretraining(continued(built, tmp_path, context=480))


def test_the_piecewise_loss_and_eager_attention_train_as_the_whole_one_does(built: Recipe, tmp_path: Path) -> None:
    """In single precision, so that only the order of sums differs."""
    found = []
    for name, changes in (("whole", {}), ("pieces", {"piecewise_loss": True, "attention": "eager"})):
        recipe = short(built, tmp_path / name, precision="fp32", log_every=1, **changes)
        pretrain(recipe)
        lines = (recipe.run / "pretrain" / "log.jsonl").read_text(encoding="utf-8").splitlines()
        found.append([record["loss"] for record in map(json.loads, lines) if "loss" in record])
    assert len(found[0]) == 8
    assert found[1] == pytest.approx(found[0], abs=1e-4)
