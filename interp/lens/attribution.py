"""Direct logit attribution: how much each component writes directly to a logit.

On raw weights, with the final norm's scale frozen at the value that the run has, a logit is a sum over all that was added to the
residual stream. Weights are neither folded nor centred, so what such processing moves into the weights is shown as terms of its own
(the norm's bias, the biases of attention and MLP), so that the terms sum to the logit itself.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.resume import trace
from interp.lens.attribution_results import Attribution, PairAttribution
from interp.models.chat import Chat, chat_settings, check_one_template, prompt_rows
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.models.weights import frozen_norm, norm_epsilon, output_projection, position_embedding, unembedding_bias


def attribute(
    model: Model, prompts: str | Sequence[str] | Sequence[Sequence[int]], token: int, against: int | None = None, *,
    chat: Chat | bool = False,
) -> Attribution:  # fmt: skip
    """Every term of this token's logit (or of its difference to another's) at the last position.

    The final norm's scale is frozen: it is that of the run, whatever a component would have changed. Norms between a
    component and the residual stream, where an architecture has them, are frozen likewise. With `chat`, prompts are user turns of
    the model's chat template, and the last position is the last before the answer.

    Raises `UserError` for a token out of range or no prompts. Source: direct logit attribution (Elhage et al., 2021).
    """
    rows = prompt_rows(model, [prompts] if isinstance(prompts, str) else prompts, chat)
    if not rows:
        raise UserError("no prompts were given", "give at least one")
    for item in (token,) if against is None else (token, against):
        if not 0 <= item < model.d_vocab:
            raise UserError(f"token {item} does not exist: the vocabulary has {model.d_vocab}", "count token ids from 0")
    parts = [_attribute_row(model, row, token, against) for row in rows]
    stacked = {name: torch.stack([part[name] for part in parts]) for name in parts[0]}
    label = "logit" if against is None else "logit difference"
    settings = {"model": model.name, "digest": model.digest, "prompts": list(prompts) if not isinstance(prompts, str) else [prompts],
                "token": token, "against": against, **chat_settings(chat)}  # fmt: skip
    return Attribution(**stacked, label=label, settings=settings)


def attribute_pair(
    pair: ModelPair, prompts: str | Sequence[str] | Sequence[Sequence[int]], token: int, against: int | None = None, *,
    chat: Chat | bool = False,
) -> PairAttribution:  # fmt: skip
    """`attribute` on both sides of a pair, to compare what is written to a logit before and after tuning."""
    if chat:
        check_one_template([pair.base, pair.tuned])
    return PairAttribution(*(attribute(model, prompts, token, against, chat=chat) for model in (pair.base, pair.tuned)))


@torch.no_grad()
def _attribute_row(model: Model, row: Sequence[int], token: int, against: int | None) -> dict[str, Tensor]:
    layers = range(model.n_layers)
    names = [f"{name}.{layer}" for layer in layers for name in ("z", "mlp_post")]
    run = trace(model, row, names)
    final = run.stream[-1, -1].double()
    read, bias = _reader(model, final, token, against)
    heads, attention_bias, neurons, mlp_bias = [], [], [], []
    for layer in layers:
        weights, constant = output_projection(model, layer)
        z = run[f"z.{layer}"][-1].double()
        frozen = frozen_norm(model, layer, "attn_out", einsum(z, weights, "head d_head, head d_head d_model -> d_model") + constant)
        heads.append(einsum(z, weights, read * frozen, "head d_head, head d_head d_model, d_model -> head"))
        attention_bias.append((constant * frozen) @ read)
        values, constant = model.value_vectors(layer).double(), model.value_bias(layer).double()
        keys = run[f"mlp_post.{layer}"][-1].double()
        frozen = frozen_norm(model, layer, "mlp_out", keys @ values + constant)
        neurons.append(keys * (values @ (read * frozen)))
        mlp_bias.append((constant * frozen) @ read)
    start = run.stream[0, -1].double()
    place = position_embedding(model, len(row) - 1)
    logits = run.reading.logits[0].double()
    logit = logits[token] - (logits[against] if against is not None else 0)
    output_bias = unembedding_bias(model, token, against)
    uncapped = final @ read + bias + output_bias
    cap = logit - uncapped if getattr(model.hf.config, "final_logit_softcapping", None) else torch.zeros_like(logit)
    terms = {
        "embedding": (start - place) @ read, "position": place @ read, "heads": torch.stack(heads),
        "attention_bias": torch.stack(attention_bias), "neurons": torch.stack(neurons), "mlp_bias": torch.stack(mlp_bias),
        "norm_bias": bias, "unembedding_bias": output_bias, "cap": cap, "logit": logit,
    }  # fmt: skip
    return {name: value.cpu() for name, value in terms.items()}


def _reader(model: Model, final: Float[Tensor, " d_model"], token: int, against: int | None) -> tuple[Tensor, Tensor]:
    """The direction on which anything written to the stream projects to its part of the logit, and the norm bias's part."""
    unembedding = model.unembedding
    direction = unembedding[token].double() - (unembedding[against].double() if against is not None else 0)
    norm: Any = model.final_norm
    gained = direction * model.final_gain.double()
    if model.architecture.norm == "layer":
        scale = (final.var(unbiased=False) + norm.eps).rsqrt()
        bias = direction @ norm.bias.double() if norm.bias is not None else torch.zeros_like(scale)
        # Centring is linear, so it can be done to the reading direction in place of everything that is read.
        return (gained - gained.mean()) * scale, bias
    return gained * (final.square().mean() + norm_epsilon(norm)).rsqrt(), torch.zeros((), dtype=torch.float64, device=final.device)
