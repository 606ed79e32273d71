"""Changes of the weights by tuning: per tensor, per group of tensors, and per neuron.

"Almost unchanged" depends on the measure, so all the usual ones are given. Sums run in double precision, since cosines here differ
from 1 in the seventh digit, beyond single precision.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import pandas as pd
import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.models.parameters import PARAMETER_KINDS, parameter_kind, parameter_layer

if TYPE_CHECKING:
    from interp.models.model import Model
    from interp.models.pair import ModelPair

CHUNK = 2**22


@dataclass(frozen=True, eq=False)
class WeightShift:
    """Measures of the change of each tensor from the base to the tuned model; one row of `table` per tensor.

    Columns: tensor, layer (-1 outside the blocks), group, elements, cosine, difference_norm (Frobenius),
    relative_difference (to the base norm), mean_abs_difference, norm_difference_per_element (`| |t| - |b| | / elements`),
    and for matrices spectral_norm and stable_rank of the difference (`Frobenius^2 / spectral^2`: how many directions the
    change spreads over).
    """

    table: pd.DataFrame

    def to_frame(self) -> pd.DataFrame:
        """A copy of `table`."""
        return self.table.copy()

    def by_group(self) -> pd.DataFrame:
        """One row per group: tensors, elements, smallest cosine, relative and absolute difference of the group as a whole,
        largest norm difference per element, mean stable rank."""
        rows = []
        for group, part in self.table.groupby("group", sort=False):
            difference = float((part["difference_norm"] ** 2).sum() ** 0.5)
            size = float((part["base_norm"] ** 2).sum() ** 0.5)
            rows.append({
                "group": group, "tensors": len(part), "elements": int(part["elements"].sum()),
                "smallest_cosine": float(part["cosine"].min()),
                "difference_norm": difference, "relative_difference": difference / size if size else float("nan"),
                "mean_abs_difference": float((part["mean_abs_difference"] * part["elements"]).sum() / part["elements"].sum()),
                "largest_norm_difference_per_element": float(part["norm_difference_per_element"].max()),
                "mean_stable_rank": float(part["stable_rank"].mean()),
            })  # fmt: skip
        order = {group: place for place, group in enumerate(PARAMETER_KINDS)}
        return pd.DataFrame(rows).sort_values("group", key=lambda names: names.map(order), ignore_index=True)


@torch.no_grad()
def weight_shift(pair: ModelPair, *, progress: Callable[[int, int], object] | None = None) -> WeightShift:
    """The change of each tensor by tuning (paper A, section 5.1; experiment A-E8).

    A tensor that two modules share (tied embeddings) counts once. Two tensors that are both zero have cosine 1.
    """
    tuned = dict(pair.tuned.hf.named_parameters())
    names = [name for name, _ in pair.base.hf.named_parameters()]
    missing = sorted(set(names) ^ set(tuned))
    if missing:
        raise UserError(f"the sides do not have the same tensors: {', '.join(missing[:3])}", "give two checkpoints of one model")
    rows = []
    for done, (name, base) in enumerate(pair.base.hf.named_parameters(), start=1):
        rows.append(_shift(name, base, tuned[name]))
        if progress is not None:
            progress(done, len(names))
    return WeightShift(pd.DataFrame(rows))


@torch.no_grad()
def neuron_shift(pair: ModelPair, neurons: Sequence[tuple[int, int]]) -> pd.DataFrame:
    """The change of these neurons' key and value vectors by tuning, and its percentile among all neurons.

    One row per neuron: layer, neuron, key_shift and value_shift (norm of the change over the base vector's norm; for GLU models
    also up_shift), and each one's percentile among all neurons of the model (0 to 100: the share of neurons that changed less, ties
    counting half).
    """
    kinds: dict[str, Callable[[Model, int], Tensor]] = {"key": lambda m, i: m.key_vectors(i), "value": lambda m, i: m.value_vectors(i)}
    if pair.base.architecture.up is not None:
        kinds["up"] = lambda m, i: m.up_vectors(i)
    width = pair.base.d_mlp
    pair.base.check_neurons(neurons)
    where = torch.tensor([layer * width + index for layer, index in neurons], dtype=torch.long)
    columns: dict[str, list] = {"layer": [layer for layer, _ in neurons], "neuron": [index for _, index in neurons]}
    for kind, read in kinds.items():
        shifts = torch.cat([_relative(read(pair.base, layer), read(pair.tuned, layer)) for layer in range(pair.base.n_layers)])
        ordered = shifts.sort().values
        chosen = shifts[where]
        below = torch.searchsorted(ordered, chosen, right=False) + torch.searchsorted(ordered, chosen, right=True)
        columns[f"{kind}_shift"] = chosen.tolist()
        columns[f"{kind}_percentile"] = (50 * below.double() / len(ordered)).tolist()
    return pd.DataFrame(columns)


def _relative(base: Tensor, tuned: Tensor) -> Float[Tensor, " d_mlp"]:
    tiny = torch.finfo(torch.float64).tiny
    return ((tuned.double() - base.double()).norm(dim=1) / base.double().norm(dim=1).clamp(min=tiny)).cpu()


def _shift(name: str, base: Tensor, tuned: Tensor) -> dict[str, object]:
    sums = torch.zeros(5, dtype=torch.float64)
    first, second = base.detach().flatten(), tuned.detach().flatten()
    for start in range(0, first.numel(), CHUNK):
        a, b = (side[start : start + CHUNK].double().cpu() for side in (first, second))
        change = b - a
        sums += torch.stack([a @ a, b @ b, a @ b, change @ change, change.abs().sum()])
    aa, bb, ab, dd, absolute = sums.tolist()
    norm_a, norm_b, difference = aa**0.5, bb**0.5, dd**0.5
    spectral = _spectral_norm(base, tuned) if base.dim() == 2 else float("nan")
    blank = float("nan")
    return {
        "tensor": name, "layer": parameter_layer(name), "group": parameter_kind(name),
        "elements": base.numel(), "base_norm": norm_a,
        "cosine": ab / (norm_a * norm_b) if norm_a and norm_b else (1.0 if norm_a == norm_b else blank),
        "difference_norm": difference, "relative_difference": difference / norm_a if norm_a else (0.0 if not difference else blank),
        "mean_abs_difference": absolute / base.numel(), "norm_difference_per_element": abs(norm_b - norm_a) / base.numel(),
        "spectral_norm": spectral, "stable_rank": dd / spectral**2 if spectral > 0 else blank,
    }  # fmt: skip


def _spectral_norm(base: Tensor, tuned: Tensor) -> float:
    """Largest singular value of the difference, from the Gram matrix of its short side: an SVD of an unembedding is slow."""
    a, b = (side.detach() if side.shape[0] >= side.shape[1] else side.detach().T for side in (base, tuned))
    gram = torch.zeros(a.shape[1], a.shape[1], dtype=torch.float64)
    step = max(1, CHUNK // a.shape[1])
    for start in range(0, len(a), step):
        change = b[start : start + step].double().cpu() - a[start : start + step].double().cpu()
        gram += change.T @ change
    return float(torch.linalg.eigvalsh(gram)[-1].clamp(min=0).sqrt())
