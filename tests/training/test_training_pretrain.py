"""Pretraining: a run that is killed and resumed ends with the weights of one that was not, and damage is told apart."""

from __future__ import annotations

import json
import math
import shutil
from collections import Counter
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from interp import UserError, load_model
from training import loop, packing
from training.checkpoint import load_checkpoint, save_checkpoint
from training.optimizers import learning_rate
from training.packing import pack, window
from training.pretrain import pretrain
from training.recipe import Recipe

STEPS = 10


@pytest.fixture(scope="module")
def whole(built: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """A run of ten steps that nothing interrupted."""
    recipe = short(built, tmp_path_factory.mktemp("whole"))
    pretrain(recipe)
    return recipe


def short(built: Recipe, folder: Path, **changes: Any) -> Recipe:
    """The built recipe in a folder of its own, to be pretrained for ten steps with a checkpoint every four."""
    for part in ("corpus", "tokenizer"):
        shutil.copytree(built.run / part, folder / part, dirs_exist_ok=True)
    settings = built.settings["pretrain"] | {"checkpoint_every": 4, "evaluate_every": 5, "warmup_steps": 3, "evaluate_kilobytes": 3}
    tokenizer = AutoTokenizer.from_pretrained(folder / "tokenizer")
    tokens = pack(folder / "corpus" / "train.jsonl", tokenizer, folder / "tokenizer" / "train.npy")
    settings["epochs"] = (STEPS + 0.5) / (len(tokens) // settings["context"] // settings["batch"])
    return replace(built, run=folder, settings={**built.settings, "pretrain": {**settings, **changes}})


def tensors(folder: Path) -> dict[str, torch.Tensor]:
    return load_file(folder / "model.safetensors")


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def logged(recipe: Recipe) -> list[dict[str, Any]]:
    """The lines of the log that hold a loss."""
    lines = (recipe.run / "pretrain" / "log.jsonl").read_text().splitlines()
    return [record for record in map(json.loads, lines) if "loss" in record]


def steps_logged(recipe: Recipe) -> list[int]:
    return [record["step"] for record in logged(recipe)]


def stop_at(monkeypatch: pytest.MonkeyPatch, last: int) -> None:
    """Kill the run at the beginning of a step."""

    def failing(tokens: Any, step: int, *rest: Any) -> Any:
        if step == last:
            raise KeyboardInterrupt
        return window(tokens, step, *rest)

    monkeypatch.setattr(packing, "window", failing)


# The parts


@pytest.mark.parametrize("count", [1, 2000, 2001])
def test_packing_is_the_concatenation_of_documents_each_followed_by_the_end_of_text(built: Recipe, tmp_path: Path, count: int) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built.run / "tokenizer")
    texts = [f"🙂 é {number} of a river" for number in range(count)]
    (tmp_path / "c.jsonl").write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    found = pack(tmp_path / "c.jsonl", tokenizer, tmp_path / "c.npy")
    expected = [token for row in tokenizer(texts)["input_ids"] for token in [*row, tokenizer.eos_token_id]]
    assert found.tolist() == expected


def test_a_corpus_without_documents_is_an_error(built: Recipe, tmp_path: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(built.run / "tokenizer")
    (tmp_path / "none.jsonl").touch()
    with pytest.raises(UserError, match="holds no document"):
        pack(tmp_path / "none.jsonl", tokenizer, tmp_path / "none.npy")


def test_another_corpus_or_vocabulary_is_tokenised_anew(built: Recipe, tmp_path: Path) -> None:
    tokenizer, target = AutoTokenizer.from_pretrained(built.run / "tokenizer"), tmp_path / "c.npy"

    def ids(text: str, words: Any = tokenizer) -> list[int]:
        (tmp_path / "c.jsonl").write_text(json.dumps({"text": text}) + "\n")
        return pack(tmp_path / "c.jsonl", words, target).tolist()

    first = ids("a river")
    assert ids("a stone") == [*tokenizer("a stone")["input_ids"], tokenizer.eos_token_id] != first
    target.write_bytes(target.read_bytes()[:-2] + b"\x07\x00")
    assert ids("a stone")[-1] == 7, "the same corpus and vocabulary are not tokenised again"
    other = tokenizer.train_new_from_iterator(["stone stone stone"] * 9, 262)
    assert ids("a stone", other) == [*other("a stone")["input_ids"], other.eos_token_id]


@pytest.mark.parametrize("batch", [1, 3, 6])
def test_an_epoch_reads_each_window_once_in_an_order_of_its_own(batch: int) -> None:
    tokens, settings = np.arange(6 * 4 + 3, dtype=np.uint16), {"context": 4, "batch": batch}
    steps = 6 // batch

    def epoch(number: int, seed: int = 5) -> list[list[int]]:
        return [row for step in range(number * steps, (number + 1) * steps) for row in window(tokens, step, settings, seed).tolist()]

    expected = [list(range(4 * number, 4 * number + 4)) for number in range(6)]
    for number in range(3):
        assert sorted(epoch(number)) == expected
    assert epoch(0) != epoch(1)
    assert epoch(0) != epoch(0, seed=6)
    assert epoch(1) == epoch(1)


def test_the_learning_rate_rises_to_its_peak_and_falls_to_its_end() -> None:
    settings = {"learning_rate": 2e-3, "final_learning_rate": 1e-4, "warmup_steps": 10}
    rates = [learning_rate(step, 110, settings) for step in range(111)]
    assert rates[0] == pytest.approx(2e-4)
    assert rates[9] == rates[10] == pytest.approx(2e-3)
    assert rates[60] == pytest.approx((2e-3 + 1e-4) / 2)
    assert rates[110] == pytest.approx(1e-4)
    assert all(first > second for first, second in pairwise(rates[10:]))
    assert learning_rate(0, 5, {**settings, "warmup_steps": 0}) == pytest.approx(2e-3)


def test_a_corpus_too_small_for_a_step_is_an_error_and_no_untrained_model(built: Recipe, tmp_path: Path) -> None:
    for changes, message in (({"batch": 10**6}, "one step reads 48000000"), ({"epochs": 0.001}, "less than one step")):
        with pytest.raises(UserError, match=message):
            pretrain(short(built, tmp_path, **changes))
    assert not (tmp_path / "pretrain" / "model").exists()


# A run


def test_the_loss_falls_and_the_held_out_loss_is_the_loss_of_the_saved_model(whole: Recipe) -> None:
    log = logged(whole)
    assert [record["step"] for record in log] == [5, 10]
    assert log[1]["held_out_loss"] < log[0]["held_out_loss"] - 0.2 < math.log(360) - 0.2
    model = load_model(whole.run / "pretrain" / "model")
    held = np.load(whole.run / "tokenizer" / "heldout.npy").astype(np.int64)[: 48 * 64]
    rows = torch.from_numpy(held[: len(held) // 48 * 48]).view(-1, 48)
    with torch.no_grad():
        logits = model.hf(rows).logits[:, :-1].log_softmax(-1)
    loss = -logits.gather(-1, rows[:, 1:, None]).mean().item()
    assert log[1]["held_out_loss"] == pytest.approx(loss, abs=1e-4)


@pytest.mark.parametrize("killed", [6, 8, 9])
def test_a_killed_run_resumed_ends_bit_for_bit_as_one_that_was_not(
    built: Recipe, whole: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, killed: int
) -> None:
    recipe = short(built, tmp_path)
    with monkeypatch.context() as patch:
        stop_at(patch, killed)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe)
    checkpoint = tmp_path / "pretrain" / "checkpoint"
    # A checkpoint is written when the gradient of the step after it is known to be finite.
    last = (killed - 1) // 4 * 4
    assert json.loads((checkpoint / "state.json").read_text())["step"] == last
    assert not equal(tensors(checkpoint), tensors(whole.run / "pretrain" / "checkpoint"))
    seen: list[int] = []
    monkeypatch.setattr(packing, "window", lambda tokens, step, *rest: seen.append(step) or window(tokens, step, *rest))
    pretrain(recipe)
    assert seen == list(range(last, STEPS)), "the resumed run repeats what came before the checkpoint"
    for part in ("model", "checkpoint"):
        assert equal(tensors(tmp_path / "pretrain" / part), tensors(whole.run / "pretrain" / part))
    assert steps_logged(recipe) == steps_logged(whole) == [5, 10]
    pretrain(recipe)
    assert seen[-1] == STEPS - 1, "a finished run trains on"
    assert Counter(seen)[STEPS - 1] == 1


def test_a_kill_between_the_two_moves_of_a_checkpoint_loses_nothing(whole: Recipe, tmp_path: Path) -> None:
    recipe = replace(whole, run=tmp_path)
    shutil.copytree(whole.run, tmp_path, dirs_exist_ok=True)
    (tmp_path / "pretrain" / "checkpoint").rename(tmp_path / "pretrain" / "checkpoint.old")
    shutil.rmtree(tmp_path / "pretrain" / "model")
    assert equal(tensors(pretrain(recipe)), tensors(whole.run / "pretrain" / "model"))


def damaged(whole: Recipe, folder: Path) -> tuple[Recipe, Path]:
    shutil.copytree(whole.run, folder, dirs_exist_ok=True)
    return replace(whole, run=folder), folder / "pretrain" / "checkpoint"


def test_a_changed_recipe_is_not_continued(whole: Recipe, tmp_path: Path) -> None:
    recipe, _ = damaged(whole, tmp_path)
    changed = {**recipe.settings, "pretrain": {**recipe.settings["pretrain"], "learning_rate": 2e-2}}
    with pytest.raises(UserError, match=r"other settings or data \(the recipe changed: learning_rate was 0.01 and is 0.02\).*or remove"):
        pretrain(replace(recipe, settings=changed))
    pretrain(replace(recipe, settings={**recipe.settings, "dpo": {}}))


@pytest.mark.parametrize("name", ["model.safetensors", "optimizer.safetensors", "state.json"])
def test_a_truncated_or_missing_file_of_a_checkpoint_is_named_with_what_to_do(whole: Recipe, tmp_path: Path, name: str) -> None:
    recipe, checkpoint = damaged(whole, tmp_path)
    content = (checkpoint / name).read_bytes()
    for cut in (len(content) // 2, 3, 0):
        (checkpoint / name).write_bytes(content[:cut])
        with pytest.raises(UserError, match=rf"{name}.*restore the checkpoint folder from a copy, or remove it"):
            pretrain(recipe)
    (checkpoint / name).unlink()
    with pytest.raises(UserError, match=rf"{name}.*remove it to start again"):
        pretrain(recipe)


def test_a_checkpoint_of_another_shape_leaves_the_model_as_it_was(tmp_path: Path) -> None:
    small, large = torch.nn.Linear(2, 3), torch.nn.Linear(2, 4)
    before = large.weight.clone()
    save_checkpoint(tmp_path / "c", small, torch.optim.SGD(small.parameters()), {"step": 1, "digest": "d"})
    with pytest.raises(UserError, match="not those of the recipe's model"):
        load_checkpoint(tmp_path / "c", large, torch.optim.SGD(large.parameters()), "d")
    assert torch.equal(large.weight, before)
    assert load_checkpoint(tmp_path / "none", large, torch.optim.SGD(large.parameters()), "d") is None


def test_a_gradient_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    built: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = short(built, tmp_path)
    with monkeypatch.context() as patch:
        patch.setattr(loop, "learning_rate", lambda step, total, settings: 1e30 if step == 5 else learning_rate(step, total, settings))
        with pytest.raises(UserError, match=r"not finite at step 6.*last good checkpoint.* is kept"):
            pretrain(recipe)
    checkpoint = tmp_path / "pretrain" / "checkpoint"
    assert json.loads((checkpoint / "state.json").read_text())["step"] == 4
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors(checkpoint).values())
    assert not (tmp_path / "pretrain" / "model").exists()
    pretrain(recipe)


def test_a_checkpoint_of_before_there_were_hashes_is_still_read(tmp_path: Path) -> None:
    model = torch.nn.Linear(2, 3)
    save_checkpoint(tmp_path / "c", model, torch.optim.SGD(model.parameters()), {"step": 4, "digest": "d"})
    (tmp_path / "c" / "state.json").write_text('{"step": 4, "digest": "d"}')
    other = torch.nn.Linear(2, 3)
    state = load_checkpoint(tmp_path / "c", other, torch.optim.SGD(other.parameters()), "d")
    assert state == {"step": 4, "digest": "d"}
    assert torch.equal(model.weight, other.weight)
