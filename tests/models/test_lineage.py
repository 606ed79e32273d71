"""An adapter is loaded over the model that it was trained on, down a chain too; another base is refused, a renamed one is not."""

from __future__ import annotations

import shutil
import warnings
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from interp import ModelPair, UserError, load_model
from interp.errors import Notice
from tests.models.test_checkpoints import edit_json, edit_weights, make_adapter, to_bfloat16


@pytest.fixture
def adapter(gpt2_folder: Path, tmp_path: Path) -> Path:
    make_adapter(gpt2_folder, tmp_path / "adapter", ["c_fc"], fan_in_fan_out=True)
    return tmp_path / "adapter"


def name_base(folder: Path, base: object) -> None:
    edit_json(folder / "adapter_config.json", base_model_name_or_path=str(base))


def silent(base: object, tuned: Path) -> ModelPair:
    """The pair, loaded without a notice."""
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        return ModelPair.load(str(base), tuned)


def test_another_base_than_the_adapter_names_is_refused_with_that_name(adapter: Path, gpt2_folder: Path, tuned_folder: Path) -> None:
    with pytest.raises(UserError, match=rf"was made for {gpt2_folder}, and not for {tuned_folder}") as caught:
        ModelPair.load(tuned_folder, adapter)
    assert caught.value.fix.startswith(f"give {gpt2_folder} as the base")
    with pytest.raises(UserError, match="was made for"):
        load_model(adapter, base=tuned_folder)
    name_base(adapter, tuned_folder)
    silent(tuned_folder, adapter)


def test_a_copied_renamed_resharded_or_rounded_base_is_the_same(adapter: Path, gpt2_folder: Path, tmp_path: Path) -> None:
    copy = shutil.copytree(gpt2_folder, tmp_path / "under another name")
    silent(copy, adapter)
    (tmp_path / "link").symlink_to(gpt2_folder)
    silent(tmp_path / "link", adapter)
    tensors = load_file(copy / "model.safetensors")
    # As the first GPT-2 is stored: without the prefix, with the old buffers.
    bare = {name.removeprefix("transformer."): tensor for name, tensor in tensors.items()}
    save_file({**bare, "h.0.attn.bias": torch.ones(1, 1, 4, 4)}, copy / "model.safetensors", metadata={"format": "pt"})
    silent(copy, adapter)
    edit_weights(copy, to_bfloat16)
    silent(copy, adapter)
    edit_weights(copy, lambda held: held["h.1.mlp.c_fc.bias"].__setitem__(3, 1.0))
    with pytest.raises(UserError, match="was made for"):
        ModelPair.load(copy, adapter)


def test_where_the_named_base_is_not_here_the_user_is_told_and_differing_hub_ids_are_refused(
    adapter: Path, gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    for named in ("/elsewhere/base", "lab/not-cached"):
        name_base(adapter, named)
        with pytest.warns(Notice, match=rf"was made for {named}, which cannot be read here: that {gpt2_folder} is the same model"):
            ModelPair.load(gpt2_folder, adapter)
    from interp.models import checkpoints

    monkeypatch.setattr(checkpoints, "hub_folder", lambda hub_id: gpt2_folder)
    name_base(adapter, "lab/other-model")
    with pytest.raises(UserError, match="was made for lab/other-model, and not for lab/model"):
        load_model(adapter, base="lab/model")
    for named in ("mirror/Model", "lab/model-bnb-4bit", "lab/model-unsloth-bnb-4bit"):
        name_base(adapter, named)
        with pytest.warns(Notice, match="is not checked"):
            load_model(adapter, base="lab/model")
    name_base(adapter, "lab/model")
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        load_model(adapter, base="lab/model")


@pytest.mark.oracle
def test_an_adapter_on_an_adapter_is_the_sum_of_both(adapter: Path, gpt2_folder: Path, tmp_path: Path) -> None:
    """The usual chain: supervised fine-tuning, then preference tuning, each as an adapter."""
    first = make_adapter(gpt2_folder, tmp_path / "sft", ["c_fc"], fan_in_fan_out=True)
    plain = load_model(gpt2_folder).hf.state_dict()
    second = make_adapter(gpt2_folder, tmp_path / "dpo", ["c_fc", "c_proj"], fan_in_fan_out=True)
    name_base(tmp_path / "dpo", tmp_path / "sft")
    pair = silent(tmp_path / "sft", tmp_path / "dpo")
    for name, tensor in pair.tuned.hf.state_dict().items():
        torch.testing.assert_close(tensor, first[name] + second[name] - plain[name], atol=1e-6, rtol=1e-6)
    for name, tensor in pair.base.hf.state_dict().items():
        torch.testing.assert_close(tensor, first[name], atol=1e-6, rtol=1e-6)
    assert load_model(tmp_path / "dpo").digest == pair.tuned.digest
    # The first model is not the base of the second adapter, and its own adapter is not one of another.
    with pytest.raises(UserError, match=rf"was made for {tmp_path / 'sft'}, and not for {gpt2_folder}") as caught:
        ModelPair.load(gpt2_folder, tmp_path / "dpo")
    assert f"give {tmp_path / 'sft'} as the base" in caught.value.fix
    name_base(tmp_path / "dpo", gpt2_folder)
    with pytest.raises(UserError, match=rf"was made for {gpt2_folder}, and not for {tmp_path / 'sft'}"):
        ModelPair.load(tmp_path / "sft", tmp_path / "dpo")
    # A moved copy of the first adapter is the first adapter.
    name_base(tmp_path / "dpo", tmp_path / "sft")
    moved = shutil.copytree(tmp_path / "sft", tmp_path / "moved")
    silent(moved, tmp_path / "dpo")
    with pytest.raises(UserError, match="was made for"):
        ModelPair.load(adapter.parent / "dpo", tmp_path / "dpo")
