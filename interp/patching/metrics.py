"""Metrics of patching: one number per run, from its logits, its activations or its continuation.

A metric names the sites that it reads and does not depend on patching. Those of the prompt's own forward can be differentiated,
including any function of the logits; the toxicity of a continuation generates text and cannot.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, Literal, Protocol, runtime_checkable

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.resume import Reading
from interp.models.sites import parse_site

if TYPE_CHECKING:
    from interp.directions.probe import Probe
    from interp.evaluation.toxicity import Scorer
    from interp.models.model import Model


@runtime_checkable
class Metric(Protocol):
    """A number per run, read from the forward of the prompt."""

    @property
    def label(self) -> str:
        """What is measured, as figures and tables call it."""
        ...

    def check(self, model: Model) -> None:
        """Raise `UserError` unless the metric fits the model."""
        ...

    def sites(self, model: Model) -> tuple[str, ...]:
        """The sites that the metric reads; none where the logits are enough."""
        ...

    def read(self, reading: Reading) -> Float[Tensor, " cell"]:
        """The metric of each run of the batch."""
        ...


@dataclass(frozen=True)
class LogitDifference:
    """Logit of `first` minus logit of `second` as the token after the prompt (in nats of odds between the two)."""

    first: int
    second: int
    label: str = "logit difference"

    @classmethod
    def of(cls, model: Model, first: str, second: str) -> LogitDifference:
        """The difference between the logits of two words, each of which must be one token (see `Model.token`)."""
        return cls(model.token(first), model.token(second))

    def check(self, model: Model) -> None:
        _check_tokens(model, (self.first, self.second))

    def sites(self, model: Model) -> tuple[str, ...]:
        return ()

    def read(self, reading: Reading) -> Float[Tensor, " cell"]:
        return reading.logits[:, self.first] - reading.logits[:, self.second]


@dataclass(frozen=True)
class LogProbability:
    """Log-probability (nats) that the token after the prompt is one of `tokens`."""

    tokens: tuple[int, ...]
    label: str = "log-probability"

    @classmethod
    def of(cls, model: Model, *words: str) -> LogProbability:
        """The log-probability of these words together, each of which must be one token (see `Model.token`)."""
        return cls(tuple(model.token(word) for word in words))

    def check(self, model: Model) -> None:
        if not self.tokens:
            raise UserError("the metric names no tokens", "name at least one")
        _check_tokens(model, self.tokens)

    def sites(self, model: Model) -> tuple[str, ...]:
        return ()

    def read(self, reading: Reading) -> Float[Tensor, " cell"]:
        chosen = torch.tensor(sorted(set(self.tokens)), device=reading.logits.device)
        return reading.logits[:, chosen].logsumexp(dim=1) - reading.logits.logsumexp(dim=1)


@dataclass(frozen=True, eq=False)
class ProbeProjection:
    """Product of a site's activation with the unit direction, at the last position or as the mean over positions.

    `site` is None for the last residual stream, which the probe of paper A reads (as the mean over positions).
    """

    direction: Float[Tensor, " d"]
    site: str | None = None
    positions: Literal["mean", "last"] = "mean"
    label: str = "probe projection"

    @classmethod
    def of(cls, probe: Probe) -> ProbeProjection:
        """The projection on the weights with which the probe reads the stream."""
        return cls(probe.weights[:, 1])

    def check(self, model: Model) -> None:
        site = parse_site(self._site(model), n_layers=model.n_layers, family=model.family)
        if not site.kind.per_layer:
            raise UserError(f"the projection is read at {site}", f"name a site with a layer, such as resid_post.{model.n_layers - 1}")
        if self.direction.shape[0] != model.width(site.name):
            raise UserError(
                f"the direction holds {self.direction.shape[0]} numbers, but {site} is {model.width(site.name)} wide",
                "use a direction of that width",
            )
        if not bool(torch.isfinite(self.direction).all()) or not bool(self.direction.any()):
            raise UserError("the direction of the projection is zero or not finite", "give a direction")

    def sites(self, model: Model) -> tuple[str, ...]:
        return (str(parse_site(self._site(model))),)

    def read(self, reading: Reading) -> Float[Tensor, " cell"]:
        value = reading.site(self._site(reading.trace.model)).flatten(2)
        unit = (self.direction.double() / self.direction.double().norm()).to(value)
        return (value.mean(dim=1) if self.positions == "mean" else value[:, -1]) @ unit

    def _site(self, model: Model) -> str:
        return self.site or f"resid_post.{model.n_layers - 1}"


@dataclass(frozen=True, repr=False)
class LogitFunction:
    """Any function from the logits of the token after the prompt, `cell vocab`, to one number per cell."""

    function: Callable[[Tensor], Tensor]

    @property
    def label(self) -> str:
        name = getattr(self.function, "__name__", type(self.function).__name__)
        return "function of the logits" if name == "<lambda>" else name

    def __repr__(self) -> str:
        # Without the address of the function, which differs from run to run.
        return f"LogitFunction({self.label})"

    def check(self, model: Model) -> None:
        """No check: what the function needs is not known before it is called."""

    def sites(self, model: Model) -> tuple[str, ...]:
        return ()

    def read(self, reading: Reading) -> Float[Tensor, " cell"]:
        value = self.function(reading.logits)
        if not torch.is_tensor(value) or value.shape != (len(reading),):
            returned = f"a tensor of shape {list(value.shape)}" if torch.is_tensor(value) else type(value).__name__
            raise UserError(
                f"the metric was given logits of shape {list(reading.logits.shape)} and returned {returned}",
                "return one number for each row, for example logits[:, a] - logits[:, b]",
            )
        return value


@dataclass(frozen=True, eq=False)
class ContinuationToxicity:
    """Toxicity (0 to 1) of the greedy continuation, by a scorer; the patch acts on the prompt alone."""

    scorer: Scorer
    new_tokens: int = 20
    label: str = "toxicity of the continuation"

    def score(self, texts: Sequence[str]) -> Float[Tensor, " cell"]:
        """The score of each continuation."""
        return torch.tensor(self.scorer.score(list(texts))["toxicity"].tolist())


AnyMetric = Metric | ContinuationToxicity


def each_metric(metric: Any, count: int) -> list[AnyMetric]:
    """One metric per prompt, from one for all prompts or a list; raises `UserError` for anything else."""
    metrics = [as_metric(item) for item in (metric if isinstance(metric, list | tuple) else [metric] * count)]
    if len(metrics) != count:
        raise UserError(f"{len(metrics)} metrics were given for {count} prompts", "give one for all, or one per prompt")
    if len({item.label for item in metrics}) > 1:
        raise UserError("the metrics of the prompts are of different kinds", "measure all prompts by one kind")
    return metrics


def functions_of(metrics: Sequence[AnyMetric]) -> tuple[Callable[[Tensor], Tensor], ...]:
    """The caller's own functions of the logits among the metrics, in order."""
    return tuple(item.function for item in metrics if isinstance(item, LogitFunction))


def as_metric(metric: Any) -> AnyMetric:
    """The metric itself, or a function of the logits as a metric; raises `UserError` for anything else."""
    is_class = isinstance(metric, type)
    if not is_class and isinstance(metric, Metric | ContinuationToxicity):
        return metric
    if is_class or not callable(metric):
        raise UserError(
            f"{metric!r} is not a metric",
            "use LogitDifference, LogProbability, ProbeProjection, ContinuationToxicity or a function of the logits",
        )
    return LogitFunction(metric)


def _check_tokens(model: Model, tokens: Sequence[int]) -> None:
    wrong = next((token for token in tokens if not 0 <= token < model.d_vocab), None)
    if wrong is not None:
        raise UserError(f"token {wrong} does not exist: the vocabulary has {model.d_vocab}", "count token ids from 0")
