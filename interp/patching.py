"""`patch`: which activation carries the difference between two runs, within one model or between the two sides of a pair?

One engine serves both: a run is a prompt and a model, and patching puts one run's activation into the other. All cells of a
layer run together as one batch, from that layer on; the blocks below are never computed again. The runs are exchanged for the
other direction, so that denoising and noising (or base into tuned and tuned into base) always stand side by side.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Literal

import torch
from jaxtyping import Bool, Float
from torch import Tensor

from interp.edits import Edit
from interp.errors import UserError
from interp.generate import generate_tokens
from interp.hooks import Frame
from interp.models import Model, ModelPair
from interp.patch_metrics import AnyMetric, ContinuationToxicity, Metric, each_metric
from interp.patch_pairs import align
from interp.patch_results import UNIT_NAMES, Cell, PatchMap, token_texts
from interp.resume import Reading, Trace, resume, trace
from interp.tokens import token_rows

SITES = ("resid_pre", "resid_mid", "resid_post", "attn_out", "mlp_out", "head_out", "mlp_post")
WITHIN = ("denoising", "noising")
ACROSS = ("base into tuned", "tuned into base")
MEMORY_MB = 64
Positions = Literal["each", "all"] | Sequence[int] | None
Progress = Callable[[int, int], object]


@dataclass(frozen=True, eq=False)
class Runs:
    """The two runs of every prompt, in the order (target, source) of each direction, and what is asked of them."""

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
    site: str = "resid_post", positions: Positions = None, layers: Sequence[int] | None = None,
    units: Sequence[int] | Sequence[tuple[int, int]] | None = None, directions: Sequence[str] | None = None, null_draws: int = 0,
    memory_mb: float | int = MEMORY_MB, seed: int = 0, progress: Progress | None = None,
) -> PatchMap:  # fmt: skip
    """Which activations carry the difference between two runs?

    With a model, `prompts` are the clean and `corrupted` the corrupted ones: denoising puts clean activations into the
    corrupted run, noising the reverse. With a pair, both sides read the same prompts, and each side's activations are put
    into the other.

    Args:
        metric: `LogitDifference`, `LogProbability`, `ProbeProjection` or `ContinuationToxicity`, one for all prompts or a list.
        site: `resid_pre`, `resid_mid`, `resid_post`, `attn_out`, `mlp_out`, `head_out` (each head) or `mlp_post` (each neuron).
        positions: `each` on its own (the default for whole sites), `all` at once (the default for heads and neurons), or a
            list, each on its own.
        layers: all unless given.
        units: heads or neurons, as indices in every layer or as (layer, index) pairs; all unless given.
        directions: both unless given.
        null_draws: how many times to repeat the map with random changes of equal norm (at every position and head; for
            neurons, the changes of the layer shuffled among its neurons).
        memory_mb: bound on the activations of one batch; it does not change the result.
        progress: called with cells done and in all.

    Raises:
        UserError: prompts whose tokens do not line up, an unknown site, layer, position, unit or direction, or a metric that
            does not fit the model.

    Source: paper-independent; the neighbours of papers A to C in the study of circuits call it activation or causal patching.
    """
    runs = make_runs(subject, prompts, corrupted, metric, site, positions, layers, units, directions)
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
    found: list[list[list[Tensor]]] = []
    for traces in runs.traces:
        found.append([])
        for (target, source), measure in zip(traces, runs.metrics, strict=True):
            sources = [{layer: source[f"{runs.site}.{layer}"] for layer in _layers_of(runs.cells)}]
            sources += [_noise(target, sources[0], runs.site, generator) for _ in range(null_draws)]
            found[-1].append([_run_cells(target, given, runs, measure, memory_mb, count) for given in sources])
    values = torch.stack([torch.stack([torch.stack(draws) for draws in rows]) for rows in found]).movedim(2, 0)
    unpatched, full = baselines(runs)
    settings = {**runs.settings, "null_draws": null_draws, "seed": seed}
    return PatchMap(
        runs.site, runs.metrics[0].label, "patching", runs.directions, runs.cells, runs.tokens, values[0], unpatched, full,
        values[1:] if null_draws else None, settings,
    )  # fmt: skip


def make_runs(
    subject: Model | ModelPair, prompts: Any, corrupted: Any, metric: Any, site: str, positions: Positions,
    layers: Sequence[int] | None, units: Any, directions: Sequence[str] | None, *, more_sites: Sequence[str] = (),
) -> Runs:  # fmt: skip
    """Check what was asked for and run both runs of every prompt once."""
    clean = [prompts] if isinstance(prompts, str) else list(prompts)
    if not clean:
        raise UserError("no prompts were given", "give at least one")
    models, known = _models(subject, corrupted)
    other = clean if corrupted is None else [corrupted] if isinstance(corrupted, str) else list(corrupted)
    if len(other) != len(clean):
        raise UserError(f"{len(clean)} clean and {len(other)} corrupted prompts were given", "give one corrupted prompt for each")
    first = models[0]
    if corrupted is None:
        rows = [(row, row) for row in token_rows(first, clean)]
    else:
        pairs = [align(first, a, b) for a, b in zip(clean, other, strict=True)]
        rows = [(list(pair.clean_ids), list(pair.corrupted_ids)) for pair in pairs]
    chosen = known if directions is None else tuple(directions)
    wrong = next((name for name in chosen if name not in known), None)
    if wrong is not None or not chosen:
        raise UserError(f"there is no direction {wrong!r} here", f"use {' or '.join(map(repr, known))}")
    metrics = each_metric(metric, len(clean))
    cells = make_cells(first, site, positions, layers, units, [len(row) for row, _ in rows])
    needed = {*(f"{site}.{layer}" for layer in _layers_of(cells)), *more_sites}
    if site == "mlp_out":
        needed |= {f"resid_mid.{layer}" for layer in _layers_of(cells)}
    both: list[tuple[Trace, Trace]] = []
    for (own, others), measure in zip(rows, metrics, strict=True):
        read = {name for model in models for name in measure.sites(model)} if isinstance(measure, Metric) else set()
        both.append((trace(models[0], own, needed | read), trace(models[1], others, needed | read)))
    # The first direction of either kind puts the first run (clean, base) into the second (corrupted, tuned).
    traces = tuple(tuple((b, a) if name == known[0] else (a, b) for a, b in both) for name in chosen)
    settings = {
        "prompts": clean, "corrupted": None if corrupted is None else other, "site": site, "metric": [repr(item) for item in metrics],
        "models": {model.name: model.digest for model in dict.fromkeys(models)},
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


def make_cells(
    model: Model, site: str, positions: Positions, layers: Sequence[int] | None, units: Any, lengths: Sequence[int]
) -> tuple[Cell, ...]:
    """Every cell of a map, in the order layer, unit, position; raises `UserError` for what the model or the prompts lack."""
    if site not in SITES:
        raise UserError(f"site {site!r} cannot be patched", f"use one of {', '.join(SITES)}, without a layer")
    chosen = list(range(model.n_layers)) if layers is None else sorted(set(layers))
    wrong = next((layer for layer in chosen if not 0 <= layer < model.n_layers), None)
    if wrong is not None or not chosen:
        raise UserError(f"layer {wrong} does not exist: the model has {model.n_layers} layers", "count layers from 0, and name one")
    places: list[int | None] = list(_places(positions, site, lengths))
    width = {"head_out": model.n_heads, "mlp_post": model.d_mlp}.get(site)
    return tuple(
        Cell(layer, place, unit) for layer in chosen for unit in _units(units, site, layer, width, model.n_layers) for place in places
    )


def _places(positions: Positions, site: str, lengths: Sequence[int]) -> Iterator[int | None]:
    wanted = positions if positions is not None else ("all" if site in UNIT_NAMES else "each")
    if wanted == "all":
        yield None
        return
    if isinstance(wanted, str) and wanted != "each":
        raise UserError(f"positions {wanted!r} is unknown", "use each, all, or a list of positions")
    if wanted == "each" and len(set(lengths)) > 1:
        raise UserError(
            f"the prompts have {min(lengths)} to {max(lengths)} tokens, so that their positions do not line up",
            "use prompts of equal length, or positions='all'",
        )
    shortest = min(lengths)
    for position in range(shortest) if isinstance(wanted, str) else wanted:
        if not 0 <= position < shortest:
            raise UserError(f"position {position} does not exist in a prompt of {shortest} tokens", "count positions from 0")
        yield int(position)


def _units(units: Any, site: str, layer: int, width: int | None, n_layers: int) -> list[int | None]:
    if width is None:
        if units is not None:
            raise UserError(f"site {site!r} has no heads or neurons", "name units for head_out or mlp_post only")
        return [None]
    if units is None:
        return list(range(width))
    pairs = [tuple(item) if isinstance(item, list | tuple) else (layer, item) for item in units]
    wrong = next((p for p in pairs if len(p) != 2 or not 0 <= p[0] < n_layers or not 0 <= p[1] < width), None)
    if wrong is not None or not pairs:
        raise UserError(f"{UNIT_NAMES[site]} {wrong} does not exist: there are {n_layers} layers of {width}", "count from 0, and name one")
    return [index for owner, index in dict.fromkeys(pairs) if owner == layer]


def _layers_of(cells: Sequence[Cell]) -> list[int]:
    return sorted({cell.layer for cell in cells})


@torch.no_grad()
def _run_cells(
    target: Trace, sources: dict[int, Tensor], runs: Runs, metric: AnyMetric, memory_mb: float | int, count: Callable[[int], None]
) -> Float[Tensor, " cell"]:
    """The metric with each cell patched in turn; cells of one layer share a batch."""
    chunk = chunk_size(target, memory_mb)
    found = []
    for layer in _layers_of(runs.cells):
        own = [cell for cell in runs.cells if cell.layer == layer]
        for start in range(0, len(own), chunk):
            part = own[start : start + chunk]
            where = selection(target, runs.site, part)
            found.append(measure_patched(target, f"{runs.site}.{layer}", sources[layer], where, metric).float().cpu())
            count(len(part))
    return torch.cat(found)


def chunk_size(target: Trace, memory_mb: float | int) -> int:
    """How many runs fit into the memory: residual streams, MLP, attention scores and logits of one block, roughly."""
    model, length = target.model, len(target.row)
    numbers = length * (10 * model.d_model + 3 * model.d_mlp + 2 * model.n_heads * length) + 2 * model.d_vocab
    return max(1, int(memory_mb * 2**20 / (numbers * target.stream.element_size())))


def selection(target: Trace, site: str, cells: Sequence[Cell]) -> Bool[Tensor, "cell pos ..."]:
    """Which numbers of a site each cell replaces: `cell pos 1`, for heads `cell pos head 1`, for neurons `cell pos d_mlp`."""
    model, length = target.model, len(target.row)
    tail = {"head_out": (model.n_heads, 1), "mlp_post": (model.d_mlp,)}.get(site, (1,))
    where = torch.zeros((len(cells), length, *tail), dtype=torch.bool)
    for number, cell in enumerate(cells):
        where[number, slice(None) if cell.position is None else cell.position, slice(None) if cell.unit is None else cell.unit] = True
    return where.to(model.device)


def measure_patched(
    target: Trace, site: str, source: Float[Tensor, "*cell pos ..."], where: Bool[Tensor, "cell pos ..."], metric: AnyMetric
) -> Float[Tensor, " cell"]:
    """The metric of one run per row of `where`, with those numbers of the site replaced by the source's."""
    source = source.to(target.stream)
    if isinstance(metric, ContinuationToxicity):
        return _continued(target, site, torch.where(where, source, target[site]), metric)
    return metric.read(run_patched(target, site, source, where, metric.sites(target.model)))


def run_patched(
    target: Trace, site: str, source: Float[Tensor, "*cell pos ..."], where: Bool[Tensor, "cell pos ..."], keep: Sequence[str] = ()
) -> Reading:
    """Run the model from the patched site on."""
    name, _, text = site.partition(".")
    layer, count = int(text), len(where)
    if name in ("resid_pre", "resid_post"):
        return resume(target, layer + (name == "resid_post"), torch.where(where, source, target[site]), keep=keep)
    if name == "mlp_out" and not {f"mlp_out.{layer}", f"resid_mid.{layer}"} & set(keep):
        # All that follows in the block is the sum.
        return resume(target, layer + 1, target[f"resid_mid.{layer}"] + torch.where(where, source, target[site]), keep=keep)

    def change(x: Tensor, frame: Frame) -> Tensor:
        return torch.where(where, source, x)

    hidden = target.stream[layer]
    return resume(target, layer, hidden.expand(count, *hidden.shape), transforms={site: change}, keep=keep)


def _continued(target: Trace, site: str, values: Float[Tensor, "cell pos ..."], metric: ContinuationToxicity) -> Float[Tensor, " cell"]:
    edit = Edit.patch(site, values.flatten(2), positions=range(len(target.row)))
    return _toxicity(target, len(values), [edit], metric)


def _toxicity(target: Trace, count: int, edits: list[Edit], metric: ContinuationToxicity) -> Float[Tensor, " cell"]:
    model = target.model
    rows = generate_tokens(model, [list(target.row)] * count, max_new_tokens=metric.new_tokens, edits=edits, batch_size=count)
    texts = [model.tokenizer.decode(row, skip_special_tokens=True, clean_up_tokenization_spaces=False) for row in rows]
    return metric.score(texts)


@torch.no_grad()
def baselines(runs: Runs) -> tuple[Float[Tensor, "direction prompt"], Float[Tensor, "direction prompt"]]:
    """The metric of every target and every source as they are."""
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
    """In place of the source's activations: the target's with random changes of the size that the source's have."""
    made = {}
    for layer, source in sources.items():
        own = target[f"{site}.{layer}"]
        change = (source.to(own) - own).float().cpu()
        if site == "mlp_post":
            drawn = change[:, torch.randperm(change.shape[1], generator=generator)]
        else:
            drawn = torch.randn(change.shape, generator=generator)
            drawn = drawn / drawn.norm(dim=-1, keepdim=True) * change.norm(dim=-1, keepdim=True)
        made[layer] = own + drawn.to(own)
    return made
