"""Stage `scorer`: trains a small BERT classifier with detoxify's six classes, on Perspective's scale.

The labelled corpora disagree about what counts as toxic. One classifier learns one toxicity logit on the scale of the
corpora with Perspective scores; for every other corpus the logit is transformed by a slope and an offset of its own, which
are dropped after training. The views of an epoch are drawn from (seed, epoch) and dropout from (seed, step), so a resumed run
takes the steps of an uninterrupted one.
"""

from __future__ import annotations

import json
import math
import random
import time
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import load_file, save_file
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from torch import nn
from transformers import BertConfig, BertForSequenceClassification, BertTokenizer

from interp.errors import UserError
from interp.evaluation.toxicity import CLASSES, load_scorer
from interp.files import replacing
from training.checkpoint import load_checkpoint, save_checkpoint
from training.labelled import Example, neutral_windows, obfuscate, read_labelled, view, written_sentences
from training.optimizers import learning_rate
from training.precision import autocast, precision_of
from training.recipe import Recipe
from training.scorer_report import describe, reliability
from training.sections import ScorerSettings

SPECIAL = ("[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]")
PERSPECTIVE_SCALE = frozenset({"context", "wikipedia", "reddit", "written"})


def build_tokenizer(texts: list[str], vocabulary: int, positions: int, folder: Path) -> BertTokenizer:
    """A lower-casing WordPiece tokenizer as BERT's, trained on `texts` and saved in `folder`."""
    piece = Tokenizer(models.WordPiece(unk_token="[UNK]"))  # type: ignore[call-arg]
    piece.normalizer = normalizers.BertNormalizer(lowercase=True)
    piece.pre_tokenizer = pre_tokenizers.BertPreTokenizer()
    piece.decoder = decoders.WordPiece()
    piece.train_from_iterator(texts, trainers.WordPieceTrainer(vocab_size=vocabulary, special_tokens=list(SPECIAL), show_progress=False))
    piece.post_processor = processors.TemplateProcessing(
        single="[CLS] $A [SEP]",
        pair="[CLS] $A [SEP] $B [SEP]",
        special_tokens=[(name, piece.token_to_id(name)) for name in ("[CLS]", "[SEP]")],
    )
    tokenizer = BertTokenizer(tokenizer_object=piece, vocab=piece.get_vocab(), do_lower_case=True, model_max_length=positions)
    tokenizer.save_pretrained(folder)
    return tokenizer


class SourceScales(nn.Module):
    """The classifier with a slope and an offset of the toxicity logit for each source of labels."""

    free: torch.Tensor

    def __init__(self, classifier: BertForSequenceClassification, sources: list[str]) -> None:
        super().__init__()
        self.classifier = classifier
        self.log_slope = nn.Parameter(torch.zeros(len(sources)))
        self.offset = nn.Parameter(torch.zeros(len(sources)))
        self.register_buffer("free", torch.tensor([float(name not in PERSPECTIVE_SCALE) for name in sources]), persistent=False)

    def forward(self, ids: torch.Tensor, mask: torch.Tensor, source: torch.Tensor) -> torch.Tensor:
        """Logits of six classes, the first one on the scale of its source: Float[batch 6]."""
        logits = self.classifier(input_ids=ids, attention_mask=mask).logits.float()
        free = self.free[source]
        first = logits[:, 0] * torch.exp(self.log_slope[source] * free) + self.offset[source] * free
        return torch.cat([first[:, None], logits[:, 1:]], dim=1)


def masked_loss(logits: torch.Tensor, targets: torch.Tensor) -> torch.Tensor:
    """Binary cross-entropy against soft targets where they are known (not NaN); toxicity weighs as much as the rest."""
    known = ~torch.isnan(targets)
    losses = nn.functional.binary_cross_entropy_with_logits(logits, torch.nan_to_num(targets), reduction="none") * known
    toxicity, others = losses[:, 0].mean(), losses[:, 1:].sum() / known[:, 1:].sum().clamp(min=1)
    return toxicity + 0.5 * others


def epoch_batches(
    examples: list[Example], names: list[str], tokenizer: BertTokenizer, epoch: int, seed: int, size: int
) -> list[tuple[list[list[int]], np.ndarray, list[int]]]:
    """The batches of an epoch: token ids, targets and source of each view, texts of like length together."""
    rng = random.Random(f"{seed}-{epoch}")
    views = [view(example, rng) for example in examples]
    ids = tokenizer([text for text, _ in views], truncation=True)["input_ids"]
    order = sorted(range(len(views)), key=lambda i: len(ids[i]) * rng.uniform(0.85, 1.15))
    groups = [order[start : start + size] for start in range(0, len(order), size)]
    rng.shuffle(groups)
    index = {name: number for number, name in enumerate(names)}
    return [
        ([ids[i] for i in group], np.array([views[i][1] for i in group], dtype=np.float32), [index[examples[i].source] for i in group])
        for group in groups
    ]


def train_scorer(recipe: Recipe) -> Path:
    """Train to the end of the recipe's epochs, resuming from the last checkpoint; calibrate, measure, save.

    Returns the folder that `interp.evaluation.toxicity.load_scorer` reads: `scorer/model` in the run folder, with the measurements
    on held-out texts in its `scorer.json`. Raises `UserError` when a corpus is missing or a gradient is not finite.
    """
    settings = recipe.stage("scorer")
    folder = recipe.run / "scorer"
    folder.mkdir(parents=True, exist_ok=True)
    digest = recipe.digest("scorer")
    finished = folder / "model" / "scorer.json"
    if finished.exists() and json.loads(finished.read_text(encoding="utf-8"))["training"]["digest"] == digest:
        return folder / "model"
    train, heldout, left_out = read_labelled(settings["sources"])
    clean, clean_held = neutral_windows(settings.get("neutral", ScorerSettings.neutral), random.Random(recipe.seed))
    written = written_sentences(random.Random(recipe.seed), settings.get("written", ScorerSettings.written))
    train, heldout = train + clean + written, heldout + clean_held
    names = sorted({example.source for example in train})
    print(f"{len(train)} texts to train on, {len(heldout)} held out, {left_out} left out for sharing words with those", flush=True)
    if not (folder / "tokenizer" / "tokenizer.json").exists():
        rng = random.Random(recipe.seed)
        texts = [example.text for example in train] + [obfuscate(example.text, rng) for example in train if rng.random() < 0.05]
        build_tokenizer(texts, settings["vocabulary"], settings["positions"], folder / "tokenizer")
    tokenizer = BertTokenizer.from_pretrained(folder / "tokenizer")

    torch.manual_seed(recipe.seed)
    device = torch.device("cuda" if torch.cuda.is_available() else "cpu")
    config = BertConfig(
        vocab_size=len(tokenizer),
        hidden_size=settings["width"],
        num_hidden_layers=settings["layers"],
        num_attention_heads=settings["heads"],
        intermediate_size=4 * settings["width"],
        max_position_embeddings=settings["positions"],
        hidden_dropout_prob=settings["dropout"],
        attention_probs_dropout_prob=0.0,
        pad_token_id=tokenizer.pad_token_id,
        problem_type="multi_label_classification",
        id2label=dict(enumerate(CLASSES)),
        label2id={name: number for number, name in enumerate(CLASSES)},
    )
    # Eager attention is measurably faster than the fused kernel for texts this short on a CPU.
    config._attn_implementation = "eager"
    model = SourceScales(BertForSequenceClassification(config), names).to(device)
    decay = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() <= 1]
    groups = [{"params": decay, "weight_decay": settings["weight_decay"]}, {"params": plain, "weight_decay": 0.0}]
    optimizer = torch.optim.AdamW(groups, lr=settings["learning_rate"], betas=(0.9, 0.98), fused=True)
    state = load_checkpoint(folder / "checkpoint", model, optimizer, digest) or {"step": 0, "seconds": 0.0}
    identity = {"digest": digest, "precision": precision_of(settings, device, state)}
    per_epoch = math.ceil(len(train) / settings["batch"])
    total = int(settings["epochs"] * per_epoch)
    started = time.monotonic() - state["seconds"]
    batches: list[Any] = []
    smooth = 0.0
    model.train()
    for step in range(state["step"], total):
        if not batches or step % per_epoch == 0:
            batches = epoch_batches(train, names, tokenizer, step // per_epoch, recipe.seed, settings["batch"])
        for group in optimizer.param_groups:
            group["lr"] = learning_rate(step, total, settings)
        ids, targets, source = batches[step % per_epoch]
        padded = tokenizer.pad({"input_ids": ids}, return_tensors="pt").to(device)
        torch.manual_seed(recipe.seed * 1_000_003 + step)
        with autocast(identity["precision"], device):
            logits = model(padded["input_ids"], padded["attention_mask"], torch.tensor(source, device=device))
        loss = masked_loss(logits, torch.from_numpy(targets).to(device))
        loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), settings["clip"]).item()
        if not math.isfinite(norm):
            raise UserError(f"the gradient is not finite at step {step}", "lower the learning rate; the last checkpoint is kept")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        done = step + 1
        smooth = loss.item() if done == state["step"] + 1 else 0.97 * smooth + 0.03 * loss.item()
        if done % 50 == 0 or done == total:
            seconds = time.monotonic() - started
            with (folder / "log.jsonl").open("a") as log:
                log.write(json.dumps({"step": done, "loss": smooth, "gradient_norm": norm, "seconds": round(seconds, 1)}) + "\n")
            print(f"step {done}/{total} loss {smooth:.4f} {(total - done) * seconds / done / 60:.1f} min left", flush=True)
        if done % settings["checkpoint_every"] == 0 or done == total:
            seconds = round(time.monotonic() - started, 1)
            save_checkpoint(folder / "checkpoint", model, optimizer, {"step": done, "seconds": seconds, **identity})
    model.eval()
    return _finish(recipe, model.cpu(), tokenizer, heldout, {"texts": len(train), "left_out": left_out, "steps": total, "digest": digest})


def _finish(recipe: Recipe, model: SourceScales, tokenizer: BertTokenizer, heldout: list[Example], training: dict[str, Any]) -> Path:
    """Save in half precision, fit the calibration on held-out Perspective scores, fold it into the head, measure."""
    folder = recipe.run / "scorer"
    with replacing(folder / "model") as temporary:
        _write_model(recipe, temporary, model, tokenizer, heldout, training)
    return folder / "model"


def _write_model(
    recipe: Recipe, temporary: Path, model: SourceScales, tokenizer: BertTokenizer, heldout: list[Example], training: dict[str, Any]
) -> None:
    model.classifier.save_pretrained(temporary)
    tokenizer.save_pretrained(temporary)
    card: dict[str, Any] = {
        "format": "bypass-scorer",
        "name": f"bypass-{recipe.name}",
        "classes": list(CLASSES),
        "description": (
            "A small English BERT classifier with detoxify's six classes, trained from scratch for research on language models. 0.5 on the "
            "toxicity column means what 0.5 means on Perspective's scale, as far as 20,000 Wikipedia talk-page comments tell. It reads "
            "words more than intentions, knows little context, and scores neutral sentences about some groups too high (see weak_spots): "
            "not for moderating people."
        ),
        "settings": {key: value for key, value in recipe.stage("scorer").items() if not isinstance(value, list)},
        "training": training,
    }
    _write_card(temporary, card)
    perspective = [example for example in heldout if example.source == "context"]
    texts, targets = [example.text for example in perspective], np.array([example.toxicity for example in perspective])
    logits = _logit(load_scorer(temporary).score(texts)["toxicity"].to_numpy(dtype=np.float64))
    slope, offset = fit_platt(logits, targets)
    weights = load_file(temporary / "model.safetensors")
    weights["classifier.weight"][0] *= slope
    weights["classifier.bias"][0] = weights["classifier.bias"][0] * slope + offset
    save_file({name: tensor.half() for name, tensor in weights.items()}, temporary / "model.safetensors", metadata={"format": "pt"})
    (temporary / "model.safetensors").chmod(0o644)
    scorer = load_scorer(temporary)
    stored = scorer.score(texts)["toxicity"].to_numpy(dtype=np.float64)
    card["calibration"] = {
        "slope": slope,
        "offset": offset,
        "texts": len(perspective),
        "against": "Perspective scores of held-out comments; folded into the classifier's head",
        "cross_fitted_reliability": reliability(cross_fitted(logits, targets), targets),
        "largest_change_by_half_precision": float(np.abs(_chance(slope * logits + offset) - stored).max()),
    }
    card |= describe(scorer, heldout)
    _write_card(temporary, card)


def _write_card(folder: Path, card: dict[str, Any]) -> None:
    (folder / "scorer.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")


def _logit(scores: np.ndarray) -> np.ndarray:
    clipped = np.clip(scores, 1e-6, 1 - 1e-6)
    return np.log(clipped / (1 - clipped))


def _chance(logits: np.ndarray) -> np.ndarray:
    return 1 / (1 + np.exp(-logits))


def cross_fitted(logits: np.ndarray, targets: np.ndarray) -> np.ndarray:
    """Cross-fitted calibrated scores: each half of the texts is calibrated on the other half."""
    scores = np.empty_like(logits)
    for part in (0, 1):
        slope, offset = fit_platt(logits[1 - part :: 2], targets[1 - part :: 2])
        scores[part::2] = _chance(slope * logits[part::2] + offset)
    return scores


def fit_platt(logits: np.ndarray, targets: np.ndarray, steps: int = 50) -> tuple[float, float]:
    """Slope and offset that minimise the cross-entropy of sigmoid(slope * logit + offset) to soft targets, by Newton's method."""
    design = np.stack([logits, np.ones_like(logits)], axis=1)
    weights = np.array([1.0, 0.0])
    for _ in range(steps):
        chance = _chance(design @ weights)
        curvature = design.T @ (design * (chance * (1 - chance))[:, None]) + 1e-9 * np.eye(2)
        weights = weights - np.linalg.solve(curvature, design.T @ (chance - targets))
    return float(weights[0]), float(weights[1])
