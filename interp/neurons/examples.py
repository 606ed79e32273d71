"""Max-activating examples: the windows of text on which given neurons fire most, in both models of a pair at once.

A corpus is read once, as a stream: only the neurons asked for are captured (the forward stops after the last of their layers), and
memory holds a heap of windows per neuron and model, running sums, and one random sample of tokens for the quantiles. Memory
therefore depends on the number of neurons and not on the size of the file.
"""

from __future__ import annotations

import heapq
import itertools
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.errors import UserError
from interp.forward.capture import capture
from interp.models.model import Model, Neuron, by_layer
from interp.neurons.example_results import Examples, Window

if TYPE_CHECKING:
    from interp.models.pair import ModelPair

__all__ = ["Examples", "Window", "max_activating", "token_strings"]

QUANTILES = (0.5, 0.9, 0.99, 0.999)
SAMPLE = 1 << 16
BUFFER = 8


@dataclass(frozen=True)
class _Piece:
    """Tokens of one text that fit into the model's context: which text, and where in it they begin."""

    text: int
    start: int
    row: list[int]


def max_activating(
    subject: Model | ModelPair, neurons: Sequence[Neuron], texts: str | Path | Iterable[str] | None = None, *, top: int = 10,
    before: int = 16, after: int = 8, above: float = 0.0, largest: bool = True, max_tokens: int | None = None, batch_size: int = 32,
    seed: int = 0, progress: Callable[[int], None] | None = None,
) -> Examples:  # fmt: skip
    """The windows of text on which these neurons fire most, and the distribution of their activations, in each model.

    Args:
        neurons: (layer, index) pairs; the activation is `mlp_post`, the weight of the neuron's value vector.
        texts: a file (text with one a line, or jsonl with `text`; read as a stream), strings, or None for the texts that ship.
            A text longer than the context, or than `max_tokens`, is cut into pieces, each read on its own.
        top: windows per neuron and model. A piece gives one window, around its peak; windows of the same tokens and peak count
            once, and of equal peaks (to six digits) the earlier one is kept.
        before, after: tokens shown around the peak.
        above: a neuron is active beyond this activation; pieces that do not pass it give no window.
        largest: with False, the lowest activations are looked for (a gated neuron writes as strongly with the other sign),
            and active means below minus `above`.
        seed: of the sample that quantiles are taken from where there are more tokens than it holds.
        progress: called with the number of texts read, after each buffer.

    Raises:
        UserError: no neurons or one that does not exist, a setting out of range, or texts that are empty or unreadable.
    """
    sides: dict[str, Model] = subject.sides if hasattr(subject, "sides") else {subject.name: subject}  # type: ignore[union-attr]
    first = next(iter(sides.values()))
    chosen = _checked(first, neurons)
    length = first.context if max_tokens is None else min(max_tokens, first.context)
    if min(top, batch_size, length) < 1 or min(before, after) < 0 or not math.isfinite(above):
        raise UserError(
            f"top {top}, batch_size {batch_size}, max_tokens {length}, before {before}, after {after} and above {above} were asked for",
            "give at least 1 for the first three, at least 0 for before and after, and a finite threshold",
        )
    sign = 1.0 if largest else -1.0
    heaps = {(side, neuron): _Heap(top) for side in sides for neuron in chosen}
    spread = _Spread(len(sides), len(chosen), sign, above, seed)
    pieces = _pieces(first, _texts(texts), length, batch_size * BUFFER)
    read, order = 0, itertools.count()
    for group in pieces:
        activations, real = _activations(sides, chosen, [piece.row for piece in group], batch_size)
        spread.add(activations, real)
        reach = torch.where(real, sign * activations, -math.inf)
        peaks, places = reach.amax(dim=-1), reach.argmax(dim=-1)
        numbers = [next(order) for _ in group]
        for s, side in enumerate(sides):
            for n, neuron in enumerate(chosen):
                heap = heaps[side, neuron]
                candidates = [(-_key(peak), i, peak) for i, peak in enumerate(peaks[s, n].tolist()) if peak > above and heap.takes(peak)]
                for _, i, peak in sorted(candidates):
                    if not heap.takes(peak):
                        break
                    at = int(places[s, n, i])
                    low, high = max(0, at - before), min(len(group[i].row), at + after + 1)
                    heap.offer(peak, numbers[i], tuple(group[i].row[low:high]), (group[i], at, low, activations[:, n, i, low:high].clone()))
        read = group[-1].text + 1
        if progress is not None:
            progress(read)
    if not spread.tokens:
        raise UserError("the texts hold no tokens", "give at least one text that is not blank")
    windows = tuple(
        _window(first, side, neuron, rank, sign * peak, ids, place, tuple(sides))
        for (side, neuron), heap in heaps.items()
        for rank, (peak, ids, place) in enumerate(heap.best(), 1)
    )
    settings = {
        "sides": list(sides), "neurons": [list(neuron) for neuron in chosen], "texts": read, "tokens": spread.tokens, "sample": SAMPLE,
        "top": top, "before": before, "after": after, "above": above, "largest": largest, "max_tokens": length, "seed": seed,
        "models": {side: model.digest for side, model in sides.items()},
    }  # fmt: skip
    return Examples(windows, spread.frame(list(sides), chosen), settings)


class _Heap:
    """The windows with the highest peaks so far, each window of tokens once."""

    def __init__(self, size: int) -> None:
        self.size = size
        self.items: list[tuple[float, int, tuple[int, ...], Any, float]] = []
        self.inside: set[tuple[float, tuple[int, ...]]] = set()

    def takes(self, peak: float) -> bool:
        """Whether a window of this peak, read after all others, would be kept."""
        return len(self.items) < self.size or _key(peak) > self.items[0][0]

    def offer(self, peak: float, number: int, ids: tuple[int, ...], place: Any) -> None:
        if (_key(peak), ids) in self.inside:
            return
        self.inside.add((_key(peak), ids))
        item = (_key(peak), -number, ids, place, peak)
        if len(self.items) < self.size:
            heapq.heappush(self.items, item)
        else:
            worst = heapq.heappushpop(self.items, item)
            self.inside.discard((worst[0], worst[2]))

    def best(self) -> list[tuple[float, tuple[int, ...], Any]]:
        return [(item[4], item[2], item[3]) for item in sorted(self.items, key=lambda item: item[:2], reverse=True)]


def _key(peak: float) -> float:
    """The peak to six digits: equal activations differ in their last bits from batch to batch, which must not change the order."""
    return float(f"{peak:.6g}")


class _Spread:
    """Running sums of activations over all tokens, and a sample of tokens in which each is as likely as any other."""

    def __init__(self, sides: int, neurons: int, sign: float, above: float, seed: int) -> None:
        self.sign, self.above, self.tokens = sign, above, 0
        self.active = torch.zeros(sides, neurons, dtype=torch.long)
        self.sums = torch.zeros(sides, neurons, dtype=torch.float64)
        self.low, self.high = torch.full((sides, neurons), math.inf), torch.full((sides, neurons), -math.inf)
        self.generator = torch.Generator().manual_seed(seed)
        self.keys, self.sample = torch.empty(0, dtype=torch.float64), torch.empty(sides, neurons, 0)

    def add(self, activations: Float[Tensor, "side neuron batch pos"], real: Bool[Tensor, "batch pos"]) -> None:
        values = activations[:, :, real]
        self.tokens += values.shape[-1]
        self.active += (self.sign * values > self.above).sum(dim=-1)
        self.sums += values.double().sum(dim=-1)
        self.low, self.high = torch.minimum(self.low, values.amin(dim=-1)), torch.maximum(self.high, values.amax(dim=-1))
        keys = torch.cat([self.keys, torch.rand(values.shape[-1], generator=self.generator, dtype=torch.float64)])
        sampled = keys.argsort()[:SAMPLE] if len(keys) > SAMPLE else torch.arange(len(keys))
        self.keys, self.sample = keys[sampled], torch.cat([self.sample, values], dim=-1)[..., sampled]

    def frame(self, sides: Sequence[str], neurons: Sequence[Neuron]) -> pd.DataFrame:
        marks = np.quantile(self.sample.double().numpy(), QUANTILES, axis=-1)
        rows = [
            {
                "side": side, "layer": layer, "neuron": index, "active": int(self.active[s, n]) / self.tokens,
                "mean": float(self.sums[s, n]) / self.tokens, "min": float(self.low[s, n]),
                **{f"p{100 * q:g}": float(marks[at, s, n]) for at, q in enumerate(QUANTILES)}, "max": float(self.high[s, n]),
            }
            for n, (layer, index) in enumerate(neurons) for s, side in enumerate(sides)
        ]  # fmt: skip
        return pd.DataFrame(rows)


def _checked(model: Model, neurons: Sequence[Neuron]) -> list[Neuron]:
    distinct = list(dict.fromkeys((int(layer), int(index)) for layer, index in neurons))
    model.check_neurons(distinct)
    return distinct


def _texts(texts: str | Path | Iterable[str] | None) -> Iterable[str]:
    from interp.data.texts import challenge_prompts, neutral_prompts, passages, stream_texts, toxicity_texts

    if texts is None:
        return [*(p.text for p in passages()), *challenge_prompts(), *neutral_prompts(), *(t.text for t in toxicity_texts())]
    return stream_texts(texts) if isinstance(texts, (str, Path)) else texts


def _pieces(model: Model, texts: Iterable[str], length: int, size: int) -> Iterator[list[_Piece]]:
    """Groups of pieces of the texts that are not blank, in order; a group ends with the text that fills it."""
    group: list[_Piece] = []
    number = 0
    stream = enumerate(texts)
    while numbered := list(itertools.islice(stream, size)):
        for place, text in numbered:
            if not isinstance(text, str):
                raise UserError(f"text {place} is of type {type(text).__name__}, not a string", "give strings")
            if any("\ud800" <= c <= "\udfff" for c in text):
                raise UserError(f"text {place} is not valid Unicode", "decode it with errors='replace'")
        chunk = [text for _, text in numbered if text.strip()]
        rows = model.tokenizer(chunk, add_special_tokens=False)["input_ids"] if chunk else []
        for row in rows:
            for start in range(0, len(row), length):
                group.append(_Piece(number, start, row[start : start + length]))
                if len(group) == size:
                    yield group
                    group = []
            number += 1
    if group:
        yield group


def _activations(
    sides: dict[str, Model], neurons: Sequence[Neuron], rows: list[list[int]], batch_size: int
) -> tuple[Float[Tensor, "side neuron batch pos"], Bool[Tensor, "batch pos"]]:
    units = {f"mlp_post.{layer}": indices for layer, indices in by_layer(neurons).items()}
    by_side = []
    for model in sides.values():
        acts = capture(model, rows, list(units), positions="all", units=units, batch_size=batch_size)
        columns = [acts[site][..., units[site].index(index)] for site, index in ((f"mlp_post.{layer}", index) for layer, index in neurons)]
        by_side.append(torch.stack(columns))
    assert acts.mask is not None
    return torch.stack(by_side), acts.mask


def _window(
    model: Model, side: str, neuron: Neuron, rank: int, peak: float, ids: tuple[int, ...],
    place: tuple[_Piece, int, int, Tensor], sides: tuple[str, ...],
) -> Window:  # fmt: skip
    piece, at, low, values = place
    activations = {name: tuple(values[s].tolist()) for s, name in enumerate(sides)}
    return Window(side, *neuron, rank, peak, piece.text, piece.start + at, token_strings(model, ids), at - low, activations)


def token_strings(model: Model, ids: Sequence[int]) -> tuple[str, ...]:
    """Tokens as strings that make the text when put together; a character of several tokens belongs to its last one."""
    strings: list[str] = []
    done = ""
    for count in range(1, len(ids) + 1):
        text = model.tokenizer.decode(list(ids[:count]), clean_up_tokenization_spaces=False)
        whole = text.rstrip("\ufffd") if count < len(ids) else text
        strings.append(whole[len(done) :])
        done = max(done, whole, key=len)
    return tuple(strings)
