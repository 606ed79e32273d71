"""A policy.pt becomes exactly its weights, or an error that says why it cannot."""

from __future__ import annotations

from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM

from interp import ModelPair, UserError, load_model
from interp.models.convert import convert_policy

State = dict[str, Tensor]


@pytest.fixture
def state(tuned_folder: Path) -> State:
    """What the trainer saves: every entry of the tuned model's state, the tied head included."""
    hf = AutoModelForCausalLM.from_pretrained(tuned_folder, dtype=torch.float32)
    return {name: tensor.clone() for name, tensor in hf.state_dict().items()}


@pytest.fixture
def write(tmp_path: Path) -> Callable[[object], Path]:
    def save(held: object) -> Path:
        torch.save(held, tmp_path / "policy.pt")
        return tmp_path / "policy.pt"

    return save


def left_over(folder: Path) -> list[str]:
    return sorted(path.name for path in folder.iterdir() if path.name != "policy.pt")


@pytest.mark.oracle
@pytest.mark.parametrize("prefix", ["", "module.", "_orig_mod.module."])
def test_the_converted_policy_has_the_very_weights_of_the_tuned_model(
    prefix: str, state: State, write: Callable[[object], Path], gpt2_folder: Path, tuned_folder: Path, tmp_path: Path
) -> None:
    file = write({"step_idx": 9, "state": {prefix + name: tensor for name, tensor in state.items()}, "metrics": {"loss": 0.5}})
    made = convert_policy(file, gpt2_folder, tmp_path / "made")
    assert load_model(made).digest == load_model(tuned_folder).digest
    assert left_over(tmp_path) == ["made"]
    assert not list(made.glob("*.bin"))
    ModelPair.load(gpt2_folder, made)


def test_a_glu_policy_is_converted_too(write: Callable[[object], Path], llama_folder: Path, tmp_path: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    made = convert_policy(write({"state": hf.state_dict()}), llama_folder, tmp_path / "made")
    assert load_model(made).digest == load_model(llama_folder).digest


def test_old_mask_buffers_and_an_absent_tied_head_are_no_difference(
    state: State, write: Callable[[object], Path], gpt2_folder: Path, tuned_folder: Path, tmp_path: Path
) -> None:
    del state["lm_head.weight"]
    for layer in range(3):
        state[f"transformer.h.{layer}.attn.bias"] = torch.ones(1, 1, 64, 64, dtype=torch.bool)
        state[f"transformer.h.{layer}.attn.masked_bias"] = torch.tensor(-1e4)
    made = convert_policy(write({"state": state}), gpt2_folder, tmp_path / "made")
    assert load_model(made).digest == load_model(tuned_folder).digest


def test_the_precision_of_the_file_is_kept(state: State, write: Callable[[object], Path], gpt2_folder: Path, tmp_path: Path) -> None:
    made = convert_policy(write({"state": {n: t.bfloat16() for n, t in state.items()}}), gpt2_folder, tmp_path / "made")
    checkpoint = load_model(made).checkpoint
    assert checkpoint is not None
    assert checkpoint.stored_dtypes() == {"BF16"}
    with pytest.raises(UserError, match="different precision"):
        ModelPair.load(gpt2_folder, made)


def drop(state: State) -> None:
    del state["transformer.h.1.attn.c_attn.bias"]


def add(state: State) -> None:
    state["transformer.h.1.extra.weight"] = torch.ones(2)


def transpose(state: State) -> None:
    state["transformer.h.0.mlp.c_fc.weight"] = state["transformer.h.0.mlp.c_fc.weight"].T.contiguous()


def poison(state: State) -> None:
    state["transformer.h.0.mlp.c_fc.bias"][3] = float("inf")


def mix(state: State) -> None:
    state["transformer.ln_f.weight"] = state["transformer.ln_f.weight"].half()


def untie(state: State) -> None:
    state["lm_head.weight"] = state["lm_head.weight"] + 1


@pytest.mark.parametrize(
    ("breach", "said"),
    [
        (drop, r"lacks 1 tensors.*h\.1\.attn\.c_attn\.bias"),
        (add, r"surplus of 1 tensors.*extra\.weight"),
        (transpose, r"c_fc\.weight has shape \(128, 32\).*\(32, 128\)"),
        (poison, r"c_fc\.bias.*NaN or infinity"),
        (mix, "mixed precision: float16, float32"),
        (untie, "output matrix of its own"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_a_policy_that_does_not_fit_is_refused_and_leaves_nothing(
    breach: Callable[[State], None], said: str, state: State, write: Callable[[object], Path], gpt2_folder: Path, tmp_path: Path
) -> None:
    breach(state)
    with pytest.raises(UserError, match=said):
        convert_policy(write({"state": state}), gpt2_folder, tmp_path / "made")
    assert left_over(tmp_path) == []


@pytest.mark.parametrize(
    ("held", "said"),
    [
        ({"state": {"w": torch.ones(1)}, "metrics": {"loss": np.float64(0.1)}}, "numpy values"),
        ({"state": {"w": torch.ones(1)}, "config": Namespace(lr=1)}, "objects beside the weights"),
        ({"epoch": 1}, "no weights by name"),
        ([1, 2], "holds a list"),
        ({"state": {}}, "no weights by name"),
    ],
    ids=["numpy metrics", "a pickled object", "no weights", "a list", "an empty state"],
)
def test_a_file_that_is_no_plain_checkpoint_is_explained(
    held: object, said: str, write: Callable[[object], Path], gpt2_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        convert_policy(write(held), gpt2_folder, tmp_path / "made")
    assert "torch.save({'state'" in caught.value.fix
    assert left_over(tmp_path) == []


def test_a_truncated_file_is_called_damaged(state: State, write: Callable[[object], Path], gpt2_folder: Path, tmp_path: Path) -> None:
    file = write({"state": state})
    file.write_bytes(file.read_bytes()[:-5000])
    with pytest.raises(UserError, match="damaged"):
        convert_policy(file, gpt2_folder, tmp_path / "made")


def test_a_failure_while_writing_leaves_nothing(
    state: State, write: Callable[[object], Path], gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(*args: object) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr("os.replace", full)
    with pytest.raises(UserError, match=r"made could not be written: No space left.*run it again"):
        convert_policy(write({"state": state}), gpt2_folder, tmp_path / "made")
    assert left_over(tmp_path) == []
