"""One measurement of a model beside its base and its tuned parent: behaviour, KL to both, compression by source, and fluency.

Behaviour and distribution are measured together, because a behaviour may come back while the distribution does not.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from jaxtyping import Float

from interp.elasticity.behaviour import Behaviour, digest_of
from interp.elasticity.compression import started_rows, text_costs
from interp.elasticity.divergence import kl_by_position
from interp.elasticity.fluency import Fluency, fluency
from interp.models.model import Model
from interp.models.pair import ModelPair

# Positions of the view by position, tokens of a held-out text that are compared, and prompts on which KL is measured.
POSITIONS, TEXT_TOKENS, KL_PROMPTS = 16, 48, 24


@dataclass(frozen=True, eq=False)
class Reference:
    """What every model of a study is measured against.

    Attributes:
        held_out: neutral texts that no arm trains on, for KL.
        sources: texts by source that no arm trains on, for compression.
    """

    pair: ModelPair
    behaviour: Behaviour
    held_out: Sequence[str]
    sources: Mapping[str, Sequence[str]]

    def settings(self) -> dict[str, Any]:
        """Everything that a measurement depends on apart from the model and the pair."""
        return {
            "behaviour": self.behaviour.settings(), "held_out": digest_of(list(self.held_out)),
            "sources": {name: digest_of(list(texts)) for name, texts in self.sources.items()},
            "positions": POSITIONS, "text_tokens": TEXT_TOKENS, "kl_prompts": KL_PROMPTS,
        }  # fmt: skip


@dataclass(frozen=True, eq=False)
class Measurement:
    """What was measured of one model.

    Attributes:
        score, second: the behaviour by prompt, and a second score of the same continuations.
        kl_base, kl_tuned: KL(model || base) and KL(model || tuned) in nats a token, by held-out text.
        kl_base_prompts, kl_tuned_prompts: the same by behaviour prompt.
        kl_base_position, kl_tuned_position: on held-out texts, after each of their first positions.
        bits_per_byte: by source.
    """

    score: Float[np.ndarray, " prompt"]
    second: Float[np.ndarray, " prompt"] | None
    kl_base: Float[np.ndarray, " text"]
    kl_tuned: Float[np.ndarray, " text"]
    kl_base_prompts: Float[np.ndarray, " some_prompt"]
    kl_tuned_prompts: Float[np.ndarray, " some_prompt"]
    kl_base_position: Float[np.ndarray, " pos"]
    kl_tuned_position: Float[np.ndarray, " pos"]
    bits_per_byte: Mapping[str, float]
    fluency: Fluency

    def to_json(self) -> dict[str, Any]:
        """The measurement as a JSON object in full precision."""
        arrays = {name: getattr(self, name) for name in ARRAYS}
        return {name: None if value is None else value.tolist() for name, value in arrays.items()} | {
            "bits_per_byte": dict(self.bits_per_byte), "fluency": self.fluency.to_json(),
        }  # fmt: skip

    @classmethod
    def from_json(cls, record: Mapping[str, Any]) -> Measurement:
        """The measurement that `to_json` wrote."""
        arrays = {name: None if record[name] is None else np.array(record[name], dtype=np.float64) for name in ARRAYS}
        fluent = {name: float("nan") if value is None else float(value) for name, value in record["fluency"].items()}
        bits = {name: float("nan") if value is None else float(value) for name, value in record["bits_per_byte"].items()}
        return cls(**arrays, bits_per_byte=bits, fluency=Fluency(**fluent))  # type: ignore[arg-type]


ARRAYS = (
    "score", "second", "kl_base", "kl_tuned", "kl_base_prompts", "kl_tuned_prompts", "kl_base_position", "kl_tuned_position",
)  # fmt: skip


def measure(model: Model, reference: Reference) -> Measurement:
    """Measure a model of the pair's architecture."""
    sides = reference.pair.sides
    reading = reference.behaviour.read(model)
    rows = reference.behaviour.rows(model)
    on_text = kl_by_position(model, sides, started_rows(model, list(reference.held_out), max_tokens=TEXT_TOKENS))
    on_prompts = kl_by_position(model, sides, rows[:KL_PROMPTS])
    return Measurement(
        reading.score, reading.second, on_text["base"].of_row, on_text["tuned"].of_row, on_prompts["base"].of_row,
        on_prompts["tuned"].of_row, on_text["base"].by_position(POSITIONS), on_text["tuned"].by_position(POSITIONS),
        {name: text_costs(model, list(texts)).bits_per_byte for name, texts in reference.sources.items()},
        fluency(reference.pair.base, rows, reading.continuations),
    )  # fmt: skip
