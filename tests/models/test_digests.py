"""The digests of a model tell apart everything that its answer to a text depends on, and are the same for a copy of it."""

from __future__ import annotations

import copy
import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch
from tokenizers import pre_tokenizers

from interp import Model, load_model
from interp.models.digests import model_digests


def same(model: Model) -> Model:
    return Model(model.plain_copy(), copy.deepcopy(model.tokenizer), "another name")


def test_a_copy_and_a_tokenizer_that_was_used_have_the_same_digests(any_model: Model) -> None:
    again = same(any_model)
    again.tokenizer(["the river", "stone"], padding=True, truncation=True, max_length=3)
    assert model_digests(again) == model_digests(any_model)


def test_the_same_folder_at_another_place_has_the_same_digests(gpt2_folder: Path, gpt2: Model, tmp_path: Path) -> None:
    assert model_digests(load_model(shutil.copytree(gpt2_folder, tmp_path / "moved"))) == model_digests(gpt2)


def weights(model: Model) -> None:
    with torch.no_grad():
        next(model.hf.parameters()).view(-1)[0] += 1


def set_config(name: str, value: Any) -> Callable[[Model], None]:
    return lambda model: setattr(model.hf.config, name, value)


CHANGES: dict[str, tuple[int, Callable[[Model], None]]] = {
    "weights": (0, weights),
    "a token": (1, lambda model: model.tokenizer.add_tokens(["riverstone"]) and None),
    "a rule": (1, lambda model: setattr(model.tokenizer.backend_tokenizer, "pre_tokenizer", pre_tokenizers.Whitespace())),
    "the end token": (1, lambda model: setattr(model.tokenizer, "eos_token", "the")),
    "the chat template": (1, lambda model: setattr(model.tokenizer, "chat_template", "{{ messages }}")),
    "eps": (2, set_config("rms_norm_eps", 1e-3)),
    "rope": (2, lambda model: model.hf.config.rope_parameters.update(rope_theta=77.0)),
    "soft-capping": (2, set_config("final_logit_softcapping", 3.0)),
    "a scale that only some families have": (2, set_config("logits_scaling", 8.0)),
    "the context": (2, set_config("max_position_embeddings", 32)),
    "the end of generation": (2, lambda model: setattr(model.hf.generation_config, "eos_token_id", [3, 4])),
    "another setting of generation": (2, lambda model: setattr(model.hf.generation_config, "repetition_penalty", 1.3)),
    "BOS": (2, lambda model: object.__setattr__(model, "bos", True)),
}  # fmt: skip


@pytest.mark.parametrize("name", CHANGES)
def test_a_change_shows_in_its_digest(llama: Model, name: str) -> None:
    which, change = CHANGES[name]
    changed = same(llama)
    changed.tokenizer.bos_token = "<|endoftext|>"
    before = model_digests(changed)
    change(changed)
    differs = [a != b for a, b in zip(before, model_digests(changed), strict=True)]
    assert differs[which], name
    assert name != "weights" or differs == [True, False, False]


def test_an_end_token_mended_in_the_files_of_a_folder_shows(gpt2_folder: Path, tmp_path: Path) -> None:
    models = []
    for end in ("<|endoftext|>", "q"):
        folder = shutil.copytree(gpt2_folder, tmp_path / f"ends at {len(models)}")
        words = json.loads((folder / "tokenizer.json").read_text(encoding="utf-8"))
        # Both folders have the two tokens as special ones, so that they divide every text alike.
        words["added_tokens"].append(words["added_tokens"][0] | {"id": words["model"]["vocab"]["q"], "content": "q"})
        (folder / "tokenizer.json").write_text(json.dumps(words), encoding="utf-8")
        settings = folder / "tokenizer_config.json"
        settings.write_text(json.dumps(json.loads(settings.read_text()) | {"eos_token": end}))
        models.append(load_model(folder))
    first, second = models
    assert second.digest == first.digest
    assert model_digests(second) != model_digests(first)
