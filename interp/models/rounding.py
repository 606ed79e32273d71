"""The distance of a dequantised model from the original one, where both are at hand."""

from __future__ import annotations

import json
import math
from pathlib import Path

import torch
from torch import Tensor

from interp.data.texts import passages
from interp.errors import UserError
from interp.files import write_text
from interp.models.checkpoints import open_checkpoint, read_weights
from interp.models.gguf import NOTE, gguf_note
from interp.models.modes import freeze
from interp.models.tokenizer import read_tokenizer

TEXTS, LONGEST = 20, 64


def note_rounding(folder: str | Path, original: str | Path) -> dict[str, float | int | str]:
    """The distance of a converted GGUF file from its original, which is also written into the folder's note.

    The relative error of all weights together and of the worst tensor (Frobenius norm of the difference over that of the
    original); on the first 64 tokens of 20 bundled passages the mean KL(original || dequantised) in nats per token, the share of
    positions with the same likeliest token, and both perplexities; and the share of passages that the two tokenizers divide alike.

    Raises `UserError` where the folder was not converted from a GGUF file, or the two do not have the same tensors.
    """
    target = Path(folder)
    note = gguf_note(target)
    if note is None:
        raise UserError(f"{target} was not converted from a GGUF file", "convert it first: bypass convert FILE.gguf --out DIR")
    sides = [open_checkpoint(source) for source in (original, target)]
    models = [freeze(read_weights(checkpoint, torch.float32)) for checkpoint in sides]
    first, second = (model.state_dict() for model in models)
    if {name: tensor.shape for name, tensor in first.items()} != {name: tensor.shape for name, tensor in second.items()}:
        raise UserError(f"{original} and {note['file']} do not have the same tensors", "name the model that the file was quantised from")
    norms = {name: float(tensor.double().norm()) for name, tensor in first.items()}
    errors = {name: float((second[name] - tensor).double().norm()) / max(norms[name], 1e-30) for name, tensor in first.items()}
    worst = max(errors, key=lambda name: errors[name])
    total, whole = math.hypot(*(errors[name] * norm for name, norm in norms.items())), math.hypot(*norms.values())
    readers = [read_tokenizer(checkpoint, model) for checkpoint, model in zip(sides, models, strict=True)]
    texts = [f"{passage.prompt} {passage.continuation}" for passage in passages()[:TEXTS]]
    rows = [[reader(text)["input_ids"] for text in texts] for reader in readers]
    alike = sum(a == b for a, b in zip(*rows, strict=True)) / len(texts)
    measured: dict[str, float | int | str] = {
        "original": Path(str(original)).name, "weights_error": total / whole, "worst_tensor": worst, "worst_tensor_error": errors[worst],
        **_distance(models[0], models[1], [row[:LONGEST] for row in rows[0]]), "texts_divided_alike": alike,
    }  # fmt: skip
    write_text(target / NOTE, json.dumps(note | {"rounding": measured}, indent=1))
    return measured


@torch.inference_mode()
def _distance(original: torch.nn.Module, other: torch.nn.Module, rows: list[list[int]]) -> dict[str, float]:
    kl = same = 0.0
    losses, count = [0.0, 0.0], 0
    for row in rows:
        ids = torch.tensor([row])
        logs: list[Tensor] = [model(input_ids=ids, use_cache=False).logits[0].double().log_softmax(-1) for model in (original, other)]
        kl += float((logs[0].exp() * (logs[0] - logs[1])).sum())
        same += float((logs[0].argmax(-1) == logs[1].argmax(-1)).sum())
        count += len(row)
        for place, side in enumerate(logs):
            losses[place] -= float(side[:-1].gather(1, ids[0, 1:, None]).sum())
    predicted = count - len(rows)
    return {
        "kl": kl / count, "same_likeliest_token": same / count,
        "perplexity_original": math.exp(losses[0] / predicted), "perplexity_dequantised": math.exp(losses[1] / predicted),
    }  # fmt: skip
