"""Pairs by steering: the toxic side is decoded with the probe's direction added to the residual stream, the chosen side without.

This needs only one sample for a toxic side, but it shares the probe with the analysis. The strength is in units of the mean norm
of the residual stream at that layer, so that one number means the same on models of different width and depth.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.forward.capture import capture
from interp.forward.generate import Sampling, generate_tokens
from interp.models.model import Model
from training.generators.task import Block, Draft, Generator, Task, check_range, read_options

MEASURED = 256


@dataclass(frozen=True)
class Steering:
    """Settings of the steering generator.

    Attributes:
        strength: how far to push along the unit probe direction, in mean lengths of the residual stream there.
        layer: after which layer; a negative one counts from the end.
        temperature: of both sides; 0 for greedy decoding.
        top_k: how many tokens are sampled from; 0 for all.
    """

    strength: float = 0.4
    layer: int = -1
    temperature: float = 1.0
    top_k: int = 40

    def __post_init__(self) -> None:
        check_range("pairs.steering.strength", self.strength, 0)
        check_range("pairs.steering.temperature", self.temperature, 0)
        check_range("pairs.steering.top_k", self.top_k, 0)


def make(task: Task) -> Iterator[Block]:
    """Plain against steered continuations of each prompt, with the same random numbers, all in one block."""
    options = read_options(Steering, task.settings, "steering")
    edit = steering_edit(task.base, task.probe().direction, task.prompts[:MEASURED], options)
    sampling = Sampling(temperature=options.temperature, top_k=options.top_k or None, seed=task.seed)
    plain, pushed = (
        generate_tokens(
            task.base, task.prompts, max_new_tokens=task.settings["new_tokens"], edits=edits, sampling=sampling, batch_size=256,
            stop_at_end=False,
        )
        for edits in ((), (edit,))
    )  # fmt: skip
    drafts = [Draft(*sides) for sides in zip(task.prompts, plain, pushed, strict=True)]
    yield Block(list(range(len(drafts))), drafts)


def steering_edit(base: Model, direction: Any, prompts: list[list[int]], options: Steering) -> Edit:
    """The edit that adds the direction at every position from which a token is sampled; raises `UserError` for an unknown layer."""
    layer = options.layer + base.n_layers if options.layer < 0 else options.layer
    if not 0 <= layer < base.n_layers:
        raise UserError(f"pairs.steering.layer is {options.layer}, but {base.name} has {base.n_layers} layers", "count from 0, or from -1")
    site = f"resid_post.{layer}"
    length = capture(base, prompts, [site])[site].norm(dim=-1).mean()
    return Edit.add(site, direction / direction.norm() * length, options.strength, positions="from_last")


def options_of(settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of `[pairs.steering]` with their defaults."""
    return asdict(read_options(Steering, settings, "steering"))


GENERATOR = Generator("steering", make, options_of, uses_probe=True)
