"""The log-probabilities of preference pairs with every token read once: what TRL's own forward returns, at less cost.

TRL reads a pair as two rows, both with the prompt, pads all rows of a batch to one length, and off a GPU it computes the logits
of every position. Here the two sides stand behind one copy of their prompt and do not see each other, rows of similar length
are read together, the last token of a side, which predicts nothing, is left out, and logits are computed for the completions
alone. Losses and metrics remain TRL's.
"""

from __future__ import annotations

import functools
import types
from collections.abc import Sequence
from typing import Any

import torch
from jaxtyping import Float, Int
from torch import Tensor
from transformers import PreTrainedModel
from trl.kernels import ChunkedLogProbFunction
from trl.trainer.utils import FusedCausalLMOutput

from interp.preferences.packed import PackedRow, batch_tokens_on, packable, packed_groups, packed_states

# Padded tokens that are read together, where it is not for the device to say.
GROUP: int | None = None
# Positions whose logits exist at a time, and the columns of the vocabulary in TRL's kernel.
PIECE, COLUMNS = 128, 32768
# What TRL's losses and metrics read besides the log-probabilities.
FIELDS = ("entropy", "mean_logits", "is_top1")


def add_pair_forward(hf: PreTrainedModel) -> None:
    """Replace, once, the forward that TRL added to a model for its losses; every other call of the model stays as it is.

    TRL's own is still used where attention cannot be limited to one side of a row (see `packable`).
    """
    if getattr(hf, "reads_pairs", False):
        return
    plain = hf.forward
    hf.reads_pairs = True

    @functools.wraps(type(hf).forward)
    def forward(self: PreTrainedModel, *args: Any, fused_lm_head: bool = False, **kwargs: Any) -> Any:
        if fused_lm_head:
            rows = joined(kwargs["input_ids"], kwargs["attention_mask"], kwargs["labels"])
            if rows is not None and packable(self, rows):
                return pair_output(self, rows, kwargs["labels"][:, 1:])
            return plain(*args, fused_lm_head=True, **kwargs)
        return plain(*args, **kwargs)

    hf.forward = types.MethodType(forward, hf)


def joined(ids: Int[Tensor, "rows pos"], mask: Int[Tensor, "rows pos"], labels: Int[Tensor, "rows pos"]) -> list[PackedRow] | None:
    """The pairs of a batch of TRL's (right-padded, first all chosen rows, then all rejected) as one row each.

    None where a pair has no prompt, or its sides do not begin with the same one.
    """
    texts = [row[:length] for row, length in zip(ids.tolist(), mask.sum(dim=1).tolist(), strict=True)]
    # Of a row without a label, all is prompt.
    prompts = [min(first, len(text)) for first, text in zip(_first(labels), texts, strict=True)]
    rows, count = [], len(texts) // 2
    for chosen, rejected, prompt, other in zip(texts[:count], texts[count:], prompts[:count], prompts[count:], strict=True):
        if not 0 < prompt == other or chosen[:prompt] != rejected[:prompt] or min(len(chosen), len(rejected)) == prompt:
            return None
        rows.append(PackedRow(chosen[:-1] + rejected[prompt:-1], prompt, len(chosen) - prompt, len(rejected) - prompt))
    return rows


def _first(labels: Int[Tensor, "rows pos"]) -> list[int]:
    """The place of each row's first label; the row's length where it has none."""
    known = labels != -100
    return torch.where(known.any(dim=1), known.long().argmax(dim=1), labels.shape[1]).tolist()


def pair_output(hf: PreTrainedModel, rows: Sequence[PackedRow], labels: Int[Tensor, "sides step"]) -> FusedCausalLMOutput:
    """TRL's output for these pairs: log-probabilities in nats and what its metrics read, zero where there is no label.

    `labels` are those of the next token, of all chosen rows and then of all rejected ones.
    """
    states, order = [], []
    for group in packed_groups(rows, GROUP or batch_tokens_on(labels.device)):
        hidden = packed_states(hf, [rows[number] for number in group])
        width = hidden.shape[1]
        for side in (0, 1):
            flat = [index * width + place for index, number in enumerate(group) for place in rows[number].predicting[side]]
            states.append(hidden.flatten(0, 1)[torch.tensor(flat, device=hidden.device)])
            order += [side * len(rows) + number for number in group for _ in rows[number].predicting[side]]
    # A stable sort by row puts the states into the order of the labels.
    places = torch.tensor(order).argsort(stable=True).to(labels.device)
    known = labels != -100
    values = token_values(hf, torch.cat(states)[places], labels[known])
    logps, *others = (value.new_zeros(known.shape).masked_scatter(known, value) for value in values)
    return FusedCausalLMOutput(loss=-logps.sum() / known.sum(), log_probs=logps, label_mask=known, **dict(zip(FIELDS, others, strict=True)))


def token_values(
    hf: PreTrainedModel, states: Float[Tensor, "token d_model"], targets: Int[Tensor, " token"]
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """For each state the log-probability of its target in nats, the entropy, the mean logit, and whether the target is the most likely.

    The same as TRL's kernel, which is called where the unembedding is trained or the logits are changed after it.
    """
    config, head = hf.config.get_text_config(), hf.get_output_embeddings()
    states, targets = states.to(head.weight.device), targets.to(head.weight.device)
    cap = getattr(config, "final_logit_softcapping", None)
    bias = getattr(head, "bias", None)
    if cap is None and not head.weight.requires_grad and not (bias is not None and bias.requires_grad):
        values = _FrozenHead.apply(states, head.weight, bias, targets)
        return values  # type: ignore[no-any-return]
    logps, entropy, _, mean, top = ChunkedLogProbFunction.apply(states, head.weight, bias, targets, 1.0, COLUMNS, cap, 1.0, FIELDS)
    return logps, entropy, mean, top


class _FrozenHead(torch.autograd.Function):
    """The values of `token_values` for an unembedding that is not trained.

    The gradient of log p(target) by the state is the target's row of the unembedding less the mean of all rows under p. It is
    computed with the value, while p is at hand, so that the backward pass computes no logits again.
    """

    @staticmethod
    def forward(ctx: Any, states: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor) -> tuple[Tensor, ...]:
        ctx.set_materialize_grads(False)
        slopes = torch.empty_like(states) if ctx.needs_input_grad[0] else None
        pieces = []
        for start in range(0, len(states), PIECE):
            piece, target = states[start : start + PIECE], targets[start : start + PIECE]
            logits = torch.nn.functional.linear(piece, weight, bias).float()
            mean, top = logits.mean(dim=1), logits.amax(dim=1, keepdim=True)
            logits.sub_(top)
            of_target = logits.gather(1, target[:, None])[:, 0]
            chances = logits.exp()
            total = chances.sum(dim=1)
            # A sum over a product, and no scalar product, whose rounding adds up over a large vocabulary.
            average = logits.mul_(chances).sum(dim=1) / total
            pieces.append((of_target - total.log(), total.log() - average, mean, of_target >= 0))
            if slopes is not None:
                mixture = chances.to(weight.dtype) @ weight
                slopes[start : start + PIECE] = weight[target] - mixture / total[:, None].to(weight.dtype)
        logps, entropy, means, tops = (torch.cat(parts) for parts in zip(*pieces, strict=True))
        ctx.save_for_backward(slopes)
        ctx.mark_non_differentiable(entropy, means, tops)
        return logps, entropy, means, tops

    @staticmethod
    def backward(ctx: Any, *gradients: Tensor | None) -> tuple[Tensor | None, None, None, None]:
        (slopes,) = ctx.saved_tensors
        by_logp = gradients[0]
        return None if by_logp is None else by_logp[:, None].to(slopes.dtype) * slopes, None, None, None
