"""Preference tuning, and pretraining, in two processes that share each batch, as `accelerate launch` starts them: what they make is
what one process makes.

One launch takes all runs in turn, because most of its time is spent on starting. Its last run ends with one process killed.
"""

from __future__ import annotations

import json
import math
import random
import subprocess
import sys
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from interp import Model, UserError
from tests import ROOT
from tests.training import test_training_processes as pretraining
from tests.training.small_dpo import WordScorer, kill_at, lines, steps_of, tensors
from training import dpo
from training.cli import run_stage
from training.measures import toxicity
from training.parallel import Processes
from training.recipe import RUNS_SETTING, Recipe, load_recipe

pytestmark = pytest.mark.slow

STEPS = 6
# Plain gradient descent: what divides by the size of a gradient makes much of the rounding of one that ought to be zero.
SETTINGS: dict[str, Any] = {
    "scorer": "letters", "loss": "sigmoid", "beta": 0.1, "optimizer": "sgd", "learning_rate": 1e-2, "batch": 4, "warmup_steps": 2,
    "max_steps": STEPS, "clip": 10.0, "development_prompts": 6, "kl_prompts": 2, "heldout_texts": 2, "evaluate_every": 2,
}  # fmt: skip
RUNS: dict[str, dict[str, Any]] = {
    "plain": {"validation_share": 0.3, "patience": 9},
    "mixed": {"loss": ["sigmoid", "sft"], "loss_weights": [1.0, 0.5]},
    "adapter": {"lora": {"rank": 2, "alpha": 8}},
    "stopping": {"stop_at_ratio": 1.0, "evaluate_every": 3, "learning_rate": 1e-9, "optimizer": "rmsprop"},
    "odd": {"batch": 3},
    "resumed": {},
    "killed": {},
}
WORDS = ("river", "stone", "wintle", "frabe", "quonk", "meldy", "sings", "walks", "under", "sunny")
LAUNCH = f"""{pretraining.SPY}
import signal
from interp.errors import UserError
from tests.training.small_dpo import WordScorer
from training import dpo, preference_trainer
from training.measures import toxicity
from training.cli import run_stage
from training.preference_trainer import TokenPairTrainer

folder, rank = Path(sys.argv[1]), int(os.environ["RANK"])
toxicity.NEW_TOKENS = 3
toxicity.load_scorer = lambda name: WordScorer() if rank == 0 else sys.exit("a process that does not write loads a scorer")
seen = {{}}
check, references, step = dpo.check_first, TokenPairTrainer.compute_ref_log_probs, TokenPairTrainer.training_step

def checked(wanted, value, margin):
    seen[name]["first"] = [wanted, value]
    check(wanted, value, margin)

def referred(self, *args):
    seen[name]["references"] += 1
    return references(self, *args)

def stepped(self, model, inputs, *rest):
    seen[name]["rows"].append(len(inputs["ref_chosen_logps"]))
    if name == "killed" and rank == 1 and len(seen[name]["rows"]) == 4:
        os.kill(os.getpid(), signal.SIGKILL)
    return step(self, model, inputs, *rest)

Processes.prepare = spy
run_stage("pretrain", sys.argv[2])
Processes.prepare = prepare
dpo.check_first, TokenPairTrainer.compute_ref_log_probs, TokenPairTrainer.training_step = checked, referred, stepped
for name in {tuple(RUNS)!r}:
    seen[name] = {{"references": 0, "rows": []}}
    try:
        run_stage("dpo", folder / f"{{name}}.toml")
    except UserError as error:
        seen[name]["error"] = str(error)
    (folder / f"rank{{rank}}.json").write_text(json.dumps(seen))
"""


@dataclass(frozen=True)
class Launched:
    """What each process of the launch saw of each run, what they printed together, and how it ended."""

    ranks: list[dict[str, Any]]
    stdout: str
    code: int
    folder: Path

    def recipe(self, name: str) -> Recipe:
        return _recipe(self.folder, name, "two")


def _recipe(folder: Path, name: str, count: str) -> Recipe:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(RUNS_SETTING, str(folder / count))
        return load_recipe(folder / f"{name}.toml")


def _toml(value: Any) -> str:
    return f"{{ {', '.join(f'{key} = {_toml(item)}' for key, item in value.items())} }}" if isinstance(value, dict) else json.dumps(value)


@pytest.fixture(scope="module")
def recipes(gpt2_folder: Path, gpt2: Model, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a recipe for each run, and below `one` and `two` what its stage reads; the sides of pairs differ in length."""
    folder, draw = tmp_path_factory.mktemp("parallel"), random.Random(0)

    def words(fewest: int, most: int) -> str:
        return "".join(f" {draw.choice(WORDS)}" for _ in range(draw.randint(fewest, most)))

    records = [{"prompt": words(3, 3), "chosen": words(2, 9), "rejected": words(2, 9)} for _ in range(22)]
    pairs = [record | {f"{side}_ids": gpt2.tokenizer(text)["input_ids"] for side, text in record.items()} for record in records]
    held = [{"source": ("a", "b")[n % 2], "text": f"the{words(5, 5)} damn{words(4, 4)}"} for n in range(12)]
    for name, changes in RUNS.items():
        section = "".join(f"{key} = {_toml(value)}\n" for key, value in {**SETTINGS, **changes}.items())
        (folder / f"{name}.toml").write_text(f"seed = 5\n[corpus]\n[pretrain]\n[pairs]\n[dpo]\n{section}")
        for run in (folder / "one" / name, folder / "two" / name):
            for part in ("pretrain", "pairs", "corpus"):
                (run / part).mkdir(parents=True)
            (run / "pretrain" / "model").symlink_to(gpt2_folder)
            (run / "pairs" / "pairs.jsonl").write_text("".join(json.dumps(pair) + "\n" for pair in pairs))
            for part in ("train", "heldout"):
                (run / "corpus" / f"{part}.jsonl").write_text("".join(json.dumps(record) + "\n" for record in held))
    return folder


@pytest.fixture(scope="module")
def alone(recipes: Path) -> Callable[..., Recipe]:
    """`alone(name, count="one", stop=None)`: run a recipe in this process, or until it is interrupted at a step."""

    def run(name: str, count: str = "one", stop: int | None = None) -> Recipe:
        with pytest.MonkeyPatch.context() as patch:
            patch.setenv(RUNS_SETTING, str(recipes / count))
            patch.setattr(toxicity, "NEW_TOKENS", 3)
            patch.setattr(toxicity, "load_scorer", lambda name: WordScorer())
            if stop is None:
                run_stage("dpo", recipes / f"{name}.toml")
            else:
                kill_at(patch, stop)
                with pytest.raises(KeyboardInterrupt):
                    run_stage("dpo", recipes / f"{name}.toml")
        return _recipe(recipes, name, count)

    return run


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    """What is pretrained from: a recipe with its corpus and tokenizer."""
    return pretraining.twelve_steps(tmp_path_factory.mktemp("language"))


@pytest.fixture(scope="module")
def launched(recipes: Path, built: Recipe, alone: Callable[..., Recipe]) -> Launched:
    """All runs in two processes, pretraining first; that of `resumed` was begun in one."""
    pretraining.copy(built, recipes / "two")
    begun = alone("resumed", "two", stop=4)
    assert json.loads((begun.run / "dpo" / "checkpoint" / "state.json").read_text())["step"] == 2
    (recipes / "launched.py").write_text(LAUNCH)
    words = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "training/recipes/accelerate/data-parallel.yaml")]
    words += ["--main_process_port", "0", str(recipes / "launched.py"), str(recipes)]
    words.append(str(pretraining.root_of(built) / "tiny.toml"))
    own = pretraining.environment(built, recipes / "two")
    done = subprocess.run([sys.executable, *words], env=own, cwd=ROOT, capture_output=True, text=True, check=False, timeout=280)
    found = [recipes / f"rank{rank}.json" for rank in (0, 1)]
    assert all(file.is_file() for file in found), done.stderr[-3000:]
    return Launched([json.loads(file.read_text()) for file in found], done.stdout, done.returncode, recipes)


def distance(first: Recipe, second: Recipe) -> float:
    a, b = tensors(first.run / "dpo" / "model"), tensors(second.run / "dpo" / "model")
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def moved(recipe: Recipe) -> float:
    start, end = tensors(recipe.run / "pretrain" / "model"), tensors(recipe.run / "dpo" / "model")
    return max(float((end[name] - start[name]).abs().max()) for name in end)


def same(one: Any, two: Any) -> bool:
    """Equal up to rounding, whatever the nesting."""
    if isinstance(one, dict):
        return one.keys() == two.keys() and all(same(one[key], two[key]) for key in one.keys() - {"seconds", "tokens_per_second"})
    if isinstance(one, list):
        return len(one) == len(two) and all(map(same, one, two))
    return math.isclose(one, two, rel_tol=1e-3, abs_tol=1e-5) if isinstance(one, float) else one == two


@pytest.mark.parametrize("name", ["plain", "mixed", "adapter"])
def test_two_processes_that_share_each_batch_make_the_weights_and_the_log_of_one(
    launched: Launched, alone: Callable[..., Recipe], name: str
) -> None:
    one, two = alone(name), launched.recipe(name)
    assert [rank[name]["rows"] for rank in launched.ranks] == [[2] * STEPS] * 2
    assert moved(one) > 1e-3
    assert distance(one, two) < 1e-5
    assert [record["step"] for record in lines(two)] == [record["step"] for record in lines(one)]
    for record, other in zip(lines(one), lines(two), strict=True):
        assert record.keys() == other.keys()
        # Which side is ahead, and which tokens gain, is a matter of rounding before the weights have moved.
        unmoved = {"top_gaining", "accuracy", "validation_accuracy"} if record["step"] <= 1 else set()
        assert [key for key in record if key not in unmoved and not same({key: record[key]}, {key: other[key]})] == []
    summaries = [json.loads((recipe.run / "dpo" / "summary.json").read_text()) for recipe in (one, two)]
    assert same(*summaries)
    stamps = [json.loads((recipe.run / "dpo" / "stamp.json").read_text()) for recipe in (one, two)]
    assert stamps[0]["made_from"] == stamps[1]["made_from"]
    assert not (two.run / "dpo" / "checkpoint").exists()


def test_two_processes_that_share_each_batch_of_pretraining_make_the_weights_of_one(
    launched: Launched, built: Recipe, tmp_path: Path
) -> None:
    whole = pretraining.run_whole(built, tmp_path)
    recipe = replace(whole, run=launched.folder / "two" / built.name)
    held = sum(tensor.numel() for tensor in pretraining.tensors(whole).values())
    assert pretraining.spied(launched.folder) == [{"count": 2, "sharded": False, "held": held}] * 2
    assert 0 < pretraining.distance(recipe, whole) < 1e-5
    steps = [json.loads(line)["step"] for line in (recipe.run / "pretrain/log.jsonl").read_text().splitlines()]
    assert steps == [0, 12, 12], "the log is written once"
    assert launched.stdout.count("step 12/12") == 1, "one process speaks"


def test_the_reference_is_computed_once_and_every_process_checks_its_own_first_loss(launched: Launched) -> None:
    writer, other = (rank["plain"] for rank in launched.ranks)
    assert (writer["references"], other["references"]) == (2, 0), "once for the pairs, once for those held out"
    for rank in (writer, other):
        assert rank["first"] == pytest.approx([math.log(2)] * 2, abs=1e-6)
    firsts = [rank["mixed"]["first"] for rank in launched.ranks]
    assert all(wanted == pytest.approx(value, rel=1e-5) for wanted, value in firsts)
    assert firsts[0][0] != pytest.approx(firsts[1][0], rel=1e-3), "each has other pairs"


def test_both_stop_where_the_one_that_measures_says_so(launched: Launched) -> None:
    recipe = launched.recipe("stopping")
    assert [rank["stopping"]["rows"] for rank in launched.ranks] == [[2] * 3] * 2
    assert [record["step"] for record in steps_of(recipe)] == [1, 2, 3]
    assert lines(recipe)[-1]["reason"] == "toxicity on development prompts is at most 1.0 of what it was"


def test_two_processes_go_on_from_the_checkpoint_of_one(launched: Launched, alone: Callable[..., Recipe]) -> None:
    recipe, whole = launched.recipe("resumed"), alone("resumed")
    assert [rank["resumed"]["rows"] for rank in launched.ranks] == [[2] * (STEPS - 2)] * 2
    assert distance(recipe, whole) < 1e-5
    assert [record["step"] for record in steps_of(recipe)] == list(range(1, STEPS + 1))


def test_a_killed_process_ends_the_launch_and_one_goes_on_from_the_checkpoint_of_two(
    launched: Launched, alone: Callable[..., Recipe]
) -> None:
    assert launched.code != 0
    folder = launched.recipe("killed").run / "dpo"
    assert json.loads((folder / "checkpoint" / "state.json").read_text())["step"] == 2
    assert not (folder / "model").exists()
    whole, recipe = alone("resumed"), alone("killed", "two")
    assert distance(recipe, whole) < 1e-5
    assert [record["step"] for record in steps_of(recipe)] == list(range(1, STEPS + 1))


def test_a_batch_that_does_not_divide_is_refused_in_every_process_before_anything_is_written(launched: Launched) -> None:
    for rank in launched.ranks:
        assert "a batch of 3 cannot be divided over 2 processes" in rank["odd"]["error"]
        assert "change batch, or the number of processes" in rank["odd"]["error"]
    assert not (launched.recipe("odd").run / "dpo").exists()
    assert launched.stdout.count(f"step {STEPS}/{STEPS}") == 4, "one process speaks"


def test_weights_divided_over_processes_are_refused_with_a_way_out(recipes: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Processes, "sharded", property(lambda self: True))
    with pytest.raises(UserError, match=r"FSDP divides them.*data-parallel.yaml"):
        dpo.tune(_recipe(recipes, "plain", "one"))
