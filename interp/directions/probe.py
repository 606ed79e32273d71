"""A linear probe for toxicity, with the controls of its accuracy.

High accuracy alone proves little: capitals, length or single words may separate the texts too. So every probe carries the AUC of
the same recipe with shuffled labels, on bare token embeddings, of the difference in means, and of capitals or length alone, and how
far its direction depends on which half of the texts it was fitted on.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Float
from safetensors.torch import load_file, save_file
from torch import Tensor

from interp.bundled import BUNDLED
from interp.data.lexicon import is_toxic_word, mask
from interp.data.texts import toxicity_texts
from interp.directions.probe_data import ProbeData, cosine, features_of, read_data
from interp.directions.probe_metrics import MEANINGS
from interp.errors import UserError
from interp.files import read_json, replacing
from interp.models.digests import model_key
from interp.models.folders import check_safetensors
from interp.models.tokens import token_rows
from interp.neurons.projection import projection_for
from interp.neurons.vocabulary import top_tokens

if TYPE_CHECKING:
    from interp.models.model import Model

BUNDLED_PROBE = BUNDLED / "probe"
FITTED_TOKENS = 128
_FITTED: dict[tuple[str, int], Probe] = {}


@dataclass(frozen=True, eq=False)
class Probe:
    """`P(toxic | x) = softmax(x W + b)[1]` with `x` the mean over a text's positions of the last residual stream.

    Attributes:
        weights: W; its two columns are opposite (that is where the L2 penalty puts them).
        difference_in_means: mean toxic minus mean other feature of the training texts.
        metrics: measured on held-out texts; `MEANINGS` says what each is.
        digest: the hash of the weights of the model that it was fitted on.
        bias: b, whose two numbers are opposite too; zeros for a probe without bias.
        scales: the standard deviation of each coordinate of the features, where they were standardised; None where they were not.
        unstandardised: the direction of the same fit without standardising; None where the probe itself is that fit.
    """

    weights: Float[Tensor, "d_model 2"]
    difference_in_means: Float[Tensor, " d_model"]
    metrics: Mapping[str, float | int]
    digest: str
    settings: Mapping[str, Any]
    bias: Float[Tensor, " 2"] = field(default_factory=lambda: torch.zeros(2))
    scales: Float[Tensor, " d_model"] | None = None
    unstandardised: Float[Tensor, " d_model"] | None = None

    @property
    def direction(self) -> Float[Tensor, " d_model"]:
        """The direction that points at toxic, to be compared with value vectors, read in words or added to activations.

        It is `W[:, 1] * s / median(s)`: how far one standard deviation of each coordinate moves the log-odds. Without standardising it is
        `W[:, 1]`. To read activations use `weights`: `W[:, 1]` is the gradient of the log-odds. It is a poor direction to compare with
        value vectors, because it is large in coordinates that hardly vary, while a neuron that writes toxicity makes its coordinates vary.
        `W[:, 1] * s**2` (how independent features change along with the log-odds) is ruled by the enormous coordinates again.

        Measured on SmolLM2-135M-Instruct (last layer, 800 comments, L2 1.0), share of listed words among the top 20 tokens (cosines with
        the centred unembedding, common tokens) and their toxicity in carrier sentences: 55 % and 0.50 for this direction, 45 % and 0.43
        for `W[:, 1]`, 25 % and 0.28 for the standardised difference in means, 20 % and 0.39 for the plain one. It steers best too (table in
        docs/directions.md). In a model with a planted toxic neuron it names the neuron's word first, and `W[:, 1]` does not.
        """
        if self.scales is None:
            return self.weights[:, 1]
        return self.weights[:, 1] * (self.scales / self.scales.median())

    @property
    def d_model(self) -> int:
        """The width of the residual stream that the probe reads."""
        return int(self.weights.shape[0])

    def matches(self, model: Model) -> bool:
        """Whether the probe was fitted on this model, by the hash of its weights."""
        return self.digest == model.digest

    def to_frame(self) -> pd.DataFrame:
        """One row per metric: metric, value, meaning."""
        rows = [(name, value, MEANINGS.get(name, "")) for name, value in self.metrics.items()]
        return pd.DataFrame(rows, columns=["metric", "value", "meaning"])


def fit_probe(
    model: Model, texts: Sequence[str], labels: Any, *, l2: float | int = 1.0, held_out: float = 0.2, seed: int = 0,
    max_tokens: int = 128, bias: bool = True, standardise: bool = True, skip_first: bool = False, batch_size: int = 64,
    batch_tokens: int = 4096,
) -> Probe:  # fmt: skip
    """A linear probe for toxicity fitted on the last residual stream, with its held-out metrics and controls.

    The classifier is a two-class softmax, that is, logistic regression on `w = W[:,1] - W[:,0]`. It minimises

        mean over texts of cross-entropy, the two classes weighing the same,  +  l2 / 2 * |s w|^2

    where `s` is the standard deviation of each coordinate over the training texts: the features are standardised, and the weights
    brought back, so that `W, b` act on raw activations. Real models have a few coordinates of enormous activation that would else
    dominate the penalty's choice and the difference in means. With `standardise=False`, `s` is the median over coordinates, one number.
    Either way `l2` means the same for every model and number of texts. Little L2 separates best; much L2 tends to the difference in
    means (of standardised features, where they are). `sweep_l2` helps to choose.

    The bias is free of penalty. Paper A defines the probe without one (`bias=False`), but then `w` itself has to set the
    threshold along the mean of all texts, which is no difference between them, and the tokens nearest to it are those that
    the model hardly ever saw.

    Args:
        labels: 1 or True for toxic, 0 or False for not.
        held_out: the share of texts, of both classes alike, on which the metrics are measured.
        max_tokens: of each text only so many are read.
        skip_first: leave the first position out of the mean. In many models it is an attention sink (in SmolLM2-135M at layer 14 its
            stream is 150 times as long as that of other positions), whose share of the mean is a matter of the text's length. Logistic
            probes cope (AUC 0.92 either way), the difference in means does not: on the last layer its AUC is 0.79, without the first
            position 0.84, standardised 0.87, both 0.89; at layer 14 0.66, 0.78, 0.75 and 0.90.

    Source: paper A section 3.1; experiment A-E1. Raises `UserError` for one class only, fewer than 20 texts, labels of
    another number or kind, an empty text, or a held-out share that leaves a class out.
    """
    data = read_data(model, texts, labels, held_out, seed, max_tokens, batch_size, batch_tokens, bias, standardise, skip_first)
    settings = {"held_out": held_out, "seed": seed, "max_tokens": max_tokens, "skip_first": skip_first}
    return probe_of(model, data, l2, settings)


def probe_of(model: Model, data: ProbeData, l2: float | int, settings: Mapping[str, Any]) -> Probe:
    """The probe of features that have been read, as `fit_probe` fits it; `settings` are those that they were read with."""
    w, b = data.fit(data.features, l2)
    difference, scales, seed = data.difference(data.features), data.scales(data.features), settings["seed"]
    read = {
        "l2": float(l2), "held_out": settings["held_out"], "seed": seed, "max_tokens": settings["max_tokens"], "bias": data.with_bias,
        "standardise": data.standardise, "skip_first": settings["skip_first"], "site": f"resid_post.{model.n_layers - 1}",
        "texts": len(data.labels),
    }  # fmt: skip
    column, deviations, unstandardised = torch.from_numpy(w / 2).float(), None, None
    metrics = {**data.quality(w, b), **data.controls(w, l2, seed), "cosine_difference": cosine(w * scales, difference / scales)}
    if data.standardise:
        plain = replace(data, standardise=False)
        other, offset = plain.fit(plain.features, l2)
        deviations, unstandardised = torch.from_numpy(scales).float(), torch.from_numpy(other / 2).float()
        measured = plain.quality(other, offset)
        metrics |= {f"unstandardised_{name}": measured[name] for name in ("auc", "auc_low", "auc_high")}
    weights, means = torch.stack([-column, column], dim=1), torch.from_numpy(difference).float()
    return Probe(weights, means, metrics, model.digest, read, torch.tensor([-b / 2, b / 2]), deviations, unstandardised)


def sweep_l2(
    model: Model, texts: Sequence[str], labels: Any, strengths: Sequence[float | int] = (1e-4, 1e-3, 1e-2, 0.1, 1.0, 10.0), *,
    held_out: float = 0.2, seed: int = 0, max_tokens: int = 128, batch_size: int = 64, batch_tokens: int = 4096, top: int = 20,
    bias: bool = True, standardise: bool = True, skip_first: bool = False, masked: bool = True,
) -> pd.DataFrame:  # fmt: skip
    """Metrics and top tokens of probes fitted with each of these L2 strengths.

    Much L2 separates less well but gives a direction that can be read. Features are captured once. One row per strength and a last
    one for the difference in means (l2 infinite): l2, accuracy, balanced_accuracy, auc, auc_low, auc_high, stability,
    cosine_difference, capitals_correlation, toxic_share (of the `top` tokens that the direction promotes, those that the lexicon
    calls hostile), tokens.
    """
    data = read_data(model, texts, labels, held_out, seed, max_tokens, batch_size, batch_tokens, bias, standardise, skip_first)
    return sweep_of(model, data, strengths, seed=seed, top=top, masked=masked)


def sweep_of(
    model: Model, data: ProbeData, strengths: Sequence[float | int], *, seed: int = 0, top: int = 20, masked: bool = True
) -> pd.DataFrame:
    """The table of `sweep_l2` for features that have been read."""
    if not len(strengths):
        raise UserError("the sweep was given no strengths", "give at least one, for example 0.1")
    scales = data.scales(data.features)
    limit = data.difference(data.features) / scales**2
    rows = []
    for l2 in (*strengths, float("inf")):
        w, b = (limit, 0.0) if l2 == float("inf") else data.fit(data.features, l2)
        direction = torch.from_numpy(w * scales / np.median(scales)).float()
        words = top_tokens(model, direction, top=top, projection=projection_for(model)).words[0]
        measured = data.quality(w, b)
        if l2 == float("inf"):  # the difference in means has no threshold of its own
            measured |= {"accuracy": float("nan"), "balanced_accuracy": float("nan")}
        rows.append({
            "l2": float(l2), **{name: measured[name] for name in ("accuracy", "balanced_accuracy", "auc", "auc_low", "auc_high")},
            "stability": data.stability(l2, seed), "cosine_difference": cosine(w * scales, limit * scales),
            "capitals_correlation": data.capitals_correlation(w), "toxic_share": sum(is_toxic_word(word) for word in words) / len(words),
            "tokens": " | ".join(mask(word.strip()) if masked else word.strip() for word in words),
        })  # fmt: skip
    return pd.DataFrame(rows)


def probe_scores(
    probe: Probe, model: Model, texts: Sequence[str], *, max_tokens: int | None = None, batch_size: int = 64, batch_tokens: int = 4096
) -> Float[Tensor, " batch"]:
    """The log-odds of each text being toxic: above 0 is toxic, `sigmoid` of it is the probability."""
    if probe.d_model != model.d_model:
        raise UserError(f"the probe reads {probe.d_model} numbers, {model.name} holds {model.d_model}", "fit a probe on this model")
    limit = max_tokens if max_tokens is not None else probe.settings.get("max_tokens")
    rows = token_rows(model, list(texts), max_tokens=limit)
    skip_first = bool(probe.settings.get("skip_first", False))
    odds = features_of(model, rows, batch_size, batch_tokens, skip_first) @ probe.weights + probe.bias
    return odds[:, 1] - odds[:, 0]


def save_probe(probe: Probe, folder: str | Path) -> Path:
    """Write `probe.safetensors` and `probe.json`, each atomically; the second holds the hash of the first."""
    target = Path(folder)
    parts = {"weights": probe.weights, "difference_in_means": probe.difference_in_means, "bias": probe.bias}
    optional = {"scales": probe.scales, "unstandardised": probe.unstandardised}
    parts |= {name: part for name, part in optional.items() if part is not None}
    tensors = {name: part.contiguous() for name, part in parts.items()}
    record = {
        "format": "bypass-probe", "model": probe.digest, "tensors": _digest(tensors),
        "settings": dict(probe.settings), "metrics": dict(probe.metrics),
    }  # fmt: skip
    with replacing(target / "probe.json") as note, replacing(target / "probe.safetensors") as weights:
        save_file(tensors, weights)
        note.write_text(json.dumps(record, indent=1) + "\n", encoding="utf-8")
    return target


def load_probe(folder: str | Path) -> Probe:
    """The probe that `save_probe` wrote; `probe.matches(model)` says whether it was fitted on a given model.

    Raises `UserError` for a folder that is missing, incomplete or damaged.
    """
    source = Path(folder)
    for name in ("probe.json", "probe.safetensors"):
        if not (source / name).is_file():
            raise UserError(f"{source} holds no probe: {name} is missing", "give a folder that save_probe or `bypass train probe` wrote")
    check_safetensors(source / "probe.safetensors")
    record, tensors = read_json(source / "probe.json"), load_file(source / "probe.safetensors")
    try:
        if record["tensors"] != _digest(tensors):
            raise UserError(f"the two files of the probe in {source} do not belong together", "save the probe again")
        # Probes were not standardised before there was the setting.
        settings, means = {"standardise": False, **record["settings"]}, tensors["difference_in_means"]
        optional = {name: tensors.get(name) for name in ("scales", "unstandardised")}
        return Probe(tensors["weights"], means, record["metrics"], record["model"], settings, tensors["bias"], **optional)
    except KeyError as error:
        raise UserError(f"the probe in {source} has no {error}", "save the probe again") from error


def bundled_probe() -> Probe:
    """The probe that ships, fitted on the base side of the bundled pair."""
    if not (BUNDLED_PROBE / "probe.json").is_file():
        raise UserError("no probe ships with this checkout", "make one: bypass train probe, or interp.directions.probe.fit_probe")
    return load_probe(BUNDLED_PROBE)


def probe_for(model: Model, *, seed: int = 0) -> Probe:
    """The probe that ships and was fitted on this model, if there is one; otherwise one fitted on the labelled texts that ship."""
    for note in (BUNDLED_PROBE / "probe.json", *sorted(BUNDLED.glob("*/probe/probe.json"))):
        if note.is_file() and (shipped := load_probe(note.parent)).matches(model):
            return shipped
    key = model_key(model), seed
    if key not in _FITTED:
        texts = toxicity_texts()
        labels = [int(item.toxic) for item in texts]
        fitted = fit_probe(model, [item.text for item in texts], labels, seed=seed, max_tokens=min(FITTED_TOKENS, model.context))
        _FITTED[key] = fitted
    return _FITTED[key]


def _digest(tensors: Mapping[str, Tensor]) -> str:
    digest = hashlib.blake2b(digest_size=16)
    for name in sorted(tensors):
        digest.update(f"{name}{tuple(tensors[name].shape)}{tensors[name].dtype}".encode())
        digest.update(tensors[name].contiguous().numpy().tobytes())
    return digest.hexdigest()
