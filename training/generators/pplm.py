"""Pairs by PPLM: the toxic side is decoded while the model's cached keys and values are moved towards the probe's direction.

At every token the keys and values of all earlier positions are moved by gradient steps that make the text so far, with one
imagined token more, look toxic to the probe, while the next token's distribution stays close to the undisturbed one
(Dathathri et al. 2020; settings of paper A, Table 9). The chosen side is the greedy continuation of the same prompt.

The published procedure takes one text at a time, and on a small model most of its time is overhead. Here a batch of prompts
is processed together with independent rows: losses are summed, so that no row gets another's gradient; step lengths
are normed row by row; a left-padded position has no attention, hence no gradient; and a row's random numbers depend on its
index in the list alone. An iteration costs two passes over one token each and one backward through them: the
undisturbed cache is extended and never recomputed, and only keys and values that may move take gradients.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor
from torch.nn import functional
from transformers.cache_utils import Cache, DynamicLayer

from interp.directions.probe import Probe
from interp.errors import UserError
from interp.forward.generate import GREEDY, Sampling, choose, generate_tokens
from interp.models.hooks import Work, working
from interp.models.model import Model
from interp.models.tokens import batches, pad, positions_of
from training.generators.task import Block, Draft, Generator, Task, check_range, check_room, read_options

# Model types in which every layer caches all earlier keys and values, without sliding windows or sharing between layers.
SUPPORTED = ("gpt2", "llama", "qwen2")
TINY = 1e-15
KeyValues = list[tuple[Tensor, Tensor]]


@dataclass(frozen=True)
class Pplm:
    """Settings of PPLM; the defaults are paper A's Table 9.

    Attributes:
        step_size: length of one gradient step on a layer's keys and values, per row.
        iterations: gradient steps per token.
        gm_scale: the share of the disturbed distribution in the geometric mean with the undisturbed one (1: it alone).
        kl_scale: weight of KL(disturbed || undisturbed) of the next token beside the probe's cross-entropy.
        window: how many of the last positions move; 0 for all.
        decay: within the window, move a position the less the farther back it lies.
        gamma: the power of the gradient's norm that a step is divided by (1: every step has the same length).
        horizon: how many imagined tokens the probe reads beyond the text.
        temperature: of the disturbed distribution; 0 takes the likeliest token.
        top_k: how many tokens are sampled from.
        batch: prompts that go together.
    """

    step_size: float = 0.4
    iterations: int = 50
    gm_scale: float = 0.95
    kl_scale: float = 0.1
    window: int = 0
    decay: bool = False
    gamma: float = 1.0
    horizon: int = 1
    temperature: float = 1.0
    top_k: int = 10
    batch: int = 32

    def __post_init__(self) -> None:
        for name in ("step_size", "iterations", "kl_scale", "window", "gamma", "temperature"):
            check_range(f"pairs.pplm.{name}", getattr(self, name), 0)
        check_range("pairs.pplm.gm_scale", self.gm_scale, 0, 1)
        for name in ("horizon", "top_k", "batch"):
            check_range(f"pairs.pplm.{name}", getattr(self, name), 1)
        if self.decay and not self.window:
            raise UserError("pairs.pplm.decay is on, but no window is set for it to fall off in", "set a window, or decay = false")


def make(task: Task) -> Iterator[Block]:
    """Greedy against PPLM continuations of each prompt, batch by batch.

    Raises `UserError` for an architecture whose cache is not a plain one, and for too long prompts.
    """
    options, new = read_options(Pplm, task.settings, "pplm"), task.settings["new_tokens"]
    check_supported(task.base)
    check_room(task.base, task.prompts, new + options.horizon)
    probe = task.probe()
    for group in batches([len(row) for row in task.prompts], batch_size=options.batch, batch_tokens=1 << 30):
        if not task.done.issuperset(group):
            rows = [task.prompts[i] for i in group]
            plain = generate_tokens(task.base, rows, max_new_tokens=new, sampling=GREEDY, stop_at_end=False)
            pushed = pplm_tokens(task.base, probe, rows, options, new_tokens=new, seed=task.seed, numbers=group)
            yield Block(group, [Draft(*sides) for sides in zip(rows, plain, pushed, strict=True)])


def options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `[pairs.pplm]` with their defaults."""
    return asdict(read_options(Pplm, settings, "pplm"))


GENERATOR = Generator("pplm", make, options_of, uses_probe=True)


def check_supported(model: Model) -> None:
    """Raise `UserError` for an architecture on which this PPLM does not work."""
    kind = model.hf.config.model_type
    if kind not in SUPPORTED:
        problem = f"PPLM works on models of type {', '.join(SUPPORTED)}, and {model.name} is of type {kind!r}"
        raise UserError(problem, "choose another generator, for example steering or best-worst")


def pplm_tokens(
    model: Model, probe: Probe, rows: Sequence[Sequence[int]], options: Pplm, *, new_tokens: int, seed: int = 0,
    numbers: Sequence[int] | None = None,
) -> list[list[int]]:  # fmt: skip
    """PPLM continuations of one batch of prompts, as token ids of each row.

    Args:
        numbers: each row's place in the whole list, from which (with the seed) its random numbers follow.

    Source: Dathathri et al. 2020, sections 3.2 and 3.3; paper A, Table 9; experiment A-E5.
    """
    tokens = pad(rows, model.tokenizer.pad_token_id or 0, "left").to(model.device)
    generators = [torch.Generator().manual_seed(seed * 1_000_003 + row) for row in (range(len(rows)) if numbers is None else numbers)]
    sampling = Sampling(temperature=1.0 if options.temperature else 0.0, top_k=options.top_k)
    fresh, mask, columns = tokens.ids, tokens.mask, []
    plain: KeyValues = []
    past: KeyValues = []
    seen = torch.zeros(len(rows), model.d_model, device=model.device, dtype=model.dtype)
    for step in range(new_tokens):
        with torch.no_grad():
            reading = read(model, plain, mask, ids=fresh)
            plain, last = reading.cache, fresh[:, -1:]
            if step == 0:
                past = [(keys[:, :, :-1], values[:, :, :-1]) for keys, values in plain]
            here = reading.residual[:, -1]
            # Summed over the text before the last token, which the pushed pass reads again.
            before = seen + (reading.residual * mask[:, -fresh.shape[1] :, None])[:, :-1].sum(dim=1)
            seen = before + here
        reference = reading.logits.log_softmax(dim=-1)
        if past[0][0].shape[2] and options.iterations:
            past = push(model, probe, past, plain, last, mask, before, reference, options)
        with torch.no_grad():
            pushed = read(model, past, mask, ids=last)
            past = pushed.cache
            pushed_log_probs = (pushed.logits / (options.temperature or 1.0)).log_softmax(dim=-1)
            mixture = options.gm_scale * pushed_log_probs + (1 - options.gm_scale) * reference
            fresh = choose(mixture.float(), sampling, generators)[:, None]
        columns.append(fresh)
        mask = torch.cat([mask, torch.ones_like(mask[:, :1])], dim=1)
    return torch.cat(columns, dim=1).tolist() if columns else [[] for _ in rows]


@dataclass(frozen=True)
class Reading:
    """The output of one pass: the last position's logits, the last residual stream, and keys and values of every layer."""

    logits: Float[Tensor, "batch vocab"]
    residual: Float[Tensor, "batch pos d_model"]
    cache: KeyValues


class FilledLayer(DynamicLayer):
    """A cache layer that begins with given keys and values, which may carry gradients."""

    def __init__(self, keys: Tensor, values: Tensor) -> None:
        super().__init__()
        self.lazy_initialization(keys, values)
        self.keys, self.values = keys, values


def read(
    model: Model, past: KeyValues, mask: Bool[Tensor, "batch pos"], *, ids: Tensor | None = None, embeddings: Tensor | None = None,
    logits: bool = True,
) -> Reading:  # fmt: skip
    """One pass over new tokens (or embeddings) after a past, which is not changed; `mask` covers both."""
    cache = Cache(layers=[FilledLayer(*pair) for pair in past]) if past else Cache(layer_class_to_replicate=DynamicLayer)
    count = (ids if ids is not None else embeddings).shape[1]  # type: ignore[union-attr]
    inputs = {"attention_mask": mask.long(), "position_ids": positions_of(mask)[:, -count:], "past_key_values": cache, "use_cache": True}
    inputs |= {"input_ids": ids} if ids is not None else {"inputs_embeds": embeddings}
    streams: list[Tensor] = []
    work = Work(collectors={f"resid_post.{model.n_layers - 1}": (lambda value, frame: streams.append(value),)})
    with working(model.hf, work):
        # Squeezing the single position costs nothing in the backward pass; indexing it would fill a tensor of zeros.
        scores = model.hf(**inputs, logits_to_keep=1).logits.squeeze(1) if logits else None
        if not logits:
            model.hf.base_model(**inputs)
    return Reading(scores, streams[0], [(layer.keys, layer.values) for layer in cache.layers])  # type: ignore[arg-type]


def push(
    model: Model, probe: Probe, past: KeyValues, plain: KeyValues, last: Tensor, mask: Tensor, before: Tensor, reference: Tensor,
    options: Pplm,
) -> KeyValues:  # fmt: skip
    """The past's keys and values after the gradient steps of one token."""
    length = past[0][0].shape[2]
    width = min(options.window, length) if options.window else length
    fixed = [tuple(part[:, :, : length - width] for part in pair) for pair in past]
    moving = [tuple(part[:, :, length - width :].clone().requires_grad_() for part in pair) for pair in past]
    leaves = [part for pair in moving for part in pair]
    falling = None
    if options.decay:
        falling = torch.arange(options.window - width + 1, options.window + 1, device=last.device).div(options.window)[:, None]
    for _ in range(options.iterations):
        with torch.enable_grad():
            now = _joined(fixed, moving)
            loss = losses(model, probe, now, plain, last, mask, before, reference, options)
            gradients = torch.autograd.grad(loss.sum(), leaves)
        with torch.no_grad():
            if falling is not None:
                gradients = tuple(gradient * falling for gradient in gradients)
            for layer, pair in enumerate(moving):
                parts = gradients[2 * layer : 2 * layer + 2]
                norm = torch.stack([torch.linalg.vector_norm(part, dim=(1, 2, 3)) for part in parts]).norm(dim=0) + TINY
                scale = (-options.step_size / norm**options.gamma)[:, None, None, None]
                for leaf, gradient in zip(pair, parts, strict=True):
                    leaf.addcmul_(gradient, scale)
    return _joined(fixed, [tuple(part.detach() for part in pair) for pair in moving])


def _joined(fixed: Sequence[tuple[Tensor, ...]], moving: Sequence[tuple[Tensor, ...]]) -> KeyValues:
    if not fixed[0][0].shape[2]:
        return [(pair[0], pair[1]) for pair in moving]
    return [
        (torch.cat([still[0], pair[0]], dim=2), torch.cat([still[1], pair[1]], dim=2)) for still, pair in zip(fixed, moving, strict=True)
    ]


def losses(
    model: Model, probe: Probe, past: KeyValues, plain: KeyValues, last: Tensor, mask: Tensor, before: Tensor, reference: Tensor,
    options: Pplm,
) -> Float[Tensor, " batch"]:  # fmt: skip
    """Each row's loss of a gradient step: the probe's cross-entropy for "toxic", plus the weighted KL of the next token.

    The last token is read after the pushed past; its next-token distribution, as one soft token, is read after the
    undisturbed past, and the probe judges the mean residual stream of the text and that token. The residual streams of the
    text itself take no gradient, so the steps act through the next-token distribution alone.
    """
    here = read(model, past, mask, ids=last)
    scores = here.logits.log_softmax(dim=-1)
    total = before + here.residual.squeeze(1).detach()
    embed = model.hf.get_input_embeddings().weight
    likely = scores.exp()
    chances, ahead, longer = likely, plain, mask
    for step in range(options.horizon):
        longer = torch.cat([longer, torch.ones_like(longer[:, :1])], dim=1)
        more = step + 1 < options.horizon
        soft = read(model, ahead, longer, embeddings=(chances @ embed)[:, None], logits=more)
        total = total + soft.residual.squeeze(1)
        if more:
            chances, ahead = soft.logits.softmax(dim=-1), soft.cache
    mean = total / longer.sum(dim=1, keepdim=True)
    weights, bias = probe.weights.to(mean), probe.bias.to(mean)
    odds = mean @ weights + bias
    loss = functional.softplus(odds[:, 0] - odds[:, 1])
    if options.kl_scale:
        loss = loss + options.kl_scale * torch.linalg.vecdot(likely, scores - reference)
    return loss
