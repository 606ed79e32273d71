"""Stage `tokenizer`: a byte-level BPE, as GPT-2's, trained on the run's corpus."""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path

from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from interp.errors import UserError
from interp.files import replacing
from training.recipe import Recipe
from training.sections import TokenizerSettings

END_OF_TEXT = "<|endoftext|>"


def corpus_texts(path: Path, limit: int | None = None) -> Iterator[str]:
    """The texts of a corpus file, in order; raises `UserError` where there is no corpus."""
    if not path.is_file():
        raise UserError(f"there is no corpus at {path}", "run the stage corpus first")
    with path.open(encoding="utf-8") as stream:
        for number, line in enumerate(stream):
            if limit is not None and number >= limit:
                return
            yield json.loads(line)["text"]


def train_tokenizer(recipe: Recipe) -> PreTrainedTokenizerFast:
    """Train on the first documents of the shuffled corpus and save to `tokenizer/` in the run folder."""
    settings = recipe.settings_as(TokenizerSettings, "tokenizer")
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    bpe.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=settings.vocabulary,
        special_tokens=[END_OF_TEXT],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(corpus_texts(recipe.folder("corpus") / "train.jsonl", settings.documents), trainer)
    tokenizer = PreTrainedTokenizerFast(
        tokenizer_object=bpe, eos_token=END_OF_TEXT, bos_token=END_OF_TEXT, pad_token=END_OF_TEXT, clean_up_tokenization_spaces=False
    )
    folder = recipe.folder("tokenizer")
    with replacing(folder) as temporary:
        tokenizer.save_pretrained(temporary)
    return tokenizer
