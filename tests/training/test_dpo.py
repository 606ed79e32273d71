"""Preference tuning against a plain implementation of its own: losses, controls, the kept reference, stopping and resuming."""

from __future__ import annotations

import json
import math
import random
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from datasets import Dataset
from transformers import AutoModelForCausalLM

from interp import Model, UserError, load_model
from interp.runs.telemetry import read_telemetry
from tests.training.small_dpo import WordScorer, kill_at, lines, steps_of, tensors
from training import dpo
from training.controls import read_pairs, reading_order, relabel, split_pairs, steps_to_take
from training.measures import toxicity
from training.preference_trainer import Objective, TokenPairTrainer, build_schedule, check_first, objective
from training.recipe import Recipe, load_recipe
from training.reference import cache_key, with_reference
from training.sections import DpoSettings
from training.settings import read_section

SETTINGS: dict[str, Any] = {
    "scorer": "lexicon", "loss": "sigmoid", "beta": 0.1, "optimizer": "rmsprop", "learning_rate": 1e-4, "batch": 4, "warmup_steps": 2,
    "max_steps": 4, "clip": 10.0, "development_prompts": 3, "kl_prompts": 2, "heldout_texts": 2, "evaluate_every": 2,
}  # fmt: skip
# What differs between two runs that are otherwise equal.
TIMES = ("seconds", "tokens", "tokens_per_second")
WORDS = ("river", "stone", "wintle", "frabe", "quonk", "meldy", "sings", "walks", "under", "sunny")


@pytest.fixture(autouse=True)
def _short_continuations(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toxicity, "NEW_TOKENS", 3)


@pytest.fixture
def make_recipe(gpt2_folder: Path, tmp_path: Path, gpt2: Model) -> Callable[..., Recipe]:
    """`make_recipe(name="a", base=None, **changes)`: a run that has a base model, pairs and held-out texts."""
    draw = random.Random(0)

    def words(count: int) -> str:
        return "".join(f" {draw.choice(WORDS)}" for _ in range(count))

    texts = [(prompt, words(draw.randint(3, 6)), words(draw.randint(3, 6))) for prompt in (words(3) for _ in range(22))]
    records = [dict(zip(("prompt", "chosen", "rejected"), some, strict=True)) for some in texts]
    for record in records:
        record |= {f"{side}_ids": gpt2.tokenizer(record[side])["input_ids"] for side in ("prompt", "chosen", "rejected")}
    held = [{"source": ("a", "b")[n % 2], "text": f"the{words(5)} damn{words(4)}"} for n in range(12)]

    def make(name: str = "a", base: Path | None = None, pairs: list[dict[str, Any]] | None = None, **changes: Any) -> Recipe:
        run = tmp_path / name
        for part in ("pretrain", "pairs", "corpus"):
            (run / part).mkdir(parents=True, exist_ok=True)
        (run / "pretrain" / "model").symlink_to(base or gpt2_folder)
        (run / "pairs" / "pairs.jsonl").write_text("".join(json.dumps(record) + "\n" for record in (pairs or records)))
        for part in ("train", "heldout"):
            (run / "corpus" / f"{part}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in held))
        settings = {"corpus": {}, "pretrain": {}, "pairs": {}, "dpo": {**SETTINGS, **changes}}
        return Recipe(name=name, seed=5, settings=settings, run=run)

    return make


def equal(first: dict[str, torch.Tensor], second: dict[str, torch.Tensor]) -> bool:
    return first.keys() == second.keys() and all(torch.equal(first[name], second[name]) for name in first)


def side_logps(hf: Any, pair: dict[str, Any], side: str) -> torch.Tensor:
    """Log-probabilities in nats of each token of one side."""
    prompt, rest = pair["prompt_ids"], pair[f"{side}_ids"]
    scores = hf(torch.tensor([prompt + rest])).logits[0, len(prompt) - 1 : -1].log_softmax(-1)
    return scores.gather(-1, torch.tensor(rest)[:, None])[:, 0]


def plainly(recipe: Recipe, loss: Callable[[list[torch.Tensor], list[torch.Tensor], list[torch.Tensor], list[torch.Tensor]], Any]) -> Any:
    """Tune without TRL; gives the losses and the model. `loss` gets token log-probabilities of chosen, rejected and their references."""
    settings, pairs = recipe.stage("dpo"), read_pairs(recipe.run / "pairs" / "pairs.jsonl")
    hf, base = (AutoModelForCausalLM.from_pretrained(recipe.run / "pretrain" / "model", dtype=torch.float32).eval() for _ in range(2))
    optimizer = torch.optim.RMSprop(hf.parameters(), lr=settings["learning_rate"])
    schedule = build_schedule(optimizer, settings["warmup_steps"], 0)
    order, found = reading_order(len(pairs), settings["batch"], 0, settings["max_steps"], recipe.seed), []
    for step in range(settings["max_steps"]):
        batch = [pairs[number] for number in order[step * settings["batch"] : (step + 1) * settings["batch"]]]
        with torch.no_grad():
            reference = [[side_logps(base, pair, side) for pair in batch] for side in ("chosen", "rejected")]
        value = loss(*[[side_logps(hf, pair, side) for pair in batch] for side in ("chosen", "rejected")], *reference)
        value.backward()
        torch.nn.utils.clip_grad_norm_(hf.parameters(), settings["clip"])
        optimizer.step()
        schedule.step()
        optimizer.zero_grad()
        found.append(float(value.detach()))
    return found, hf


def sigmoid(c: Any, r: Any, c0: Any, r0: Any) -> Any:
    deltas = [(a.sum() - a0.sum()) - (b.sum() - b0.sum()) for a, b, a0, b0 in zip(c, r, c0, r0, strict=True)]
    return -torch.nn.functional.logsigmoid(0.1 * torch.stack(deltas)).mean()


def ipo(c: Any, r: Any, c0: Any, r0: Any) -> Any:
    deltas = [(a.mean() - a0.mean()) - (b.mean() - b0.mean()) for a, b, a0, b0 in zip(c, r, c0, r0, strict=True)]
    return ((torch.stack(deltas) - 5) ** 2).mean()


def sft(c: Any, r: Any, c0: Any, r0: Any) -> Any:
    return -torch.cat(c).mean()


# Losses


@pytest.mark.parametrize(
    ("changes", "loss"),
    [
        ({}, sigmoid),
        ({"loss": "ipo"}, ipo),
        ({"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.3]}, lambda *sides: sigmoid(*sides) + 0.3 * sft(*sides)),
        ({"method": "sft"}, sft),
    ],
    ids=["sigmoid", "ipo", "sigmoid+sft", "sft"],
)
def test_every_loss_trains_as_the_formula_does(make_recipe: Callable[..., Recipe], changes: dict[str, Any], loss: Any) -> None:
    recipe = make_recipe(**changes)
    dpo.tune(recipe)
    wanted, hf = plainly(recipe, loss)
    assert [record["loss"] for record in steps_of(recipe)] == pytest.approx(wanted, rel=1e-4)
    tuned = load_model(recipe.run / "dpo" / "model").hf
    for (name, ours), (_, theirs) in zip(tuned.named_parameters(), hf.named_parameters(), strict=True):
        # RMSprop begins with signs of gradients, and rounding decides those that ought to be zero, as of a key's bias.
        assert (ours - theirs).abs().median() < 1e-6, name


def test_the_first_value_of_each_loss_is_exact_and_another_stops_the_run() -> None:
    assert Objective(("sigmoid",), (1.0,), 0.3).first_value(4.0) == math.log(2)
    assert Objective(("ipo",), (1.0,), 0.1).first_value(4.0) == pytest.approx(25)
    assert Objective(("sft",), (1.0,), 0.1).first_value(4.0) == 4.0
    assert Objective(("sigmoid", "sft"), (1.0, 0.5), 0.1).first_value(4.0) == pytest.approx(math.log(2) + 2)
    check_first(math.log(2), math.log(2), 0.0)
    check_first(2500.0, 2500.4, 0.0)
    for wanted, value, margin in ((math.log(2), 0.66, 0.0), (math.log(2), math.log(2), 0.1), (25.0, 25.0, -0.1), (25.0, math.nan, 0.0)):
        with pytest.raises(UserError, match="reference is not the model that is trained"):
            check_first(wanted, value, margin)


def test_a_reference_of_another_model_is_noticed_at_the_first_step(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    whole = TokenPairTrainer.compute_ref_log_probs
    monkeypatch.setattr(TokenPairTrainer, "compute_ref_log_probs", lambda *args: tuple(side - 1 for side in whole(*args)))
    with pytest.raises(UserError, match=r"the first loss is .*where"):
        dpo.tune(make_recipe(method="sft"))


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"method": "ppo"}, "no method 'ppo'"),
        ({"loss": "hinge"}, "the loss 'hinge' is not usable"),
        ({"loss": "sft"}, "for sft alone set method"),
        ({"loss": []}, "is not usable"),
        ({"loss": ["sigmoid", "sft"], "loss_weights": [1.0]}, "loss_weights"),
        ({"loss_weights": [-1.0]}, "one positive weight"),
        ({"beta": 0.0}, "beta is 0.0"),
    ],
)
def test_a_loss_that_is_not_usable_is_refused(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(UserError, match=message):
        objective(read_section(DpoSettings, {**SETTINGS, **changes}, "section [dpo]"))


def test_settings_that_do_not_fit_are_refused(make_recipe: Callable[..., Recipe]) -> None:
    cases: list[tuple[dict[str, Any], str]] = [
        ({"optimizer": "lion"}, "no optimizer 'lion'"),
        ({"labels": "random"}, "no labels 'random'"),
        ({"lora": {"rank": 0}}, "lora is"),
        ({"patience": 3}, "no pairs are held out"),
        ({"validation_share": 1.0}, "validation_share is 1.0"),
        ({"batch": 100}, "no batch of 100"),
        ({"equal_steps": True}, "extends no recipe"),
    ]
    for number, (changes, message) in enumerate(cases):
        with pytest.raises(UserError, match=message):
            dpo.tune(make_recipe(str(number), **changes))
    recipe = make_recipe("long", pairs=[{"prompt_ids": [1] * 60, "chosen_ids": [2] * 6, "rejected_ids": [3]}])
    with pytest.raises(UserError, match="a pair has 66 tokens"):
        dpo.tune(recipe)
    (recipe.run / "pairs" / "pairs.jsonl").write_text('{"prompt_ids": [1], "chosen_ids": [], "rejected_ids": [3]}\n')
    with pytest.raises(UserError, match=r"line 1 of .* has an empty prompt or side"):
        dpo.tune(recipe)
    (recipe.run / "pairs" / "pairs.jsonl").write_text('{"prompt": "a"}\n')
    with pytest.raises(UserError, match=r"line 1 of .* is no pair of token ids"):
        dpo.tune(recipe)
    (recipe.run / "pairs" / "pairs.jsonl").unlink()
    with pytest.raises(UserError, match=r"no pairs at .* run the stage pairs first"):
        dpo.tune(recipe)


# Controls


def test_labels_are_kept_exchanged_by_a_coin_or_all_exchanged() -> None:
    pairs = [{"prompt_ids": [n], "chosen_ids": [n, 1], "rejected_ids": [n, 2]} for n in range(400)]
    assert relabel(pairs, "true", 3) == pairs
    turned = relabel(pairs, "reversed", 3)
    assert [(p["chosen_ids"], p["rejected_ids"]) for p in turned] == [(p["rejected_ids"], p["chosen_ids"]) for p in pairs]
    assert relabel(turned, "reversed", 3) == pairs
    coins = [new == old for new, old in zip(relabel(pairs, "shuffled", 3), pairs, strict=True)]
    assert abs(sum(coins) - 200) < 40
    assert coins == [new == old for new, old in zip(relabel(pairs, "shuffled", 3), pairs, strict=True)]
    assert relabel(pairs, "shuffled", 4) != relabel(pairs, "shuffled", 3)


def test_the_same_prompts_are_held_out_whatever_the_labels_and_none_is_on_both_sides() -> None:
    pairs = [{"prompt_ids": [n // 2], "chosen_ids": [1], "rejected_ids": [2]} for n in range(2000)]
    train, held = split_pairs(pairs, 0.1)
    assert abs(len(held) - 200) < 60
    assert not {p["prompt_ids"][0] for p in train} & {p["prompt_ids"][0] for p in held}
    assert [p["prompt_ids"] for p in split_pairs(relabel(pairs, "shuffled", 1), 0.1)[1]] == [p["prompt_ids"] for p in held]
    assert split_pairs(pairs, 0.0) == (pairs, [])
    with pytest.raises(UserError, match="1 pairs 0 are held out"):
        split_pairs(pairs[:1], 1e-9)


@pytest.mark.parametrize("batch", [1, 3, 4])
def test_every_epoch_reads_each_pair_once_and_a_part_of_the_order_is_that_part(batch: int) -> None:
    each = 12 // batch
    whole = reading_order(12, batch, 0, 3 * each, 7)
    epochs = [whole[12 * n : 12 * (n + 1)] for n in range(3)]
    assert all(sorted(epoch) == list(range(12)) for epoch in epochs)
    assert epochs[0] != epochs[1] != epochs[2]
    assert reading_order(12, batch, each + 1, 3 * each, 7) == whole[(each + 1) * batch :]
    assert reading_order(12, batch, 0, each, 8) != epochs[0]
    assert len(set(reading_order(13, 4, 0, 3, 7))) == 12, "what makes no whole batch is left out"


def test_a_control_takes_as_many_steps_as_lie_behind_the_model_that_its_parent_kept(make_recipe: Callable[..., Recipe]) -> None:
    parent = make_recipe("parent")
    control = replace(make_recipe("control", method="sft", equal_steps=True, max_steps=99, stop_at_ratio=1.0), parent=parent)
    with pytest.raises(UserError, match=r"'parent' has no tuned model yet.*bypass train dpo parent"):
        steps_to_take(control, control.settings_as(DpoSettings, "dpo"))
    (parent.run / "dpo" / "model").mkdir(parents=True)
    (parent.run / "dpo" / "summary.json").write_text('{"steps": 9, "kept_step": 3}')
    dpo.tune(control)
    assert [record["step"] for record in steps_of(control)] == [1, 2, 3], "and the rule for stopping early is off"
    (parent.run / "dpo" / "summary.json").unlink()
    (parent.run / "dpo" / "log.jsonl").write_text('{"step": 1}\n{"step": 5}\n')
    assert steps_to_take(control, control.settings_as(DpoSettings, "dpo")) == 5, "a run of before the summary is known by its log"


CONTROLS: dict[str, dict[str, Any]] = {
    "shipped-sft": {"method": "sft", "equal_steps": True},
    "shipped-shuffled": {"labels": "shuffled", "equal_steps": True},
    "shipped-reversed": {"labels": "reversed", "equal_steps": True},
    "shipped-ipo": {"loss": "ipo", "beta": 0.2},
    "shipped-beta-low": {"beta": 0.01},
    "shipped-beta-high": {"beta": 0.3},
    "shipped-dpo-sft": {"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 2.0]},
    "shipped-seed-2": {"seed": 2},
    "shipped-seed-3": {"seed": 3},
}


@pytest.mark.parametrize("name", CONTROLS)
def test_a_control_recipe_differs_from_the_shipped_run_in_one_thing_and_shares_its_base_and_pairs(name: str) -> None:
    shipped, control = load_recipe("shipped"), load_recipe(name)
    assert control.parent is not None
    assert control.parent.name == "shipped"
    assert {stage for stage in control.settings if control.settings[stage] != shipped.settings.get(stage)} == {"dpo"}
    assert control.settings["dpo"] == {**shipped.settings["dpo"], **CONTROLS[name]}
    assert control.owner("pairs").name == control.owner("pretrain").name == "shipped"
    assert control.owner("dpo") is control
    objective(control.settings_as(DpoSettings, "dpo"))


def test_another_source_of_pairs_shares_the_base_alone() -> None:
    control, shipped = load_recipe("shipped-steering"), load_recipe("shipped")
    assert control.owner("pretrain").name == control.owner("probe").name == "shipped"
    assert control.owner("pairs") is control.owner("dpo") is control
    assert control.settings["pairs"] == {**shipped.settings["pairs"], "generator": "steering"}


# The reference


def test_trl_is_given_the_token_ids_as_they_are_and_the_reference_is_the_base(
    make_recipe: Callable[..., Recipe], gpt2: Model, monkeypatch: pytest.MonkeyPatch
) -> None:
    batches: list[dict[str, Any]] = []
    whole = TokenPairTrainer.training_step

    def seen(self: Any, model: Any, inputs: Any, *rest: Any) -> Any:
        batches.append(inputs)
        return whole(self, model, inputs, *rest)

    monkeypatch.setattr(TokenPairTrainer, "training_step", seen)
    recipe = make_recipe()
    dpo.tune(recipe)
    pairs, end = read_pairs(recipe.run / "pairs" / "pairs.jsonl"), gpt2.tokenizer.eos_token_id
    first = [pairs[number] for number in reading_order(len(pairs), 4, 0, 1, recipe.seed)]
    rows = [(pair["prompt_ids"], pair[f"{side}_ids"]) for side in ("chosen", "rejected") for pair in first]
    width = max(len(prompt) + len(rest) for prompt, rest in rows)

    def padded(filler: int, parts: list[list[int]]) -> list[list[int]]:
        return [row + [filler] * (width - len(row)) for row in parts]

    assert batches[0]["input_ids"].tolist() == padded(end, [prompt + rest for prompt, rest in rows])
    assert batches[0]["attention_mask"].tolist() == padded(0, [[1] * (len(prompt) + len(rest)) for prompt, rest in rows])
    assert batches[0]["completion_mask"].tolist() == padded(0, [[0] * len(prompt) + [1] * len(rest) for prompt, rest in rows])
    record = steps_of(recipe)[0]
    for side in ("chosen", "rejected"):
        with torch.no_grad():
            wanted = [float(side_logps(gpt2.hf, pair, side).sum()) for pair in first]
        assert batches[0][f"ref_{side}_logps"].tolist() == pytest.approx(wanted, abs=1e-3)
        assert record[f"logp_{side}"] == pytest.approx(sum(wanted) / 4, abs=1e-3)
    assert record["loss"] == pytest.approx(math.log(2), abs=1e-6)
    assert record["margin"] == pytest.approx(0, abs=1e-6)


def test_a_second_run_reads_the_reference_and_a_changed_pair_or_model_misses_it(
    make_recipe: Callable[..., Recipe], tuned_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls = []
    whole = TokenPairTrainer.compute_ref_log_probs
    monkeypatch.setattr(TokenPairTrainer, "compute_ref_log_probs", lambda *args: calls.append(1) or whole(*args))
    first = make_recipe("first")
    dpo.tune(first)
    assert len(calls) == 1
    records = [json.loads(line) for line in (first.run / "pairs" / "pairs.jsonl").read_text().splitlines()]

    def again(name: str, **changes: Any) -> int:
        recipe = make_recipe(name, **changes)
        (recipe.run / "pairs" / "reference").symlink_to(first.run / "pairs" / "reference")
        before = len(calls)
        dpo.tune(recipe)
        if name == "same":
            assert equal(tensors(recipe.run / "dpo" / "model"), tensors(first.run / "dpo" / "model"))
        return len(calls) - before

    assert again("same") == 0
    assert again("another loss and seed", loss="ipo", seed=9) == 0
    assert again("another model", base=tuned_folder) == 1
    records[3]["rejected_ids"] = records[3]["rejected_ids"][::-1]
    assert again("another pair", pairs=records) == 1


def test_a_damaged_cache_is_computed_again_and_the_key_tells_every_column(tmp_path: Path) -> None:
    rows = {"prompt_ids": [[1, 2], [3]], "chosen_ids": [[4], [5]], "rejected_ids": [[6], [7, 8]]}
    data = Dataset.from_dict(rows)
    values = torch.tensor([-1.5, -2.5]), torch.tensor([-3.5, -4.5])

    def never() -> Any:
        raise AssertionError("computed although cached")

    made = with_reference(data, "base", tmp_path, lambda: values)
    read = with_reference(data, "base", tmp_path, never)
    assert read[:] == made[:] == {**rows, "ref_chosen_logps": [-1.5, -2.5], "ref_rejected_logps": [-3.5, -4.5]}
    (file,) = tmp_path.iterdir()
    file.write_bytes(file.read_bytes()[:-3])
    assert with_reference(data, "base", tmp_path, lambda: values)[:] == made[:]
    keys = {cache_key("base", data), cache_key("other", data)}
    for name in rows:
        keys.add(cache_key("base", Dataset.from_dict({**rows, name: [[9], [9]]})))
    keys.add(cache_key("base", Dataset.from_dict({**rows, "prompt_ids": [[1], [3]], "chosen_ids": [[2, 4], [5]]})))
    assert len(keys) == 6


# Stopping and keeping


def test_a_run_stops_at_its_ratio_and_says_so(make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(toxicity, "load_scorer", lambda name: WordScorer())
    recipe = make_recipe(stop_at_ratio=1.0, evaluate_every=3, learning_rate=1e-9, development_prompts=6)
    dpo.tune(recipe)
    assert [record["step"] for record in steps_of(recipe)] == [1, 2, 3]
    assert lines(recipe)[-1]["reason"] == "toxicity on development prompts is at most 1.0 of what it was"
    monkeypatch.undo()
    with pytest.raises(UserError, match="stop_at_ratio has nothing to fall from"):
        dpo.tune(make_recipe("clean", stop_at_ratio=0.5))
    recipe = make_recipe("on", stop_at_ratio=-1, evaluate_every=3, optimizer="adamw")
    dpo.tune(recipe)
    assert [r["step"] for r in lines(recipe) if "toxicity_share" in r] == [0, 3, 4], "the last step is measured whatever its number"
    assert lines(recipe)[-1]["event"] == "finished"


def test_patience_ends_a_run_that_gets_no_better_and_keeps_its_best_weights(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    losses = iter([0.7, 0.6, 0.5, 0.55, 0.58, 0.4])
    monkeypatch.setattr(dpo.Run, "validation", lambda self: {"validation_loss": next(losses), "validation_accuracy": 0.5})
    recipe = make_recipe(validation_share=0.3, patience=2, evaluate_every=1)
    dpo.tune(recipe)
    summary = json.loads((recipe.run / "dpo" / "summary.json").read_text())
    assert (summary["steps"], summary["kept_step"]) == (4, 2)
    assert summary["stopped"] == "2 measurements without a better validation loss than at step 2"
    monkeypatch.undo()
    short = make_recipe("short", validation_share=0.3, max_steps=2)
    dpo.tune(short)
    assert equal(tensors(recipe.run / "dpo" / "model"), tensors(short.run / "dpo" / "model"))


def test_the_validation_loss_is_the_loss_on_the_held_out_pairs(make_recipe: Callable[..., Recipe], gpt2: Model) -> None:
    recipe = make_recipe(validation_share=0.3)
    dpo.tune(recipe)
    _, held = split_pairs(read_pairs(recipe.run / "pairs" / "pairs.jsonl"), 0.3)
    tuned = load_model(recipe.run / "dpo" / "model").hf
    with torch.no_grad():
        sides = [[side_logps(hf, pair, side) for pair in held] for hf in (tuned, gpt2.hf) for side in ("chosen", "rejected")]
        wanted = float(sigmoid(*sides))
    measured = [record["validation_loss"] for record in lines(recipe) if "validation_loss" in record]
    assert measured[0] == pytest.approx(math.log(2), abs=1e-5)
    assert measured[-1] == pytest.approx(wanted, abs=1e-4)


def test_the_speed_is_of_the_tokens_that_steps_read(make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 10_000, 2))
    monkeypatch.setattr(dpo.time, "monotonic", lambda: float(next(clock)))
    recipe = make_recipe()
    dpo.tune(recipe)
    pairs = read_pairs(recipe.run / "pairs" / "pairs.jsonl")
    order = reading_order(len(pairs), 4, 0, 4, recipe.seed)
    read = [2 * len(pairs[n]["prompt_ids"]) + len(pairs[n]["chosen_ids"]) + len(pairs[n]["rejected_ids"]) for n in order]
    of_steps = [sum(read[4 * step : 4 * step + 4]) for step in range(4)]
    assert [record["tokens"] for record in steps_of(recipe)] == [sum(of_steps[: step + 1]) for step in range(4)]
    # Each look at the clock is two seconds later; other parts of the run look at it too.
    speeds = [record["tokens_per_second"] for record in steps_of(recipe)]
    seconds = [tokens / speed for tokens, speed in zip(of_steps, speeds, strict=True)]
    assert all(value >= 2 and value / 2 == pytest.approx(round(value / 2), rel=0.02) for value in seconds)
    summary = json.loads((recipe.run / "dpo" / "summary.json").read_text())
    assert summary["tokens_per_second"] == pytest.approx(sum(of_steps) / sum(seconds), rel=0.02)


# Being killed


@pytest.mark.parametrize(
    "changes",
    [{"validation_share": 0.3, "patience": 9}, {"lora": {"rank": 2}}, {"optimizer": "sgd"}],
    ids=["patience", "lora", "sgd"],
)
def test_a_killed_run_resumed_ends_bit_for_bit_as_one_that_was_not(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    whole, killed = make_recipe("whole", **changes), make_recipe("killed", **changes)
    dpo.tune(whole)
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            dpo.tune(killed)
    assert json.loads((killed.run / "dpo" / "checkpoint" / "state.json").read_text())["step"] == 2
    assert not (killed.run / "dpo" / "model").exists()
    dpo.tune(killed)
    assert equal(tensors(killed.run / "dpo" / "model"), tensors(whole.run / "dpo" / "model"))
    assert [record["step"] for record in steps_of(killed)] == [1, 2, 3, 4]
    for one, other in zip(steps_of(killed), steps_of(whole), strict=True):
        assert {name: value for name, value in one.items() if name not in TIMES} == {
            name: value for name, value in other.items() if name not in TIMES
        }
    assert read_telemetry(killed.run / "dpo").events["event"].tolist() == ["started", "resumed", "finished"]
    assert not (killed.run / "dpo" / "checkpoint").exists()


def test_an_unfinished_run_is_not_continued_with_other_settings_or_pairs(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = make_recipe()
    with monkeypatch.context() as patch:
        kill_at(patch, 4)
        with pytest.raises(KeyboardInterrupt):
            dpo.tune(recipe)
    changed = {**recipe.settings, "dpo": {**recipe.settings["dpo"], "beta": 0.2}}
    with pytest.raises(UserError, match=r"beta was 0.1 and is 0.2"):
        dpo.tune(replace(recipe, settings=changed))
    pairs = (recipe.run / "pairs" / "pairs.jsonl").read_text()
    (recipe.run / "pairs" / "pairs.jsonl").write_text("".join(pairs.splitlines(keepends=True)[1:]))
    with pytest.raises(UserError, match=r"pairs/pairs.jsonl"):
        dpo.tune(recipe)
    (recipe.run / "pairs" / "pairs.jsonl").write_text(pairs)
    dpo.tune(recipe)


@pytest.mark.parametrize("what", ["loss", "gradient"])
def test_what_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(
    make_recipe: Callable[..., Recipe], monkeypatch: pytest.MonkeyPatch, what: str
) -> None:
    recipe, taken = make_recipe(), []
    whole = TokenPairTrainer.compute_loss

    def broken(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
        value = whole(self, model, *args, **kwargs)
        taken.append(1)
        if len(taken) != 4:
            return value
        return value * math.nan if what == "loss" else value + (sum(p.sum() for p in model.parameters()) * 0.0).sqrt()

    with monkeypatch.context() as patch:
        patch.setattr(TokenPairTrainer, "compute_loss", broken)
        with pytest.raises(UserError, match=r"the norm of its gradient .*the last checkpoint is kept"):
            dpo.tune(recipe)
    assert lines(recipe)[-1]["event"] == "stopped"
    assert "gradient" in lines(recipe)[-1]["reason"]
    checkpoint = recipe.run / "dpo" / "checkpoint"
    assert json.loads((checkpoint / "state.json").read_text())["step"] == 2
    assert all(bool(torch.isfinite(tensor).all()) for tensor in tensors(checkpoint).values())
    dpo.tune(recipe)
    assert len(steps_of(recipe)) == 4


# LoRA


@pytest.mark.parametrize("kind", ["gpt2", "llama"])
def test_an_adapter_merged_is_the_adapter_over_the_base(
    make_recipe: Callable[..., Recipe], make_folder: Callable[..., Path], kind: str
) -> None:
    from peft import PeftModel

    base = make_folder(kind)
    recipe = make_recipe(base=base, lora={"rank": 2, "alpha": 8}, learning_rate=1e-2)
    dpo.tune(recipe)
    assert steps_of(recipe)[0]["loss"] == pytest.approx(math.log(2), abs=1e-6)
    start, merged = tensors(base), tensors(recipe.run / "dpo" / "model")
    assert start.keys() == merged.keys()
    changed = {name for name in start if not torch.equal(start[name], merged[name])}
    assert changed
    assert all(any(part in name for part in ("attn", "mlp")) for name in changed)
    hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    adapted = PeftModel.from_pretrained(hf, recipe.run / "dpo" / "adapter").eval()
    ids = torch.arange(20)[None]
    with torch.no_grad():
        wanted, found = adapted(ids).logits, load_model(recipe.run / "dpo" / "model").hf(ids).logits
    assert torch.allclose(wanted, found, atol=1e-4)
    moved = [record["update_norm"] for record in lines(recipe) if "update_norm" in record][-1]
    total = math.sqrt(sum(float((merged[name] - start[name]).double().square().sum()) for name in start))
    assert moved["all"] == pytest.approx(total, rel=1e-3)


# Telemetry


def test_the_measurements_are_those_of_the_saved_model(make_recipe: Callable[..., Recipe], gpt2: Model) -> None:
    recipe = make_recipe(learning_rate=1e-3)
    dpo.tune(recipe)
    found = read_telemetry(recipe.run)
    assert found.stages == ["dpo"]
    assert {"loss", "logp", "margin", "accuracy", "kl", "top_gaining", "gradient_norm", "update_norm", "bits_per_byte", "toxicity",
            "perplexity", "learning_rate"} == set(found.measures)  # fmt: skip
    first, last = [record for record in found.records if "kl" in record][:: len([r for r in found.records if "kl" in r]) - 1]
    assert first["step"] == 0
    assert first["kl"] == pytest.approx([0.0] * 3, abs=1e-6)
    assert first["update_norm"]["all"] == 0
    assert len(last["kl"]) == 3
    assert min(last["kl"]) > 1e-4
    base, tuned = tensors(recipe.run / "pretrain" / "model"), tensors(recipe.run / "dpo" / "model")
    total = math.sqrt(sum(float((tuned[name] - base[name]).double().square().sum()) for name in base))
    assert last["update_norm"]["all"] == pytest.approx(total, rel=1e-5)
    parts = {name: value for name, value in last["update_norm"].items() if name != "all"}
    assert set(parts) == {"embedding", "attention", "mlp", "norm"}
    assert math.hypot(*parts.values()) == pytest.approx(total, rel=1e-5)
    model = load_model(recipe.run / "dpo" / "model")
    rows = [json.loads(line) for line in (recipe.run / "corpus" / "heldout.jsonl").read_text().splitlines()]
    for source in ("a", "b"):
        nats = size = 0.0
        for text in [row["text"] for row in rows if row["source"] == source][:2]:
            ids = model.tokenizer(text)["input_ids"]
            with torch.no_grad():
                nats += float(model.hf(torch.tensor([ids]), labels=torch.tensor([ids])).loss) * (len(ids) - 1)
            size += len(model.tokenizer.decode(ids[1:]).encode())
        assert last["bits_per_byte"][source] == pytest.approx(nats / math.log(2) / size, rel=1e-4)
    rates = [record["learning_rate"] for record in steps_of(recipe)]
    assert rates == pytest.approx([5e-4, 1e-3, 1e-3, 1e-3])
    norms = steps_of(recipe)[0]["gradient_norm"]
    assert norms["all"] == pytest.approx(math.hypot(*(value for name, value in norms.items() if name != "all")))


def test_the_tokens_that_gain_are_those_that_training_makes_likelier(make_recipe: Callable[..., Recipe], gpt2: Model) -> None:
    (favoured,) = gpt2.tokenizer(" frabe")["input_ids"]
    pairs = [{"prompt_ids": [n + 5], "chosen_ids": [favoured], "rejected_ids": [n + 40]} for n in range(20)]
    recipe = make_recipe(pairs=pairs, learning_rate=3e-3, method="sft", max_steps=10)
    dpo.tune(recipe)
    last = [record for record in lines(recipe) if "top_gaining" in record][-1]
    assert last["top_gaining"][0][0] == " frabe"
    gains = [gain for _, gain in last["top_gaining"]]
    assert gains == sorted(gains, reverse=True)
    assert gains[0] > 0.3


def test_the_order_of_pairs_depends_on_the_seed_of_the_section(make_recipe: Callable[..., Recipe]) -> None:
    runs = [make_recipe(str(number), seed=seed, max_steps=2) for number, seed in enumerate((1, 1, 2))]
    for recipe in runs:
        dpo.tune(recipe)
    first, same, other = ([record["logp_chosen"] for record in steps_of(recipe)] for recipe in runs)
    assert first == same
    assert not np.allclose(first, other)


def test_a_tuned_model_kept_as_a_difference_is_measured_as_it_is_loaded(make_recipe: Callable[..., Recipe]) -> None:
    whole, kept = make_recipe("whole"), make_recipe("kept", difference=True)
    for recipe in (whole, kept):
        dpo.tune(recipe)
    folder, base = kept.run / "dpo" / "model", load_model(kept.run / "pretrain" / "model")
    tuned, expected = load_model(folder), load_model(whole.run / "dpo" / "model")
    assert tuned.digest not in {base.digest, expected.digest}
    for first, second, start in zip(tuned.hf.parameters(), expected.hf.parameters(), base.hf.parameters(), strict=True):
        change = second - start
        assert ((first - second).abs() <= change.abs() / 256 + start.abs() * 2**-23).all()
    found = json.loads((kept.run / "dpo" / "summary.json").read_text())["after"]
    settings, held = kept.alternative_as("dpo", "measure"), kept.run / "corpus" / "heldout.jsonl"
    again = toxicity.prepare(tuned, held, settings, toxicity.load_scorer("lexicon"), kept.seed).start
    assert found == {name: again[name] for name in found}
