"""Every way known to us of getting wrong weights without a sign, made on purpose: each must be an error with its fix."""

from __future__ import annotations

import errno
import hashlib
import json
import os
import shutil
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, BertConfig, BertLMHeadModel, PreTrainedTokenizerFast

from interp import Model, ModelPair, UserError, capture, load_model
from interp.errors import Notice
from interp.models import checkpoints
from tests.conftest import D_MODEL, N_LAYERS, TEXTS, gpt2_config, make_hf, save


def edit_json(file: Path, **changes: Any) -> None:
    record = {**json.loads(file.read_text()), **changes}
    file.write_text(json.dumps({key: value for key, value in record.items() if value is not ...}))


def edit_weights(folder: Path, change: Callable[[dict[str, torch.Tensor]], Any]) -> None:
    tensors = load_file(folder / "model.safetensors")
    change(tensors)
    save_file(tensors, folder / "model.safetensors", metadata={"format": "pt"})


def edit_vocabulary(folder: Path, change: Callable[[dict[str, int]], Any]) -> None:
    record = json.loads((folder / "tokenizer.json").read_text())
    change(record["model"]["vocab"])
    (folder / "tokenizer.json").write_text(json.dumps(record))


def no_tokenizer(folder: Path) -> None:
    for file in folder.glob("tokenizer*"):
        file.unlink()


def smaller_tokenizer(folder: Path) -> None:
    record = json.loads((folder / "tokenizer.json").read_text())
    record["model"]["merges"] = []
    record["model"]["vocab"] = {token: place for token, place in record["model"]["vocab"].items() if place < 257}
    (folder / "tokenizer.json").write_text(json.dumps(record))


def mute_tokenizer(folder: Path) -> None:
    record = json.loads((folder / "tokenizer.json").read_text())
    record["model"].update(vocab={f"nothing-{place}": place for place in range(390)}, merges=[])
    (folder / "tokenizer.json").write_text(json.dumps(record))


def only_pickles(folder: Path) -> None:
    torch.save({}, folder / "pytorch_model.bin")
    (folder / "model.safetensors").unlink()


def shard_missing(folder: Path) -> None:
    (folder / "model.safetensors").rename(folder / "model-00001-of-00002.safetensors")
    weights = {"a": "model-00001-of-00002.safetensors", "b": "model-00002-of-00002.safetensors"}
    (folder / "model.safetensors.index.json").write_text(json.dumps({"weight_map": weights}))


def truncate(file: Path, share: float) -> None:
    content = file.read_bytes()
    file.write_bytes(content[: int(len(content) * share)])


LFS = b"version https://git-lfs.github.com/spec/v1\noid sha256:0\nsize 3\n"


def tensors(change: Callable[[dict[str, torch.Tensor]], Any]) -> Callable[[Path], None]:
    return lambda folder: edit_weights(folder, change)


def config(**changes: Any) -> Callable[[Path], None]:
    return lambda folder: edit_json(folder / "config.json", **changes)


def content(name: str, written: bytes) -> Callable[[Path], Any]:
    return lambda folder: (folder / name).write_bytes(written)


def larger_tokenizer(folder: Path) -> None:
    edit_vocabulary(folder, lambda vocab: vocab.update({f"more-{n}": 390 + n for n in range(9)}))


WEIGHTS, BIAS, NORM = "model.safetensors", "transformer.h.0.mlp.c_fc.bias", "transformer.h.2.ln_1.weight"
BROKEN: dict[str, tuple[Callable[[Path], Any], str]] = {
    "a missing tensor": (tensors(lambda t: t.pop(BIAS)), f"lacks 1 tensors of its architecture, first {BIAS}"),
    "a tensor of another shape": (
        tensors(lambda t: t.update({BIAS: torch.zeros(96)})),
        f"another shape than config.json says, first {BIAS}",
    ),
    "a config of another width": (config(n_embd=64), "another shape than config.json says"),
    "fewer layers than the config says": (config(n_layer=4), "lacks 12 tensors"),
    "more layers than the config says": (config(n_layer=2), r"1\d tensors that its architecture does not have"),
    "a number that is none": (tensors(lambda t: t[NORM].__setitem__(3, float("nan"))), f"NaN or infinity, first {NORM}"),
    "an infinite number": (tensors(lambda t: t[NORM].__setitem__(3, float("-inf"))), f"NaN or infinity, first {NORM}"),
    "an unexpected tensor": (tensors(lambda t: t.update({"v_head.weight": torch.ones(3)})), "does not have, first v_head.weight"),
    "no tokenizer": (no_tokenizer, "has no tokenizer files"),
    "a tokenizer larger than the vocabulary": (larger_tokenizer, "399 entries, but the model only 390"),
    "a foreign smaller tokenizer": (smaller_tokenizer, "257 entries, the model 390"),
    "a tokenizer that knows no text": (mute_tokenizer, "is empty: it reads 'hello world'"),
    "a corrupt tokenizer": (content("tokenizer.json", b"{"), "the tokenizer in .* could not be read"),
    "weights cut short": (lambda folder: truncate(folder / WEIGHTS, 0.5), "corrupt or truncated"),
    "weights cut within their header": (lambda folder: truncate(folder / WEIGHTS, 0.001), "corrupt or truncated"),
    "empty weights": (content(WEIGHTS, b""), "corrupt or truncated"),
    "weights that are text": (content(WEIGHTS, b"<html>404</html>"), "corrupt or truncated"),
    "no tensors": (lambda folder: save_file({}, folder / WEIGHTS), "holds no tensors"),
    "a Git LFS pointer": (content(WEIGHTS, LFS), "is a Git LFS pointer"),
    "no weights": (lambda folder: (folder / WEIGHTS).unlink(), "holds no weights"),
    "only pickles": (only_pickles, r"holds only pickled weights \(pytorch_model.bin\)"),
    "a missing shard": (shard_missing, "lacks weight files that its index names: model-00002-of-00002.safetensors"),
    "no config": (lambda folder: (folder / "config.json").unlink(), "has no config.json"),
    "a config that is not JSON": (content("config.json", b"{'model_type': 'gpt2'"), "config.json is not readable JSON"),
    "a config that is a list": (content("config.json", b"[1]"), "holds a list, not an object"),
    "a binary config": (content("config.json", b"\xff\x00\xfe"), "config.json is not readable JSON"),
    "a config without a type": (config(model_type=..., architectures=...), "could not be loaded"),
    "a config of an unknown type": (config(model_type="gtp2"), "of type 'gtp2', which is not supported"),
    "a config with a word for a number": (config(n_layer="three"), "could not be loaded"),
    "a config with no heads": (config(n_head=0), "could not be loaded"),
    "a config with an impossible number of heads": (config(n_head=5), "could not be loaded"),
    "a config with an unknown nonlinearity": (config(activation_function="glue"), "could not be loaded"),
}


@pytest.mark.parametrize("fault", BROKEN)
def test_a_broken_folder_is_refused_by_the_name_of_its_fault(fault: str, gpt2_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(gpt2_folder, tmp_path / "broken")
    spoil, message = BROKEN[fault]
    spoil(folder)
    with pytest.raises(UserError, match=message) as caught:
        load_model(folder)
    assert caught.value.fix
    assert "\n" not in str(caught.value)


def close(path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Make a file or folder one that this user may not read. Root is bound by no permission bits, so the calls refuse for it."""
    path.chmod(0)
    if os.geteuid() != 0:
        return

    def closed(method: str, place: Path) -> bool:
        return path in place.parents or (place == path and method == "open")

    def guard(method: str) -> None:
        plain = getattr(Path, method)

        def guarded(self: Path, *args: Any, **named: Any) -> Any:
            if closed(method, self):
                raise PermissionError(errno.EACCES, "Permission denied", str(self))
            return plain(self, *args, **named)

        monkeypatch.setattr(Path, method, guarded)

    for method in ("open", "stat"):
        guard(method)


@pytest.mark.parametrize("name", ["model.safetensors", "config.json", ""])
def test_what_the_user_may_not_read_is_said_with_the_command_that_opens_it(
    name: str, gpt2_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    folder = shutil.copytree(gpt2_folder, tmp_path / "my model")
    close(folder / name, monkeypatch)
    try:
        with pytest.raises(UserError, match="may not be read by the user who runs this") as caught:
            load_model(folder)
    finally:
        monkeypatch.undo()
        (folder / name).chmod(0o755)
    assert str(folder / name) in caught.value.problem
    assert caught.value.fix.startswith("let everyone read it: chmod -R a+rX '")


def test_buffers_of_old_checkpoints_are_not_foreign(gpt2_folder: Path, gpt2: Model, tmp_path: Path) -> None:
    folder = shutil.copytree(gpt2_folder, tmp_path / "old")
    edit_weights(
        folder,
        lambda tensors: tensors.update(
            {"transformer.h.0.attn.bias": torch.ones(1, 1, 4, 4), "transformer.h.0.attn.masked_bias": torch.ones(1)}
        ),
    )
    assert load_model(folder).digest == gpt2.digest


def test_what_names_no_model_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    (tmp_path / "policy.pt").write_bytes(b"x")
    for source, message in {
        "": "names no model", "a\0b": "names no model", str(tmp_path / "none"): "there is no folder", "./none": "there is no folder",
        "a/b/c/d": "there is no folder", str(gpt2_folder / "model.safetensors"): "is a file, and a model is a folder",
        str(tmp_path / "policy.pt"): "bypass convert", "nobody/nothing-at-all": "hub id 'nobody/nothing-at-all' could not be loaded",
        "no such model!": "hub id 'no such model!' could not be loaded", str(tmp_path): "has no config.json",
    }.items():  # fmt: skip
        with pytest.raises(UserError, match=message) as caught:
            load_model(source)
        assert caught.value.fix
        assert "\n" not in str(caught.value)


def test_an_architecture_without_sites_is_refused(tmp_path: Path, tokenizer: PreTrainedTokenizerFast) -> None:
    settings = BertConfig(vocab_size=390, hidden_size=32, num_hidden_layers=1, num_attention_heads=2, intermediate_size=32, is_decoder=True)
    save(BertLMHeadModel(settings), tokenizer, tmp_path / "bert")
    with pytest.raises(UserError, match="of type 'bert', which is not supported"):
        load_model(tmp_path / "bert")


@pytest.mark.parametrize("stored", [torch.bfloat16, torch.float16])
def test_weights_are_computed_in_the_dtype_asked_for_whatever_they_are_stored_in(
    gpt2_folder: Path, tmp_path: Path, stored: torch.dtype
) -> None:
    folder = shutil.copytree(gpt2_folder, tmp_path / "half")
    edit_weights(folder, lambda held: held.update({name: tensor.to(stored) for name, tensor in held.items()}))
    edit_json(folder / "config.json", dtype=str(stored).removeprefix("torch."))
    model = load_model(folder)
    assert {parameter.dtype for parameter in model.hf.parameters()} == {torch.float32}
    assert model.manifest()["stored_dtype"] == [{torch.bfloat16: "BF16", torch.float16: "F16"}[stored]]
    assert load_model(folder, dtype=torch.bfloat16).dtype == torch.bfloat16


def swapped_tokens(folder: Path) -> None:
    edit_vocabulary(folder, lambda vocab: vocab.update({"a": vocab["b"], "b": vocab["a"]}))


def prefixed_space(folder: Path) -> None:
    file = folder / "tokenizer.json"
    file.write_text(file.read_text().replace('"add_prefix_space": false', '"add_prefix_space": true'))


def to_bfloat16(held: dict[str, torch.Tensor]) -> None:
    held.update({name: tensor.bfloat16() for name, tensor in held.items()})


PAIRS: dict[str, tuple[Callable[[Path], Any], str]] = {
    "vocabulary": (swapped_tokens, "different tokenizers"),
    "cutting": (prefixed_space, "cut the same text differently"),
    "stored dtype": (tensors(to_bfloat16), r"different precision \(base .'F32'.*tuned .'BF16'"),
    "epsilon": (config(layer_norm_epsilon=1e-6), "differ in layer_norm_epsilon"),
    "heads": (config(n_head=8), "differ in num_attention_heads"),
    "nonlinearity": (config(activation_function="gelu"), "differ in activation_function"),
    "attention scale": (config(scale_attn_by_inverse_layer_idx=True), "differ in scale_attn_by_inverse_layer_idx"),
}


@pytest.mark.parametrize("difference", PAIRS)
def test_sides_that_cannot_be_compared_are_refused(difference: str, gpt2_folder: Path, tuned_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(tuned_folder, tmp_path / "tuned")
    change, message = PAIRS[difference]
    change(folder)
    with pytest.raises(UserError, match=message):
        ModelPair.load(gpt2_folder, folder)


def test_sides_of_another_architecture_or_shape_are_refused(
    gpt2_folder: Path, llama_folder: Path, make_folder: Callable[..., Path], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    with pytest.raises(UserError, match="differ in architecture: base is gpt2, tuned is llama"):
        ModelPair.load(gpt2_folder, llama_folder)
    with pytest.raises(UserError, match="differ in architecture: base is qwen2, tuned is gemma"):
        ModelPair.load(make_folder("qwen2"), make_folder("gemma"))
    for changes in ({"n_inner": 64}, {"n_layer": 2}):
        folder = save(make_hf(gpt2_config(**changes), tokenizer), tokenizer, tmp_path / "-".join(changes))
        with pytest.raises(UserError, match=r"differ in shape: transformer\.h"):
            ModelPair.load(gpt2_folder, folder)


def test_rotary_frequencies_are_part_of_the_comparison(llama_folder: Path, tmp_path: Path) -> None:
    folder = shutil.copytree(llama_folder, tmp_path / "llama")
    rope = json.loads((folder / "config.json").read_text())["rope_parameters"]
    edit_json(folder / "config.json", rope_parameters={**rope, "rope_theta": 5e5})
    with pytest.raises(UserError, match="differ in rope_parameters"):
        ModelPair.load(llama_folder, folder)


def make_adapter(base: Path, folder: Path, targets: list[str], **settings: Any) -> dict[str, torch.Tensor]:
    """Save a random LoRA folder; returns the weights that it makes of the base's, computed here by hand."""
    peft = pytest.importorskip("peft")
    rank, alpha = 4, 12
    hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    weights = {name: tensor.clone() for name, tensor in hf.state_dict().items()}
    wrapped = peft.get_peft_model(hf, peft.LoraConfig(r=rank, lora_alpha=alpha, target_modules=targets, task_type="CAUSAL_LM", **settings))
    noise = torch.Generator().manual_seed(1)
    for name, parameter in wrapped.named_parameters():
        if "lora_" in name:
            parameter.data.copy_(0.1 * torch.randn(parameter.shape, generator=noise))
    wrapped.save_pretrained(folder)
    made = load_file(folder / "adapter_model.safetensors")
    for key in made:
        if "lora_A" in key:
            change = made[key.replace("lora_A", "lora_B")] @ made[key] * alpha / rank
            target = key.removeprefix("base_model.model.").replace(".lora_A", "")
            weights[target] = weights[target] + (change.T if settings.get("fan_in_fan_out") else change)
    return weights


@pytest.mark.oracle
@pytest.mark.parametrize(
    ("kind", "targets", "settings"),
    [("gpt2", ["c_attn", "c_fc", "c_proj"], {"fan_in_fan_out": True}), ("llama", ["q_proj", "gate_proj", "down_proj"], {})],
)
def test_a_lora_folder_as_the_tuned_side_equals_the_merged_weights(
    kind: str, targets: list[str], settings: dict[str, Any], make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    base = make_folder(kind)
    merged = make_adapter(base, tmp_path / "adapter", targets, **settings)
    pair = ModelPair.load(base, tmp_path / "adapter")
    state = pair.tuned.hf.state_dict()
    assert state.keys() == merged.keys()
    for name, expected in merged.items():
        torch.testing.assert_close(state[name], expected, atol=1e-6, rtol=1e-6, msg=lambda text, name=name: f"{name}: {text}")
    assert pair.tuned.digest != pair.base.digest
    assert pair.base.digest == load_model(base).digest
    sites = pair.tuned.sites()
    assert set(capture(pair.tuned, [TEXTS[0]], sites)) == set(sites)
    manifest = pair.manifest()["tuned"]
    assert manifest["adapter_base"] == str(base)
    assert list(manifest["files"]) == ["adapter_model.safetensors"]


def test_an_adapter_whose_tensors_find_no_place_is_refused(gpt2_folder: Path, llama_folder: Path, tmp_path: Path) -> None:
    good = tmp_path / "good"
    make_adapter(gpt2_folder, good, ["c_fc"], fan_in_fan_out=True)

    def spoil(name: str, change: Callable[[dict[str, torch.Tensor]], dict[str, torch.Tensor]]) -> Path:
        folder = shutil.copytree(good, tmp_path / name)
        save_file(change(load_file(good / "adapter_model.safetensors")), folder / "adapter_model.safetensors")
        return folder

    renamed = spoil("renamed", lambda tensors: {key.replace("transformer.h", "model.layers"): tensor for key, tensor in tensors.items()})
    fewer = spoil("fewer", lambda tensors: dict(list(tensors.items())[2:]))
    infinite = spoil("infinite", lambda tensors: {key: tensor / 0 for key, tensor in tensors.items()})
    for folder, message in (
        (renamed, "tensors are missing or foreign"),
        (fewer, "tensors are missing or foreign"),
        (infinite, "not finite"),
    ):
        with pytest.raises(UserError, match=message):
            ModelPair.load(gpt2_folder, folder)
    with pytest.raises(UserError, match=r"was made for .*gpt2-0, and not for .*llama-0"):
        ModelPair.load(llama_folder, good)
    edit_json(good / "adapter_config.json", base_model_name_or_path="someone/elsewhere")
    with pytest.warns(Notice, match="is not checked"), pytest.raises(UserError, match="does not fit"):
        ModelPair.load(llama_folder, good)
    (good / "adapter_model.safetensors").unlink()
    with pytest.raises(UserError, match=r"has no adapter_model\.safetensors"):
        ModelPair.load(gpt2_folder, good)
    edit_json(renamed / "adapter_config.json", base_model_name_or_path=None)
    with pytest.raises(UserError, match="does not say which model it adapts"):
        load_model(renamed)


def test_a_manifest_says_what_the_model_is_and_where_it_came_from(gpt2_folder: Path, pair: ModelPair, gpt2: Model) -> None:
    manifest = pair.manifest()
    side = manifest["base"]
    assert side["files"] == {"model.safetensors": hashlib.sha256((gpt2_folder / "model.safetensors").read_bytes()).hexdigest()}
    expected = {
        "name": "base", "path": str(gpt2_folder), "model_type": "gpt2", "layers": N_LAYERS, "d_model": D_MODEL, "d_mlp": 128, "heads": 4,
        "vocabulary": 390, "dtype": "float32", "stored_dtype": ["F32"],
    }  # fmt: skip
    assert {key: side[key] for key in expected} == expected
    assert side["parameters"] == sum(tensor.numel() for tensor in load_file(gpt2_folder / "model.safetensors").values())
    assert side["digest"] == gpt2.digest != manifest["tuned"]["digest"]
    assert {"python", "torch", "transformers"} <= set(manifest["versions"])
    json.dumps(manifest)


def test_the_digest_changes_with_any_one_weight(fresh_gpt2: Model, gpt2: Model, gpt2_folder: Path) -> None:
    assert fresh_gpt2.digest == gpt2.digest
    for name in ("transformer.wpe.weight", "transformer.h.2.mlp.c_proj.bias", "transformer.ln_f.weight"):
        model = load_model(gpt2_folder)
        with torch.no_grad():
            flat = model.hf.get_parameter(name).view(-1)
            flat[-1] = torch.nextafter(flat[-1], torch.tensor(9.0))
        assert model.digest != gpt2.digest


def test_every_stored_tensor_is_loaded_unchanged_frozen_and_without_dropout(model: Model) -> None:
    assert model.checkpoint is not None
    assert model.checkpoint.folder is not None
    stored = load_file(model.checkpoint.folder / "model.safetensors")
    state = model.hf.state_dict()
    assert stored.keys() <= state.keys()
    assert state.keys() - stored.keys() <= {"lm_head.weight"}
    assert all(torch.equal(state[name], tensor) for name, tensor in stored.items())
    assert not any(parameter.requires_grad for parameter in model.hf.parameters())
    assert not model.hf.training


def test_a_model_in_memory_is_wrapped_as_it_is(gpt2_folder: Path, tokenizer: PreTrainedTokenizerFast, gpt2: Model) -> None:
    hf = AutoModelForCausalLM.from_pretrained(gpt2_folder, dtype=torch.float64)
    model = load_model(hf, tokenizer=tokenizer)
    assert model.hf is hf
    assert model.dtype == torch.float64
    assert load_model(hf, tokenizer=tokenizer, dtype=torch.float64, name="mine").name == "mine"
    with pytest.raises(UserError, match="dtype cannot be given for a model in memory"):
        load_model(hf, tokenizer=tokenizer, dtype=torch.float32)
    expected = capture(gpt2, list(TEXTS), ["logits"])["logits"]
    torch.testing.assert_close(capture(model, list(TEXTS), ["logits"])["logits"], expected, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize(
    ("settings", "problem"),
    [
        ({"tokenizer": None}, "without its tokenizer"),
        ({"dtype": torch.bfloat16}, "dtype cannot be given for a model in memory"),
        ({"base": "base", "device_map": "auto"}, "base, device_map cannot be given"),
        ({"device": "cuda"}, "device cannot be given"),
    ],
)
def test_a_model_in_memory_is_not_changed_to_order(gpt2: Model, settings: dict[str, Any], problem: str) -> None:
    with pytest.raises(UserError, match=problem):
        load_model(gpt2.plain_copy(), **{"tokenizer": gpt2.tokenizer, **settings})


def test_a_model_in_memory_with_the_tokenizer_of_another_is_refused(gpt2: Model) -> None:
    config = gpt2_config()
    config.vocab_size = 300
    with pytest.raises(UserError, match=r"the tokenizer has .* but the model only 300"):
        load_model(AutoModelForCausalLM.from_config(config), tokenizer=gpt2.tokenizer)


def test_models_are_built_by_one_thread_at_a_time(gpt2_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """transformers replaces torch's initialisation for the whole process while it builds one; two at once leave it replaced."""
    building, most = [], []
    plain = AutoModelForCausalLM.from_pretrained

    def slow(*arguments: Any, **options: Any) -> Any:
        building.append(1)
        most.append(len(building))
        time.sleep(0.1)
        try:
            return plain(*arguments, **options)
        finally:
            building.pop()

    monkeypatch.setattr(checkpoints.AutoModelForCausalLM, "from_pretrained", slow)
    with ThreadPoolExecutor(3) as pool:
        models = list(pool.map(lambda _: load_model(gpt2_folder).plain_copy(), range(3)))
    assert (len(models), max(most)) == (3, 1)
    assert bool((torch.nn.LayerNorm(4).weight == 1).all())
