"""The controls of an edit on the page Steer, each with its value in the link; together they give a `Form`."""

from __future__ import annotations

from dataclasses import dataclass

import streamlit as st
from streamlit.delta_generator import DeltaGenerator

from app import pins, settings, shell, show
from app.answers import steer
from app.edit_forms import Form, listed, rounded
from app.settings import Source
from app.shell import Page
from interp import Sampling, UserError
from interp.models.chat import Chat
from interp.models.model import Neuron
from interp.results.result import show_number
from interp.steering import unalign

KEYS, ADD, OUT, SET = "Scale keys", "Add a direction", "Project out", "Set neurons"
SELECTIVE, NEAREST, PINNED, OWN = "Selective", "Nearest to the probe", "A pinned set", "My list"
VECTORS = {"Probe": "probe", "Difference of means": "difference", "Value vector": "value"}
SITES = {"after the MLP": "resid_post", "before the MLP": "resid_mid"}
POSITIONS = {"all tokens": "all", "the prompt only": "prompt", "new tokens only": "generated"}
# Where prompts are read with a chat template.
ROLE_POSITIONS = {
    "the last token before the answer": "last", "the user's tokens": "user", "the system prompt's tokens": "system",
    "the template's tokens": "template",
}  # fmt: skip


@dataclass(frozen=True)
class Chosen:
    """The edit that the controls describe.

    Attributes:
        what: its name, as it follows "tuned".
        unit: the strength is divided by this where it is displayed.
        unit_name: the name of the strength in that unit.
    """

    form: Form
    what: str
    unit: float = 1.0
    unit_name: str = ""


@dataclass(frozen=True)
class Asked:
    """Everything that the three columns depend on."""

    source: Source
    prompt: str
    new_tokens: int
    sampling: Sampling
    chosen: Chosen | None
    chat: Chat | bool = False


def ask_prompt() -> str:
    """The chosen or typed prompt. Raises `UserError` for one that is too long."""
    most = settings.limits().prompt_characters
    left, right = st.columns(2)
    offered = steer.prompts()
    first = next((place for place, text in enumerate(offered.values()) if text.startswith(steer.FIRST)), 0)
    chosen = left.selectbox(
        "Prompt", list(offered), index=first, key="prompt", bind="query-params",
        help="Prompts that ship: most break off before a likely hostile word, those marked Neutral do not. Always masked in this list.",
    )  # fmt: skip
    typed = right.text_input(
        "Or your own", key="own", bind="query-params", max_chars=most, placeholder="Write the beginning of a sentence",
        help=f"Used in place of the chosen prompt; up to {most} characters. It is data: nothing in it is run or looked up.",
    )  # fmt: skip
    text = typed if typed and typed.strip() else offered[chosen] if chosen else ""
    if len(text) > most:
        raise UserError(f"the prompt has {len(text)} characters", f"use at most {most}")
    return text


def ask_sampling(number: DeltaGenerator, more: DeltaGenerator) -> tuple[int, Sampling]:
    """The number of new tokens, and the sampling."""
    most = settings.limits().new_tokens
    new = number.number_input(
        "New tokens", 1, most, min(20, most), key="new", bind="query-params", help="How far each column goes on; a text may end sooner."
    )
    with more.popover("Sampling", icon=":material/casino:", help="How the next token is chosen."):
        temperature = st.slider(
            "Temperature", 0.0, 2.0, 0.0, 0.1, key="temperature", bind="query-params",
            help="0 takes the likeliest token each time (greedy), so that the columns differ by the models alone. Higher is more random.",
        )  # fmt: skip
        top_p = st.slider(
            "Top p", 0.05, 1.0, 1.0, 0.05, key="top_p", bind="query-params",
            help="Sample from the likeliest tokens of this total probability. Without effect at temperature 0.",
        )  # fmt: skip
        seed = st.number_input(
            "Seed", 0, 999_999, 0, key="seed", bind="query-params",
            help="The same seed gives the same random numbers. Without effect at temperature 0.",
        )  # fmt: skip
    return int(new), Sampling(rounded(temperature), None, rounded(top_p) if top_p < 1 else None, int(seed))


def ask_edit(page: Page, chat: Chat | bool = False) -> Chosen:
    """The edit that the controls describe; with `chat` it can be limited to the tokens of a role.

    Raises `UserError` for input that cannot be used.
    """
    if "keys" in st.query_params and not {"which"} & {*st.query_params, *st.session_state}:
        # A link from another page names neurons only.
        st.session_state["which"] = OWN
    first, second = st.columns([3, 1])
    kind = first.segmented_control(
        "What is done", [KEYS, ADD, OUT, SET], default=KEYS, required=True, key="edit", bind="query-params", wrap=True,
        help="Scale keys: neurons read more (or less) of what they look for. Add: push the residual stream along a direction. "
        "Project out: take a direction away. Set: fix what neurons give.",
    )  # fmt: skip
    side = second.segmented_control(
        "To which model", ["tuned", "base"], default="tuned", required=True, key="side", bind="query-params",
        help="Keys are enlarged in the tuned model, to see what comes back; the base model is made less toxic by hand.",
    )  # fmt: skip
    edit = {KEYS: _keys, ADD: _add, OUT: _out, SET: _set}[kind](page, side, bool(chat))
    steer.edits(page.source, edit.form)
    return edit


def _keys(page: Page, side: str, roles: bool) -> Chosen:
    which, more, times, where = st.columns(4)
    neurons, name = _neurons(page, side, which, more)
    factor = times.number_input(
        "Times", -100.0, 100.0, unalign.FACTOR, 1.0, format="%g", key="factor", bind="query-params",
        help="The factor of the key vectors. 1 changes nothing, 0 switches them off; paper A uses 10.",
    )  # fmt: skip
    form = Form("scale_keys", side, neurons, strength=rounded(factor), positions=_positions(where, roles))
    return Chosen(form, f"{name} key{'s' * (len(neurons) != 1)} × {factor:g}", 1.0, "factor of the keys (1 changes nothing)")


def _set(page: Page, side: str, roles: bool) -> Chosen:
    which, more, action, where = st.columns(4)
    neurons, name = _neurons(page, side, which, more)
    how = action.selectbox("How", ["Set to", "Multiply by"], key="how", bind="query-params", help="What happens to the activations.")
    value = action.number_input(
        "Number", -100.0, 100.0, 0.0, 0.5, format="%g", key="value", bind="query-params", help="0 switches the neurons off either way."
    )
    form = Form("set" if how == "Set to" else "scale", side, neurons, strength=rounded(value), positions=_positions(where, roles))
    what = f"{name} neuron{'s' * (len(neurons) != 1)} {'set to' if how == 'Set to' else '×'} {value:g}"
    return Chosen(form, what, 1.0, "factor of the activations (1 changes nothing)")


def _out(page: Page, side: str, roles: bool) -> Chosen:
    first, *places, where = st.columns(4)
    vector, name = _direction(page, side, first)
    site = _site(page, side, *places)
    return Chosen(Form("project_out", side, vector=vector, site=site, positions=_positions(where, roles)), f"{name} taken out at {site}")


def _add(page: Page, side: str, roles: bool) -> Chosen:
    first, *places, where = st.columns(4)
    left, right = st.columns(2, vertical_alignment="center")
    vector, name = _direction(page, side, first)
    site = _site(page, side, *places)
    positions = _positions(where, roles)
    share = left.slider(
        "Strength", -1.0, 1.0, 0.2, 0.05, key="strength", bind="query-params",
        help="In lengths of the residual stream: at 0.2 what is added is a fifth as long as what is there. Below 0 it is subtracted.",
    )  # fmt: skip
    length = steer.lengths(page.source, side)[site]
    unit = length / steer.vector_length(page.source, side, vector)
    form = Form("add", side, vector=vector, site=site, strength=rounded(share * unit), positions=positions)
    right.caption(
        f"The residual stream is {show_number(length)} long here on average (last token of challenge prompts); "
        f"{share:g} of it is {show_number(form.strength)} times {name}."
    )
    what = f"{name} {'subtracted' if share < 0 else 'added'} at {site} ({abs(share):g})"
    return Chosen(form, what, unit, "strength (share of the residual stream's length)")


def _neurons(page: Page, side: str, which: DeltaGenerator, more: DeltaGenerator) -> tuple[tuple[Neuron, ...], str]:
    """The chosen neurons, and a name for them."""
    model = steer.model_of(page.source, side)
    way = which.selectbox(
        "Which", [SELECTIVE, NEAREST, PINNED, OWN], key="which", bind="query-params",
        help="Selective: of the 128 neurons whose value vectors are nearest to the toxicity probe, those first that fire at the end of "
        "provoking prompts and not of plain ones. Nearest: those 128 by nearness alone.",
    )  # fmt: skip
    if way in (SELECTIVE, NEAREST):
        near = steer.candidates(page.source, side, "selective" if way == SELECTIVE else "top")
        count = int(
            more.number_input(
                "How many", 1, len(near), min(unalign.KEYS, len(near)), key="count", bind="query-params", help="Paper A scales seven."
            )
        )
        return near[:count], f"{count} {'selective' if way == SELECTIVE else 'toxic'}"
    if way == PINNED:
        sets = pins.pinned(page.pair.base)
        if not sets:
            shell.link("vectors", "Pin some on the page Toxic vectors")
            raise UserError("nothing is pinned yet", "pin value vectors under a name first, or choose another way")
        name = more.selectbox(
            "Set", list(sets), format_func=show.plain, key="set", bind="query-params", help="What you pinned under this name."
        )
        return tuple(sets[name]), f"{len(sets[name])} pinned"
    typed = more.text_input(
        "Neurons", key="keys", bind="query-params", max_chars=800, placeholder="5.770,4.12", help="LAYER.INDEX with commas between, from 0."
    )
    neurons = listed(typed or "", model)
    return neurons, f"{len(neurons)} chosen"


def _direction(page: Page, side: str, column: DeltaGenerator) -> tuple[str, str]:
    """The chosen direction as `Form.vector` spells it, and its name in words."""
    chosen = column.selectbox(
        "Direction", list(VECTORS), key="vector", bind="query-params",
        help="Probe: what best tells toxic texts from others. Difference of means: mean toxic minus mean other text. "
        "Value vector: what one neuron writes.",
    )  # fmt: skip
    if VECTORS[chosen] != "value":
        return VECTORS[chosen], "the probe" if chosen == "Probe" else "the difference of means"
    near = steer.candidates(page.source, side, "top")[0]
    typed = column.text_input(
        "Neuron", f"{near[0]}.{near[1]}", key="neuron", bind="query-params", max_chars=20,
        help="LAYER.INDEX, from 0; at first the one whose value vector is nearest to the probe.",
    )  # fmt: skip
    layer, index = listed(typed or "", steer.model_of(page.source, side))[0]
    return f"value.{layer}.{index}", f"value vector {layer}.{index}"


def _site(page: Page, side: str, first: DeltaGenerator, second: DeltaGenerator) -> str:
    last = steer.model_of(page.source, side).n_layers - 1
    layer = first.number_input("Layer", 0, last, max(0, last - 1), key="layer", bind="query-params", help=f"From 0 to {last}.")
    site = second.selectbox(
        "Where in the layer", list(SITES), key="site", bind="query-params",
        help="The residual stream after the layer's MLP (resid_post), or between its attention and its MLP (resid_mid).",
    )  # fmt: skip
    return f"{SITES[site]}.{int(layer)}"


def _positions(column: DeltaGenerator, roles: bool) -> str:
    offered = POSITIONS | (ROLE_POSITIONS if roles else {})
    if st.session_state.get("positions") not in (None, *offered):
        # The choice named a role, and prompts are raw text now.
        st.session_state["positions"] = next(iter(offered))
    where = column.selectbox(
        "On which tokens", list(offered), key="positions", bind="query-params", help="On all others the model stays as it is."
    )
    return offered[where]
