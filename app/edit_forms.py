"""`Form`: one edit as the controls of a page describe it, in plain words and numbers that a cache and a link can hold.

It becomes an `Edit` in one way only: it is written in the short form of the command line, and parsed as the command line parses it.
So what the page does, what it prints for a terminal and what it prints as Python cannot differ. Everything that is written
here has been checked before (a neuron is two whole numbers, a vector one of three words), so nothing in it names a file.
"""

from __future__ import annotations

import shlex
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

from app.settings import Source
from interp import Edit, Model, Sampling, UserError
from interp.directions.probe import Probe
from interp.models.chat import Chat, chat_of
from interp.models.model import Neuron, by_layer
from interp.steering.edit_text import parse_edits, parse_neuron

Op = Literal["scale_keys", "add", "project_out", "set", "scale"]
MOST_NEURONS = 64
# The strength at which an operation changes nothing; the others have no strength.
NEUTRAL: dict[str, float] = {"scale_keys": 1.0, "scale": 1.0, "add": 0.0}


@dataclass(frozen=True)
class Form:
    """An operation on one side of the pair.

    Attributes:
        side: `tuned` or `base`.
        vector: `probe`, `difference` or `value.5.770`.
        strength: the factor of `scale_keys` and `scale`, the value of `set`, the multiple of the vector of `add`.
    """

    op: Op
    side: str = "tuned"
    neurons: tuple[Neuron, ...] = ()
    vector: str = ""
    site: str = ""
    strength: float = 1.0
    positions: str = "all"

    def at(self, strength: float) -> Form:
        """The same edit at another strength."""
        return replace(self, strength=rounded(strength))

    @property
    def idle(self) -> bool:
        """Whether the edit changes nothing."""
        return NEUTRAL.get(self.op) == self.strength


def rounded(number: float) -> float:
    """A number to six significant digits, so that what is displayed, copied and computed is the same."""
    return float(f"{number:.6g}")


def listed(text: str, model: Model) -> tuple[Neuron, ...]:
    """The neurons of a typed list such as `5.770,4.12`. Raises `UserError` for other text, and for neurons that the model lacks."""
    parts = [part for part in text.replace(" ", ",").split(",") if part]
    if not parts:
        raise UserError("no neurons are named", "write them as LAYER.INDEX with commas between, such as 5.770,4.12")
    if len(parts) > MOST_NEURONS:
        raise UserError(f"{len(parts)} neurons are named", f"name at most {MOST_NEURONS}")
    neurons = tuple(dict.fromkeys(parse_neuron(part) for part in parts))
    model.check_neurons(neurons)
    return neurons


def written(form: Form) -> list[str]:
    """The edit in the short form of the command line, one text per layer where the operation needs it."""
    end = "" if form.positions == "all" else f":{form.positions}"
    number = f"{form.strength:g}"
    if form.op == "scale_keys":
        return [f"scale_keys:{','.join(f'{layer}.{index}' for layer, index in form.neurons)}:{number}{end}"]
    if form.op == "add":
        way = "subtract" if form.strength < 0 else "add"
        return [f"{way}:{form.site}:{form.vector}:{abs(form.strength):g}{end}"]
    if form.op == "project_out":
        return [f"project_out:{form.site}:{form.vector}{end}"]
    return [f"{form.op}:mlp_post.{layer}:{','.join(map(str, indices))}:{number}{end}" for layer, indices in by_layer(form.neurons).items()]


def edits_of(form: Form, model: Model, probe: Callable[[], Probe]) -> tuple[Edit, ...]:
    """The `Edit`s of a form for the model of its side. Raises `UserError` where they do not fit it."""
    return tuple(parse_edits(written(form), model, probe))


def command(form: Form, prompt: str, new_tokens: int, sampling: Sampling, source: Source, chat: Chat | bool = False) -> str:
    """The command that prints in a terminal what the page shows."""
    parts = [
        "bypass",
        "generate",
        form.side,
        *(part for text in written(form) for part in ("--edit", text)),
        "--new-tokens",
        str(new_tokens),
    ]
    if source is not None:
        parts += ["--pair", *source]
    if sampling.temperature:
        parts += ["--temperature", f"{sampling.temperature:g}", "--seed", str(sampling.seed)]
        if sampling.top_p is not None:
            parts += ["--top-p", f"{sampling.top_p:g}"]
    asked = chat_of(chat)
    if asked is not None:
        parts += ["--chat", *([] if asked.system is None else ["--system", asked.system])]
    # After `--` a prompt that begins with a dash is not read as an option.
    return shlex.join([*parts, "--", prompt])


def python(form: Form, prompt: str, new_tokens: int, sampling: Sampling, source: Source, chat: Chat | bool = False) -> str:
    """A Python program that prints what the page shows."""
    asked = chat_of(chat)
    names = ["Edit", "ModelPair", *(["Sampling"] if sampling.temperature else []), "generate"]
    names = [*(["Chat"] if asked is not None and asked.system is not None else []), *names]
    imports = [f"from interp import {', '.join(names)}"]
    if form.vector in ("probe", "difference"):
        imports.append("from interp.directions.probe import probe_for")
    elif form.vector:
        imports.append("from interp.neurons.ranking import values_at")
    pair = "ModelPair.bundled()" if source is None else f"ModelPair.load({source[0]!r}, {source[1]!r})"
    chosen = ""
    if sampling.temperature:
        chosen = f", sampling=Sampling(temperature={sampling.temperature:g}, top_p={sampling.top_p}, seed={sampling.seed})"
    if asked is not None:
        chosen += ", chat=True" if asked.system is None else f", chat={asked!r}"
    calls = "".join(f"    {call},\n" for call in _calls(form))
    return (
        "\n".join(imports) + f"\n\npair = {pair}\nedits = [\n{calls}]\nprompt = {prompt!r}\n"
        f"print(generate(pair.{form.side}, [prompt], max_new_tokens={new_tokens}, edits=edits{chosen})[0])\n"
    )


def _calls(form: Form) -> list[str]:
    end = "" if form.positions == "all" else f", positions={form.positions!r}"
    if form.op == "scale_keys":
        return [f"Edit.scale_keys({list(form.neurons)}, {form.strength}{end})"]
    if form.op in ("set", "scale"):
        return [f'Edit.{form.op}("mlp_post.{layer}", {form.strength}, {indices}{end})' for layer, indices in by_layer(form.neurons).items()]
    if form.vector == "probe":
        vector = "probe_for(pair.base).direction"
    elif form.vector == "difference":
        vector = "probe_for(pair.base).difference_in_means"
    else:
        vector = f"values_at(pair.{form.side}, [{parse_neuron(form.vector.removeprefix('value.'))}])[0]"
    return [f'Edit.{form.op}("{form.site}", {vector}{f", {form.strength}" if form.op == "add" else ""}{end})']


def shortened(edits: Sequence[Edit]) -> list[dict[str, Any]]:
    """The edits as JSON to look at, with long vectors cut to their first numbers; the file for download is complete."""
    records = [edit.to_json() for edit in edits]
    for record in records:
        values = record["values"]
        if values is not None and len(values) > 4:
            record["values"] = [*(float(f"{value:.4g}") for value in values[:3]), f"and {len(values) - 3} more"]
    return records
