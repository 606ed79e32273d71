"""Activation patching between two runs, within one model or between the two sides of a pair.

A run is a prompt and a model, and patching puts one run's activation into the other. All cells of a layer run together as one
batch, from that layer on; the blocks below are not computed again. Both directions are measured: denoising and noising, or base
into tuned and tuned into base.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits.edit import Edit
from interp.errors import UserError
from interp.forward.generate import generate_tokens
from interp.forward.resume import Reading, Trace, resume, trace
from interp.models.chat import Chat, chat_settings, check_one_template, prompt_rows, role_codes
from interp.models.hooks import Frame
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.models.sites import BETWEEN_BLOCKS, layer_of, parse_site
from interp.models.tokens import decoded_rows
from interp.patching.cells import chunk_size, layers_of, make_cells, patched_kind, selection
from interp.patching.maps import Cell, PatchMap, token_texts
from interp.patching.metrics import AnyMetric, ContinuationToxicity, Metric, each_metric, functions_of
from interp.patching.prompt_pairs import align

WITHIN = ("denoising", "noising")
ACROSS = ("base into tuned", "tuned into base")
MEMORY_MB = 64
# The cells of a layer are split by position into batches that each begin at their own first position, which saves up to half
# of the tokens; but a batch below this many multiplications per block costs more in calls than it saves.
WORTHWHILE = 10**9
Progress = Callable[[int, int], object]


@dataclass(frozen=True, eq=False)
class Runs:
    """The two runs of every prompt, as (target, source) of each direction, with the metrics and cells to measure."""

    directions: tuple[str, ...]
    traces: tuple[tuple[tuple[Trace, Trace], ...], ...]
    metrics: tuple[AnyMetric, ...]
    cells: tuple[Cell, ...]
    site: str
    settings: dict[str, Any]

    @property
    def tokens(self) -> tuple[str, ...]:
        """A label per position, from the prompts of both runs."""
        rows = [run.row for pair in self.traces[0] for run in reversed(pair)]
        return token_texts(self.traces[0][0][0].model, rows)


def patch(
    subject: Model | ModelPair, prompts: str | Sequence[str], corrupted: str | Sequence[str] | None = None, *, metric: Any,
    site: str = "resid_post", positions: Any = None, layers: Sequence[int] | None = None,
    units: Sequence[int] | Sequence[tuple[int, int]] | None = None, directions: Sequence[str] | None = None, null_draws: int = 0,
    memory_mb: float | int = MEMORY_MB, seed: int = 0, chat: Chat | bool = False, progress: Progress | None = None,
) -> PatchMap:  # fmt: skip
    """A map of how far each patched activation moves the metric from the target run's value to the source run's.

    With a model, `prompts` are the clean and `corrupted` the corrupted ones: denoising puts clean activations into the
    corrupted run, noising the reverse. With a pair, both sides read the same prompts, and each side's activations are put
    into the other.

    Args:
        metric: `LogitDifference`, `LogProbability`, `ProbeProjection`, `ContinuationToxicity`, or any function from the logits of the
            token after the prompt (`cell vocab`) to one number per cell; one for all prompts or a list.
        site: `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `z`, `q`, `k`, `v` (each head) or `mlp_post` (each neuron).
        positions: `each` on its own (the default for whole sites), `all` at once (the default for heads and neurons), a list, each
            on its own, `last`, or a role such as `user`: each position whose token has it in every prompt.
        layers: all unless given.
        units: heads or neurons, as indices in every layer or as (layer, index) pairs; all unless given.
        directions: both unless given.
        null_draws: how many times to repeat the map with random changes of equal norm (at every position and head; for
            neurons, the changes of the layer shuffled among its neurons).
        memory_mb: bound on the activations of one batch; it does not change the result.
        chat: read the prompts as user turns of the model's chat template, up to where the answer begins.
        progress: called with cells done and in all.

    Raises:
        UserError: prompts whose tokens do not line up, an unknown site, layer, position, unit or direction, or a metric that
            does not fit the model.

    Source: activation patching; Vig et al. (2020), Meng et al. (2022).
    """
    runs = make_runs(subject, prompts, corrupted, metric, site, positions, layers, units, directions, chat=chat)
    if null_draws < 0 or not memory_mb > 0:
        raise UserError(f"null_draws is {null_draws} and memory_mb {memory_mb}", "give 0 or more draws, and memory above 0")
    total = len(runs.directions) * len(runs.metrics) * len(runs.cells) * (1 + null_draws)
    done = 0

    def count(more: int) -> None:
        nonlocal done
        done += more
        if progress is not None:
            progress(done, total)

    generator = torch.Generator().manual_seed(seed)
    by_direction: list[list[list[Tensor]]] = []
    for traces in runs.traces:
        by_direction.append([])
        for (target, source), measure in zip(traces, runs.metrics, strict=True):
            sources = [{layer: source[f"{runs.site}.{layer}"] for layer in layers_of(runs.cells)}]
            sources += [_noise(target, sources[0], runs.site, generator) for _ in range(null_draws)]
            by_direction[-1].append([_run_cells(target, acts, runs, measure, memory_mb, count) for acts in sources])
    values = torch.stack([torch.stack([torch.stack(draws) for draws in rows]) for rows in by_direction]).movedim(2, 0)
    unpatched, full = baselines(runs)
    settings = {**runs.settings, "null_draws": null_draws, "seed": seed}
    return PatchMap(
        runs.site, runs.metrics[0].label, "patching", runs.directions, runs.cells, runs.tokens, values[0], unpatched, full,
        values[1:] if null_draws else None, settings, functions_of(runs.metrics),
    )  # fmt: skip


def make_runs(
    subject: Model | ModelPair, prompts: Any, corrupted: Any, metric: Any, site: str, positions: Any,
    layers: Sequence[int] | None, units: Any, directions: Sequence[str] | None, *, more_sites: Sequence[str] = (),
    chat: Chat | bool = False,
) -> Runs:  # fmt: skip
    """Both runs of every prompt, run once, with the cells and metrics; checks the arguments."""
    clean = [prompts] if isinstance(prompts, str) else list(prompts)
    if not clean:
        raise UserError("no prompts were given", "give at least one")
    models, known = _models(subject, corrupted)
    other = clean if corrupted is None else [corrupted] if isinstance(corrupted, str) else list(corrupted)
    if len(other) != len(clean):
        raise UserError(f"{len(clean)} clean and {len(other)} corrupted prompts were given", "give one corrupted prompt for each")
    first = models[0]
    if chat:
        check_one_template(models)
    for a, b in zip(clean, other, strict=True):
        if corrupted is not None:
            align(first, a, b, chat)
    rows = list(zip(prompt_rows(first, clean, chat), prompt_rows(first, other, chat), strict=True))
    chosen = known if directions is None else tuple(directions)
    wrong = next((name for name in chosen if name not in known), None)
    if wrong is not None or not chosen:
        raise UserError(f"there is no direction {wrong!r} here", f"use {' or '.join(map(repr, known))}")
    metrics = each_metric(metric, len(clean))
    site = patched_kind(site).name
    cells = make_cells(
        first, site, positions, layers, units, [len(row) for row, _ in rows], role_codes([row for two in rows for row in two])
    )
    needed = {*(f"{site}.{layer}" for layer in layers_of(cells)), *more_sites}
    if site == "mlp_out":
        needed |= {f"resid_mid.{layer}" for layer in layers_of(cells)}
    both: list[tuple[Trace, Trace]] = []
    for (first_row, second_row), measure in zip(rows, metrics, strict=True):
        read: set[str] = set()
        if isinstance(measure, Metric):
            for model in models:
                measure.check(model)
                read |= {*measure.sites(model)}
        both.append((trace(models[0], first_row, needed | read), trace(models[1], second_row, needed | read)))
    # The first direction of either kind puts the first run (clean, base) into the second (corrupted, tuned).
    traces = tuple(tuple((b, a) if name == known[0] else (a, b) for a, b in both) for name in chosen)
    settings = {
        "prompts": clean, "corrupted": None if corrupted is None else other, "site": site, "metric": [repr(item) for item in metrics],
        "models": {model.name: model.digest for model in dict.fromkeys(models)}, **chat_settings(chat),
    }  # fmt: skip
    return Runs(tuple(chosen), traces, tuple(metrics), cells, site, settings)


def _models(subject: Model | ModelPair, corrupted: Any) -> tuple[tuple[Model, Model], tuple[str, str]]:
    if isinstance(subject, ModelPair):
        if corrupted is not None:
            raise UserError("a pair was given together with corrupted prompts", "patch one of its sides, as in patch(pair.base, ...)")
        return (subject.base, subject.tuned), ACROSS
    if not isinstance(subject, Model):
        raise UserError(f"{type(subject).__name__} cannot be patched", "give a Model or a ModelPair")
    if corrupted is None:
        raise UserError("a single model was given without corrupted prompts", "give corrupted prompts, or a ModelPair")
    return (subject, subject), WITHIN


@torch.no_grad()
def _run_cells(
    target: Trace, sources: dict[int, Tensor], runs: Runs, metric: AnyMetric, memory_mb: float | int, count: Callable[[int], None]
) -> Float[Tensor, " cell"]:
    """The metric with each cell patched in turn; cells of one layer share a batch."""
    chunk = chunk_size(target, memory_mb)
    multiplications = len(target.row) * target.model.d_model * (4 * target.model.d_model + 2 * target.model.d_mlp)
    values = torch.zeros(len(runs.cells))
    for layer in layers_of(runs.cells):
        # By position, so that a batch begins as late in the prompt as its earliest cell allows.
        ordered = sorted((cell.position or 0, number) for number, cell in enumerate(runs.cells) if cell.layer == layer)
        size = min(chunk, max(1, int(WORTHWHILE / multiplications)))
        for begin in range(0, len(ordered), size):
            numbers = [number for _, number in ordered[begin : begin + size]]
            where = selection(target, runs.site, [runs.cells[number] for number in numbers])
            start = ordered[begin][0]
            values[numbers] = measure_patched(target, f"{runs.site}.{layer}", sources[layer], where, metric, start).float().cpu()
            count(len(numbers))
    return values


def measure_patched(
    target: Trace, site: str, source: Float[Tensor, "pos ..."], where: Bool[Tensor, "cell pos ..."], metric: AnyMetric, start: int = 0
) -> Float[Tensor, " cell"]:
    """The metric of one run per row of `where`, in which those numbers of the site are the source's.

    `start` is the first position of which any is replaced.
    """
    source = source.to(target.stream)
    if isinstance(metric, ContinuationToxicity):
        return _continued(target, site, torch.where(where, source, target[site]), metric)
    return metric.read(run_patched(target, site, source, where, metric.sites(target.model), start))


def run_patched(
    target: Trace,
    site: str,
    source: Float[Tensor, "pos ..."],
    where: Bool[Tensor, "cell pos ..."],
    keep: Sequence[str] = (),
    start: int = 0,
) -> Reading:
    """The patched runs, one per row of `where`, computed from the patched site and the position `start` on."""
    name, layer, count = parse_site(site).name, layer_of(site), len(where)
    where, source = where[:, start:], source[start:]
    # A metric that reads no site reads the last token's logits.
    some: dict[str, Any] = {"keep": keep, "start": start, "last_only": not keep}
    if name in BETWEEN_BLOCKS:
        return resume(target, layer + BETWEEN_BLOCKS[name], torch.where(where, source, target[site][start:]), **some)
    if name == "mlp_out" and not {f"mlp_out.{layer}", f"resid_mid.{layer}"} & set(keep):
        # Only the addition to the stream follows in this block.
        hidden = target[f"resid_mid.{layer}"][start:] + torch.where(where, source, target[site][start:])
        return resume(target, layer + 1, hidden, **some)

    def change(x: Tensor, frame: Frame) -> Tensor:
        return torch.where(where, source, x)

    hidden = target.stream[layer, start:]
    return resume(target, layer, hidden.expand(count, *hidden.shape), transforms={site: change}, **some)


def _continued(target: Trace, site: str, values: Float[Tensor, "cell pos ..."], metric: ContinuationToxicity) -> Float[Tensor, " cell"]:
    edit = Edit.patch(site, values.flatten(2), positions=range(len(target.row)))
    return _toxicity(target, len(values), [edit], metric)


def _toxicity(target: Trace, count: int, edits: list[Edit], metric: ContinuationToxicity) -> Float[Tensor, " cell"]:
    model = target.model
    rows = generate_tokens(model, [target.row] * count, max_new_tokens=metric.new_tokens, edits=edits, batch_size=count)
    return metric.score(decoded_rows(model, rows))


@torch.no_grad()
def baselines(runs: Runs) -> tuple[Float[Tensor, "direction prompt"], Float[Tensor, "direction prompt"]]:
    """The metric of every target run and every source run, unpatched."""
    known: dict[tuple[int, int], Tensor] = {}

    def read(run: Trace, prompt: int) -> Tensor:
        if (id(run), prompt) not in known:
            metric = runs.metrics[prompt]
            value = metric.read(run.reading) if isinstance(metric, Metric) else _toxicity(run, 1, [], metric)
            known[id(run), prompt] = value[0].float().cpu()
        return known[id(run), prompt]

    sides = [
        torch.stack([torch.stack([read(pair[side], i) for i, pair in enumerate(traces)]) for traces in runs.traces]) for side in (0, 1)
    ]
    return sides[0], sides[1]


def _noise(target: Trace, sources: dict[int, Tensor], site: str, generator: torch.Generator) -> dict[int, Tensor]:
    """The target's activations with random changes as large as the source's differences from them: the null of a map."""
    noisy = {}
    for layer, source in sources.items():
        name = f"{site}.{layer}"
        acts = target[name]
        change = (source.to(acts) - acts).float().cpu()
        if parse_site(name).kind.axis == "d_mlp":
            drawn = change[:, torch.randperm(change.shape[1], generator=generator)]
        else:
            drawn = torch.randn(change.shape, generator=generator)
            drawn = drawn / drawn.norm(dim=-1, keepdim=True) * change.norm(dim=-1, keepdim=True)
        noisy[layer] = acts + drawn.to(acts)
    return noisy
