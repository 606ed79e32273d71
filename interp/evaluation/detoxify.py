"""Detoxify's models: reading one from a folder of safetensors, its own or Hugging Face's, and converting a checkpoint to such a folder."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import torch

from interp.errors import UserError
from interp.files import read_json, replacing

ARCHITECTURES = (
    "BertForSequenceClassification",
    "AlbertForSequenceClassification",
    "RobertaForSequenceClassification",
    "XLMRobertaForSequenceClassification",
)


RENAMED = {"toxic": "toxicity", "identity_hate": "identity_attack", "severe_toxic": "severe_toxicity"}


def load_detector(folder: Path, device: str) -> tuple[Any, str]:
    """A `Detoxify` object built around a model read from `folder`, without its constructor (pickle and network)."""
    fix = (
        "give `bundled`, `lexicon`, a folder that `bypass convert --detoxify` wrote, or one of a detoxify model in Hugging Face's form "
        "(config.json with id2label, model.safetensors, tokenizer)"
    )
    if not folder.is_dir():
        raise UserError(f"there is no scorer folder {folder}", fix)
    for file in ("config.json", "model.safetensors"):
        if not (folder / file).is_file():
            raise UserError(f"the scorer folder {folder} has no {file}", fix)
    if not (folder / "tokenizer.json").is_file() and not all((folder / name).is_file() for name in ("vocab.json", "merges.txt")):
        raise UserError(f"the scorer folder {folder} has no tokenizer.json", fix)
    config = read_json(folder / "config.json", "restore the file, or convert the model again")
    has_card = (folder / "scorer.json").is_file()
    card = read_json(folder / "scorer.json", "restore the file, or convert the model again") if has_card else _card_of(folder, config, fix)
    classes = card.get("classes")
    if not isinstance(classes, list) or not all(isinstance(name, str) for name in classes) or len(set(classes)) != len(classes):
        raise UserError(f"scorer.json in {folder} lists no distinct class names under `classes`", fix)
    if not classes or classes[0] != "toxicity":
        raise UserError(
            f"the first class of the scorer in {folder} is {classes[:1]}, not toxicity", "list `toxicity` first, or convert it again"
        )
    detoxify = _detoxify()
    architecture = (config.get("architectures") or [None])[0]
    model, tokenizer = _read_model(folder, architecture)
    if model.config.num_labels < len(classes):
        raise UserError(f"the scorer in {folder} names {len(classes)} classes but its model has {model.config.num_labels} outputs", fix)
    detector = detoxify.Detoxify.__new__(detoxify.Detoxify)
    detector.model, detector.tokenizer, detector.class_names, detector.device = model, tokenizer, list(classes), device
    try:
        model.to(device).eval()
    except (RuntimeError, AssertionError) as error:
        raise UserError(f"the scorer cannot be put on device {device!r}: {error}", "use device='cpu'") from error
    return detector, str(card.get("name", folder.name))


def _card_of(folder: Path, config: dict[str, Any], fix: str) -> dict[str, Any]:
    """The name and classes of a folder without scorer.json, from the labels of its configuration.

    Raises `UserError` for labels of another kind of classifier, whose outputs would be read as what they are not.
    """
    labels = config.get("id2label")
    if not isinstance(labels, dict) or sorted(labels, key=str) != sorted(map(str, range(len(labels)))):
        raise UserError(f"the scorer folder {folder} has no scorer.json, and its config.json names no outputs (`id2label`)", fix)
    classes = [RENAMED.get(str(labels[str(place)]), str(labels[str(place)])) for place in range(len(labels))]
    kind = config.get("problem_type")
    # Each output is read through a sigmoid, as detoxify's are; outputs of one choice among all need a softmax.
    if kind not in (None, "multi_label_classification") or (kind is None and "severe_toxicity" not in classes):
        problem = f"the scorer folder {folder} has no scorer.json, and its outputs ({', '.join(classes[:4])}, …) are not those of detoxify"
        raise UserError(problem, fix)
    return {"name": folder.name, "classes": classes}


def _detoxify() -> Any:
    try:
        import detoxify
    except ImportError as error:
        raise UserError(
            "the package detoxify is not installed", "run `pip install bypass-workbench[toxicity]`, or use the scorer `lexicon`"
        ) from error
    return detoxify


def _read_model(folder: Path, architecture: str | None) -> tuple[Any, Any]:
    """The model in float32 and the tokenizer of a folder; missing, unexpected or non-finite weights raise `UserError`."""
    import transformers
    from safetensors import SafetensorError

    from interp.models.libraries import BUILDING, quiet

    fix = "copy the folder again, or convert the model again"
    if architecture not in ARCHITECTURES:
        raise UserError(f"the scorer in {folder} has the architecture {architecture}", f"use one of {', '.join(ARCHITECTURES)}")
    try:
        with BUILDING, quiet():
            model, report = getattr(transformers, architecture).from_pretrained(
                folder, dtype=torch.float32, output_loading_info=True, use_safetensors=True, local_files_only=True
            )
            tokenizer = transformers.AutoTokenizer.from_pretrained(folder, local_files_only=True, trust_remote_code=False)
    except (OSError, ValueError, RuntimeError, KeyError, TypeError, SafetensorError) as error:
        raise UserError(f"the scorer in {folder} cannot be read: {error}", fix) from error
    wrong = [key for kind in ("missing_keys", "mismatched_keys", "unexpected_keys") for key in report.get(kind, ())]
    if wrong:
        raise UserError(f"the weights in {folder} do not fit the model: {sorted(map(str, wrong))[:3]} ({len(wrong)} in all)", fix)
    if not all(bool(torch.isfinite(parameter).all()) for parameter in model.parameters()):
        raise UserError(f"the weights in {folder} are not all finite", fix)
    if not tokenizer("a word", add_special_tokens=False)["input_ids"] or len(tokenizer) > model.config.vocab_size:
        raise UserError(f"the tokenizer in {folder} ({len(tokenizer)} entries) does not fit the model ({model.config.vocab_size})", fix)
    # RoBERTa's positions start after the padding index, so it reads two tokens less than it has positions.
    offset = model.config.pad_token_id + 1 if "Roberta" in architecture else 0
    tokenizer.model_max_length = min(tokenizer.model_max_length, model.config.max_position_embeddings - offset)
    return model, tokenizer


def convert_detoxify(checkpoint: str | Path, target: str | Path, *, like: str | Path | None = None) -> Path:
    """Turn a detoxify checkpoint (`.ckpt`) into a folder that `load_scorer` reads, without running its pickle.

    `like` is a local folder with the architecture's config.json and tokenizer; without it the model name inside the
    checkpoint is used (a local path, or a hub id, which needs the network). Returns `target`, written as a whole or not
    at all. Raises `UserError` when the file is missing, needs more than weights to be unpickled, or does not fit.
    """
    import pickle

    import transformers

    checkpoint, target = Path(checkpoint), Path(target)
    if not checkpoint.is_file():
        raise UserError(f"there is no checkpoint {checkpoint}", "give the path of a detoxify .ckpt file")
    if target.exists():
        raise UserError(f"the target {target} exists already", "remove it, or give another folder")
    try:
        loaded = torch.load(checkpoint, map_location="cpu", weights_only=True)
    except (pickle.UnpicklingError, RuntimeError, EOFError, ValueError, OSError) as error:
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise UserError(
            f"{checkpoint} is not a checkpoint of plain weights: {reason}", "download it again from detoxify's releases"
        ) from error
    try:
        settings, classes = loaded["config"]["arch"]["args"], loaded["config"]["dataset"]["args"]["classes"]
        architecture, outputs, state = settings["model_name"], int(settings["num_classes"]), dict(loaded["state_dict"])
        source = str(like if like is not None else settings["model_type"])
    except (KeyError, TypeError, ValueError) as error:
        raise UserError(
            f"{checkpoint} is not laid out as detoxify's checkpoints are: {error}", "give a file of detoxify's releases"
        ) from error
    if architecture not in ARCHITECTURES:
        raise UserError(f"{checkpoint} holds a {architecture}", f"give a checkpoint of one of {', '.join(ARCHITECTURES)}")
    model_class = getattr(transformers, architecture)
    # Older checkpoints store the position indices, a constant that newer models make themselves.
    state = {name: tensor for name, tensor in state.items() if not name.endswith("embeddings.position_ids")}
    try:
        config = model_class.config_class.from_pretrained(source, num_labels=outputs)
        tokenizer = transformers.AutoTokenizer.from_pretrained(source, trust_remote_code=False)
        model = model_class(config)
        model.load_state_dict(state, strict=True)
    except (OSError, ValueError, RuntimeError) as error:
        reason = str(error).strip().splitlines()[0]
        raise UserError(
            f"{checkpoint} does not fit the configuration {source!r}: {reason}", "pass the folder of its base model as `like`"
        ) from error
    card = {
        "format": "bypass-scorer",
        "name": target.name,
        "classes": [RENAMED.get(name, name) for name in classes],
        "converted_from": checkpoint.name,
    }
    with replacing(target) as temporary:
        model.save_pretrained(temporary)
        tokenizer.save_pretrained(temporary)
        (temporary / "scorer.json").write_text(json.dumps(card, indent=1) + "\n", encoding="utf-8")
    return target
