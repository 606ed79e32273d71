"""Cases around patching: a map over layers and positions across a pair, and its first-order estimate."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch
from torch import Tensor

from benchmarks.measure import Case, largest_difference
from interp import Model, ModelPair, patch
from interp.bundled import BUNDLED
from interp.data.texts import challenge_prompts
from interp.models.loading import load_model
from interp.models.modes import freeze
from interp.models.tokens import token_rows
from interp.patching.gradient import attribution_patch
from interp.patching.metrics import LogitDifference

LENGTH = 20
FIRST, SECOND = 11, 29


def patching(model: Model) -> Iterator[Case]:
    """Every case of this file: base into tuned and tuned into base, `resid_post`, a prompt of 20 tokens."""
    pair = ModelPair(model, _tuned(model))
    prompt = _prompt(model)
    row = token_rows(model, [prompt])[0]
    bare = {name: side.plain_copy() for name, side in pair.sides.items()}
    metric = LogitDifference(FIRST, SECOND)
    directions = (("base", "tuned"), ("tuned", "base"))
    label = f"{model.n_layers} layers, {len(row)} positions, both directions"

    def one_by_one() -> Tensor:
        states = {name: _states(hf, row) for name, hf in bare.items()}
        return torch.stack([_cells(bare[into], states[source], row) for source, into in directions])

    def gradients() -> Tensor:
        states = {name: _states(hf, row) for name, hf in bare.items()}
        return torch.stack([_estimates(bare[into], states[source], row) for source, into in directions])

    yield Case(
        "patching map", lambda: _map(patch(pair, prompt, metric=metric)), one_by_one, f"patch, {label}",
        "plain Hugging Face with a hook, one forward per cell", largest_difference,
    )  # fmt: skip
    yield Case(
        "attribution patching", lambda: _map(attribution_patch(pair, prompt, metric=metric)), gradients, f"attribution_patch, {label}",
        "plain Hugging Face with hooks and one backward", largest_difference,
    )  # fmt: skip


def _tuned(model: Model) -> Model:
    """The tuned side that ships, or the same weights with a little noise where the shape is another."""
    if model.checkpoint is not None and (BUNDLED / "tuned" / "config.json").is_file():
        return load_model(BUNDLED / "tuned", name="tuned")
    copy = model.plain_copy()
    generator = torch.Generator().manual_seed(3)
    with torch.no_grad():
        for weight in copy.parameters():
            weight += 0.02 * weight.std(correction=0) * torch.randn(weight.shape, generator=generator)
    return Model(freeze(copy), model.tokenizer, "with noise")


def _prompt(model: Model) -> str:
    if model.checkpoint is None:
        return " ".join(f"w{number}" for number in range(1, LENGTH + 1))
    return next(text for text, row in zip(challenge_prompts(), token_rows(model, challenge_prompts()), strict=True) if len(row) == LENGTH)


def _map(patched: Any) -> Tensor:
    """Values as `direction layer position`."""
    values: Tensor = patched.values[:, 0]
    return values.reshape(len(patched.directions), -1)


def _logits(hf: Any, row: list[int]) -> Tensor:
    last: Tensor = hf(torch.tensor([row]), use_cache=False, logits_to_keep=1).logits[0, -1]
    return last[FIRST] - last[SECOND]


def _hooked(hf: Any, hooks: list[tuple[int, Callable[..., Any]]], work: Callable[[], Tensor]) -> Tensor:
    handles = [hf.transformer.h[layer].register_forward_hook(hook) for layer, hook in hooks]
    try:
        return work()
    finally:
        for handle in handles:
            handle.remove()


def _states(hf: Any, row: list[int]) -> list[Tensor]:
    states: list[Tensor] = []
    keep = lambda module, args, output: states.append(_first(output))  # noqa: E731
    with torch.no_grad():
        _hooked(hf, [(layer, keep) for layer in range(len(hf.transformer.h))], lambda: _logits(hf, row))
    return states


def _first(output: Any) -> Tensor:
    state: Tensor = output[0] if isinstance(output, tuple) else output
    return state


def _cells(hf: Any, source: list[Tensor], row: list[int]) -> Tensor:
    values = []
    with torch.no_grad():
        for layer, states in enumerate(source):
            for position in range(len(row)):

                def put(module: Any, args: Any, output: Any, states: Tensor = states, position: int = position) -> Any:
                    changed = _first(output).clone()
                    changed[:, position] = states[:, position]
                    return (changed, *output[1:]) if isinstance(output, tuple) else changed

                values.append(_hooked(hf, [(layer, put)], lambda: _logits(hf, row)))
    return torch.stack(values)


def _estimates(hf: Any, source: list[Tensor], row: list[int]) -> Tensor:
    states: list[Tensor] = []

    def keep(module: Any, args: Any, output: Any) -> Any:
        state = _first(output)
        if not state.requires_grad:
            state.requires_grad_(True)
        state.retain_grad()
        states.append(state)

    with torch.enable_grad():
        metric = _hooked(hf, [(layer, keep) for layer in range(len(source))], lambda: _logits(hf, row))
        slopes = torch.autograd.grad(metric, states)
    moved = [((after - before.detach()) * slope).sum(dim=-1)[0] for after, before, slope in zip(source, states, slopes, strict=True)]
    return metric.detach() + torch.cat(moved)
