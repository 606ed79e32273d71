"""Pretraining in processes of its own: killed at any moment, and divided over two of them, it makes the same weights.

That two which share each batch make them too is seen in test_dpo_parallel.py, whose launch has time for it.
"""

from __future__ import annotations

import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

from tests import ROOT
from tests.training.grammar import build_language
from training import packing
from training.packing import window
from training.parallel import Processes
from training.pretrain import pretrain
from training.recipe import DATA_SETTING, RUNS_SETTING, Recipe, load_recipe

# Each process says what it has of the model.
SPY = """
import json, os, sys
from pathlib import Path
from training.parallel import Processes
prepare = Processes.prepare
def spy(self, model, optimizers):
    made = prepare(self, model, optimizers)
    held = sum(getattr(p, "_local_tensor", p).numel() for p in made[0].parameters())
    file = Path(sys.argv[1], f"pretraining{self.rank}.json")
    file.write_text(json.dumps({"count": self.count, "sharded": self.sharded, "held": held}))
    return made
"""
LAUNCH = f"""{SPY}
Processes.prepare = spy
from training.cli import run_stage
run_stage("pretrain", sys.argv[2])
"""
# For each line that it reads, a process that runs the stage; it imports the libraries once for all of them. Each step waits a little,
# so that a kill finds the run under way, in whatever it does then.
STARTER = """
import os, sys, time
from training import packing, pretrain
from training.cli import run_stage
real = packing.window
packing.window = lambda *a: time.sleep(0.05) or real(*a)
for line in sys.stdin:
    child = os.fork()
    if not child:
        os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        run_stage("pretrain", sys.argv[1])
        os._exit(0)
    print(child, flush=True)
    print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
"""


def twelve_steps(root: Path) -> Recipe:
    """A recipe of twelve steps in full precision below `root`, with its corpus and tokenizer."""
    recipe = build_language(root)
    text = (root / "tiny.toml").read_text(encoding="utf-8").split("[probe]")[0]
    settings = "steps = 12\nprecision = 'fp32'\nevaluate_kilobytes = 1\nsample_prompts = []"
    changes = {
        "epochs = 2": settings,
        "evaluate_every = 50": "evaluate_every = 12",
        "checkpoint_every = 50": "checkpoint_every = 2",
        # AdamW divides by the size of the gradient, so the rounding of a small one counts in units of the learning rate.
        "learning_rate = 1e-2": "learning_rate = 1e-3",
    }
    for old, new in changes.items():
        assert old in text
        text = text.replace(old, new)
    (root / "tiny.toml").write_text(text, encoding="utf-8")
    return replace(recipe, settings=load_recipe(root / "tiny.toml").settings)


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return twelve_steps(tmp_path_factory.mktemp("language"))


def copy(built: Recipe, folder: Path) -> Recipe:
    """The recipe with its corpus and tokenizer below `folder`, as its own processes will find it there."""
    run = folder / built.name
    for part in ("corpus", "tokenizer"):
        shutil.copytree(built.run / part, run / part, dirs_exist_ok=True)
    return replace(built, run=run)


def root_of(built: Recipe) -> Path:
    return built.run.parent.parent


def run_whole(built: Recipe, folder: Path) -> Recipe:
    """A run that nothing interrupted, in one process."""
    recipe = copy(built, folder)
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_SETTING, str(root_of(built)))
        pretrain(recipe)
    return recipe


@pytest.fixture(scope="module")
def whole(built: Recipe, tmp_path_factory: pytest.TempPathFactory) -> Recipe:
    return run_whole(built, tmp_path_factory.mktemp("whole"))


def environment(built: Recipe, runs: Path) -> dict[str, str]:
    """Of a process of its own, which computes with as many threads as this one."""
    own = {
        DATA_SETTING: str(root_of(built)),
        RUNS_SETTING: str(runs),
        "OMP_NUM_THREADS": str(torch.get_num_threads()),
        "PYTHONPATH": str(ROOT),
    }
    return {**os.environ, **own}


def tensors(recipe: Recipe, part: str = "model") -> dict[str, torch.Tensor]:
    return load_file(recipe.run / "pretrain" / part / "model.safetensors")


def distance(first: Recipe, second: Recipe) -> float:
    a, b = tensors(first), tensors(second)
    assert a.keys() == b.keys()
    return max(float((a[name] - b[name]).abs().max()) for name in a)


def step_of(recipe: Recipe) -> int:
    file = recipe.run / "pretrain" / "checkpoint" / "state.json"
    return json.loads(file.read_text())["step"] if file.exists() else 0


def runs(process: int) -> bool:
    """Whether there is a process of this number."""
    try:
        os.kill(process, 0)
    except ProcessLookupError:
        return False
    return True


def test_a_process_killed_at_random_moments_ends_bit_for_bit_as_one_that_was_not(
    built: Recipe, whole: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe, draw = copy(built, tmp_path), random.Random(time.time_ns())
    killed = []
    words = [sys.executable, "-c", STARTER, str(root_of(built) / "tiny.toml")]
    pipes: dict[str, Any] = {"stdin": subprocess.PIPE, "stdout": subprocess.PIPE, "text": True}
    with subprocess.Popen(words, env=environment(built, tmp_path), cwd=ROOT, **pipes) as starter:
        assert starter.stdin is not None
        assert starter.stdout is not None
        for _ in range(2):
            before = step_of(recipe)
            starter.stdin.write("one more\n")
            starter.stdin.flush()
            child, limit = int(starter.stdout.readline()), time.monotonic() + 120
            while step_of(recipe) == before and runs(child) and time.monotonic() < limit:
                time.sleep(0.005)
            time.sleep(draw.uniform(0, 0.25))
            if runs(child):
                os.kill(child, signal.SIGKILL)
            killed.append((int(starter.stdout.readline()), step_of(recipe)))
    assert [code for code, _ in killed] == [-signal.SIGKILL] * 2, killed
    assert 0 < killed[0][1] < killed[1][1] <= 12, killed
    monkeypatch.setenv(DATA_SETTING, str(root_of(built)))
    seen: list[int] = []
    monkeypatch.setattr(packing, "window", lambda tokens, step, *rest: seen.append(step) or window(tokens, step, *rest))
    pretrain(recipe)
    assert seen == list(range(killed[1][1], 12)), "the resumed run does not go on from the checkpoint"
    for part in ("model", "checkpoint"):
        first, second = tensors(whole, part), tensors(recipe, part)
        assert all(torch.equal(first[name], second[name]) for name in first), killed


def spied(folder: Path) -> list[dict[str, Any]]:
    """What each of two processes had of the model."""
    return [json.loads((folder / f"pretraining{rank}.json").read_text()) for rank in (0, 1)]


@pytest.mark.slow
def test_two_processes_that_divide_the_weights_go_on_from_the_checkpoint_of_one(
    built: Recipe, whole: Recipe, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recipe = copy(built, tmp_path)

    def failing(tokens: Any, step: int, *rest: Any) -> torch.Tensor:
        if step == 7:
            raise KeyboardInterrupt
        return window(tokens, step, *rest)

    with monkeypatch.context() as patch:
        patch.setenv(DATA_SETTING, str(root_of(built)))
        patch.setattr(packing, "window", failing)
        with pytest.raises(KeyboardInterrupt):
            pretrain(recipe)
    assert step_of(recipe) == 6
    (tmp_path / "launched.py").write_text(LAUNCH)
    words = ["-m", "accelerate.commands.launch", "--config_file", str(ROOT / "training/recipes/accelerate/fsdp.yaml")]
    words += ["--main_process_port", "0", str(tmp_path / "launched.py"), str(tmp_path), str(root_of(built) / "tiny.toml")]
    done = subprocess.run(
        [sys.executable, *words], env=environment(built, recipe.run.parent), cwd=ROOT, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr[-3000:]
    assert done.stdout.count("step 12/12") == 1, "one process speaks"
    found = spied(tmp_path)
    total = sum(tensor.numel() for tensor in tensors(whole).values())
    assert [rank["sharded"] for rank in found] == [True, True]
    assert sum(rank["held"] for rank in found) == total
    assert all(rank["held"] < 0.6 * total for rank in found)
    assert step_of(recipe) == 12
    assert distance(recipe, whole) < 1e-5
    monkeypatch.setenv(DATA_SETTING, str(root_of(built)))
    pretrain(recipe)  # one process reads the checkpoint that two wrote
    assert distance(recipe, whole) < 1e-5


def test_a_run_alone_knows_no_launcher() -> None:
    alone = Processes()
    assert (alone.count, alone.writer, alone.sharded, alone.accelerator) == (1, True, False, None)
