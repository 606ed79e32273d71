"""MLPs trained anew with an L1 penalty on their activations, so that single neurons can be interpreted.

In a small model a large share of the neurons fires on every token, and what a single value vector writes then means little. A price
on activity makes few neurons fire at a time, so that each becomes specific. The price of a neuron is its activation times
the length of its value vector, so that scaling the one up and the other down changes nothing. The MLPs start from random weights,
since trained value vectors are far from the goal; whether a price alone would move them in more steps was not tried.

The price is the L1 penalty of sparse dictionary learning, applied to the model's own neurons instead of a dictionary.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor, nn
from transformers import GPT2LMHeadModel

from interp.errors import UserError


def layers_of(model: GPT2LMHeadModel, settings: dict[str, Any]) -> list[int]:
    """The layers whose MLPs a recipe has learned anew (`fresh_mlps`, counted from 0); raises `UserError` for others than there are."""
    layers = settings.get("fresh_mlps", [])
    count = model.config.n_layer
    if not isinstance(layers, list) or not layers or any(type(layer) is not int or not 0 <= layer < count for layer in layers):
        raise UserError(f"fresh_mlps is {layers!r}", f"name layers of the model, from 0 to {count - 1}, as in [{count - 1}]")
    return sorted(set(layers))


@torch.no_grad()
def begin_anew(model: GPT2LMHeadModel, layers: Sequence[int], seed: int) -> None:
    """Give the MLPs of these layers random weights, and leave only them and the norms around them to be trained."""
    noise = torch.Generator().manual_seed(seed)
    model.requires_grad_(False)
    for layer in layers:
        block = model.transformer.h[layer]
        # Keys scaled so that some neurons fire on any input at first; values near zero.
        block.mlp.c_fc.weight.normal_(0, model.config.n_embd**-0.5, generator=noise)
        block.mlp.c_proj.weight.normal_(0, model.config.initializer_range, generator=noise)
        for part in (block.mlp.c_fc.bias, block.mlp.c_proj.bias):
            part.zero_()
        for module in (block.ln_2, block.mlp):
            module.requires_grad_(True)
    model.transformer.ln_f.requires_grad_(True)


class PricedLoss(nn.Module):
    """A model called with labels, whose loss has `price` times the activity of these layers' neurons added.

    `at` raises the price linearly over the first `warmup` steps, since a full price from the start can silence neurons for good
    before they become specific.
    """

    price: Tensor

    def __init__(self, forward: nn.Module, model: GPT2LMHeadModel, layers: Sequence[int], price: float, warmup: int = 0) -> None:
        super().__init__()
        self.inner, self.full, self.warmup = forward, price, warmup
        # A tensor, so that a compiled forward need not be compiled again when it changes.
        self.register_buffer("price", torch.tensor(price), persistent=False)
        self.mlps = [model.transformer.h[layer].mlp for layer in layers]
        self.activations: list[Tensor] = []
        for mlp in self.mlps:
            mlp.act.register_forward_hook(self._keep)

    def at(self, step: int) -> None:
        """Set the price of a step, counted from 0."""
        self.price.fill_(self.full * (min(1.0, step / self.warmup) if self.warmup else 1.0))

    def _keep(self, module: nn.Module, inputs: Any, output: Tensor) -> None:
        self.activations.append(output)

    def forward(self, input_ids: Tensor, labels: Tensor) -> Any:
        """The inner model's output, with the price added to `loss`."""
        self.activations = []
        output = self.inner(input_ids=input_ids, labels=labels)
        output.loss = output.loss + self.price * activity(self.mlps, self.activations)
        return output


def activity(mlps: Sequence[nn.Module], activations: Sequence[Float[Tensor, "batch pos d_mlp"]]) -> Float[Tensor, ""]:
    """Mean over tokens of the sum over neurons of |activation| times the length of the value vector."""
    total = torch.zeros((), device=activations[0].device)
    for mlp, activation in zip(mlps, activations, strict=True):
        lengths = mlp.get_parameter("c_proj.weight").norm(dim=1)
        total = total + einsum(activation.float().abs(), lengths, "batch pos d_mlp, d_mlp -> batch pos").mean()
    return total
