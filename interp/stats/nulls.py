"""Matched controls, with which a result about chosen directions or neurons is compared.

A control differs from the chosen ones in nothing but the choice: random directions have the same norm, random neurons
come from the same layers, matched neurons also write with about the same strength and are about as active. Random changes of the
weights are as long as the tuning's, or change the predictions as much: equal length alone makes a weak control, because random
changes of that length hardly change a prediction.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import TYPE_CHECKING

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.models.model import Model, Neuron
from interp.models.modes import freeze
from interp.models.tokens import next_token_losses, pad
from interp.models.weights import written_values
from interp.stats.divergence import kl_to, log_probabilities

if TYPE_CHECKING:
    from interp.models.pair import ModelPair

CANDIDATES = 32
# The same for neurons that are matched in how often they fire, or in how active they are.
NEAREST = 16
# A random change has the KL of the tuning within this share of it.
KL_TOLERANCE, KL_TRIALS = 0.02, 30
# The KL of a large change no longer follows the square law, so that halving takes over.
SQUARE_LAW_TRIALS = 8
# The most texts and logits of one backward pass: more would not fit into memory beside the gradients of a large model.
TEXTS, LOGITS = 8, 2**22


def random_directions(like: Float[Tensor, " d"], count: int, seed: int) -> Float[Tensor, "count d"]:
    """Random directions (Gaussian, hence uniform on the sphere), each with the norm of `like`.

    Raises `UserError` where `like` is zero or not finite, or `count` is less than 1.
    """
    norm = float(like.double().norm())
    if not norm > 0 or norm == float("inf"):
        raise UserError(f"random directions are matched to a vector of norm {norm}", "give a finite vector that is not zero")
    if count < 1:
        raise UserError(f"{count} random directions were asked for", "ask for at least 1")
    drawn = torch.randn(count, like.shape[0], generator=torch.Generator().manual_seed(seed), dtype=torch.float64)
    return (drawn * (norm / drawn.norm(dim=1, keepdim=True))).to(like.device, like.dtype)


def random_neurons(model: Model, neurons: Sequence[Neuron], *, seed: int, exclude: Sequence[Neuron] = ()) -> list[Neuron]:
    """A random other neuron of the same layer for each neuron; never one of `neurons` or `exclude`, none twice."""
    return _draw(model, neurons, seed, exclude, candidates=1)


def matched_neurons(
    model: Model, neurons: Sequence[Neuron], *, seed: int, exclude: Sequence[Neuron] = (), candidates: int = CANDIDATES
) -> list[Neuron]:
    """A random other neuron of the same layer, with a value vector of about the same norm, for each neuron.

    `candidates` neurons of the layer are drawn at random, and the one whose value vector is nearest in norm is taken:
    more candidates match better, fewer are more random. Never one of `neurons` or `exclude`, none twice, in the order
    of `neurons`.

    Raises `UserError` for a neuron that the model lacks, or a layer without enough others.
    """
    return _draw(model, neurons, seed, exclude, candidates=candidates)


def _draw(model: Model, neurons: Sequence[Neuron], seed: int, exclude: Sequence[Neuron], *, candidates: int) -> list[Neuron]:
    if candidates < 1:
        raise UserError(f"{candidates} candidates per neuron were asked for", "ask for at least 1")
    generator = torch.Generator().manual_seed(seed)
    free: dict[int, Tensor] = {}
    norms: dict[int, Tensor] = {}
    for layer, index in neurons:
        if not (0 <= layer < model.n_layers and 0 <= index < model.d_mlp):
            raise UserError(
                f"neuron {layer}.{index} does not exist: the model has {model.n_layers} layers of {model.d_mlp} neurons",
                "count layers and neurons from 0",
            )
        if layer not in free:
            free[layer] = torch.ones(model.d_mlp, dtype=torch.bool)
            free[layer][[i for at, i in (*neurons, *exclude) if at == layer and 0 <= i < model.d_mlp]] = False
            norms[layer] = written_values(model, layer).float().norm(dim=1).cpu()
    controls: list[Neuron] = []
    for layer, index in neurons:
        pool = free[layer].nonzero()[:, 0]
        if not len(pool):
            raise UserError(f"layer {layer} has no other neurons left to draw from", "exclude fewer neurons")
        drawn = pool[torch.randperm(len(pool), generator=generator)[:candidates]]
        best = int(drawn[(norms[layer][drawn] - norms[layer][index]).abs().argmin()])
        free[layer][best] = False
        controls.append((layer, best))
    return controls


def perturbed(pair: ModelPair, seed: int, *, scale: float | int = 1.0) -> Model:
    """The base model plus a random change: in each tensor `scale` times as long as the change by tuning.

    Any change of this size has the effects of this model: the control for effects on prompts that were chosen by what the base
    model says.
    """
    return _moved(pair, _random_changes(pair, seed), scale)


@torch.no_grad()
def _random_changes(pair: ModelPair, seed: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """For each parameter in order: random numbers, their norm, and the norm of its change by tuning."""
    generator = torch.Generator().manual_seed(seed)
    tuned = dict(pair.tuned.hf.named_parameters())
    for name, parameter in pair.base.hf.named_parameters():
        noise = torch.randn(parameter.shape, generator=generator)
        yield noise, noise.norm(), (tuned[name].float() - parameter.float()).norm().cpu()


@torch.no_grad()
def _moved(pair: ModelPair, changes: Iterable[tuple[Tensor, Tensor, Tensor]], scale: float) -> Model:
    """The base model plus these changes, each `scale` times as long as that of its parameter by tuning."""
    hf = pair.base.plain_copy()
    for parameter, (noise, norm, length) in zip(hf.parameters(), changes, strict=True):
        parameter.add_((noise * (scale * length / norm)).to(parameter.device, parameter.dtype))
    name = "random change of equal norm" if scale == 1 else f"random change of {scale:.3g} times the norm"
    return Model(freeze(hf), pair.base.tokenizer, name, bos=pair.base.bos)


def perturbed_to_kl(pair: ModelPair, seed: int, texts: Sequence[str] | Sequence[Sequence[int]], *, max_tokens: int | None = None) -> Model:
    """The base model plus a random change of the weights that is as far from it in KL on these texts as the tuned model is.

    The random change is that of `perturbed` with the scale of `scale_to_kl`, which see for the arguments and errors.
    """
    return perturbed(pair, seed, scale=scale_to_kl(pair, seed, texts, max_tokens=max_tokens))


def scale_to_kl(
    pair: ModelPair, seed: int, texts: Sequence[str] | Sequence[Sequence[int]], *, max_tokens: int | None = None, start: float = 1.0
) -> float:  # fmt: skip
    """The scale at which `perturbed` with this seed has the tuning's KL to the base model; 0 where the tuning has none.

    KL(changed || base) of the next token is averaged over the positions of each text, then over texts, and met within 2 %. The
    scale is found by bisection, helped by the square law that the KL of a small change follows.

    Args:
        texts: strings, or rows of token ids.
        max_tokens: read only the first so many tokens of each text.
        start: the scale that is tried first.

    Raises `UserError` for no texts, and where no random change of the tensors that tuning changed is as far from the base model.
    """
    if not len(texts):
        raise UserError("a random change is matched in KL on no texts", "give at least one")
    known = log_probabilities(pair.base, texts, max_tokens=max_tokens)

    def from_base(model: Model) -> float:
        return float(kl_to(model, pair.base, texts, max_tokens=max_tokens, known=known).mean())

    goal = from_base(pair.tuned)
    if goal <= 0:
        return 0.0
    low, high, scale, divergence = 0.0, math.inf, start, 0.0
    # Drawn once: drawing takes as long as reading the texts does.
    changes = list(_random_changes(pair, seed))
    for trial in range(KL_TRIALS):
        divergence = from_base(_moved(pair, changes, scale))
        if abs(divergence - goal) <= KL_TOLERANCE * goal:
            return scale
        # A divergence that is not a number comes from a change that is too large.
        low, high = (scale, high) if divergence < goal else (low, scale)
        by_square_law = scale * math.sqrt(goal / divergence) if 0 < divergence < math.inf else math.nan
        between = (low + high) / 2 if high < math.inf else 4 * low
        scale = by_square_law if trial < SQUARE_LAW_TRIALS and low < by_square_law < high else between
    raise UserError(
        f"no random change of the weights is as far from the base model as the tuning, by {goal:.3g} nats (the last by {divergence:.3g})",
        "compare with random changes of equal norm",
    )


def gradient_step(pair: ModelPair, rows: Sequence[Sequence[int]], *, signs: Sequence[int] | None = None) -> Model:
    """The base model after one gradient step on these texts, in each tensor of the norm of the change by tuning.

    It shows what any objective that pushes in one direction does to the weights, toxic or not: the control for results about the
    direction of updates (paper A's Figure 5 follows from the gradient being nearly of rank one). It is a
    control; no experiment trains a model.

    Args:
        rows: token ids of each text.
        signs: 1 to make a text more likely (plain fine-tuning, the default), -1 to make it less likely (with both, drawn at
            random, this is the first step of preference tuning on shuffled labels).

    Raises `UserError` for no texts, texts of one token, or signs of another number.
    """
    text_signs = [1] * len(rows) if signs is None else list(signs)
    if not len(rows) or len(text_signs) != len(rows) or any(len(row) < 2 for row in rows):
        raise UserError(
            f"{len(rows)} texts came with {len(text_signs)} signs", "give at least one text of two tokens or more, and one sign for each"
        )
    hf = pair.base.plain_copy().requires_grad_(True)
    filler = pair.base.tokenizer.pad_token_id or 0
    batch_size = max(1, min(TEXTS, LOGITS // (max(map(len, rows)) * pair.base.d_vocab)))
    for start in range(0, len(rows), batch_size):
        tokens = pad(rows[start : start + batch_size], filler, "right").to(pair.base.device)
        losses = next_token_losses(hf(**tokens.inputs(), use_cache=False).logits, tokens.ids)
        sign = torch.tensor(text_signs[start : start + batch_size], device=losses.device).unsqueeze(1)
        (losses * tokens.mask[:, 1:] * sign).sum().backward()
    tuned = dict(pair.tuned.hf.named_parameters())
    with torch.no_grad():
        for name, parameter in hf.named_parameters():
            gradient = parameter.grad
            length = (tuned[name].float() - parameter.float()).norm()
            if gradient is not None and float(gradient.norm()) > 0:
                parameter.sub_((gradient.float() * (length / gradient.float().norm())).to(parameter.dtype))
            parameter.grad = None
    return Model(freeze(hf), pair.base.tokenizer, "one gradient step of equal norm", bos=pair.base.bos)


def frequency_matched(
    neurons: Sequence[Neuron],
    rates: Mapping[int, Float[Tensor, " d_mlp"]],
    *,
    seed: int,
    exclude: Sequence[Neuron] = (),
    candidates: int = NEAREST,
) -> list[Neuron]:
    """A random other neuron of the same layer for each neuron, among the `candidates` whose firing rate is nearest.

    Never one of `neurons` or `exclude`, none twice, in the order of `neurons`. Raises `UserError` where a layer has no others left.
    """
    return _among_nearest(neurons, rates, seed, exclude, candidates)


def activity_matched(
    model: Model,
    neurons: Sequence[Neuron],
    activity: Mapping[int, Float[Tensor, " d_mlp"]],
    *,
    seed: int,
    exclude: Sequence[Neuron] = (),
    candidates: int = NEAREST,
) -> list[Neuron]:
    """A random other neuron of the same layer for each neuron, among the `candidates` nearest in activity and then in norm.

    Of half as many again that are nearest in activity, the `candidates` whose value vectors are nearest in norm are taken. An
    active neuron can fall further than an idle one, so neurons that are matched on layer and norm alone are a weak control for how
    far activations fall.

    Args:
        activity: by layer, one number for each of its neurons, such as the mean activation on the prompts or the firing rate.

    Never one of `neurons` or `exclude`, none twice, in the order of `neurons`.

    Raises `UserError` for a neuron that the model lacks, a layer without activities, or one without others left.
    """
    model.check_neurons(neurons)
    layers = {layer for layer, _ in neurons}
    if missing := sorted(layers - activity.keys()):
        raise UserError(f"the activity of the neurons of layer {missing[0]} was not given", "give one number for each neuron of it")
    norms = {layer: written_values(model, layer).float().norm(dim=1).cpu() for layer in layers}
    return _among_nearest(neurons, {layer: activity[layer].cpu() for layer in layers}, seed, exclude, candidates, norms)


def _among_nearest(
    neurons: Sequence[Neuron], activity: Mapping[int, Float[Tensor, " d_mlp"]], seed: int, exclude: Sequence[Neuron], candidates: int,
    norms: Mapping[int, Float[Tensor, " d_mlp"]] | None = None,
) -> list[Neuron]:  # fmt: skip
    generator = torch.Generator().manual_seed(seed)
    excluded = {*neurons, *exclude}
    controls: list[Neuron] = []
    for layer, index in neurons:
        gaps = (activity[layer] - activity[layer][index]).abs()
        near = [other for other in gaps.argsort(stable=True).tolist() if (layer, other) not in excluded]
        if not near:
            raise UserError(f"layer {layer} has no other neurons left to draw from", "exclude fewer neurons")
        if norms is not None:
            differences = (norms[layer] - norms[layer][index]).abs().tolist()
            near = sorted(near[: candidates * 3 // 2], key=differences.__getitem__)
        near = near[:candidates]
        chosen = (layer, near[int(torch.randint(len(near), (1,), generator=generator))])
        excluded.add(chosen)
        controls.append(chosen)
    return controls
