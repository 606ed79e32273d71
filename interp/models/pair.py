"""`ModelPair`: a model before and after preference tuning, checked to be comparable."""

from __future__ import annotations

import math
import statistics
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from interp.bundled import BUNDLED
from interp.errors import UserError
from interp.models.gguf import gguf_note
from interp.models.loading import load_model
from interp.models.model import Model
from interp.models.named import NAMED, tuned_folder
from interp.models.tokens import adds_bos, default_bos, end_tokens
from interp.models.tying import is_tied, untie

# Settings of a configuration that change the forward, but not the shapes of the weights.
FORWARD_SETTINGS = (
    "num_attention_heads", "num_key_value_heads", "head_dim", "layer_norm_epsilon", "rms_norm_eps", "activation_function", "hidden_act",
    "hidden_activation", "rope_parameters", "scale_attn_weights", "scale_attn_by_inverse_layer_idx", "sliding_window", "use_sliding_window",
    "layer_types", "no_rope_layers", "query_pre_attn_scalar", "attn_logit_softcapping", "final_logit_softcapping",
)  # fmt: skip

# Rounding to 8 bits in blocks of 32 moves a matrix by half a per cent of its norm, to 6 bits or fewer by two per cent or more.
FINE_ROUNDING, COARSE_ROUNDING = 0.002, 0.01


def compare_checkpoints(base: Model, tuned: Model) -> None:
    """Raise `UserError` where two models cannot be compared site by site."""
    first, second = base.hf.config, tuned.hf.config
    if first.model_type != second.model_type:
        raise UserError(
            f"the sides differ in architecture: base is {first.model_type}, tuned is {second.model_type}",
            "give two checkpoints of one model",
        )
    _check_added_tokens(base, tuned)
    shapes = [{name: tuple(p.shape) for name, p in model.hf.named_parameters()} for model in (base, tuned)]
    for name in sorted(shapes[0].keys() | shapes[1].keys()):
        if shapes[0].get(name) != shapes[1].get(name):
            raise UserError(
                f"the sides differ in shape: {name} is {shapes[0].get(name)} in base, {shapes[1].get(name)} in tuned",
                "give two checkpoints of one model",
            )
    for key in FORWARD_SETTINGS:
        if not _same_setting(getattr(first, key, None), getattr(second, key, None)):
            raise UserError(
                f"the sides differ in {key}: {getattr(first, key, None)} and {getattr(second, key, None)}", "correct config.json"
            )
    vocabularies = [_vocabulary(side, other) for side, other in ((base, tuned), (tuned, base))]
    if vocabularies[0] != vocabularies[1]:
        raise UserError(
            "the sides have different tokenizers, so the same text would be different tokens", "copy the base model's tokenizer files"
        )
    if adds_bos(base) != adds_bos(tuned):
        with_bos, without = ("base", "tuned") if adds_bos(base) else ("tuned", "base")
        raise UserError(
            f"texts begin with a BOS token in {with_bos} and not in {without}", "choose one for both: --bos or --no-bos (bos= in Python)"
        )
    probe = "The quick brown fox,\n  1984 don't stop: café 🙂"
    if base.tokenizer(probe, add_special_tokens=False)["input_ids"] != tuned.tokenizer(probe, add_special_tokens=False)["input_ids"]:
        raise UserError("the sides' tokenizers cut the same text differently", "copy the base model's tokenizer files")
    stored = [
        model.checkpoint.stored_dtypes() if model.checkpoint and not model.checkpoint.adapter_base else set() for model in (base, tuned)
    ]
    if stored[0] and stored[1] and stored[0] != stored[1] and not _trained_from_dequantised(base, tuned):
        raise UserError(
            f"the sides are stored in different precision (base {sorted(stored[0])}, tuned {sorted(stored[1])}): rounding is no tuning",
            "save both in one dtype, rounding the base before tuning starts",
        )


def _same_setting(one: Any, other: Any) -> bool:
    """Whether two values of a setting are the same; a GGUF file stores fractions such as an epsilon in single precision."""
    if isinstance(one, float) and isinstance(other, float):
        return math.isclose(one, other, rel_tol=1e-6)
    return bool(one == other)


def _trained_from_dequantised(base: Model, tuned: Model) -> bool:
    """Whether the tuned side was trained from the weights that a quantised GGUF file gives, and not from those before quantisation.

    Told by the distance of its matrices, the median over them of |tuned - base| / |base|: what lies further from the base than tuning
    moves weights, but less far than rounding does, is not decided by it, and counts as trained from others.
    """
    note = gguf_note(base.checkpoint.folder) if base.checkpoint is not None else None
    if not note or not note["quantised"] or tuned.checkpoint is None or tuned.checkpoint.stored_dtypes() != {"F32"}:
        return False
    most = max(note["quantised"], key=lambda kind: note["tensors"][kind])
    bits = int(next(filter(str.isdigit, most), "8"))
    limit = FINE_ROUNDING if bits >= 8 else COARSE_ROUNDING
    others = dict(tuned.hf.named_parameters())
    with torch.no_grad():
        distances = [
            float((others[name] - weight).norm() / weight.norm())
            for name, weight in base.hf.named_parameters() if weight.dim() > 1 and bool(weight.any())
        ]  # fmt: skip
    return bool(distances) and statistics.median(distances) < limit


def _vocabulary(side: Model, other: Model) -> dict[str, int]:
    """The tokens of a side that have to be those of the other one too.

    Not one beyond the model's rows, which is never read and never generated, nor a padding token that the other does not know.
    """
    theirs, rows = other.tokenizer.get_vocab(), side.d_vocab
    own = {token: n for token, n in side.tokenizer.get_vocab().items() if n < rows}
    filler = side.tokenizer.pad_token
    if filler not in theirs and own.get(filler) not in theirs.values():
        own.pop(filler, None)
    return own


def _check_added_tokens(base: Model, tuned: Model) -> None:
    """Raise `UserError` where one side has rows for added tokens that the other lacks, with the command that takes them out.

    They are not taken out here, because that changes what the model computes: its probabilities are then over fewer tokens.
    """
    names = {"base": base, "tuned": tuned}
    smaller, larger = sorted(names, key=lambda name: names[name].d_vocab)
    few, many = names[smaller], names[larger]
    added = getattr(many.tokenizer, "added_tokens_decoder", {})
    extra = range(few.d_vocab, many.d_vocab)
    if not extra or few.d_model != many.d_model or not all(token in added or token >= len(many.tokenizer) for token in extra):
        return
    listed = ", ".join(repr(str(added[token])) for token in extra if token in added)
    fix = f"give as {smaller} the model with these tokens, as it was before it was tuned"
    padding = all("pad" in str(added[token]).lower() for token in extra if token in added)
    if padding and many.checkpoint is not None and few.checkpoint is not None:
        fix = f"take out what the other lacks: bypass convert {many.checkpoint.source} --like {few.checkpoint.source} --out DIR"
    count = f"{len(extra)} token{'s' if len(extra) > 1 else ''}"
    raise UserError(f"{larger} has {count} more than {smaller}{f': {listed}' if listed else ', all without a name'}", fix)


def notes_on(model: Model) -> list[str]:
    """What a reader of any result of this model has to know first: whether its texts begin with BOS, where that is a question."""
    token, default = model.tokenizer.bos_token, default_bos(model.tokenizer)
    if adds_bos(model):
        return [f"Raw texts begin with the BOS token {token}{', as the tokenizer has it' if default else ', as asked'}."]
    return [f"Raw texts begin without the BOS token {token}, which the tokenizer adds by default."] if default else []


@dataclass(frozen=True, eq=False)
class ModelPair:
    """A model before and after preference tuning, checked to be comparable."""

    base: Model
    tuned: Model
    name: str = "pair"

    @classmethod
    def load(
        cls, base: str | Path, tuned: str | Path, *, dtype: torch.dtype = torch.float32, device: str | torch.device = "cpu",
        name: str | None = None, bos: bool | None = None,
    ) -> ModelPair:  # fmt: skip
        """The pair of two models, loaded and checked to be comparable; `bos` as in `load_model`.

        Raises:
            UserError: as `load_model`, or where architecture, shape, tokenizer or stored precision differ.
        """
        first = load_model(base, dtype=dtype, device=device, name="base", bos=bos)
        second = load_model(tuned, dtype=dtype, device=device, base=base, name="tuned", bos=bos)
        # Where one side alone has an unembedding of its own, the other gets a copy of its embedding, which changes none of its logits.
        if is_tied(first.hf) != is_tied(second.hf):
            untie(first.hf)
            untie(second.hf)
        compare_checkpoints(first, second)
        return cls(first, second, name or f"{first.checkpoint.label} / {second.checkpoint.label}")  # type: ignore[union-attr]

    @classmethod
    def bundled(cls, *, device: str | torch.device = "cpu") -> ModelPair:
        """The pair that ships with the project: a small GPT-2 before and after DPO against toxic continuations."""
        return cls.load(BUNDLED / "base", BUNDLED / "tuned", device=device, name="bundled pair")

    @classmethod
    def named(cls, name: str, *, device: str | torch.device = "cpu") -> ModelPair:
        """A pair by its name: `shipped`, or `smollm2` (SmolLM2-135M-Instruct before and after DPO with a LoRA adapter).

        Raises `UserError` for an unknown name, and where the package that carries the base model is not installed.
        """
        if name == "shipped":
            return cls.bundled(device=device)
        if name not in NAMED:
            raise UserError(f"there is no pair named {name!r}", f"use one of shipped, {', '.join(NAMED)}, or ModelPair.load(BASE, TUNED)")
        return cls.load(name, tuned_folder(name), device=device, name=name)

    @property
    def sides(self) -> dict[str, Model]:
        """Both models, by `base` and `tuned`."""
        return {"base": self.base, "tuned": self.tuned}

    @property
    def same_weights(self) -> bool:
        """Whether every weight of both sides is the same, so that the pair shows nothing of tuning."""
        return self.base.digest == self.tuned.digest

    def notes(self) -> list[str]:
        """What a reader of any result of this pair has to know first, in sentences; mostly nothing."""
        notes = []
        if self.same_weights:
            notes.append("Both sides have the same weights: whatever is compared between them, there is no tuning to be seen.")
        ends = [end_tokens(model) for model in self.sides.values()]
        if set(ends[0]) != set(ends[1]):
            words = [" ".join(self.base.tokenizer.decode([token]) for token in tokens) or "no token" for tokens in ends]
            notes.append(f"The sides stop at different tokens: base at {words[0]}, tuned at {words[1]} (generation_config.json).")
        return [*notes, *notes_on(self.base)]

    def manifest(self) -> dict[str, Any]:
        """Both sides' manifests and the library versions."""
        from interp.environment import versions

        return {"name": self.name, "base": self.base.manifest(), "tuned": self.tuned.manifest(), "versions": versions()}
