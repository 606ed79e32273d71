"""Where models compute is one setting, a device that is not there is said before anything is loaded, and nothing of what is computed
is left behind on the processor."""

from __future__ import annotations

import json
import math
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import PreTrainedTokenizerFast
from typer.testing import CliRunner

from interp import UserError, workbench
from interp.cli import app
from tests import ROOT
from tests.conftest import gpt2_config, make_hf, save
from tests.invented_device import COMMANDS

# Some that run a model, on the planted pair; `python -m tests.invented_device FOLDER EXPERIMENT ...` runs any of them.
EXPERIMENTS = ("A-E2", "A-E8", "A-E10")


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> None:
    """As if torch saw two GPUs."""
    monkeypatch.setattr(torch.version, "cuda", "13.0")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The devices that models were asked for on; they are loaded on the processor."""
    from interp.models import loading, pair

    plain, devices = loading.load_model, []

    def load(*arguments: Any, device: Any = "unsaid", **options: Any) -> Any:
        devices.append(str(device))
        return plain(*arguments, **options)

    for module in (loading, pair):
        monkeypatch.setattr(module, "load_model", load)
    return devices


@pytest.mark.parametrize("setting", [None, "", " cpu "])
def test_without_a_setting_models_compute_on_the_processor(setting: str | None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(workbench.DEVICE, raising=False)
    if setting is not None:
        monkeypatch.setenv(workbench.DEVICE, setting)
    assert workbench.chosen_device() == "cpu"


def test_the_option_outweighs_the_environment(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(workbench.DEVICE, "CUDA:1")
    assert workbench.chosen_device() == "cuda:1"
    assert workbench.chosen_device("cuda") == "cuda"
    assert workbench.chosen_device("cpu") == "cpu"


@pytest.mark.parametrize("text", ["gpu", "cuda:", "cuda:x", "cuda:-1", "cuda:²", "cpu:1", "mps", "meta", "\x1b[31m"])
def test_what_is_no_device_is_refused(text: str, gpus: None) -> None:
    with pytest.raises(UserError, match="which is no device") as caught:
        workbench.chosen_device(text)
    assert caught.value.problem.startswith("--device is ")
    assert caught.value.problem.isprintable()


def test_a_device_that_is_not_there_is_refused_with_what_is(gpus: None, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match="the last of the 2 GPUs here is cuda:1"):
        workbench.chosen_device("cuda:2")
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    with pytest.raises(UserError, match="torch finds no GPU"):
        workbench.chosen_device("cuda")
    monkeypatch.setattr(torch.version, "cuda", None)
    monkeypatch.setattr(torch.version, "hip", None)
    monkeypatch.setenv(workbench.DEVICE, "cuda")
    with pytest.raises(UserError, match="BYPASS_DEVICE is 'cuda', but the torch that is installed computes on the processor alone"):
        workbench.chosen_device()


@pytest.mark.parametrize(
    "words", ["generate base a", "evaluate base", "sweep base --edit scale_keys:1.7:3", "vectors", "lens a", "patch a --token a",
              "attribute base a --token a", "report"],
)  # fmt: skip
def test_every_command_that_loads_a_pair_asks_for_the_device_before_it_does(
    words: str, gpt2_folder: Path, tuned_folder: Path, asked: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    result = CliRunner().invoke(app, [*words.split(), "--pair", str(gpt2_folder), str(tuned_folder), "--device", "gpu"])
    assert result.exit_code == 2
    assert "--device is 'gpu', which is no device" in result.output
    assert asked == []


def test_the_device_reaches_the_models_of_the_command_line_and_of_the_app(
    gpt2_folder: Path, tuned_folder: Path, gpus: None, asked: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    pair = (str(gpt2_folder), str(tuned_folder))
    workbench.Sides(pair, device="cuda:1").both()
    workbench.Sides(pair, device="cuda").load("base")
    assert asked == ["cuda:1", "cuda:1", "cuda"]
    state = pytest.importorskip("app.state", reason="the app needs the extra `app`")
    monkeypatch.setenv(workbench.DEVICE, "cuda:0")
    state.load_pair.clear()
    state.load_pair(pair)
    state.load_pair.clear()
    assert asked[3:] == ["cuda:0", "cuda:0"]


def test_the_option_loads_the_pair_on_the_processor(gpt2_folder: Path, tuned_folder: Path) -> None:
    both = workbench.Sides((str(gpt2_folder), str(tuned_folder)), device="cpu").both()
    assert [model.device for model in both.sides.values()] == [torch.device("cpu")] * 2


def alike(a: Any, b: Any) -> bool:
    """Whether two records are equal but for rounding."""
    if isinstance(a, dict):
        return a.keys() == b.keys() and all(alike(a[key], b[key]) for key in a)
    if isinstance(a, list):
        return len(a) == len(b) and all(map(alike, a, b))
    return a == b or (isinstance(a, float) and isinstance(b, float) and math.isclose(a, b, rel_tol=1e-3, abs_tol=1e-5))


@pytest.fixture(scope="module")
def elsewhere(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, Any]]:
    """What the commands and experiments find on the processor and on a device whose tensors refuse to be mixed with its own."""
    folder = tmp_path_factory.mktemp("device")
    for name, seed in (("base", 1), ("tuned", 2)):
        config = gpt2_config()
        config.n_positions = 640
        save(make_hf(config, tokenizer, seed=seed), tokenizer, folder / name)
    (folder / "prompts.txt").write_text("the quick river\nblorp and\na 🙂 stone\n", encoding="utf-8")
    passage = {"prompt": "the quick river", "continuation": " sings under a stone and walks with the sunny oskle"}
    (folder / "own.jsonl").write_text(json.dumps(passage) + "\n", encoding="utf-8")
    settings = {**os.environ, "HF_HUB_OFFLINE": "1", "BYPASS_DEBUG": "1", "XDG_CACHE_HOME": str(folder / "cache"), "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "-m", "tests.invented_device", str(folder), *EXPERIMENTS]
    made = subprocess.run(command, cwd=folder, env=settings, capture_output=True, text=True, check=False)
    assert made.returncode == 0, made.stderr[-3000:]
    found: dict[str, dict[str, Any]] = json.loads(made.stdout)
    return found


@pytest.mark.slow
@pytest.mark.parametrize("name", COMMANDS)
def test_a_command_finds_the_same_on_a_device_that_is_not_the_processor(name: str, elsewhere: dict[str, dict[str, Any]]) -> None:
    found = elsewhere["commands"][name]
    assert not isinstance(found["cpu"], str), found["cpu"]
    assert not isinstance(found["far"], str), found["far"]
    assert alike(found["cpu"], found["far"])


@pytest.mark.slow
@pytest.mark.parametrize("name", EXPERIMENTS)
def test_an_experiment_finds_the_same_on_a_device_that_is_not_the_processor(name: str, elsewhere: dict[str, dict[str, Any]]) -> None:
    found = elsewhere["experiments"][name]
    assert alike(found["cpu"], found["far"])
