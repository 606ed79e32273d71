"""Stage `pretrain`: a GPT-2 of the recipe's size from scratch, on packed windows of the corpus, in bf16 where it helps.

The order of windows is a permutation drawn from (seed, epoch), and the learning rate a function of the step, so a run
that is killed and resumed takes exactly the steps that an uninterrupted one takes.
"""

from __future__ import annotations

import json
import math
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from transformers import AutoTokenizer, GPT2Config, GPT2LMHeadModel, PreTrainedTokenizerFast

from interp.errors import UserError
from interp.loading import quiet
from training.checkpoint import load_checkpoint, save_checkpoint, save_model
from training.recipe import Recipe
from training.tokenizer import corpus_texts


def pack(path: Path, tokenizer: PreTrainedTokenizerFast, target: Path) -> np.ndarray:
    """Tokenise a corpus file once into one row of token ids, each document followed by the end-of-text token."""
    if not target.exists():
        end = tokenizer.eos_token_id
        dtype = np.uint16 if len(tokenizer) <= 1 << 16 else np.uint32
        parts: list[np.ndarray] = []
        batch: list[str] = []

        def flush() -> None:
            for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
                parts.append(np.asarray([*ids, end], dtype=dtype))
            batch.clear()

        for text in corpus_texts(path):
            batch.append(text)
            if len(batch) == 2000:
                flush()
        if batch:
            flush()
        if not parts:
            raise UserError(f"{path} holds no document", "run the stage corpus again, with larger sources")
        temporary = target.with_suffix(".tmp.npy")
        np.save(temporary, np.concatenate(parts))
        temporary.replace(target)
    return np.load(target, mmap_mode="r")


def build_model(settings: dict[str, Any], vocabulary: int, end: int) -> GPT2LMHeadModel:
    """A GPT-2 with random weights and no dropout, of the recipe's shape."""
    config = GPT2Config(
        vocab_size=vocabulary, n_positions=settings["context"], n_embd=settings["width"], n_layer=settings["layers"],
        n_head=settings["heads"], resid_pdrop=0.0, embd_pdrop=0.0, attn_pdrop=0.0, bos_token_id=end, eos_token_id=end, pad_token_id=end,
    )  # fmt: skip
    return GPT2LMHeadModel(config)


def learning_rate(step: int, total: int, settings: dict[str, Any]) -> float:
    """Linear warm-up, then a cosine down to the final rate."""
    peak, final, warmup = settings["learning_rate"], settings["final_learning_rate"], settings["warmup_steps"]
    if step < warmup:
        return peak * (step + 1) / warmup
    progress = (step - warmup) / max(1, total - warmup)
    return final + 0.5 * (peak - final) * (1 + math.cos(math.pi * progress))


def window(tokens: np.ndarray, step: int, settings: dict[str, Any], seed: int) -> torch.Tensor:
    """The batch of windows that belongs to a step."""
    length, batch = settings["context"], settings["batch"]
    count = len(tokens) // length
    per_epoch = count // batch
    epoch, index = divmod(step, per_epoch)
    order = np.random.default_rng([seed, epoch]).permutation(count)[index * batch : (index + 1) * batch]
    return torch.from_numpy(np.stack([tokens[i * length : (i + 1) * length] for i in order]).astype(np.int64))


@torch.no_grad()
def held_out_loss(model: GPT2LMHeadModel, tokens: np.ndarray, length: int, windows: int = 64) -> float:
    """Mean loss in nats per token on the first held-out windows."""
    model.eval()
    usable = min(windows, len(tokens) // length)
    rows = torch.from_numpy(np.asarray(tokens[: usable * length]).astype(np.int64)).view(usable, length).to(model.device)
    losses = [model(part, labels=part).loss.item() * len(part) for part in rows.split(16)]
    model.train()
    return sum(losses) / usable


def check_size(train: int, held: int, settings: dict[str, Any]) -> None:
    """Raise `UserError` when the corpus, in tokens, makes no batch, or the epochs no step."""
    needed = settings["context"] * settings["batch"]
    if train < needed or held < settings["context"]:
        problem = f"the corpus has {train} tokens and {held} held out, but one step reads {needed} and a measurement {settings['context']}"
        raise UserError(problem, "name larger sources, or lower batch or context")
    if int(settings["epochs"] * (train // settings["context"] // settings["batch"])) < 1:
        raise UserError(f"{settings['epochs']} epochs of this corpus are less than one step", "raise epochs")


def forget_after(log: Path, step: int) -> None:
    """Drop the lines of a log that a resumed run will write again, and a line that was cut off."""
    if not log.exists():
        return
    kept = []
    for line in log.read_text(encoding="utf-8").splitlines():
        try:
            record = json.loads(line)
        except json.JSONDecodeError:
            continue
        if record["step"] <= step:
            kept.append(line + "\n")
    temporary = log.with_suffix(".tmp")
    temporary.write_text("".join(kept), encoding="utf-8")
    temporary.replace(log)


@quiet()
def pretrain(recipe: Recipe) -> Path:
    """Train to the end of the recipe's epochs, resuming from the last checkpoint; return the folder of the model.

    Raises `UserError` where an earlier stage is missing, the corpus is too small for one step, the checkpoint is of
    another recipe or damaged, or the gradient is no longer finite (the last checkpoint is then kept).
    """
    settings = recipe.stage("pretrain")
    corpus = recipe.run / "corpus"
    if not (corpus / "train.jsonl").exists() or not (recipe.run / "tokenizer" / "tokenizer.json").exists():
        raise UserError(f"no corpus or no tokenizer in {recipe.run}", "run the stages corpus and tokenizer first")
    tokenizer = AutoTokenizer.from_pretrained(recipe.run / "tokenizer")
    tokens = pack(corpus / "train.jsonl", tokenizer, corpus / "train.npy")
    held = pack(corpus / "heldout.jsonl", tokenizer, corpus / "heldout.npy")
    check_size(len(tokens), len(held), settings)
    torch.manual_seed(recipe.seed)
    device = "cuda" if torch.cuda.is_available() else "cpu"
    model = build_model(settings, len(tokenizer), tokenizer.eos_token_id).to(device)
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": settings["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"], betas=(0.9, 0.95), fused=True)
    folder = recipe.run / "pretrain"
    digest = recipe.digest("corpus", "tokenizer", "pretrain")
    state = load_checkpoint(folder / "checkpoint", model, optimizer, digest) or {"step": 0, "digest": digest, "seconds": 0.0}
    total = int(settings["epochs"] * (len(tokens) // settings["context"] // settings["batch"]))
    started = time.monotonic() - state["seconds"]
    forward = torch.compile(model) if settings.get("compile") else model
    folder.mkdir(parents=True, exist_ok=True)
    forget_after(folder / "log.jsonl", state["step"])
    model.train()
    for step in range(state["step"], total):
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, settings)
        ids = window(tokens, step, settings, recipe.seed).to(device)
        with torch.autocast(device, dtype=torch.bfloat16):
            loss = forward(input_ids=ids, labels=ids).loss
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"]).item()
        if not math.isfinite(norm):
            raise UserError(f"the gradient is not finite at step {step}", "lower the learning rate; the last checkpoint is kept")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        record = {"step": done, "loss": loss.item(), "gradient_norm": norm, "seconds": round(time.monotonic() - started, 1)}
        if done % settings["evaluate_every"] == 0 or done == total:
            record["held_out_loss"] = held_out_loss(model, held, settings["context"])
        if done % 25 == 0 or "held_out_loss" in record:
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps(record) + "\n")
            left = (total - done) * record["seconds"] / done / 60
            held_out = f" held-out {record['held_out_loss']:.3f}" if "held_out_loss" in record else ""
            print(f"step {done}/{total} loss {record['loss']:.3f}{held_out}, {left:.0f} min left", flush=True)
        if done % settings["checkpoint_every"] == 0 or done == total:
            save_checkpoint(folder / "checkpoint", model, optimizer, {"step": done, "digest": digest, "seconds": record["seconds"]})
    model.eval()
    save_model(folder / "model", model, tokenizer)
    return folder / "model"
