"""Tiny Llamas with chat templates: one of ChatML, one of Llama 2's kind whose template writes the BOS token itself."""

from __future__ import annotations

from pathlib import Path

import torch
from tokenizers import processors
from transformers import LlamaConfig, PreTrainedTokenizerFast

from interp import Model, load_model
from tests.conftest import glu_settings, make_hf, make_tokenizer, save

CHATML = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}{% endfor %}"
    "{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
# The system prompt is part of the first user's turn, turns are trimmed, and the BOS token is the template's.
LLAMA2 = (
    "{% if messages[0]['role'] == 'system' %}{% set turns = messages[1:] %}{% set system = messages[0]['content'] %}"
    "{% else %}{% set turns = messages %}{% set system = false %}{% endif %}"
    "{% for message in turns %}"
    "{% if (message['role'] == 'user') != (loop.index0 % 2 == 0) %}{{ raise_exception('Roles must alternate user/assistant') }}{% endif %}"
    "{% if loop.index0 == 0 and system %}{% set content = '<<S>>\n' + system + '\n<</S>>\n\n' + message['content'] %}"
    "{% else %}{% set content = message['content'] %}{% endif %}"
    "{% if message['role'] == 'user' %}{{ bos_token + '[I] ' + content.strip() + ' [/I]' }}"
    "{% else %}{{ ' ' + content.strip() + ' ' + eos_token }}{% endif %}{% endfor %}"
)
# Contexts are longer than those of the other tiny models: in their vocabulary the words of a template are many tokens.
LONG = 192


def chat_tokenizer(template: str | None = CHATML) -> PreTrainedTokenizerFast:
    """The tiny vocabulary with the special tokens of both templates, whose own rule is to put a BOS token before every text."""
    tokenizer = make_tokenizer()
    tokenizer.add_special_tokens({"bos_token": "<s>", "eos_token": "<|im_end|>", "additional_special_tokens": ["<|im_start|>"]})
    start = tokenizer.bos_token_id
    tokenizer.backend_tokenizer.post_processor = processors.Sequence([
        processors.ByteLevel(trim_offsets=True), processors.TemplateProcessing(single="<s> $A", special_tokens=[("<s>", start)])
    ])  # fmt: skip
    tokenizer.chat_template = template
    return tokenizer


def chat_folder(folder: Path, template: str | None = CHATML, *, seed: int = 0, noise: float = 0.0, context: int = LONG) -> Path:
    """A random tiny Llama with this chat template, on disk; with `noise` as the tuned side of the same model without."""
    tokenizer = chat_tokenizer(template)
    settings = {**glu_settings(), "max_position_embeddings": context}
    hf = make_hf(LlamaConfig(**settings, tie_word_embeddings=False), tokenizer, seed)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in hf.parameters():
            parameter.add_(noise * torch.randn(parameter.shape, generator=generator))
    return save(hf, tokenizer, folder)


def chat_model(template: str | None = CHATML, name: str = "chatty") -> Model:
    """The same model in memory."""
    tokenizer = chat_tokenizer(template)
    settings = {**glu_settings(), "max_position_embeddings": LONG}
    return load_model(make_hf(LlamaConfig(**settings, tie_word_embeddings=False), tokenizer), tokenizer=tokenizer, name=name)
