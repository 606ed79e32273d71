"""Digests of a model: hashes of all that its answer to a text depends on, by which results and indexes of it are kept.

`Model.digest` is a hash of the weights alone, by which a probe, a log or a report says which weights it is of.
"""

from __future__ import annotations

import hashlib
import json
from typing import Any

from transformers import PreTrainedTokenizerBase

from interp.models.model import Model
from interp.models.tokens import adds_bos, end_tokens

# Entries of a configuration that say where it came from, and not what is computed.
ORIGIN = ("_name_or_path", "transformers_version", "architectures", "_from_model_config")


def model_digests(model: Model) -> list[str]:
    """Digests of what a model's answer to a text depends on: the weights, the tokenizer, and all other settings.

    The settings are every entry of the configuration and of the generation config, BOS and end tokens, dtype and kind of device.
    """
    settings = {
        "config": config_entries(model.hf.config), "generation": config_entries(model.hf.generation_config), "bos": adds_bos(model),
        "ends": end_tokens(model), "dtype": str(model.dtype), "device": model.device.type,
    }  # fmt: skip
    return [model.digest, tokenizer_digest(model.tokenizer), _digest(json.dumps(settings, sort_keys=True, default=str))]


def model_key(model: Model) -> str:
    """`model_digests` as one word, the key under which a result of this model may be kept."""
    return "-".join(model_digests(model))


def tokenizer_digest(tokenizer: PreTrainedTokenizerBase) -> str:
    """A digest of the tokens that a tokenizer makes of a text and the text of each token: its rules, special tokens and chat template.

    Truncation and padding are left out: calls of the tokenizer change them.
    """
    backend = getattr(tokenizer, "backend_tokenizer", None)
    if backend is None:
        rules: Any = [type(tokenizer).__name__, sorted(tokenizer.get_vocab().items())]
    else:
        text = backend.to_str()
        # Truncation and padding stand before the tokens.
        rules = text[max(text.find('"added_tokens"'), 0) :]
    special = {name: str(token) for name, token in tokenizer.special_tokens_map.items()}
    template = getattr(tokenizer, "chat_template", None)
    return _digest(json.dumps([rules, special, template, tokenizer("a")["input_ids"]], sort_keys=True, default=str))


def config_entries(config: Any) -> dict[str, Any]:
    """The entries of a configuration, without those that say where it came from."""
    return {} if config is None else {name: value for name, value in config.to_dict().items() if name not in ORIGIN}


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode("utf-8", "backslashreplace")).hexdigest()
