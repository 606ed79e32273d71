"""Edits in a short form, as they are typed on the command line: `subtract:resid_post.5:probe:20`.

    scale_keys:NEURONS:FACTOR           NEURONS is 5.770,4.12 or top:16 (the value vectors nearest to the probe) or selective:7
                                        (of the 128 nearest, those that fire on provocation rather than on plain text)
    add:SITE:VECTOR:STRENGTH            subtract likewise; VECTOR is probe, difference, value.5.770 or a JSON list in a file
    scale:SITE:INDICES:FACTOR           INDICES is 3,17 or all
    set:SITE:INDICES:VALUE
    project_out:SITE:VECTOR

`:POSITIONS` may follow: all, prompt, generated, from_last, last or 0,1,2, and where prompts are read with a chat template system, user,
assistant or template. Instead of all this, the path of a JSON file of edits may be given. Words such as `probe` are resolved here, so
that an `Edit` holds numbers only.
"""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.data.texts import challenge_prompts, neutral_prompts
from interp.directions.probe import Probe, probe_for
from interp.edits.edit import EDIT_WORDS, Edit, load_edits
from interp.edits.transforms import transforms_of
from interp.errors import UserError
from interp.neurons.firing import selective_first
from interp.neurons.ranking import TOXIC_COUNT, rank_values, values_at

if TYPE_CHECKING:
    from interp.models.model import Model

FORMS = {
    "scale_keys": "scale_keys:5.770,4.12:10", "add": "add:resid_post.5:probe:20", "subtract": "subtract:resid_post.5:probe:20",
    "scale": "scale:mlp_post.5:770:0", "set": "set:mlp_post.5:all:0", "project_out": "project_out:resid_post.5:probe",
}  # fmt: skip
ProbeOf = Callable[[], Probe]
NEAREST, SELECTIVE = "top", "selective"


def parse_edit(text: str, model: Model, probe: ProbeOf | None = None) -> list[Edit]:
    """The edits that a short form or a JSON file means for this model; raises `UserError` where it is wrong or does not fit.

    Args:
        probe: gives the probe behind the words `probe`, `difference`, `top` and `selective`: for a tuned model that of its base. Without
            it, `probe_for(model)`.
    """
    op, _, fields = text.strip().partition(":")
    if op in FORMS:
        edits = [_from_fields(op, fields.split(":"), text, model, probe)]
    elif text.strip().lower().endswith(".json") or os.path.isfile(text.strip()):
        try:
            edits = load_edits(text.strip())
        except RecursionError as error:
            raise UserError(f"{text.strip()} is nested too deeply", "write edits with Edit.to_json") from error
    else:
        raise UserError(
            f"{text!r} is not an edit",
            f"write it like {FORMS['subtract']} or {FORMS['scale_keys']} ({', '.join(FORMS)}), or name a JSON file",
        )
    transforms_of(edits, model)
    return edits


def parse_edits(texts: Sequence[str], model: Model, probe: ProbeOf | None = None) -> list[Edit]:
    """`parse_edit` of every text, in order."""
    return [edit for text in texts for edit in parse_edit(text, model, probe)]


def parse_vector(text: str, model: Model, probe: ProbeOf | None = None) -> list[float]:
    """The numbers that `probe`, `difference`, `value.5.770` (or `value:5.770`) or the path of a JSON list stand for."""
    if text in ("probe", "difference"):
        fitted = probe_for(model) if probe is None else probe()
        return (fitted.direction if text == "probe" else fitted.difference_in_means).tolist()
    if text.startswith(("value.", "value:")):
        return values_at(model, [parse_neuron(text[len("value.") :])])[0].float().tolist()
    path = Path(text)
    try:
        numbers = json.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise UserError(
            f"{text!r} is no vector: {error.strerror}", "use probe, difference, value.LAYER.INDEX or the path of a JSON list"
        ) from error
    except (json.JSONDecodeError, UnicodeDecodeError, RecursionError, ValueError) as error:
        raise UserError(f"{path} is not JSON: {error}", "write one list of numbers into it") from error
    if not isinstance(numbers, list) or not all(isinstance(x, int | float) and not isinstance(x, bool) for x in numbers):
        raise UserError(f"{path} does not hold one list of numbers", f"write {model.d_model} numbers into it, such as [0.1, -0.2, ...]")
    return [float(x) for x in numbers]


def parse_neuron(text: str) -> tuple[int, int]:
    """`5.770` as (layer, index)."""
    layer, dot, index = text.strip().partition(".")
    if not (dot and layer.isdecimal() and index.isdecimal() and len(text) < 20):
        raise UserError(f"{text.strip()!r} is not a neuron", "write LAYER.INDEX, such as 5.770, counting from 0")
    return int(layer), int(index)


def _from_fields(op: str, fields: list[str], text: str, model: Model, probe: ProbeOf | None) -> Edit:
    if op == "scale_keys" and fields[0] in (NEAREST, SELECTIVE):
        fields = [":".join(fields[:2]), *fields[2:]]
    count = {"project_out": 2, "scale_keys": 2}.get(op, 3)
    fields, positions = _positions(op, fields, count)
    if op in ("add", "subtract", "project_out") and len(fields) > count:  # a path may hold a colon
        tail = fields[-1:] if op != "project_out" else []
        fields = [fields[0], ":".join(fields[1 : len(fields) - len(tail)]), *tail]
    if len(fields) != count or not all(field.strip() for field in fields):
        raise UserError(f"the edit {text!r} has the wrong number of parts", f"write it like {FORMS[op]}")
    if op == "scale_keys":
        return Edit.scale_keys(_neurons(fields[0], model, probe), _number(fields[1], text), positions)
    if op == "project_out":
        return Edit.project_out(fields[0], parse_vector(fields[1], model, probe), positions)
    strength = _number(fields[2], text)
    if op in ("add", "subtract"):
        make = Edit.add if op == "add" else Edit.subtract
        return make(fields[0], parse_vector(fields[1], model, probe), strength, positions)
    return (Edit.scale if op == "scale" else Edit.set)(fields[0], strength, _indices(fields[1], text), positions)


def _positions(op: str, fields: list[str], count: int) -> tuple[list[str], Any]:
    """The fields without the positions at the end, and the positions; without any, an edit acts on all."""
    last = fields[-1].strip()
    if len(fields) > count and (last in EDIT_WORDS or _whole(last)) and (op == "project_out" or _is_number(fields[-2])):
        return fields[:-1], last if last in EDIT_WORDS else [int(part) for part in last.split(",")]
    return fields, "all"


def _whole(text: str) -> bool:
    return all(part.strip().isdecimal() and len(part) < 12 for part in text.split(","))


def _is_number(text: str) -> bool:
    try:
        float(text)
    except ValueError:
        return False
    return True


def _number(text: str, edit: str) -> float:
    if not _is_number(text):
        raise UserError(f"{text!r} is not a number in the edit {edit!r}", "write a strength such as 20 or 0.5")
    return float(text)


def _indices(text: str, edit: str) -> list[int] | None:
    if text.strip() == "all":
        return None
    if not _whole(text):
        raise UserError(f"{text!r} are not indices in the edit {edit!r}", "write all, or numbers with commas between, such as 3,17")
    return [int(part) for part in text.split(",")]


def _neurons(text: str, model: Model, probe: ProbeOf | None) -> list[tuple[int, int]]:
    kind, _, number = text.partition(":")
    if kind not in (NEAREST, SELECTIVE):
        return [parse_neuron(part) for part in text.split(",")]
    every = model.n_layers * model.d_mlp
    most, count = every if kind == NEAREST else min(TOXIC_COUNT, every), number.strip()
    if not count.isdecimal() or not 0 < int(count) <= most:
        raise UserError(f"{text!r} names no neurons", f"write {kind}:N with N from 1 to {most}")
    direction = (probe_for(model) if probe is None else probe()).direction
    if kind == NEAREST:
        return rank_values(model, direction, top=int(count)).neurons
    near = rank_values(model, direction, top=most).neurons
    # The odd prompts decide, as in the report, so that the even ones can be measured on.
    return selective_first(model, near, challenge_prompts()[1::2], neutral_prompts())[: int(count)]
