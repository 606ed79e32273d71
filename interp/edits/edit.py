"""`Edit`: one change of a forward as data (operation, site, strength, positions), which can be saved as JSON.

An `Edit` does not use hooks. `transforms_of` turns a list of edits into functions on tensors for one model, after
checking that every edit fits that model. Positions are absolute, so an edit does the same with and without a KV cache.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
from numbers import Real
from pathlib import Path
from typing import Any, Literal, cast

import torch
from jaxtyping import Float
from torch import Tensor

from interp.errors import UserError
from interp.files import write_text
from interp.models.positions import ROLES, parse_positions, whole_number
from interp.models.sites import Site, parse_site

Op = Literal["add", "scale", "scale_keys", "set", "project_out", "patch"]
OPS: tuple[Op, ...] = ("add", "scale", "scale_keys", "set", "project_out", "patch")
EditPositions = Literal["all", "prompt", "generated", "from_last", "last", "template", "system", "user", "assistant"] | tuple[int, ...]
EDIT_WORDS = ("all", "prompt", "generated", "from_last", "last", *ROLES)
# The most numbers that `repr` writes out.
SHOWN = 8
STRENGTH: tuple[Op, ...] = ("add", "scale", "scale_keys", "set")


@dataclass(frozen=True, eq=False)
class Edit:
    """One change of a model's forward. Use the class methods to make one: they check their arguments.

    Attributes:
        op: the operation.
        site: the site (`resid_post.5`); None for `scale_keys`, whose neurons name their layers.
        values: the vector added or projected out, or the tensor patched in (`d`, `pos d` or `batch pos d`).
        strength: the factor of `values`, or the factor of `scale` and `scale_keys`, or the value of `set`.
        neurons: (layer, index) pairs for `scale_keys`; for the others, indices on the site's last axis, or None for all.
        positions: one of `EDIT_WORDS` (see `interp.models.positions`), such as `prompt`, or absolute positions. Those that name a
            role, such as `user`, need a forward of conversations (`chat=True`).
    """

    op: Op
    site: Site | None = None
    values: Tensor | None = None
    strength: float = 1.0
    neurons: tuple[tuple[int, int], ...] | tuple[int, ...] | None = None
    positions: EditPositions = "all"

    @classmethod
    def add(cls, site: str, vector: Any, strength: float = 1.0, positions: Any = "all") -> Edit:
        """`x <- x + strength * vector`."""
        return cls("add", parse_site(site), _vector(vector), _finite(strength, "strength"), None, _positions(positions))

    @classmethod
    def subtract(cls, site: str, vector: Any, strength: float = 1.0, positions: Any = "all") -> Edit:
        """`x <- x - strength * vector`: the intervention of paper A, Table 2."""
        return cls.add(site, vector, -_finite(strength, "strength"), positions)

    @classmethod
    def scale(cls, site: str, factor: float, neurons: Sequence[int] | None = None, positions: Any = "all") -> Edit:
        """`x_i <- factor * x_i` for the given indices of the last axis, or for all of them."""
        return cls("scale", parse_site(site), None, _finite(factor, "factor"), _indices(neurons), _positions(positions))

    @classmethod
    def scale_keys(cls, neurons: Sequence[tuple[int, int]], factor: float, positions: Any = "all") -> Edit:
        """Multiply the key vectors of (layer, index) neurons; their biases stay, as in paper A, Table 4."""
        if not isinstance(neurons, Sequence) or not all(isinstance(pair, Sequence) and len(pair) == 2 for pair in neurons):
            raise UserError(f"scale_keys has neurons {neurons!r}", "give a list of (layer, index) pairs")
        pairs = tuple((whole_number(layer, "layer"), whole_number(index, "neuron")) for layer, index in neurons)
        if not pairs:
            raise UserError("scale_keys was given no neurons", "name at least one (layer, index) pair")
        return cls("scale_keys", None, None, _finite(factor, "factor"), pairs, _positions(positions))

    @classmethod
    def set(cls, site: str, value: float, neurons: Sequence[int] | None = None, positions: Any = "all") -> Edit:
        """`x_i <- value`: 0 ablates a neuron, 1 opens a gate (`mlp_gate`)."""
        return cls("set", parse_site(site), None, _finite(value, "value"), _indices(neurons), _positions(positions))

    @classmethod
    def project_out(cls, site: str, direction: Any, positions: Any = "all") -> Edit:
        """`x <- x - (x . d) d` with `d` the unit direction, so that nothing is left along it."""
        return cls("project_out", parse_site(site), _vector(direction), 1.0, None, _positions(positions))

    @classmethod
    def patch(cls, site: str, values: Any, positions: Any = "all") -> Edit:
        """Replace the site by `values`: one vector for every position, `pos d`, or `batch pos d`.

        With a `pos` axis, its entries belong to the explicit absolute positions given, or to positions 0, 1, 2, ...; with
        a `batch` axis, its rows belong to the texts in the caller's order. What `capture` returns for texts of different
        lengths holds zeros behind the shorter ones: give `positions="prompt"` when generating from such a patch.
        """
        tensor = _tensor(values)
        if not 1 <= tensor.dim() <= 3:
            raise UserError(f"a patch of {tensor.dim()} axes was given", "give values of shape [d], [pos, d] or [batch, pos, d]")
        where = _positions(positions)
        if tensor.dim() > 1 and isinstance(where, tuple) and len(where) != tensor.shape[-2]:
            raise UserError(f"the patch holds {tensor.shape[-2]} positions, but {len(where)} are named", "give one vector per position")
        return cls("patch", parse_site(site), tensor, 1.0, None, where)

    def times(self, factor: float) -> Edit:
        """The same edit at another strength: `strength * factor`."""
        if self.op not in STRENGTH:
            raise UserError(f"an edit of op {self.op!r} has no strength to multiply", "use add, scale, scale_keys or set")
        return replace(self, strength=_finite(self.strength * _finite(factor, "factor"), "strength"))

    @property
    def digest(self) -> str:
        """A hash of everything that the edit does, by which measurements under it are cached."""
        digest = hashlib.blake2b(repr((self.op, self.site, self.strength, self.neurons, self.positions)).encode(), digest_size=16)
        if self.values is not None:
            values = self.values.detach().cpu().contiguous()
            digest.update(f"{values.dtype}{tuple(values.shape)}".encode() + values.view(torch.uint8).numpy().tobytes())
        return digest.hexdigest()

    def to_json(self) -> dict[str, Any]:
        """A JSON object from which `from_json` makes an equal edit."""
        return {
            "op": self.op,
            "site": None if self.site is None else str(self.site),
            "values": None if self.values is None else self.values.tolist(),
            "strength": self.strength,
            "neurons": None if self.neurons is None else [list(n) if isinstance(n, tuple) else n for n in self.neurons],
            "positions": list(self.positions) if isinstance(self.positions, tuple) else self.positions,
        }

    @classmethod
    def from_json(cls, record: Any) -> Edit:
        """The edit that `to_json` wrote; raises `UserError` naming the field at fault."""
        if not isinstance(record, dict):
            raise UserError(f"an edit must be a JSON object, not {type(record).__name__}", "write it as Edit.to_json does")
        unknown = set(record) - {"op", "site", "values", "strength", "neurons", "positions"}
        if unknown:
            raise UserError(f"the edit has unknown fields: {', '.join(sorted(unknown))}", "remove or correct them")
        op, site, values = record.get("op"), record.get("site"), record.get("values")
        strength, where = record.get("strength", 1.0), record.get("positions", "all")
        neurons: Any = record.get("neurons")
        if op not in OPS:
            raise UserError(f"the edit's op is {op!r}", f"use one of {', '.join(OPS)}")
        unread = [name for name in _unread(op) if record.get(name) is not None]
        if op not in STRENGTH and strength != 1:
            unread.append("strength")
        if unread:
            raise UserError(f"an edit of op {op!r} has no use for {', '.join(unread)}", "remove it, or choose another op")
        if op == "scale_keys":
            pairs = [tuple(pair) if isinstance(pair, list) else pair for pair in neurons] if isinstance(neurons, list) else neurons
            return cls.scale_keys(pairs, strength, where)
        if not isinstance(site, str):
            raise UserError(f"the edit's site is {site!r}", "name one, for example resid_post.5")
        if op in {"add", "project_out", "patch"} and values is None:
            raise UserError(f"an edit of op {op!r} has no values", "give the vector as a list of numbers")
        if op == "add":
            return cls.add(site, values, strength, where)
        if op == "project_out":
            return cls.project_out(site, values, where)
        if op == "patch":
            return cls.patch(site, values, where)
        return cls.scale(site, strength, neurons, where) if op == "scale" else cls.set(site, strength, neurons, where)

    def __repr__(self) -> str:
        """The call that makes this edit; more than a few values are shown as their shape."""
        where = "" if self.positions == "all" else f", positions={_shown_positions(self.positions)}"
        site, values = f'"{self.site}"', "" if self.values is None else _shown_values(self.values)
        if self.op == "scale_keys":
            return f"Edit.scale_keys({list(self.neurons or ())}, {self.strength}{where})"
        if self.op == "add":
            return f"Edit.add({site}, {values}, {self.strength}{where})"
        if self.op in ("project_out", "patch"):
            return f"Edit.{self.op}({site}, {values}{where})"
        units = "" if self.neurons is None else f", {list(self.neurons)}"
        return f"Edit.{self.op}({site}, {self.strength}{units}{where})"

    def __eq__(self, other: object) -> bool:
        if not isinstance(other, Edit):
            return NotImplemented
        same = (self.op, self.site, self.strength, self.neurons, self.positions)
        if same != (other.op, other.site, other.strength, other.neurons, other.positions) or (self.values is None) != (
            other.values is None
        ):
            return False
        return self.values is None or (other.values is not None and torch.equal(self.values, other.values))

    def __hash__(self) -> int:
        return hash((self.op, self.site, self.strength, self.neurons, self.positions))


def _shown_values(values: Tensor) -> str:
    """The values as a list that reads back to the same single-precision numbers, or their shape where they are many."""
    if values.numel() > SHOWN:
        return f"<{' x '.join(map(str, values.shape))} numbers>"
    # numpy writes a single-precision number in the fewest digits that identify it.
    return str(values.numpy().astype(str).astype(object).tolist()).replace("'", "")


def _shown_positions(positions: EditPositions) -> str:
    return f'"{positions}"' if isinstance(positions, str) else str(list(positions))


def _unread(op: Op) -> tuple[str, ...]:
    """The fields of a record that this op would ignore."""
    return {"scale_keys": ("site", "values"), "scale": ("values",), "set": ("values",)}.get(op, ("neurons",))


def save_edits(edits: Sequence[Edit], path: str | Path) -> None:
    """Write edits as a JSON list, atomically."""
    write_text(Path(path), json.dumps([edit.to_json() for edit in edits]))


def load_edits(path: str | Path) -> list[Edit]:
    """The edits in a JSON file that holds one edit or a list of them; raises `UserError` where it cannot be read."""
    path = Path(path)
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(f"cannot read the edits in {path}: {error.strerror}", "give the path of a JSON file") from error
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}", "write edits with Edit.to_json") from error
    return [Edit.from_json(item) for item in (record if isinstance(record, list) else [record])]


def _tensor(values: Any) -> Tensor:
    try:
        tensor = values.detach().to("cpu", torch.float32).clone() if torch.is_tensor(values) else torch.tensor(values, dtype=torch.float32)
    except (TypeError, ValueError, RuntimeError, OverflowError) as error:
        raise UserError(f"the edit's values are not numbers of one shape: {error}", "give a list of numbers or a tensor") from error
    if not bool(torch.isfinite(tensor).all()):
        raise UserError("the edit's values hold NaN or infinity", "give finite numbers")
    return tensor


def _vector(values: Any) -> Float[Tensor, " d"]:
    tensor = _tensor(values)
    if tensor.dim() != 1:
        raise UserError(f"a vector is expected, but the values have {tensor.dim()} axes", "give one list of numbers")
    if not bool(tensor.any()):
        raise UserError("the edit's vector is zero everywhere", "give a direction")
    return tensor


def _finite(value: Any, name: str) -> float:
    try:
        number = math.nan if isinstance(value, bool) or not isinstance(value, Real) else float(value)
    except OverflowError:
        number = math.inf
    if not math.isfinite(number):
        raise UserError(f"the edit's {name} is {str(value)[:40]!r}", "give a finite number")
    return number


def _indices(neurons: Sequence[int] | None) -> tuple[int, ...] | None:
    if neurons is None:
        return None
    if not isinstance(neurons, Sequence) and not torch.is_tensor(neurons):
        raise UserError(f"neurons {neurons!r} is not a list", "give a list of indices")
    indices = tuple(whole_number(n, "neuron") for n in neurons)
    if not indices:
        raise UserError("the edit was given an empty list of neurons", "name at least one, or leave neurons out for all")
    return indices


def _positions(positions: Any) -> EditPositions:
    return cast(EditPositions, parse_positions(positions, EDIT_WORDS))
