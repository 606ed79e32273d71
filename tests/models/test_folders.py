"""Nothing that a folder brings is run, and a folder that could be read in two ways is refused."""

from __future__ import annotations

import contextlib
import io
import json
import shutil
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from interp import UserError, load_model
from interp.cli import app
from interp.models.folders import weight_files
from tests.models.test_checkpoints import config, edit_json, make_adapter

CODE = """
from transformers import GPT2Config, GPT2LMHeadModel, GPT2Tokenizer
open({marker!r}, "w").write("ran")
class Config(GPT2Config):
    model_type = "odd"
class Model(GPT2LMHeadModel):
    config_class = Config
class Words(GPT2Tokenizer):
    pass
"""


@pytest.fixture
def hostile(gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the tiny GPT-2 with modules that leave a file behind when they are run, and a user who answers y to everything."""
    folder = shutil.copytree(gpt2_folder, tmp_path / "hostile")
    for name in ("configuration_odd.py", "modeling_odd.py", "tokenization_odd.py"):
        (folder / name).write_text(CODE.format(marker=str(tmp_path / "marker")))
    monkeypatch.setattr(sys, "stdin", io.StringIO("y\n" * 20))
    monkeypatch.setattr("builtins.input", lambda *prompt: "y")
    return folder


def as_config(folder: Path) -> None:
    edit_json(
        folder / "config.json",
        model_type="odd",
        auto_map={"AutoConfig": "configuration_odd.Config", "AutoModelForCausalLM": "modeling_odd.Model"},
    )


def as_known_config(folder: Path) -> None:
    edit_json(folder / "config.json", auto_map={"AutoModelForCausalLM": "modeling_odd.Model"})


def as_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", tokenizer_class="Words", auto_map={"AutoTokenizer": ["tokenization_odd.Words", None]})


def as_old_tokenizer(folder: Path) -> None:
    edit_json(folder / "tokenizer_config.json", tokenizer_class="Words", auto_map=["tokenization_odd.Words", None])


def as_kernel(folder: Path) -> None:
    edit_json(folder / "config.json", attn_implementation="nobody/attention")


@pytest.mark.parametrize(
    ("change", "said"),
    [
        (as_config, r"brings code of its own \(config\.json names it under auto_map\).*part of transformers"),
        (as_known_config, r"brings code of its own \(config\.json.*remove auto_map from config\.json"),
        (as_tokenizer, r"brings code of its own \(tokenizer_config\.json"),
        (as_old_tokenizer, r"brings code of its own \(tokenizer_config\.json"),
        (as_kernel, r"asks for code of the hub \(attn_implementation in config\.json is 'nobody/attention'\)"),
    ],
    ids=lambda value: getattr(value, "__name__", ""),
)
def test_code_that_comes_with_a_folder_is_refused_and_never_run(
    change: Callable[[Path], None], said: str, hostile: Path, tmp_path: Path
) -> None:
    change(hostile)
    with pytest.raises(UserError, match=said) as caught:
        load_model(hostile)
    assert "\n" not in str(caught.value)
    answer = CliRunner().invoke(app, ["generate", str(hostile), "hello", "--new-tokens", "1"], input="y\n" * 20)
    assert answer.exit_code == 2
    assert len(answer.stderr.strip().splitlines()) == 1
    assert answer.stdout == ""
    assert not (tmp_path / "marker").exists()


def test_the_code_would_run_if_it_were_let(hostile: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The proof that the proof above can fail: transformers asks, hears y, and runs it."""
    from transformers import AutoConfig, dynamic_module_utils

    monkeypatch.setattr(dynamic_module_utils, "HF_MODULES_CACHE", str(tmp_path / "modules"))
    monkeypatch.setattr(sys, "path", list(sys.path))
    as_config(hostile)
    with contextlib.suppress(Exception):
        AutoConfig.from_pretrained(hostile)
    assert (tmp_path / "marker").read_text() == "ran"


def test_the_code_of_an_adapter_and_of_its_parent_is_not_run_either(hostile: Path, gpt2_folder: Path, tmp_path: Path) -> None:
    make_adapter(gpt2_folder, tmp_path / "adapter", ["c_fc"], fan_in_fan_out=True)
    as_config(hostile)
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(hostile))
    with pytest.raises(UserError, match="brings code of its own"):
        load_model(tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "adapter_config.json", base_model_name_or_path=str(gpt2_folder), megatron_config={}, megatron_core="x")
    load_model(tmp_path / "adapter")
    edit_json(tmp_path / "adapter" / "adapter_config.json", megatron_config={"a": 1}, megatron_core="modeling_odd")
    with pytest.raises(UserError, match="names a module to import"):
        load_model(tmp_path / "adapter")
    assert not (tmp_path / "marker").exists()


def sharded(folder: Path, target: Path) -> Path:
    """A copy of a folder whose weights are in several files."""
    load_model(folder).plain_copy().save_pretrained(target, max_shard_size="20KB")
    for file in folder.glob("tokenizer*"):
        shutil.copy(file, target)
    return target


def test_a_single_file_beside_an_index_is_ambiguous_and_shards_are_listed(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = sharded(gpt2_folder, tmp_path / "model")
    (folder / "left-over.safetensors").write_bytes((gpt2_folder / "model.safetensors").read_bytes())
    shards = sorted(set(json.loads((folder / "model.safetensors.index.json").read_text())["weight_map"].values()))
    assert len(shards) > 2
    model = load_model(folder)
    assert model.digest == load_model(gpt2_folder).digest
    assert list(model.manifest()["files"]) == shards
    shutil.copy(gpt2_folder / "model.safetensors", folder)
    with pytest.raises(UserError, match=r"holds both model\.safetensors and model\.safetensors\.index\.json"):
        load_model(folder)


def test_weights_under_another_name_are_told(gpt2_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gpt2_folder, tmp_path / "model")
    (folder / "model.safetensors").rename(folder / "model.fp16.safetensors")
    with pytest.raises(UserError, match=r"has no model\.safetensors, only model\.fp16\.safetensors.*rename it"):
        load_model(folder)
    assert weight_files(folder) == []


@pytest.mark.parametrize(
    ("settings", "said"),
    [
        ({"quantization_config": {"quant_method": "gptq", "bits": 4}}, r"quantised \(gptq, 4 bit\)"),
        ({"quantization_config": {"quant_method": "awq", "bits": 4}}, r"quantised \(awq, 4 bit\)"),
        ({"quantization_config": {"load_in_4bit": True}}, r"quantised \(bitsandbytes, 4 bit\)"),
        ({"quantization_config": {"quant_method": "compressed-tensors", "format": "pack"}}, r"quantised \(compressed-tensors\)"),
        ({"compression_config": {"quant_method": "compressed-tensors"}}, r"quantised \(compressed-tensors\)"),
    ],
)
def test_quantised_folders_are_refused_in_one_line(settings: dict[str, Any], said: str, gpt2_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gpt2_folder, tmp_path / "model")
    config(**settings)(folder)
    with pytest.raises(UserError, match=said + r".*16 or 32 bit") as caught:
        load_model(folder)
    assert "\n" not in str(caught.value)
