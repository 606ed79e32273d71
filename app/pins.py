"""Pinned sets: neurons that a visitor keeps under a name, from one page to the next and in the link.

They live in the query parameter `pins` as `name:5.770,4.12;other:0.3`, so that a shared link brings them along.
"""

from __future__ import annotations

import re
from typing import TYPE_CHECKING

import streamlit as st

from interp.errors import UserError

if TYPE_CHECKING:
    from interp import Model
    from interp.models.model import Neuron

PINS, FIRST = "pins", "pinned"
NAME = re.compile(r"[\w][\w -]{0,23}")
MOST_SETS, MOST_NEURONS = 8, 64


def pinned(model: Model) -> dict[str, list[Neuron]]:
    """The pinned sets of this session, by name. Raises `UserError` for a link whose sets cannot be read or do not fit the model."""
    text = st.session_state.get(PINS) or st.query_params.get(PINS) or ""
    sets = read(text)
    for neurons in sets.values():
        model.check_neurons(neurons)
    _keep(sets)
    return sets


def pin(model: Model, name: str, neurons: list[Neuron]) -> None:
    """Add neurons to a set, which is created where it does not exist. Raises `UserError` for a bad name or too many."""
    if not NAME.fullmatch(name):
        raise UserError(f"{name[:40]!r} cannot name a set", "use up to 24 letters, digits, spaces and dashes")
    model.check_neurons(neurons)
    sets = pinned(model)
    neurons_of_set = sets.setdefault(name, [])
    neurons_of_set += [neuron for neuron in neurons if neuron not in neurons_of_set]
    if len(sets) > MOST_SETS or len(neurons_of_set) > MOST_NEURONS:
        raise UserError(f"there is room for {MOST_SETS} sets of {MOST_NEURONS} neurons", "unpin some first")
    _keep(sets)


def unpin(model: Model, name: str, neuron: Neuron | None = None) -> None:
    """Remove one neuron from a set, or the whole set."""
    sets = pinned(model)
    remaining = [] if neuron is None else [other for other in sets.get(name, []) if other != neuron]
    sets[name] = remaining
    _keep({title: neurons for title, neurons in sets.items() if neurons})


def read(text: str) -> dict[str, list[Neuron]]:
    """The sets of a link's text. Raises `UserError` where it cannot be parsed."""
    # Imported here, so that a page is drawn before torch has been imported.
    from interp.steering.edit_text import parse_neuron

    sets: dict[str, list[Neuron]] = {}
    for part in filter(None, text.split(";")):
        name, separator, neurons = part.partition(":")
        if not (separator and NAME.fullmatch(name) and neurons):
            raise UserError(f"the link holds a set of neurons that cannot be read: {part[:40]!r}", "write it as name:5.770,4.12")
        sets[name] = [parse_neuron(one) for one in neurons.split(",", MOST_NEURONS)]
    return sets


def written(sets: dict[str, list[Neuron]]) -> str:
    """The sets as the text of a link, which `read` parses."""
    return ";".join(f"{name}:{','.join(f'{layer}.{index}' for layer, index in neurons)}" for name, neurons in sets.items())


def _keep(sets: dict[str, list[Neuron]]) -> None:
    st.session_state[PINS] = written(sets)
    if sets:
        st.query_params[PINS] = written(sets)
    else:
        st.query_params.pop(PINS, None)
