"""Whether a model's unembedding is its embedding: read from the weights as they are, not from what a configuration says.

A file may hold another unembedding than its configuration announces, and an adapter may change one of the two alone. The
configuration is corrected to the weights, because every copy of the model is built from it.
"""

from __future__ import annotations

import torch
from torch import nn
from transformers import PreTrainedModel


def is_tied(hf: PreTrainedModel) -> bool:
    """Whether the unembedding and the embedding are one parameter."""
    return hf.get_output_embeddings().weight is hf.get_input_embeddings().weight


def record_tying(hf: PreTrainedModel) -> None:
    """Correct `tie_word_embeddings` to what the weights are; nothing where some of them are offloaded."""
    if not any(parameter.is_meta for parameter in hf.parameters()):
        hf.config.tie_word_embeddings = is_tied(hf)


@torch.no_grad()
def untie(hf: PreTrainedModel) -> None:
    """Give the unembedding a parameter of its own, with the values of the embedding; the logits stay the same."""
    if is_tied(hf):
        head = hf.get_output_embeddings()
        head.weight = nn.Parameter(head.weight.clone(), requires_grad=head.weight.requires_grad)
    record_tying(hf)


@torch.no_grad()
def retie(hf: PreTrainedModel) -> None:
    """Make the unembedding the embedding again where both have the same values and the architecture ties them; then record it."""
    head, embedding = hf.get_output_embeddings(), hf.get_input_embeddings()
    if getattr(hf, "_tied_weights_keys", None) and not is_tied(hf) and torch.equal(head.weight, embedding.weight):
        head.weight = embedding.weight
    record_tying(hf)
