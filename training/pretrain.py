"""Stages `pretrain`, `continue` and `sharpen`, which train the base model.

`pretrain` trains a GPT-2 of the recipe's size from scratch on packed windows of the corpus. `continue` trains it further on
another mixture of sources, with the learning rate warmed up again. `sharpen` trains the MLPs of a few layers anew, so that
their neurons can be read.

The base model that later stages read is the one that was trained last (`training.recipe.base_folder`).
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel

from interp.errors import UserError
from interp.files import write_json
from interp.models.libraries import quiet
from training.corpus import write_corpus
from training.evaluation import held_out_passages
from training.loop import Task, train
from training.optimizers import CHOICES, chosen
from training.packing import check_size, pack
from training.parallel import Processes
from training.recipe import Recipe, Section
from training.sparsity import begin_anew, layers_of
from training.stages import base_training
from training.stamps import digest, made_from


def build_model(settings: dict[str, Any], vocabulary: int, end: int) -> GPT2LMHeadModel:
    """A GPT-2 with random weights and no dropout, of the recipe's shape."""
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=settings["context"], n_embd=settings["width"], n_layer=settings["layers"],
        n_head=settings["heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


@quiet()
def pretrain(recipe: Recipe) -> Path:
    """Train from scratch to the end of the recipe's epochs, resuming from the last checkpoint; return the folder of the model.

    Raises `UserError` where an earlier stage is missing, the corpus is too small for one step, and as `loop.train` does.
    """
    settings = recipe.stage("pretrain")
    corpus, words = recipe.folder("corpus"), recipe.folder("tokenizer")
    if not (corpus / "train.jsonl").exists() or not (words / "tokenizer.json").exists():
        raise UserError(f"no corpus in {corpus} or no tokenizer in {words}", "run the stages corpus and tokenizer first")
    tokenizer = AutoTokenizer.from_pretrained(words, trust_remote_code=False)
    torch.manual_seed(recipe.seed)
    model = build_model(settings, len(tokenizer), tokenizer.eos_token_id)
    return _run(recipe, "pretrain", settings, model, corpus, words, Processes())


@quiet()
def continue_pretraining(recipe: Recipe) -> Path:
    """Train the pretrained model further on the sources of [continue]; return the folder of the model, the new base.

    What [continue] does not set is as in [pretrain]; without `sources` it reads the same corpus. Raises as `pretrain` does.
    """
    return _go_on(recipe, "continue")


@quiet()
def sharpen(recipe: Recipe) -> Path:
    """Train the MLPs of a few layers anew, with a price on activity (`training.sparsity`); return the folder of the new base.

    All other weights are kept, except the norms around them. What [sharpen] does not set is as in the part before, its
    texts too. Raises `UserError` for layers that the model does not have, and as `pretrain` does.
    """
    return _go_on(recipe, "sharpen")


def _go_on(recipe: Recipe, stage: str) -> Path:
    settings, processes = stage_settings(recipe, stage), Processes()
    before = recipe.folder(_earlier(recipe, stage)[-1]) / "model"
    if not (before / "config.json").is_file():
        raise UserError(f"no pretrained model in {before}", f"run the stage {before.parent.name} first")
    model = GPT2LMHeadModel.from_pretrained(before, dtype=torch.float32)
    if model.config.n_positions < settings["context"]:
        raise UserError(f"[{stage}] has a context of {settings['context']}, the model one of {model.config.n_positions}", "lower context")
    if stage == "sharpen":
        if processes.sharded:
            raise UserError("the stage sharpen trains a part of the weights, and FSDP divides them all", "launch with data-parallel.yaml")
        begin_anew(model, layers_of(model, settings), recipe.seed)
    corpus, words = recipe.folder("corpus"), recipe.folder("tokenizer")
    mixed = [name for name in (*_earlier(recipe, stage), stage) if "sources" in recipe.settings[name]]
    if mixed:
        corpus = words = recipe.folder(mixed[-1]) / "corpus"
    if mixed[-1:] == [stage]:
        with processes.writer_first():
            _mixture(recipe, stage, settings, corpus)
    return _run(recipe, stage, settings, model, corpus, words, processes)


def _earlier(recipe: Recipe, stage: str) -> list[str]:
    """The parts of the training before a stage, which make the model that it starts from."""
    parts = base_training()
    return [name for name in parts[: parts.index(stage)] if name in recipe.settings or name == "pretrain"]


def stage_settings(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The settings of [continue] or [sharpen], completed by those of the parts before."""
    settings: dict[str, Any] = {}
    for name in (*_earlier(recipe, stage), stage):
        section = recipe.stage(name)
        # A part's length does not apply to the next one, and its texts are read from its folder.
        lost = {"sources", "max_characters"} | ({"epochs", "steps"} if section.keys() & {"epochs", "steps"} else set())
        settings = {key: value for key, value in settings.items() if key not in lost} | section
    return Section(settings, f"section [{stage}] of recipe {recipe.name!r}")


def _mixture(recipe: Recipe, stage: str, settings: dict[str, Any], corpus: Path) -> None:
    """Write the documents of the continuation, unless they are there already, from the same sources."""
    inputs = made_from(recipe, stage)
    sources = {"seed": inputs["seed"], "files": inputs["files"], **{key: settings.get(key) for key in ("sources", "max_characters")}}
    note, value = corpus / "made_from.json", {"digest": digest(sources)}
    if note.is_file() and json.loads(note.read_text(encoding="utf-8")) == value:
        return
    note.unlink(missing_ok=True)
    write_corpus(settings, corpus, recipe.seed)
    write_json(note, value)


def _run(
    recipe: Recipe, stage: str, settings: dict[str, Any], model: GPT2LMHeadModel, corpus: Path, ids: Path, processes: Processes
) -> Path:
    for name in CHOICES:
        chosen(settings, name)
    folder = recipe.folder(stage)
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer = AutoTokenizer.from_pretrained(recipe.folder("tokenizer"), trust_remote_code=False)
    with processes.writer_first():
        tokens = pack(corpus / "train.jsonl", tokenizer, ids / "train.npy")
        heldout = pack(corpus / "heldout.jsonl", tokenizer, ids / "heldout.npy")
        inputs = made_from(recipe, stage)
    check_size(len(tokens), len(heldout), settings)
    texts = held_out_passages(corpus, settings, tokenizer)
    return train(Task(stage, folder, settings, recipe.seed, inputs, model, tokenizer, tokens, heldout, texts), processes)
