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
from training.checkpoint import load_checkpoint, save_checkpoint
from training.recipe import Recipe
from training.tokenizer import corpus_texts


def pack(path: Path, tokenizer: PreTrainedTokenizerFast, target: Path) -> np.ndarray:
    """Tokenise a corpus file once into one row of token ids, documents separated by the end-of-text token."""
    if not target.exists():
        end = tokenizer.eos_token_id
        parts: list[np.ndarray] = []
        batch: list[str] = []

        def flush() -> None:
            for ids in tokenizer(batch, add_special_tokens=False)["input_ids"]:
                parts.append(np.asarray([*ids, end], dtype=np.uint16))
            batch.clear()

        for text in corpus_texts(path):
            batch.append(text)
            if len(batch) == 2000:
                flush()
        flush()
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
    rows = torch.from_numpy(np.asarray(tokens[: usable * length]).astype(np.int64)).view(usable, length)
    losses = [model(part, labels=part).loss.item() * len(part) for part in rows.split(16)]
    model.train()
    return sum(losses) / usable


def pretrain(recipe: Recipe) -> Path:
    """Train to the end of the recipe's epochs, resuming from the last checkpoint; return the folder of the model."""
    settings = recipe.stage("pretrain")
    corpus = recipe.run / "corpus"
    if not (corpus / "train.jsonl").exists():
        raise UserError(f"no corpus in {corpus}", "run the stages corpus and tokenizer first")
    tokenizer = AutoTokenizer.from_pretrained(recipe.run / "tokenizer")
    tokens = pack(corpus / "train.jsonl", tokenizer, corpus / "train.npy")
    held = pack(corpus / "heldout.jsonl", tokenizer, corpus / "heldout.npy")
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
    model.save_pretrained(folder / "model")
    tokenizer.save_pretrained(folder / "model")
    return folder / "model"
