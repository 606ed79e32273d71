"""Path patching: the effect of one component on another along the direct path, all other components frozen.

The sender's change is added to the receiver's input only: every other component keeps the target run's output. The receiver is
computed anew from that input, and all that is above it then runs as usual. A receiver is a whole MLP or attention head, one of a
head's three inputs (`q`, `k`, `v`), or the logits.
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import torch
from einops import einsum
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.files import write_together
from interp.forward.resume import Reading, Trace, resume
from interp.models.chat import Chat
from interp.models.hooks import Frame
from interp.models.model import Model
from interp.models.pair import ModelPair
from interp.models.sites import parse_site
from interp.models.weights import frozen_norm, output_projection
from interp.patching.metrics import ContinuationToxicity, Metric
from interp.patching.patch import baselines, make_runs
from interp.results.result import Figure, frame_to_json, plain, show_number

INPUTS = ("q", "k", "v")


@dataclass(frozen=True, order=True)
class Node:
    """One end of a path: `embed`, `logits`, `mlp.LAYER`, `head.LAYER.HEAD`, or as receiver `head.LAYER.HEAD.q` (`k`, `v`)."""

    kind: str
    layer: int | None = None
    head: int | None = None
    input: str | None = None

    def __str__(self) -> str:
        return ".".join(str(part) for part in (self.kind, self.layer, self.head, self.input) if part is not None)

    @property
    def depth(self) -> int:
        """The node's place in the order of computation; a path leads from a smaller depth to a larger one."""
        if self.layer is None:
            return -1 if self.kind == "embed" else 10**9
        return 2 * self.layer + (self.kind == "mlp")


@dataclass(frozen=True, eq=False)
class PathMap:
    """The metric of each run in which one sender's activation reaches one receiver on the direct path alone.

    `values` is the metric of each patched run, NaN where there is no path from sender to receiver.
    """

    metric: str
    directions: tuple[str, ...]
    senders: tuple[Node, ...]
    receivers: tuple[Node, ...]
    values: Float[Tensor, "direction prompt sender receiver"]
    target: Float[Tensor, "direction prompt"]
    source: Float[Tensor, "direction prompt"]
    settings: Mapping[str, Any]

    @property
    def effects(self) -> Float[Tensor, "direction prompt sender receiver"]:
        """The change of the metric by each path, in its units."""
        return self.values - self.target[..., None, None]

    def to_frame(self) -> pd.DataFrame:
        """One row per direction and path: direction, sender, receiver, effect (mean over prompts), share (of source minus target)."""
        rows = []
        for at, direction in enumerate(self.directions):
            mean = self.effects[at].mean(dim=0)
            gap = float((self.source[at] - self.target[at]).mean())
            for i, sender in enumerate(self.senders):
                for j, receiver in enumerate(self.receivers):
                    effect = float(mean[i, j])
                    share = effect / gap if abs(gap) > 1e-9 else float("nan")
                    rows.append((direction, str(sender), str(receiver), effect, share))
        return pd.DataFrame(rows, columns=["direction", "sender", "receiver", "effect", "share"])

    def top(self, count: int = 10, direction: str | None = None) -> pd.DataFrame:
        """The paths that move the metric most, in size, largest first."""
        frame = self._of(direction)
        order = frame["effect"].abs().sort_values(ascending=False, kind="stable").index
        return frame.loc[order].dropna(subset="effect").head(count).reset_index(drop=True)

    def figure(self, direction: str | None = None) -> Figure:
        """Senders down, receivers across, for one direction (the first, unless named)."""
        from interp.results import figures

        frame = self._of(direction)
        name, best = frame["direction"].iloc[0], self.top(1, direction).iloc[0]
        gap = float((self.source - self.target)[self.directions.index(name)].mean())
        caption = (f"The strongest direct path is {best['sender']} → {best['receiver']}: {show_number(float(best['effect']))}, where the "
                   f"whole difference between the two runs is {show_number(gap)}. Gaps have no path.")  # fmt: skip
        return figures.heatmap(f"paths-{name}".replace(" ", "-"), frame, x="receiver", y="sender", z="effect", centre=0.0, caption=caption,
                               title=f"direct paths, {name}: effect on {self.metric}", z_title=f"effect on {self.metric}")  # fmt: skip

    def save(self, folder: str | Path) -> Path:
        """Write `paths.json` and `paths.csv`, all or nothing; gives the JSON's path."""
        record = {
            "metric": self.metric, "directions": list(self.directions), "settings": dict(self.settings), "target": self.target,
            "source": self.source, "table": frame_to_json(self.to_frame()),
            "figures": [self.figure(direction).to_json() for direction in self.directions],
        }  # fmt: skip
        files = {"paths.json": json.dumps(plain(record), indent=1, ensure_ascii=False, allow_nan=False),
                 "paths.csv": self.to_frame().to_csv(index=False)}  # fmt: skip
        write_together(files, Path(folder))
        return Path(folder) / "paths.json"

    def _of(self, direction: str | None) -> pd.DataFrame:
        name = direction or self.directions[0]
        if name not in self.directions:
            raise UserError(f"there is no direction {name!r}", f"use one of: {', '.join(self.directions)}")
        frame = self.to_frame()
        return frame[frame["direction"] == name].reset_index(drop=True)


def path_patch(
    subject: Model | ModelPair, prompts: str | Sequence[str], corrupted: str | Sequence[str] | None = None, *, metric: Any,
    senders: Sequence[str], receivers: Sequence[str], directions: Sequence[str] | None = None, chat: Chat | bool = False,
) -> PathMap:  # fmt: skip
    """The change of the metric by each direct path from a sender to a receiver.

    For each path, the sender's output in the source run takes the place of its output in the target run in what the receiver reads,
    at every position; all other components between them keep the target's outputs. All above the receiver runs as usual.

    Args:
        senders: `embed`, `mlp.LAYER`, `head.LAYER.HEAD`.
        receivers: `mlp.LAYER`, `head.LAYER.HEAD`, `head.LAYER.HEAD.q` (or `k`, `v`: with grouped queries, those of the whole
            group that the head belongs to), `logits`.
        chat: read the prompts as user turns of the model's chat template.

    Raises:
        UserError: as `patch`, a node that the model lacks, or no path between any of the senders and receivers.

    Edits of an outer `editing` block act as in any forward. In a pair a head's output is what it writes with its own side's weights.

    Source: path patching (Wang et al., 2022), with MLPs frozen as well.
    """
    model = subject.base if isinstance(subject, ModelPair) else subject
    if not isinstance(model, Model):
        raise UserError(f"{type(subject).__name__} cannot be patched", "give a Model or a ModelPair")
    starts = tuple(parse_node(text, model, sender=True) for text in senders)
    ends = tuple(parse_node(text, model, sender=False) for text in receivers)
    if not any(start.depth < end.depth for start in starts for end in ends):
        raise UserError("there is no path from any of the senders to any of the receivers", "name senders below the receivers")
    layers = range(model.n_layers)
    sites = [f"{name}.{layer}" for name in ("z", "mlp_out", "resid_mid") for layer in layers]
    runs = make_runs(subject, prompts, corrupted, metric, "resid_post", "all", None, None, directions, more_sites=sites, chat=chat)
    metrics = [item for item in runs.metrics if not isinstance(item, ContinuationToxicity)]
    if len(metrics) < len(runs.metrics):
        raise UserError("paths are measured in the prompt's own forward", "use another metric than the toxicity of a continuation")
    values = torch.stack([
        torch.stack([_paths(target, source, starts, ends, item) for (target, source), item in zip(traces, metrics, strict=True)])
        for traces in runs.traces
    ])  # fmt: skip
    target, source = baselines(runs)
    settings = {**runs.settings, "senders": [str(node) for node in starts], "receivers": [str(node) for node in ends]}
    return PathMap(runs.metrics[0].label, runs.directions, starts, ends, values, target, source, settings)


def parse_node(text: str, model: Model, *, sender: bool) -> Node:
    """The node of this name; raises `UserError` where the model has no such sender or receiver."""
    kind, *parts = text.strip().split(".")
    known = "embed, mlp.LAYER or head.LAYER.HEAD" if sender else "mlp.LAYER, head.LAYER.HEAD, head.LAYER.HEAD.q (k, v) or logits"
    role = "sender" if sender else "receiver"
    if kind == ("embed" if sender else "logits") and not parts:
        return Node(kind)
    which = parts.pop() if kind == "head" and len(parts) == 3 and not sender and parts[-1] in INPUTS else None
    if not all(part.isdecimal() for part in parts) or len(parts) != {"mlp": 1, "head": 2}.get(kind, -1):
        raise UserError(f"{text!r} is not a {role}", f"use {known}")
    layer, head = int(parts[0]), int(parts[1]) if kind == "head" else None
    if layer >= model.n_layers or (head or 0) >= model.n_heads:
        raise UserError(f"{text!r} does not exist: there are {model.n_layers} layers of {model.n_heads} heads", "count from 0")
    return Node(kind, layer, head, which)


@torch.no_grad()
def _paths(
    target: Trace, source: Trace, senders: Sequence[Node], receivers: Sequence[Node], metric: Metric
) -> Float[Tensor, "sender receiver"]:
    """The metric of every path (all senders of one receiver in one batch), NaN where there is no path."""
    changes = torch.stack([written_change(target, source, node) for node in senders])
    values = torch.full((len(senders), len(receivers)), torch.nan)
    for column, receiver in enumerate(receivers):
        below = [row for row, sender in enumerate(senders) if sender.depth < receiver.depth]
        if below:
            reading = receive(target, receiver, changes[below], metric.sites(target.model))
            values[below, column] = metric.read(reading).float().cpu()
    return values


def written_change(target: Trace, source: Trace, node: Node) -> Float[Tensor, "pos d_model"]:
    """What the sender adds to the residual stream in the source run minus what it adds in the target run, at each position."""
    if node.kind == "embed":
        return source.stream[0].to(target.stream) - target.stream[0]
    if node.kind == "mlp":
        return source[f"mlp_out.{node.layer}"].to(target.stream) - target[f"mlp_out.{node.layer}"]
    return _head_writes(source, node).to(target.stream) - _head_writes(target, node).to(target.stream)


def _head_writes(run: Trace, node: Node) -> Float[Tensor, "pos d_model"]:
    """What one head adds to the stream in a run, in double precision; a norm behind attention is frozen at each position."""
    layer, head = int(node.layer or 0), int(node.head or 0)
    weights, constant = output_projection(run.model, layer)
    z = run[f"z.{layer}"].double()
    whole = einsum(z, weights, "pos head d_head, head d_head d_model -> pos d_model") + constant
    return z[:, head] @ weights[head] * frozen_norm(run.model, layer, "attn_out", whole)


def receive(target: Trace, receiver: Node, changes: Float[Tensor, "sender pos d_model"], keep: Sequence[str] = ()) -> Reading:
    """The target run with these changes added to the receiver's input, one row per sender."""
    if receiver.kind == "logits":
        return Reading(target, target.stream[-1] + changes, {})
    layer, count = int(receiver.layer or 0), len(changes)
    hidden = target.stream[layer].expand(count, *target.stream[layer].shape)
    if receiver.kind == "mlp":
        above = layer + 1
        new = resume(target, layer, hidden, transforms={f"resid_mid.{layer}": lambda x, frame: x + changes}, keep=[f"mlp_out.{layer}"],
                     stop=above).sites[f"mlp_out.{layer}"]  # fmt: skip
        return resume(target, above, target[f"resid_mid.{layer}"] + new, keep=keep)
    site, head = f"{receiver.input or 'z'}.{layer}", int(receiver.head or 0)
    if parse_site(site).kind.axis == "kv_head":
        head //= target.model.n_heads // target.model.n_kv_heads
    new = resume(target, layer, hidden + changes, keep=[site], stop=layer + 1).sites[site]

    def change(x: Tensor, frame: Frame) -> Tensor:
        x = x.clone()
        x[:, :, head] = new[:, :, head]
        return x

    return resume(target, layer, hidden, transforms={site: change}, keep=keep)
