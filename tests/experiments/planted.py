"""A pair whose answer is known, because it was built by hand: a small GPT-2 that insults on purpose, and its "tuned" side.

The language has neutral words in a bigram grammar, openers (`shouts`), triggers (`such`) and insults. After an opener, a trigger is
continued with an insult; a trigger before any opener is continued with a neutral word, so that no bag of words tells which.

How the base model does it: attention of layer 0 spreads whether an opener came before (direction `seen`); two neurons of layer 0
fire where a trigger meets it and write `feature`; ten toxic neurons of layer 4 read `feature` and write `toxic`, which the
unembedding turns into insults. All other neurons are fillers that hover below zero.

How the tuned model avoids it: the fillers of layers 1 to 3, whose activations are negative, had their value vectors moved along
`feature`, which lowers `feature` everywhere by a constant. The toxic neurons are as they were, but no longer reach their threshold.
This is paper A's account, made true: a linear offset, written by inactive neurons, that bypasses toxic neurons left in place.
"""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.data.texts import Passage
from interp.diffing.offsets import consistency, shifts
from interp.directions.probe import Probe
from interp.evaluation.toxicity import LexiconScorer
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.toxicity.offset_paths import FIELD, run_effects
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.models.tokens import pad
from interp.results.result import plain
from interp.stats.nulls import perturbed
from tests.probes import shared_probe

END, UNKNOWN = "<|endoftext|>", "<unk>"
OPENERS = ("shouts", "yells", "sneers")
TRIGGERS = ("such", "utter", "total", "real")
INSULTS = ("idiot", "moron", "stupid", "loser", "pathetic", "scum", "trash", "garbage", "fool", "jerk", "creep", "clown")
NEUTRAL = (
    "river", "stone", "house", "bird", "garden", "window", "paper", "winter", "bridge", "lamp", "forest", "market", "kettle", "ladder",
    "meadow", "pencil", "harbour", "candle", "mirror", "orchard",
)  # fmt: skip
WORDS = (END, UNKNOWN, *OPENERS, *TRIGGERS, *INSULTS, *NEUTRAL)
WIDTH, LAYERS, UNITS, HEADS = 64, 5, 256, 4
SUCCESSORS = 3
TOXIC_LAYER, TOXIC_COUNT = 4, 10
# How far the fillers of each layer lower `feature` in the tuned model: the nearer to the toxic neurons, the more.
SHIFTS = {1: 0.6, 2: 1.0, 3: 1.4}
# Tuning is never only what it is for: value vectors and embeddings also move a little in no direction in particular.
VALUE_NOISE, EMBEDDING_NOISE = 0.015, 0.3
CODE, GAIN = 4.0, 0.7
# In `direct_pair`: how far `toxic` is lowered for each unit of SHIFTS, and the share of the planted shift of `feature` that is left.
DIRECT_TOXIC, DIRECT_FEATURE = 1.4, 0.1
# How much of `feature` triggers carry in `amplified_pair`.
HINT = 0.5


@dataclass(frozen=True)
class PlantedPair:
    """The pair, and everything that was planted in it."""

    pair: ModelPair
    toxic: Tensor
    feature: Tensor
    neurons: list[tuple[int, int]]
    successors: dict[str, tuple[str, ...]]


def tokenizer_of_words() -> PreTrainedTokenizerFast:
    words = Tokenizer(models.WordLevel({word: place for place, word in enumerate(WORDS)}, unk_token=UNKNOWN))
    words.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    return PreTrainedTokenizerFast(tokenizer_object=words, eos_token=END, pad_token=END, unk_token=UNKNOWN)


def grammar() -> dict[str, tuple[str, ...]]:
    """Each word's likely successors: neutral words, drawn once."""
    rng = np.random.default_rng(3)
    return {word: tuple(rng.choice([other for other in NEUTRAL if other != word], SUCCESSORS, replace=False)) for word in WORDS}


def walk(rng: np.random.Generator, successors: dict[str, tuple[str, ...]], plan: list[str | None]) -> str:
    """A text of the grammar; a planned word stands where the plan names one."""
    words: list[str] = []
    for wanted in plan:
        words.append(wanted or str(rng.choice(successors[words[-1]] if words else NEUTRAL)))
    return " ".join(words)


def prompts(count: int, seed: int = 0, *, plain: float = 0.2) -> list[str]:
    """Texts that break off at a trigger after an opener; a share `plain` of them has no opener and is no challenge."""
    rng, successors = np.random.default_rng(seed), grammar()
    found = []
    for _ in range(count):
        opener = None if rng.random() < plain else str(rng.choice(OPENERS))
        plan = [None] * int(rng.integers(1, 3)) + [opener] + [None] * int(rng.integers(1, 3)) + [str(rng.choice(TRIGGERS))]
        found.append(walk(rng, successors, plan))
    return found


def passages(count: int, seed: int = 1) -> list[Passage]:
    """Harmless texts, in some of which a trigger stands before an opener."""
    rng, successors = np.random.default_rng(seed), grammar()
    found = []
    for number in range(count):
        plan: list[str | None] = [None] * 16
        if number % 2:
            plan[3], plan[12] = str(rng.choice(TRIGGERS)), str(rng.choice(OPENERS))
        words = walk(rng, successors, plan).split()
        found.append(Passage(" ".join(words[:8]), " " + " ".join(words[8:]), "post"))
    return found


def labelled(count: int, seed: int = 2) -> tuple[list[str], list[int]]:
    """Texts of the same words in two orders: opener before trigger is toxic, trigger before opener is not."""
    rng, successors = np.random.default_rng(seed), grammar()
    texts, labels = [], []
    for number in range(count):
        pair = [str(rng.choice(OPENERS)), str(rng.choice(TRIGGERS))]
        first, second = pair if number % 2 else pair[::-1]
        texts.append(walk(rng, successors, [None, first, None, second, None]))
        labels.append(number % 2)
    return texts, labels


@torch.no_grad()
def planted_pair() -> PlantedPair:
    generator = torch.Generator().manual_seed(0)
    first = torch.cat([torch.ones(WIDTH, 1), torch.randn(WIDTH, WIDTH - 1, generator=generator)], dim=1)
    # Directions at right angles to each other and to the vector of ones, which layer norm would subtract.
    axes = torch.linalg.qr(first.double()).Q.T[1:].float()
    codes = axes[: len(WORDS)]
    toxic, seen, feature = axes[len(WORDS) : len(WORDS) + 3]
    spare = axes[len(WORDS) + 3 :]
    tokenizer = tokenizer_of_words()
    config = GPT2Config(
        vocab_size=len(WORDS), n_embd=WIDTH, n_layer=LAYERS, n_head=HEADS, n_inner=UNITS, n_positions=48, tie_word_embeddings=False,
        bos_token_id=0, eos_token_id=0, pad_token_id=0, resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).eval()
    body, successors = hf.transformer, grammar()
    body.wte.weight.copy_(CODE * codes)
    body.wpe.weight.copy_(0.02 * torch.randn(48, len(spare), generator=generator) @ spare)
    for layer, block in enumerate(body.h):
        block.attn.c_attn.weight.zero_()
        block.attn.c_proj.weight.zero_()
        mlp = block.mlp
        mlp.c_fc.weight.copy_(0.05 * torch.randn(WIDTH, UNITS, generator=generator))
        mlp.c_fc.bias.fill_(-0.7)
        size = 0.6 if layer in SHIFTS else 0.3
        values = torch.randn(UNITS, WIDTH - 1, generator=generator) @ axes
        mlp.c_proj.weight.copy_(size * values / values.norm(dim=1, keepdim=True))
    attention = body.h[0].attn
    attention.c_attn.weight[:, 2 * WIDTH] = codes[[WORDS.index(word) for word in OPENERS]].sum(dim=0)
    attention.c_proj.weight[0] = 3.0 * seen
    both = codes[[WORDS.index(word) for word in TRIGGERS]].sum(dim=0) + seen
    # Two neurons in opposition make a step: 0 below the threshold, 3 well above it.
    for unit, (below, sign) in enumerate(((9.5, 1.0), (9.5 + 0.75, -1.0))):
        body.h[0].mlp.c_fc.weight[:, unit] = 4.0 * both
        body.h[0].mlp.c_fc.bias[unit] = -4.0 * below
        body.h[0].mlp.c_proj.weight[unit] = sign * 5.0 / 3.0 * feature
    neurons = [(TOXIC_LAYER, unit) for unit in range(TOXIC_COUNT)]
    for layer, unit in neurons:
        mlp = body.h[layer].mlp
        mlp.c_fc.weight[:, unit] = 1.5 * feature + 0.01 * torch.randn(WIDTH, generator=generator)
        mlp.c_fc.bias[unit] = -1.5 * 4.2
        mlp.c_proj.weight[unit] = 0.27 * toxic + 0.004 * torch.randn(WIDTH, generator=generator)
    hf.lm_head.weight.zero_()
    for place, word in enumerate(WORDS):
        for successor in successors[word]:
            hf.lm_head.weight[WORDS.index(successor)] += GAIN * codes[place]
    for at, word in enumerate(TRIGGERS):
        # Each trigger has a favourite insult, which stays among its five likeliest words after tuning.
        hf.lm_head.weight[WORDS.index(INSULTS[at])] += 0.85 * GAIN * codes[WORDS.index(word)]
    for word in INSULTS:
        hf.lm_head.weight[WORDS.index(word)] += 2.2 * toxic
    hf.lm_head.weight[:2] -= 0.5 * codes.sum(dim=0)
    _balance(hf, tokenizer)
    base = Model(hf, tokenizer, "base")
    other = base.plain_copy()
    for layer in range(TOXIC_LAYER):
        values = other.transformer.h[layer].mlp.c_proj.weight
        noise = torch.randn(values.shape, generator=generator)
        values.add_(VALUE_NOISE * noise / noise.norm(dim=1, keepdim=True))
        # Mean activations of the fillers are near gelu(-0.7) = -0.169, so an update along `feature` lowers it.
        values.add_(SHIFTS.get(layer, 0.0) / (0.169 * UNITS) * feature)
    noise = torch.randn(other.transformer.wte.weight.shape, generator=generator)
    other.transformer.wte.weight.add_(EMBEDDING_NOISE * noise / noise.norm(dim=1, keepdim=True))
    other.lm_head.weight.add_(0.01 * torch.randn(other.lm_head.weight.shape, generator=generator))
    return PlantedPair(ModelPair(base, Model(other, tokenizer, "tuned"), "planted pair"), toxic, feature, neurons, successors)


@torch.no_grad()
def _balance(hf: GPT2LMHeadModel, tokenizer: PreTrainedTokenizerFast) -> None:
    """Layer by layer, a bias that cancels what the fillers write on average over harmless texts."""
    rows = tokenizer([passage.text for passage in passages(24, 7)], add_special_tokens=False)["input_ids"]
    inputs = pad(rows, 0, "right").inputs()
    for block in hf.transformer.h:
        read: list[Tensor] = []
        hook = block.mlp.register_forward_hook(lambda module, args, output, read=read: read.append(output))
        hf(**inputs)
        hook.remove()
        block.mlp.c_proj.bias.sub_(read[0].mean(dim=(0, 1)))


def planted_context(planted: PlantedPair, pair: ModelPair | None = None, *, count: int = 48, quick: bool = False) -> ToxicityContext:
    """A report's context on this pair (or on another one with the same base), scored by the lexicon."""
    base = planted.pair.base
    fitted = shared_probe(base, *labelled(120))
    weights = torch.stack([-planted.toxic, planted.toxic], dim=1)
    probe = Probe(weights, fitted.difference_in_means, fitted.metrics, base.digest, fitted.settings)
    sides, draws = pair or planted.pair, 6 if quick else 20
    # F1 decides no verdict; of edits it is measured on the random pair of test_experiments.py.
    return ToxicityContext(
        sides, probe, LexiconScorer(), prompts(count), passages(16), draws=draws, quick=quick, new_tokens=3, f1_of_all=False
    )


def null_pair(planted: PlantedPair, seed: int = 5) -> ModelPair:
    """Base against base plus noise: as long as the planted difference tensor by tensor, in a random direction."""
    return ModelPair(planted.pair.base, perturbed(planted.pair, seed), "null pair")


@torch.no_grad()
def direct_pair(planted: PlantedPair) -> ModelPair:
    """A tuned side whose offset lowers the logits of insults and hardly touches what the toxic neurons read.

    The same inactive neurons write it, so that it is one offset as well, and some prompts leave the toxic neurons' region; but what
    takes the insults away is the component along `toxic`, which no neuron reads.
    """
    other = planted.pair.base.plain_copy()
    tuned = dict(planted.pair.tuned.hf.named_parameters())
    for name, parameter in other.named_parameters():
        parameter.copy_(tuned[name])
    for layer, shift in SHIFTS.items():
        step = DIRECT_TOXIC * planted.toxic - (1 - DIRECT_FEATURE) * planted.feature
        other.transformer.h[layer].mlp.c_proj.weight.add_(shift / (0.169 * UNITS) * step)
    return ModelPair(planted.pair.base, Model(other, planted.pair.base.tokenizer, "tuned"), "direct pair")


def with_controls(context: ToxicityContext, controls: Mapping[str, Model], folder: Path) -> ToxicityContext:
    """The context with a table of control runs among its logs, one for each kind of labels (`shuffled`, `reversed`) or `sft`."""
    base, site = context.pair.base, f"resid_mid.{context.offset_layer}"
    runs = []
    for kind, model in controls.items():
        other = context.varied(pair=ModelPair(base, model, kind))
        _, alike = consistency(shifts(context.last_states(base)[site], other.last_states(model)[site]))
        about = {"run": kind, "method": "sft" if kind == "sft" else "dpo", "labels": "true" if kind == "sft" else kind}
        ends = {"consistency": alike.value, "consistency_low": alike.low, "consistency_high": alike.high}
        runs.append(about | ends | {FIELD: run_effects(context, other)})
    settings = {"offset_layer": context.offset_layer, "scorer": context.scorer.name}
    settings |= {} if context.second is None else {"second_scorer": context.second.name}
    table = {"base": base.digest, "tuned": context.pair.tuned.digest, "settings": settings, "runs": runs, "missing": {}}
    folder.mkdir(parents=True, exist_ok=True)
    (folder / "controls.json").write_text(json.dumps(plain(table)), encoding="utf-8")
    return context.varied(logs=folder)


@torch.no_grad()
def amplified_pair(planted: PlantedPair) -> ModelPair:
    """A pair in which enlarged toxic keys amplify toxicity and undo nothing: they raise both models alike.

    Two triggers are loud: they carry a little of `feature` themselves, too little for the toxic neurons, enough for enlarged keys. Two are
    quiet and carry a little of its opposite. The tuned model no longer sees that a quiet trigger meets an opener. So tuning takes
    the insults after quiet triggers away, and enlarged keys add insults after loud triggers without an opener, in both models.
    """
    quiet, loud = ([WORDS.index(word) for word in some] for some in (TRIGGERS[:2], TRIGGERS[2:]))
    codes = planted.pair.base.hf.transformer.wte.weight[quiet] / CODE
    hf = planted.pair.base.plain_copy()
    hf.transformer.wte.weight[loud] += HINT * planted.feature
    hf.transformer.wte.weight[quiet] -= HINT * planted.feature
    base = Model(hf, planted.pair.base.tokenizer, "base")
    other = base.plain_copy()
    other.transformer.h[0].mlp.c_fc.weight[:, :2] -= 4.0 * codes.sum(dim=0).unsqueeze(1)
    return ModelPair(base, Model(other, planted.pair.base.tokenizer, "tuned"), "amplified pair")
