"""GPT2-medium's shape in the core: how much memory a pair of it needs while it is captured, ranked, read by the lens and edited.

    python -m benchmarks.medium FOLDER

prints what came of it as JSON, with the peak memory of the process. The weights are random; base and tuned differ in one key vector.
`--layers` takes fewer than its 24 layers, as the tests do.
"""

from __future__ import annotations

import argparse
import json
import os
import resource
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interp import Edit, ModelPair, capture, generate
from interp.lens.logit_lens import logit_lens
from interp.neurons.ranking import rank_values, values_at
from interp.neurons.vocabulary import top_tokens

LAYERS, UNIT = 24, 770
PROMPTS = ["You are such a", "The river runs past the old mill and", "Holy"]


def tokenizer_of_full_size() -> PreTrainedTokenizerFast:
    """A byte-level vocabulary of GPT-2's size: the bytes, and pairs of them until it is full."""
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Letters and the space first, so that texts become short rows.
    letters.sort(key=lambda letter: not (letter.isascii() or letter == "\u0120"))
    vocabulary, merges = {letter: i for i, letter in enumerate(letters)}, []
    for first in letters:
        for second in letters:
            if len(vocabulary) < 50256:
                vocabulary[first + second] = len(vocabulary)
                merges.append((first, second))
    vocabulary["<|endoftext|>"] = len(vocabulary)
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    return PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")


def given_tokenizer() -> PreTrainedTokenizerFast:
    """GPT-2's own tokenizer where BYPASS_DATA has it, otherwise `tokenizer_of_full_size`."""
    data = os.environ.get("BYPASS_DATA")
    file = Path(data) / "tokenizer-gpt2" / "tokenizer.json" if data else None
    if file and file.is_file():
        return PreTrainedTokenizerFast(tokenizer_file=str(file), eos_token="<|endoftext|>")
    return tokenizer_of_full_size()


def peak() -> int:
    """The most memory that this process has held, in bytes."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024


def make_pair(folder: Path, layers: int, neuron: tuple[int, int]) -> None:
    """Write FOLDER/base and FOLDER/tuned, which differ in the key of one neuron."""
    tokenizer = given_tokenizer()
    end = len(tokenizer) - 1
    torch.manual_seed(0)
    hf = GPT2LMHeadModel(GPT2Config(n_layer=layers, n_embd=1024, n_head=16, bos_token_id=end, eos_token_id=end))
    hf.config.pad_token_id = None
    for side in ("base", "tuned"):
        hf.save_pretrained(folder / side)
        tokenizer.save_pretrained(folder / side)
        with torch.no_grad():
            hf.transformer.h[neuron[0]].mlp.c_fc.weight[:, neuron[1]] *= 1.01


def through_the_core(folder: Path, layers: int) -> dict[str, Any]:
    """What the core finds on such a pair, the bytes of its weights, and the peak memory before and after."""
    before, layer = peak(), layers - 5
    make_pair(folder, layers, (layer, UNIT))
    pair = ModelPair.load(folder / "base", folder / "tuned")
    captured = capture(pair.base, PROMPTS, [f"resid_mid.{layer}", f"mlp_post.{layer}"])
    direction = pair.base.value_vectors(layer)[UNIT].clone()
    ranking = rank_values(pair.base, direction, top=128)
    words = top_tokens(pair.base, values_at(pair.base, ranking.neurons[:5]))
    lens = logit_lens(pair.base, PROMPTS, [0, 1, 2])
    edits = [Edit.scale_keys([(layer, UNIT)], 10.0), Edit.subtract(f"resid_post.{layers - 1}", direction, 20.0)]
    texts = generate(pair.tuned, PROMPTS, max_new_tokens=8, edits=edits)
    return {
        "shape": [pair.base.n_layers, pair.base.d_model, pair.base.d_mlp, pair.base.d_vocab],
        "captured": [list(captured[site].shape) for site in captured],
        "first": ranking.neurons[0],
        "words": [len(row) for row in words.words],
        "points": list(lens.probabilities.shape),
        "texts": len(texts),
        "weights": sum(4 * weight.numel() for model in pair.sides.values() for weight in model.hf.parameters()),
        "before": before,
        "peak": peak(),
    }


if __name__ == "__main__":
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("folder", type=Path)
    parser.add_argument("--layers", type=int, default=LAYERS)
    options = parser.parse_args()
    print(json.dumps(through_the_core(options.folder, options.layers)))
