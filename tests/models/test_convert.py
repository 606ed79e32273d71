"""A policy.pt becomes exactly its weights, or an error that says why it cannot."""

from __future__ import annotations

import json
from argparse import Namespace
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file
from torch import Tensor
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from interp import ModelPair, UserError, load_model
from interp.errors import Notice
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
@pytest.mark.parametrize(
    "prefix",
    [
        "",
        "module.",
        "_orig_mod.module.",
        "base_model.model.",
        "model.",
        "pretrained_model.",
        "policy.",
        "model.base_model.model.",
        "actor.module.",
    ],
)
def test_the_converted_policy_has_the_very_weights_of_the_tuned_model(
    prefix: str, state: State, write: Callable[[object], Path], gpt2_folder: Path, tuned_folder: Path, tmp_path: Path
) -> None:
    file = write({"step_idx": 9, "state": {prefix + name: tensor for name, tensor in state.items()}, "metrics": {"loss": 0.5}})
    made = convert_policy(file, gpt2_folder, tmp_path / "made")
    assert load_model(made).digest == load_model(tuned_folder).digest
    assert left_over(tmp_path) == ["made"]
    assert not list(made.glob("*.bin"))
    ModelPair.load(gpt2_folder, made)


INSIDE = {
    "FSDP": lambda name: "_fsdp_wrapped_module." + name.replace("transformer.h.1.", "transformer.h.1._fsdp_wrapped_module."),
    "activation checkpointing": lambda name: name.replace(".h.0.", ".h.0._checkpoint_wrapped_module."),
    "both": lambda name: name.replace(".h.0.", ".h.0._fsdp_wrapped_module._checkpoint_wrapped_module."),
    "torch.compile of a block": lambda name: name.replace(".h.2.", ".h.2._orig_mod."),
    "DDP around a compiled backbone": lambda name: name.replace("transformer.", "transformer._orig_mod.module."),
    "a backbone alone": lambda name: name.removeprefix("transformer."),
}


@pytest.mark.oracle
@pytest.mark.parametrize("wrapper", INSIDE)
def test_names_of_wrappers_inside_names_are_known(
    wrapper: str, state: State, write: Callable[[object], Path], gpt2_folder: Path, tuned_folder: Path, tmp_path: Path
) -> None:
    wrapped = {INSIDE[wrapper](name): tensor for name, tensor in state.items()}
    assert wrapped.keys() != state.keys()
    converted = convert_policy(write({"state": wrapped}), gpt2_folder, tmp_path / "made")
    assert load_model(converted).digest == load_model(tuned_folder).digest


@pytest.mark.parametrize("prefix", ["", "model.", "base_model.model.", "module.model."])
def test_a_prefix_that_the_architecture_has_itself_is_taken_off_once(
    prefix: str, write: Callable[[object], Path], llama_folder: Path, tmp_path: Path
) -> None:
    hf = AutoModelForCausalLM.from_pretrained(llama_folder, dtype=torch.float32)
    wrapped = {prefix + name: tensor for name, tensor in hf.state_dict().items()}
    assert load_model(convert_policy(write(wrapped), llama_folder, tmp_path / "made")).digest == load_model(llama_folder).digest


def test_a_value_head_is_left_out_and_told(
    state: State, write: Callable[[object], Path], gpt2_folder: Path, tuned_folder: Path, tmp_path: Path
) -> None:
    head = {"v_head.summary.weight": torch.ones(1, 32), "v_head.summary.bias": torch.ones(1)}
    for number, prefix in enumerate(("", "pretrained_model.")):
        file = write({"state": {**{prefix + name: tensor for name, tensor in state.items()}, **head}})
        with pytest.warns(Notice, match=r"left out the value head of the trainer \(v_head\.summary\.bias"):
            converted = convert_policy(file, gpt2_folder, tmp_path / f"made-{number}")
        assert load_model(converted).digest == load_model(tuned_folder).digest


def test_a_prefix_that_is_not_known_is_named(state: State, write: Callable[[object], Path], gpt2_folder: Path, tmp_path: Path) -> None:
    file = write({"state": {f"student.net.{name}": tensor for name, tensor in state.items()}})
    with pytest.raises(UserError, match=r"lacks \d+ tensors") as caught:
        convert_policy(file, gpt2_folder, tmp_path / "made")
    assert "their names begin with student.net." in caught.value.fix
    file = write({"state": {f"module.{name}": tensor for name, tensor in state.items() if "h.1." not in name}})
    with pytest.raises(UserError, match=r"lacks 12 tensors .*without the prefix module\."):
        convert_policy(file, gpt2_folder, tmp_path / "made")


def test_safetensors_and_shards_of_either_kind_are_read(
    state: State, write: Callable[[object], Path], gpt2_folder: Path, tuned_folder: Path, tmp_path: Path
) -> None:
    expected = load_model(tuned_folder).digest
    assert load_model(convert_policy(tuned_folder / "model.safetensors", gpt2_folder, tmp_path / "single")).digest == expected
    names = [name for name in state if name != "lm_head.weight"]
    for kind, save in (("pytorch_model.bin", torch.save), ("model.safetensors", lambda wrapped, file: save_file(wrapped, str(file)))):
        folder = tmp_path / kind.replace(".", "-")
        folder.mkdir()
        ending = kind.rpartition(".")[2]
        files = {name: f"part-{place % 3}.{ending}" for place, name in enumerate(names)}
        for file in set(files.values()):
            save({f"module.{name}": state[name] for name in names if files[name] == file}, folder / file)
        (folder / f"{kind}.index.json").write_text(json.dumps({"weight_map": {f"module.{name}": file for name, file in files.items()}}))
        for number, source in enumerate((folder, folder / f"{kind}.index.json")):
            converted = convert_policy(source, gpt2_folder, tmp_path / f"{kind}-{number}")
            assert load_model(converted).digest == expected
        (folder / f"part-1.{ending}").unlink()
        with pytest.raises(UserError, match=rf"lacks weight files that its index names: part-1\.{ending}"):
            convert_policy(folder, gpt2_folder, tmp_path / "made")


@pytest.mark.parametrize(
    ("extra", "said"),
    [
        (
            {"transformer.h.0.mlp.c_fc.qweight": torch.ones(2, dtype=torch.int32)},
            r"are quantised \(transformer\.h\.0\.mlp\.c_fc\.qweight\)",
        ),
        ({"transformer.h.0.mlp.c_fc.weight.quant_state.bitsandbytes__nf4": torch.ones(2, dtype=torch.uint8)}, "are quantised"),
        ({"base_model.model.transformer.h.0.mlp.c_fc.lora_A.default.weight": torch.ones(2, 2)}, "an adapter that is not merged"),
    ],
)
def test_quantised_and_unmerged_weights_are_refused_in_one_line(
    extra: State, said: str, state: State, write: Callable[[object], Path], gpt2_folder: Path, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match=said) as caught:
        convert_policy(write({"state": {**state, **extra}}), gpt2_folder, tmp_path / "made")
    assert "\n" not in str(caught.value)


@pytest.mark.oracle
def test_a_padding_token_that_was_added_is_taken_out(gpt2_folder: Path, tuned_folder: Path, tmp_path: Path) -> None:
    """The mend that the refusal of such a pair names."""
    words = PreTrainedTokenizerFast.from_pretrained(tuned_folder)
    words.add_special_tokens({"pad_token": "[PAD]"})
    hf = AutoModelForCausalLM.from_pretrained(tuned_folder, dtype=torch.float32)
    before = hf(torch.arange(9).unsqueeze(0)).logits
    hf.resize_token_embeddings(len(words))
    for part in (hf, words):
        part.save_pretrained(tmp_path / "padded")
    with pytest.raises(UserError, match="1 token more than base"):
        ModelPair.load(gpt2_folder, tmp_path / "padded")
    with pytest.warns(Notice, match=r"took out '\[PAD\]'"):
        converted = convert_policy(tmp_path / "padded", gpt2_folder, tmp_path / "made")
    pair = ModelPair.load(gpt2_folder, converted)
    assert pair.tuned.digest == load_model(tuned_folder).digest
    assert torch.equal(pair.tuned.hf(torch.arange(9).unsqueeze(0)).logits, before)
    words.add_tokens(["zimbrakreth"])
    words.save_pretrained(tmp_path / "padded")
    with pytest.raises(UserError, match="is another one than the model's, first at 'zimbrakreth'"):
        convert_policy(tmp_path / "padded", gpt2_folder, tmp_path / "again")


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
