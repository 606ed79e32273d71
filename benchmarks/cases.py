"""The cases that are compared, each with the straightforward way as a competent user of that library would write it."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from tokenizers import Tokenizer, models, pre_tokenizers
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from benchmarks.generating import generating
from benchmarks.measure import Case, largest_difference
from benchmarks.patching import patching
from benchmarks.preferences import preferences
from benchmarks.tuning import tuning
from interp import Model, capture, load_model
from interp.bundled import BUNDLED
from interp.data.texts import challenge_prompts, neutral_prompts, toxicity_texts
from interp.evaluation.toxicity import ClassifierScorer, load_scorer
from interp.lens.logit_lens import logit_lens
from interp.neurons.vocabulary import build_index, search

END = "<|endoftext|>"
TOP = 50
EVERY = 10**9


@dataclass(frozen=True)
class Shape:
    """A GPT-2 by its sizes, and the batch that it is measured on."""

    name: str
    layers: int
    width: int
    heads: int
    vocabulary: int
    batch: int
    length: int
    turns: int
    ships: bool = False


SMALL = Shape("bundled pair (6 layers, 256 wide, 8192 tokens)", 6, 256, 8, 8192, batch=16, length=64, turns=21, ships=True)
LARGE = Shape("GPT2-medium (24 layers, 1024 wide, 50257 tokens)", 24, 1024, 16, 50257, batch=4, length=64, turns=3)


def make_model(shape: Shape) -> Model:
    """The base that ships where this is its shape, otherwise random weights of the shape: speed does not depend on them."""
    if shape.ships and (BUNDLED / "base" / "config.json").is_file():
        return load_model(BUNDLED / "base", name="base")
    words = {END: 0} | {f"w{number}": number for number in range(1, shape.vocabulary)}
    plain = Tokenizer(models.WordLevel(words, unk_token=END))
    plain.pre_tokenizer = pre_tokenizers.Whitespace()
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=plain, eos_token=END, pad_token=END, unk_token=END)
    config = GPT2Config(
        n_layer=shape.layers, n_head=shape.heads, n_embd=shape.width, vocab_size=shape.vocabulary, n_positions=256,
        bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    torch.manual_seed(0)
    return Model(GPT2LMHeadModel(config).float().eval(), tokenizer, "random weights")


def cases(model: Model, shape: Shape) -> Iterator[Case]:
    """Every case on this model; the scorer has one size and is measured with the small shape only."""
    with torch.no_grad():
        ids = torch.randint(1, model.d_vocab, (shape.batch, shape.length), generator=torch.Generator().manual_seed(1))
    yield from capturing(model, ids)
    yield from overhead(model, ids)
    yield lens(model, ids)
    yield from patching(model)
    yield from generating(model, challenge_prompts()[: 32 if shape.ships else 4])
    if shape.ships:
        yield from preferences(model)
        yield from tuning(model, challenge_prompts())
        yield from scoring()
    yield searching(model)


def capturing(model: Model, ids: Tensor) -> Iterator[Case]:
    """Capturing one site at the last position, against TransformerLens's full cache and its cache of that site alone."""
    bridge = model.to_transformer_lens()
    layer, rows = model.n_layers - 1, ids.tolist()
    site, hook = f"resid_mid.{layer}", f"blocks.{layer}.hook_resid_mid"

    def full() -> Tensor:
        with torch.no_grad():
            return bridge.run_with_cache(ids)[1]["resid_mid", layer][:, -1]

    def filtered() -> Tensor:
        with torch.no_grad():
            return bridge.run_with_cache(ids, names_filter=lambda name: name == hook)[1][hook][:, -1]

    ours = lambda: capture(model, rows, [site])[site]  # noqa: E731
    label = "capture, 1 site, last position"
    yield Case("capture against a full cache", ours, full, label, "TransformerLens run_with_cache", largest_difference)
    yield Case(
        "capture against a filtered cache", ours, filtered, label, "TransformerLens run_with_cache, names_filter", largest_difference
    )


def overhead(model: Model, ids: Tensor) -> Iterator[Case]:
    """The cost of the permanent hooks to a forward that does not use them, and to one that reads three sites."""
    plain, rows = model.plain_copy(), ids.tolist()
    sites = [f"resid_post.{layer}" for layer in (0, model.n_layers // 2, model.n_layers - 1)]

    def forward(hf: Any, keep: int) -> Tensor:
        with torch.no_grad():
            return hf(ids, use_cache=False, logits_to_keep=keep).logits

    yield Case(
        "hooks installed, none active", lambda: forward(model.hf, 0), lambda: forward(plain, 0), "forward with every hook installed",
        "plain Hugging Face forward", largest_difference, tolerance=0.0, memory=False,
    )  # fmt: skip
    yield Case(
        "three sites and the logits captured", lambda: capture(model, rows, [*sites, "logits"])["logits"], lambda: forward(plain, 1)[:, -1],
        "capture, 4 sites, last position", "plain Hugging Face forward, last logits", largest_difference, memory=False,
    )  # fmt: skip


def lens(model: Model, ids: Tensor) -> Case:
    """The logit lens at the last position, against unembedding every position and keeping the last."""
    rows, tokens, plain = ids.tolist(), ids[:, 0].tolist(), model.plain_copy()
    body, head = plain.transformer, plain.lm_head

    def everywhere() -> Tensor:
        residuals: list[Tensor] = []
        keep = lambda module, args: residuals.append(args[0])  # noqa: E731
        hooks = [body.h[0].register_forward_pre_hook(keep)]
        for block, after in zip(body.h, [*body.h[1:], body.ln_f], strict=True):
            hooks += [block.ln_2.register_forward_pre_hook(keep), after.register_forward_pre_hook(keep)]
        try:
            with torch.no_grad():
                plain(ids, use_cache=False)
                points = residuals[:]
                index = torch.tensor(tokens)[:, None, None].expand(*ids.shape, 1)
                # Only the token's probability is kept of each point: a user with little memory would do the same.
                probabilities = [head(body.ln_f(residual)).softmax(dim=-1).gather(2, index)[..., 0] for residual in points]
        finally:
            for hook in hooks:
                hook.remove()
        return torch.stack([probability[:, -1] for probability in probabilities], dim=1)

    return Case(
        "logit lens", lambda: logit_lens(model, rows, tokens).probabilities, everywhere, "logit_lens, last position",
        "Hugging Face with hooks, all positions", largest_difference,
    )  # fmt: skip


def scoring() -> Iterator[Case]:
    """Scoring 300 different texts in batches against one call per text, then the same texts again from the cache."""
    texts = [*(item.text for item in toxicity_texts()), *neutral_prompts(), *challenge_prompts()]
    texts = list(dict.fromkeys(texts))[:300]
    shipped = load_scorer()
    detector = shipped.detector  # type: ignore[attr-defined]

    def one_by_one() -> Tensor:
        return torch.tensor([float(detector.predict(text)["toxicity"]) for text in texts])

    def batched(scorer: Any) -> Tensor:
        return torch.from_numpy(scorer.score(texts)["toxicity"].to_numpy().copy())

    label = f"detoxify predict, {len(texts)} calls"
    yield Case(
        "scoring, nothing cached", lambda: batched(ClassifierScorer(detector, "fresh")), one_by_one, f"{len(texts)} texts in batches",
        label,
        largest_difference, memory=False,
    )  # fmt: skip
    yield Case(
        "scoring the same texts again", lambda: batched(shipped), one_by_one, "the scorer's cache", label, largest_difference, memory=False
    )


def searching(model: Model) -> Case:
    """Finding the neurons with a word among their top tokens: from the index, against projecting every value vector again."""
    index = build_index(model, top=TOP)
    token = int(index.ids[0, 0])
    word = index.plain[token]
    tokens = torch.tensor([number for number, text in enumerate(index.plain) if text == word])
    unembedding = model.unembedding[: len(index.words)]

    def indexed() -> Tensor:
        hits = search(index, word, limit=EVERY)
        return torch.from_numpy((hits["layer"] * model.d_mlp + hits["neuron"]).to_numpy().copy()).sort().values

    def anew() -> Tensor:
        hits = []
        with torch.no_grad():
            for layer in range(model.n_layers):
                top = (model.value_vectors(layer) @ unembedding.T).topk(TOP, dim=1).indices
                hits.append(torch.isin(top, tokens).any(dim=1).nonzero()[:, 0] + layer * model.d_mlp)
        return torch.cat(hits)

    return Case(
        "value vectors that write a word", indexed, anew, "search after build_index", "projecting every value vector, top 50",
        largest_difference,
        tolerance=0.0, memory=False,
    )  # fmt: skip
