"""Cases around generation: neurons read while a text is continued, and perplexity of many texts."""

from __future__ import annotations

import math
from collections.abc import Iterator

import torch
from torch import Tensor

from benchmarks.measure import Case, largest_difference
from interp import Model
from interp.data.texts import passages
from interp.evaluation.metrics import perplexity
from interp.models.tokens import token_rows
from interp.neurons.activations import watch_neurons

STEPS = 20
WATCHED = 5


def generating(model: Model, prompts: list[str]) -> Iterator[Case]:
    """Every case of this file, on these prompts."""
    yield over_generation(model, prompts)
    yield perplexities(model)


def over_generation(model: Model, prompts: list[str]) -> Case:
    """Five neurons over 20 greedy tokens, against a full cache of each step of each prompt (as paper A's own script reads them)."""
    bridge = model.to_transformer_lens()
    rows = [row for row in token_rows(model, prompts) if len(row) + STEPS <= model.context]
    neurons = [(layer % model.n_layers, 7 * layer % model.d_mlp) for layer in range(model.n_layers - 1, model.n_layers - 1 - WATCHED, -1)]
    # A bridge reads one length at a time, so its user goes through the prompts by length.
    lengths: dict[int, list[int]] = {}
    for number, row in enumerate(rows):
        lengths.setdefault(len(row), []).append(number)

    def full() -> Tensor:
        activations = torch.zeros(len(rows), STEPS, len(neurons))
        for group in lengths.values():
            ids = torch.tensor([rows[number] for number in group])
            for step in range(STEPS):
                with torch.no_grad():
                    logits, cache = bridge.run_with_cache(ids)
                activations[group, step] = torch.stack([cache["post", layer][:, -1, index] for layer, index in neurons], dim=1)
                ids = torch.cat([ids, logits[:, -1].argmax(dim=-1, keepdim=True)], dim=1)
        return activations

    return Case(
        "neurons over 20 new tokens", lambda: watch_neurons(model, rows, neurons, max_new_tokens=STEPS).values, full,
        f"watch_neurons, {WATCHED} neurons, {len(rows)} prompts", "TransformerLens run_with_cache at each token",
        largest_difference, turns=3,
    )  # fmt: skip


def perplexities(model: Model) -> Case:
    """Perplexity of the shipped passages, each by itself, against one call of the model per passage."""
    texts = [passage.text for passage in passages()]
    plain = model.plain_copy()
    rows = token_rows(model, texts, max_tokens=model.context)
    texts = [text for text, row in zip(texts, rows, strict=True) if 1 < len(row) < model.context]

    def one_by_one() -> Tensor:
        total = count = 0.0
        for row in token_rows(model, texts):
            ids = torch.tensor([row])
            with torch.no_grad():
                total += float(plain(ids, labels=ids).loss) * (len(row) - 1)
            count += len(row) - 1
        return torch.tensor([math.exp(total / count)])

    return Case(
        "perplexity", lambda: torch.tensor([perplexity(model, texts).value]), one_by_one, f"perplexity, {len(texts)} passages",
        "plain Hugging Face loss, one call per passage", largest_difference, memory=False,
    )  # fmt: skip
