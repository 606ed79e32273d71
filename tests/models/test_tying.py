"""Whether a model's unembedding is its embedding is read from its weights: every copy has the logits of the model."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from interp import ModelPair, load_model
from interp.edits.weights import interpolated
from interp.models.offloading import weights_digest
from interp.models.tying import is_tied, untie
from tests.conftest import TEXTS, glu_settings, make_hf, save
from tests.models.test_checkpoints import edit_weights

IDS = torch.arange(2, 38).view(3, 12)


@pytest.fixture(params=["gpt2", "llama"])
def odd_folder(request: pytest.FixtureRequest, gpt2_folder: Path, tokenizer: PreTrainedTokenizerFast, tmp_path: Path) -> Path:
    """A checkpoint whose configuration ties the embeddings and whose file holds another unembedding."""
    folder = tmp_path / "odd"
    if request.param == "gpt2":
        shutil.copytree(gpt2_folder, folder)
    else:
        save(make_hf(LlamaConfig(**glu_settings(), tie_word_embeddings=True), tokenizer), tokenizer, folder)
    other = torch.randn(390, 32, generator=torch.Generator().manual_seed(4))
    edit_weights(folder, lambda tensors: tensors.update({"lm_head.weight": other}))
    return folder


@pytest.mark.oracle
def test_the_copies_of_a_model_with_an_unembedding_of_its_own_have_its_logits(odd_folder: Path) -> None:
    with torch.no_grad():
        expected = AutoModelForCausalLM.from_pretrained(odd_folder, dtype=torch.float32).eval()(IDS).logits
        model = load_model(odd_folder)
        assert not is_tied(model.hf)
        assert torch.equal(model.hf(IDS).logits, expected)
        assert torch.equal(model.plain_copy()(IDS).logits, expected)
        half = interpolated(model, model, 0.5)
        torch.testing.assert_close(half.hf(IDS).logits, expected)


@pytest.mark.oracle
@pytest.mark.parametrize("engine", ["transformer_lens", "nnsight"])
def test_other_engines_have_its_logits_too(engine: str, odd_folder: Path) -> None:
    pytest.importorskip(engine, reason="needs the extra `lens`")
    from interp.adapters import run
    from interp.models.tokens import token_rows

    model = load_model(odd_folder)
    rows = token_rows(model, [TEXTS[0]])
    with torch.no_grad():
        expected = model.hf(torch.tensor(rows)).logits
    seen = run(model, [TEXTS[0]], sites=["logits"], engine=engine, positions="all")["logits"]
    torch.testing.assert_close(seen, expected, atol=1e-4, rtol=1e-4)


def test_untying_changes_no_logit_and_a_second_time_nothing(gpt2_folder: Path) -> None:
    hf = load_model(gpt2_folder).plain_copy()
    before = hf(IDS).logits
    untie(hf)
    head = hf.get_output_embeddings().weight
    untie(hf)
    assert hf.get_output_embeddings().weight is head
    assert torch.equal(hf(IDS).logits, before)
    assert hf.config.tie_word_embeddings is False
    # Caches and probes of the one are those of the other, until they differ.
    assert weights_digest(hf) == load_model(gpt2_folder).digest
    with torch.no_grad():
        hf.get_output_embeddings().weight[3, 4] += 1
    assert weights_digest(hf) != load_model(gpt2_folder).digest


def test_sides_of_which_one_has_an_unembedding_of_its_own_are_compared(odd_folder: Path, gpt2_folder: Path) -> None:
    model = load_model(odd_folder)
    if model.hf.config.model_type != "gpt2":
        return
    pair = ModelPair.load(gpt2_folder, odd_folder)
    with torch.no_grad():
        assert torch.equal(pair.base.hf(IDS).logits, load_model(gpt2_folder).hf(IDS).logits)
        assert torch.equal(pair.tuned.hf(IDS).logits, model.hf(IDS).logits)
    assert dict(pair.base.hf.named_parameters()).keys() == dict(pair.tuned.hf.named_parameters()).keys()
