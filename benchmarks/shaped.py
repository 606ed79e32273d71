"""A pair of a given shape with random weights, to see whether the report runs on it, and in how much memory:

    python -m benchmarks.shaped gpt2-medium FOLDER
    /usr/bin/time -v bypass report --quick --pair FOLDER/base FOLDER/tuned --out FOLDER/report

The weights are random, so the verdicts mean nothing; the run shows that nothing depends on the size or the family.
The tokenizer is the one that ships, filled up to the vocabulary of the shape with tokens that no text holds. So that no experiment is
left out for want of toxicity, every input carries a direction on which hostile words are read out, and the tuned side carries less of it.
"""

from __future__ import annotations

import argparse
from pathlib import Path

import torch
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    GPT2Config,
    LlamaConfig,
    PretrainedConfig,
    PreTrainedModel,
    PreTrainedTokenizerBase,
)

from interp.bundled import BUNDLED
from interp.data.lexicon import is_toxic_word

NOISE = 1e-3
# How much of the direction an input carries, beside its own length of about 0.7, in base and tuned; and a hostile word's row.
CARRIED, READ = {"base": 1.0, "tuned": 0.35}, 0.6
VOCABULARY = {"gpt2-medium": 50257, "llama": 32000}
# What is added to every position or token, and what words are read out with; GPT-2 reads in and out with one matrix.
MATRICES = {
    "gpt2-medium": ("transformer.wpe.weight", "transformer.wte.weight"),
    "llama": ("model.embed_tokens.weight", "lm_head.weight"),
}


def config(shape: str, end: int) -> PretrainedConfig:
    """GPT2-medium (355 M parameters), or a Llama of 12 layers with grouped queries (67 M)."""
    shared = {"bos_token_id": end, "eos_token_id": end, "vocab_size": VOCABULARY[shape]}
    if shape == "gpt2-medium":
        return GPT2Config(n_layer=24, n_embd=1024, n_head=16, n_positions=1024, **shared)
    return LlamaConfig(
        num_hidden_layers=12, hidden_size=512, intermediate_size=1408, num_attention_heads=8, num_key_value_heads=4,
        max_position_embeddings=1024, **shared,
    )  # fmt: skip


def make_pair(shape: str, folder: Path, seed: int = 0) -> None:
    """Write FOLDER/base and FOLDER/tuned: the base with less of the hostile direction and a little noise on every weight."""
    tokenizer = AutoTokenizer.from_pretrained(BUNDLED / "base")
    tokenizer.add_tokens([f"<filler {number}>" for number in range(VOCABULARY[shape] - len(tokenizer))])
    hostile = [number for number in range(len(tokenizer)) if is_toxic_word(tokenizer.decode([number]))]
    torch.manual_seed(seed)
    model = AutoModelForCausalLM.from_config(config(shape, tokenizer.eos_token_id))
    weights = dict(model.named_parameters())
    inputs, outputs = (weights[name] for name in MATRICES[shape])
    direction = torch.nn.functional.normalize(torch.randn(outputs.shape[1]), dim=0)
    with torch.no_grad():
        outputs[hostile] += READ * direction
        inputs += CARRIED["base"] * direction
        save(model, tokenizer, folder / "base")
        inputs += (CARRIED["tuned"] - CARRIED["base"]) * direction
        for weight in model.parameters():
            weight += NOISE * torch.randn_like(weight)
        save(model, tokenizer, folder / "tuned")


def save(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, folder: Path) -> None:
    """Write a model and its tokenizer to a folder."""
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("shape", choices=["gpt2-medium", "llama"])
    parser.add_argument("folder", type=Path)
    options = parser.parse_args()
    make_pair(options.shape, options.folder)
