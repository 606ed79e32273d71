"""A hub id in the local cache loads as its folder would, without a question to the network; a mistyped path is told as one."""

from __future__ import annotations

import json
import shutil
import socket
from collections.abc import Callable
from pathlib import Path
from typing import Any

import huggingface_hub
import pytest
import torch
from safetensors.torch import load_file

from interp import ModelPair, UserError, load_model
from interp.models import hub
from tests.models.test_checkpoints import config, edit_json, make_adapter, tensors, to_bfloat16

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def publish(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Path]:
    """`publish(folder, hub_id)`: put a folder into a cache of the hub, as a download would; returns the snapshot.

    A connection of any kind, and any download, is an error.
    """
    cache = tmp_path / "hub"
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_CACHE", str(cache))

    def refuse(*arguments: Any, **options: Any) -> Any:
        raise AssertionError("the network was asked")

    monkeypatch.setattr(hub, "snapshot_download", refuse)
    monkeypatch.setattr(socket.socket, "connect", refuse)
    monkeypatch.setattr(socket, "getaddrinfo", refuse)

    def put(folder: Path, hub_id: str, without: tuple[str, ...] = ()) -> Path:
        repository = cache / f"models--{hub_id.replace('/', '--')}"
        snapshot = repository / "snapshots" / COMMIT
        shutil.copytree(folder, snapshot, ignore=shutil.ignore_patterns(*without))
        (repository / "refs").mkdir(parents=True)
        (repository / "refs" / "main").write_text(COMMIT)
        return snapshot

    return put


def test_a_cached_hub_id_loads_as_its_folder_without_the_network(
    publish: Callable[..., Path], gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    publish(gpt2_folder, "lab/tiny")
    monkeypatch.setattr(huggingface_hub.constants, "HF_HUB_OFFLINE", False)
    model, local = load_model("lab/tiny"), load_model(gpt2_folder)
    assert model.digest == local.digest
    assert model.name == "lab/tiny"
    assert model.checkpoint is not None
    assert (model.checkpoint.source, model.checkpoint.on_hub) == ("lab/tiny", True)
    record, plain = model.manifest(), local.manifest()
    assert (record["path"], record["commit"]) == ("lab/tiny", COMMIT)
    assert record["files"] == plain["files"] != {}
    assert record["stored_dtype"] == plain["stored_dtype"] == ["F32"]
    assert "commit" not in plain


def test_sides_on_the_hub_are_compared_as_folders_are(publish: Callable[..., Path], gpt2_folder: Path, tuned_folder: Path) -> None:
    publish(gpt2_folder, "lab/base")
    tensors(to_bfloat16)(publish(tuned_folder, "lab/tuned"))
    with pytest.raises(UserError, match=r"different precision \(base \['F32'\], tuned \['BF16'\]\)"):
        ModelPair.load("lab/base", "lab/tuned")
    with pytest.raises(UserError, match=r"different precision"):
        ModelPair.load(gpt2_folder, "lab/tuned")


def test_a_cached_folder_with_code_of_its_own_is_refused(publish: Callable[..., Path], gpt2_folder: Path) -> None:
    config(auto_map={"AutoModelForCausalLM": "modeling.Model"})(publish(gpt2_folder, "lab/code"))
    with pytest.raises(UserError, match="brings code of its own"):
        load_model("lab/code")


@pytest.mark.oracle
def test_an_adapter_on_the_hub_is_a_tuned_side(publish: Callable[..., Path], gpt2_folder: Path, tmp_path: Path) -> None:
    merged = make_adapter(gpt2_folder, tmp_path / "adapter", ["c_fc"], fan_in_fan_out=True)
    snapshot = publish(tmp_path / "adapter", "lab/adapter")
    publish(gpt2_folder, "lab/base")
    edit_json(snapshot / "adapter_config.json", base_model_name_or_path="lab/base")
    for pair in (ModelPair.load("lab/base", "lab/adapter"), ModelPair.load(gpt2_folder, "lab/adapter")):
        for name, tensor in pair.tuned.hf.state_dict().items():
            torch.testing.assert_close(tensor, merged[name], atol=1e-6, rtol=1e-6)
    assert load_model("lab/adapter").checkpoint.adapter_base == "lab/base"  # type: ignore[union-attr]


def test_what_an_incomplete_snapshot_lacks_is_downloaded_or_named(
    publish: Callable[..., Path], gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    snapshot = publish(gpt2_folder, "lab/part", without=("model.safetensors",))

    def offline(*arguments: Any, **options: Any) -> Any:
        raise OSError("no network")

    monkeypatch.setattr(hub, "snapshot_download", offline)
    with pytest.raises(UserError, match=r"holds no weights"):
        load_model("lab/part")

    def download(hub_id: str, **options: Any) -> str:
        assert (hub_id, options["ignore_patterns"]) == ("lab/part", ["*/*"])
        shutil.copy(gpt2_folder / "model.safetensors", snapshot)
        return str(snapshot)

    monkeypatch.setattr(hub, "snapshot_download", download)
    stored = load_file(gpt2_folder / "model.safetensors")
    assert torch.equal(load_model("lab/part").hf.state_dict()["transformer.wte.weight"], stored["transformer.wte.weight"])


def test_a_mistyped_path_is_told_as_such(gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    shutil.copytree(gpt2_folder, tmp_path / "runs" / "model")
    shutil.copytree(gpt2_folder, tmp_path / "tiny-gpt2")
    for source, problem, fix in (
        ("runs/modle", r"^there is no folder runs/modle", "give runs/model, if that is meant"),
        ("runs/zzz", r"^there is no folder 'runs/zzz' here, and the hub id 'runs/zzz' could not be loaded", "check the id and the network"),
        ("/nowhere/model", r"^there is no folder /nowhere/model", "give an existing folder or a hub id"),
        ("./modle", r"^there is no folder modle", "give an existing folder or a hub id"),
        ("tiny-gpt-2", r"there is no folder 'tiny-gpt-2' here, and the hub id 'tiny-gpt-2' could not be loaded", "give tiny-gpt2, if"),
        ("nobody/model", r"the hub id 'nobody/model' could not be loaded", "check the id and the network"),
    ):
        with pytest.raises(UserError, match=problem) as caught:
            load_model(source)
        assert fix in caught.value.fix
        assert "\n" not in str(caught.value)


def test_an_index_of_a_snapshot_that_names_files_elsewhere_is_refused(publish: Callable[..., Path], gpt2_folder: Path) -> None:
    snapshot = publish(gpt2_folder, "lab/outside", without=("model.safetensors",))
    (snapshot / "model.safetensors.index.json").write_text(json.dumps({"weight_map": {"a": "../../elsewhere.safetensors"}}))
    with pytest.raises(UserError, match="names a file outside of its folder"):
        load_model("lab/outside")
