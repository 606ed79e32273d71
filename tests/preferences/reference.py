"""The small GPT-2 of known weights whose scores are known to ten digits, two pairs for it, and plain referees."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import GPT2Config, GPT2LMHeadModel, PreTrainedModel, PreTrainedTokenizerBase

from interp import Model
from interp.preferences.pairs import TokenPair

FIRST = TokenPair((1, 4, 2), (5, 3, 9, 3, 0), (5, 7, 0))
SECOND = TokenPair((3, 6), (8, 1, 0), (8, 2, 10, 0))


def known_model(tokenizer: PreTrainedTokenizerBase) -> Model:
    """A GPT-2 of 2 layers in double precision: element i of tensor j is ((i² + 3i + 7j) mod 13 - 6)/16 (gains: 1 plus half of it)."""
    config = GPT2Config(
        vocab_size=11, n_positions=16, n_embd=8, n_layer=2, n_head=2, activation_function="gelu_new", layer_norm_epsilon=1e-5,
        resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=0, eos_token_id=0, pad_token_id=0,
    )  # fmt: skip
    hf = GPT2LMHeadModel(config).double().eval()
    with torch.no_grad():
        for number, (name, parameter) in enumerate(hf.named_parameters()):
            index = torch.arange(parameter.numel())
            values = ((index**2 + 3 * index + 7 * number) % 13 - 6).double() / 16
            gain = "ln_" in name and name.endswith("weight")
            parameter.copy_((1 + values / 2 if gain else values).view_as(parameter))
    return Model(hf, tokenizer, "known")


def plain_states(hf: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """The states that predict an answer's tokens, by a whole forward of the sequence alone: the official way."""
    ids = torch.tensor([[*prompt, *answer]])
    with torch.no_grad():
        states = hf(ids, output_hidden_states=True).hidden_states[-1][0]
    return states[len(prompt) - 1 : -1]


def plain_log_prob(hf: PreTrainedModel, prompt: Sequence[int], answer: Sequence[int]) -> Tensor:
    """The log-probabilities of an answer's tokens, by a whole forward of the sequence alone; with gradients."""
    ids = torch.tensor([[*prompt, *answer]])
    logits = hf(ids).logits[0, len(prompt) - 1 : -1]
    return logits.log_softmax(dim=-1)[range(len(answer)), list(answer)]


def random_pairs(vocabulary: int, count: int, seed: int = 0, longest: int = 7) -> list[TokenPair]:
    """Pairs of random tokens with parts of 1 to `longest` tokens."""
    draw = torch.Generator().manual_seed(seed)

    def part() -> tuple[int, ...]:
        length = int(torch.randint(1, longest + 1, (1,), generator=draw))
        return tuple(torch.randint(1, vocabulary, (length,), generator=draw).tolist())

    return [TokenPair(part(), part(), part()) for _ in range(count)]
