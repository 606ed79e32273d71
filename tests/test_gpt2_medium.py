"""A model of exactly GPT2-medium's shape goes through the whole core within the memory of a laptop.

The weights are random: what is tested is that nothing in the way from disk to an edited continuation holds more than it
must. It runs in a process of its own, so that its peak memory is its own.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("resource")

SCRIPT = """
import json, os, resource, sys
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interp import Edit, ModelPair, capture, generate
from interp.lens import logit_lens
from interp.neurons import rank_values, top_tokens, values_at

folder = Path(sys.argv[1])
torch.set_num_threads(2)
data = os.environ.get("BYPASS_DATA")
given = Path(data) / "tokenizer-gpt2" / "tokenizer.json" if data else None
if given and given.is_file():
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(given), eos_token="<|endoftext|>")
else:
    # A vocabulary of the same size: every pair of bytes, then triples, until it is full.
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    vocabulary, merges = {letter: i for i, letter in enumerate(letters)}, []
    for first in list(letters):
        for second in letters:
            if len(vocabulary) < 50256:
                vocabulary[first + second] = len(vocabulary)
                merges.append((first, second))
    vocabulary["<|endoftext|>"] = len(vocabulary)
    bpe = Tokenizer(models.BPE(vocab=vocabulary, merges=merges))
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=bpe, eos_token="<|endoftext|>")
torch.manual_seed(0)
hf = GPT2LMHeadModel(GPT2Config(n_layer=24, n_embd=1024, n_head=16, bos_token_id=len(tokenizer) - 1, eos_token_id=len(tokenizer) - 1))
hf.config.pad_token_id = None
for side in ("base", "tuned"):
    hf.save_pretrained(folder / side)
    tokenizer.save_pretrained(folder / side)
    with torch.no_grad():
        hf.transformer.h[19].mlp.c_fc.weight[:, 770] *= 1.01
del hf
pair = ModelPair.load(folder / "base", folder / "tuned")
prompts = ["You are such a", "The river runs past the old mill and", "Holy"]
held = capture(pair.base, prompts, ["resid_mid.19", "mlp_post.19"])
direction = pair.base.value_vectors(19)[770].clone()
ranking = rank_values(pair.base, direction, top=128)
words = top_tokens(pair.base, values_at(pair.base, ranking.neurons[:5]))
lens = logit_lens(pair.base, prompts, [0, 1, 2])
edits = [Edit.scale_keys([(19, 770)], 10.0), Edit.subtract("resid_post.23", direction, 20.0)]
texts = generate(pair.tuned, prompts, max_new_tokens=8, edits=edits)
print(json.dumps({
    "shape": [pair.base.n_layers, pair.base.d_model, pair.base.d_mlp, pair.base.d_vocab],
    "captured": [list(held[site].shape) for site in held],
    "first": ranking.neurons[0], "words": [len(row) for row in words.words], "points": list(lens.probabilities.shape),
    "texts": len(texts), "peak": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024,
}))
"""


@pytest.mark.slow
def test_gpt2_medium_goes_through_the_core_in_under_8_gb(tmp_path: Path) -> None:
    script = tmp_path / "medium.py"
    script.write_text(SCRIPT, encoding="utf-8")
    root = Path(__file__).parents[1]
    done = subprocess.run(
        [sys.executable, str(script), str(tmp_path)],
        capture_output=True,
        text=True,
        timeout=1200,
        cwd=root,
        env={**os.environ, "PYTHONPATH": str(root)},
        check=False,
    )
    assert done.returncode == 0, done.stderr[-2000:]
    found = json.loads(done.stdout.splitlines()[-1])
    assert found["shape"] == [24, 1024, 4096, 50257]
    assert found["captured"] == [[3, 1024], [3, 4096]]
    assert found["first"] == [19, 770]
    assert found["points"] == [3, 49]
    assert found["texts"] == 3
    assert found["peak"] < 8 * 2**30
