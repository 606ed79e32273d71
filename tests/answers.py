"""A tiny model whose tokenizer has the answers of a yes-or-no question as single tokens, with a space before them."""

from __future__ import annotations

import itertools
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import GPT2Config, PreTrainedTokenizerFast

from interp import Model, load_model
from tests.conftest import EOS, gpt2_config, make_hf, save

ANSWERS = ("Yes", "No", "Never", "Maybe", "Perhaps", "Yeah", "Sure", "yes", "no", "never")


def answering_tokenizer() -> PreTrainedTokenizerFast:
    """A byte-level BPE vocabulary of the 256 bytes and the answers with a space before them."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(vocab_size=360, special_tokens=[EOS], initial_alphabet=alphabet, show_progress=False)
    bpe.train_from_iterator([f" {one} {other}" for one, other in itertools.product(ANSWERS, repeat=2)], trainer)
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token=EOS, pad_token=EOS)


def answering_config(**changes: int) -> GPT2Config:
    """Wide enough a context for a question in single bytes."""
    return gpt2_config(n_positions=256, **{"n_layer": 1, "n_head": 2, "n_embd": 16, **changes})


def answering_folder(folder: Path, seed: int = 0) -> Path:
    tokenizer = answering_tokenizer()
    return save(make_hf(answering_config(), tokenizer, seed), tokenizer, folder)


def answering_model(folder: Path, seed: int = 0) -> Model:
    return load_model(str(answering_folder(folder, seed)))
