"""A merged adapter has the logits of the adapter beside its base, with peft as referee, also on embeddings that are tied."""

from __future__ import annotations

import warnings
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from interp import ModelPair, UserError, load_model
from interp.errors import Notice
from interp.models import overlays
from tests.conftest import glu_settings, make_hf, save

peft = pytest.importorskip("peft")
IDS = torch.arange(2, 38).view(3, 12)


@pytest.fixture(scope="module")
def tied_folder(tokenizer: PreTrainedTokenizerFast, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny Llama with one matrix for embedding and unembedding."""
    config = LlamaConfig(**glu_settings(), tie_word_embeddings=True)
    return save(make_hf(config, tokenizer), tokenizer, tmp_path_factory.mktemp("models") / "tied")


def train(base: Path, folder: Path, **settings: Any) -> Tensor:
    """Save an adapter with random weights over a base; returns the logits of the base with the adapter beside it."""
    hf = AutoModelForCausalLM.from_pretrained(base, dtype=torch.float32)
    wrapped = peft.get_peft_model(hf, peft.LoraConfig(**{"r": 4, "lora_alpha": 12, "task_type": "CAUSAL_LM", **settings}))
    noise = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in wrapped.parameters():
            if parameter.requires_grad:
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=noise))
        wrapped.save_pretrained(folder)
        return wrapped.eval()(IDS).logits


CASES: dict[str, dict[str, Any]] = {
    "the embedding": {"target_modules": ["gate_proj", "embed_tokens"]},
    "the unembedding": {"target_modules": ["gate_proj", "lm_head"]},
    "both": {"target_modules": ["embed_tokens", "lm_head"]},
    "both, tied": {"target_modules": ["gate_proj", "embed_tokens"], "ensure_weight_tying": True},
    "the embedding as a whole": {"target_modules": ["gate_proj"], "modules_to_save": ["embed_tokens"]},
    "the unembedding as a whole": {"target_modules": ["gate_proj"], "modules_to_save": ["lm_head"]},
    "both as a whole": {"target_modules": ["gate_proj"], "modules_to_save": ["embed_tokens", "lm_head"]},
    "neither": {"target_modules": ["gate_proj", "q_proj"]},
    "rank-stabilised": {"target_modules": ["gate_proj"], "use_rslora": True},
    "weight-decomposed": {"target_modules": ["gate_proj"], "use_dora": True},
}


@pytest.mark.oracle
@pytest.mark.parametrize("case", CASES)
def test_an_adapter_on_a_tied_model_has_the_logits_of_peft(case: str, tied_folder: Path, tmp_path: Path) -> None:
    unmerged = train(tied_folder, tmp_path / "adapter", **CASES[case])
    pair = ModelPair.load(tied_folder, tmp_path / "adapter")
    plain = load_model(tied_folder)
    with torch.no_grad():
        before = plain.hf(IDS).logits
        assert float((unmerged - before).abs().max()) > 0.05
        torch.testing.assert_close(pair.tuned.hf(IDS).logits, unmerged, atol=1e-5, rtol=1e-5)
        torch.testing.assert_close(pair.tuned.plain_copy()(IDS).logits, unmerged, atol=1e-5, rtol=1e-5)
        # The base is untied with it, so that the sides have the same parameters, and computes what it did.
        assert torch.equal(pair.base.hf(IDS).logits, before)
        assert torch.equal(pair.base.plain_copy()(IDS).logits, before)
    names = [dict(side.hf.named_parameters()).keys() for side in pair.sides.values()]
    assert names[0] == names[1]
    separate = case not in ("neither", "both, tied", "rank-stabilised", "weight-decomposed")
    assert ("lm_head.weight" in names[0]) == separate


@pytest.mark.oracle
@pytest.mark.parametrize("target", ["wte", "lm_head"])
def test_an_adapter_on_the_embeddings_of_gpt2_has_the_logits_of_peft(target: str, gpt2_folder: Path, tmp_path: Path) -> None:
    unmerged = train(gpt2_folder, tmp_path / "adapter", target_modules=["c_fc", target], fan_in_fan_out=True)
    with torch.no_grad():
        torch.testing.assert_close(load_model(tmp_path / "adapter").hf(IDS).logits, unmerged, atol=1e-5, rtol=1e-5)


def test_a_merge_that_changes_logits_is_refused(tied_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    train(tied_folder, tmp_path / "adapter", target_modules=["embed_tokens"])
    monkeypatch.setattr(overlays, "_separate_embeddings", lambda wrapped: None)
    with pytest.raises(UserError, match=r"merging the LoRA folder .* changes its logits by"):
        load_model(tmp_path / "adapter")


def test_modules_saved_whole_are_named_where_they_do_not_fit(tied_folder: Path, tmp_path: Path) -> None:
    from safetensors.torch import load_file, save_file

    train(tied_folder, tmp_path / "adapter", target_modules=["gate_proj"], modules_to_save=["lm_head"])
    file = tmp_path / "adapter" / "adapter_model.safetensors"
    save_file({name: tensor for name, tensor in load_file(file).items() if "lm_head" not in name}, file)
    with pytest.raises(UserError, match=r"its modules_to_save are lm_head, and the base has one matrix for embedding and unembedding"):
        load_model(tmp_path / "adapter")


def test_an_adapter_that_changes_no_weights_is_refused(gpt2_folder: Path, tmp_path: Path) -> None:
    hf = AutoModelForCausalLM.from_pretrained(gpt2_folder, dtype=torch.float32)
    peft.get_peft_model(hf, peft.PromptTuningConfig(num_virtual_tokens=3, task_type="CAUSAL_LM")).save_pretrained(tmp_path / "prompt")
    with pytest.raises(UserError, match="is of the type PROMPT_TUNING, which changes no weights"):
        load_model(tmp_path / "prompt")


def test_an_adapter_beside_a_whole_model_is_ambiguous(gpt2_folder: Path, tmp_path: Path) -> None:
    train(gpt2_folder, tmp_path / "adapter", target_modules=["c_fc"], fan_in_fan_out=True)
    load_model(gpt2_folder).plain_copy().save_pretrained(tmp_path / "adapter")
    with pytest.raises(UserError, match=r"holds both a LoRA adapter .* and a whole model"):
        load_model(tmp_path / "adapter")


def test_a_warning_of_a_library_about_weights_is_passed_on(gpt2_folder: Path, tmp_path: Path) -> None:
    train(gpt2_folder, tmp_path / "adapter", target_modules=["c_fc"], fan_in_fan_out=True)
    with warnings.catch_warnings():
        warnings.simplefilter("error", Notice)
        load_model(tmp_path / "adapter")
    train(gpt2_folder, tmp_path / "other", target_modules=["c_fc"], fan_in_fan_out=True, ensure_weight_tying=True)
    with pytest.warns(Notice, match=r"the LoRA folder .*other: You have requested `ensure_weight_tying`, but no tied modules"):
        load_model(tmp_path / "other")
