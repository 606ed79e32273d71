"""What all sessions share, loaded once per process, and the pair that this session looks at.

Hooks read their edits from a context variable, so that one pair of models in memory serves every session at once. What needs
torch and transformers is imported where it is used: importing them takes seconds, in which the first page is drawn.
"""

from __future__ import annotations

from importlib.util import find_spec
from typing import TYPE_CHECKING

import streamlit as st

from app import settings
from app.importing import gate
from app.pins import PINS
from app.settings import Source
from interp.errors import UserError

if TYPE_CHECKING:
    from interp import ModelPair
    from interp.directions.probe import Probe
    from interp.evaluation.toxicity import Scorer
    from interp.models.model import Neuron
    from interp.neurons.vocabulary import VocabularyIndex

CHOSEN = "pair"
_loaded: set[Source] = set()


def chosen_pair() -> tuple[str, Source]:
    """Name and source of this session's pair: that of the link, or the one chosen before, or the first on offer.

    A link can name `base::tuned` itself only where no visitors are: in demo mode it can name what is offered, nothing else.
    """
    pairs = settings.offered()
    first = next(iter(pairs))
    name = st.query_params.get(CHOSEN) or st.session_state.get(CHOSEN) or first
    if name in pairs:
        source = pairs[name]
    elif settings.demo() or "::" not in name:
        st.query_params.pop(CHOSEN, None)
        st.session_state.pop(CHOSEN, None)
        raise UserError(f"no pair {name[:80]!r} is offered here", f"choose one of {', '.join(pairs)}")
    else:
        source = settings.parse_pair(name)
    st.session_state[CHOSEN] = name
    # Kept in the link on every page, unless it is the default.
    if name != first:
        st.query_params[CHOSEN] = name
    else:
        st.query_params.pop(CHOSEN, None)
    return name, source


def choose_pair(name: str) -> None:
    """Set the pair of this session, from the next run of a page on."""
    st.session_state[CHOSEN] = name
    st.query_params[CHOSEN] = name
    # Pinned neurons are indices into the other pair's models.
    st.session_state.pop(PINS, None)
    st.query_params.pop(PINS, None)


@st.cache_resource(show_spinner="Loading the pair …", max_entries=3)
def load_pair(source: Source) -> ModelPair:
    """Both models, loaded once per process. Raises `UserError` where one cannot be loaded or they do not make a pair."""
    gate.wait()
    from interp.workbench import Sides

    pair = Sides(source).both()
    _loaded.add(source)
    return pair


def loaded(source: Source) -> bool:
    """Whether this pair has been loaded."""
    return source in _loaded


@st.cache_resource(show_spinner="Fitting the probe …", max_entries=3)
def probe(source: Source) -> Probe:
    """The probe that ships with the base model, or one fitted now."""
    from interp.directions.probe import probe_for

    return probe_for(load_pair(source).base)


@st.cache_resource(show_spinner="Ranking the value vectors …", max_entries=3)
def toxic_neurons(source: Source) -> list[Neuron]:
    """The base model's neurons whose value vectors point most along the probe, most toxic first."""
    from interp.neurons.ranking import TOXIC_COUNT, rank_values

    return rank_values(load_pair(source).base, probe(source).direction, top=TOXIC_COUNT).neurons


@st.cache_resource(show_spinner="Projecting the value vectors on the vocabulary …", max_entries=3)
def index(source: Source) -> VocabularyIndex:
    """The index of the tokens that every value vector of the base model promotes and suppresses."""
    from interp.files import cache_folder
    from interp.neurons.projection import projection_for
    from interp.neurons.vocabulary import build_index

    base = load_pair(source).base
    return build_index(base, projection=projection_for(base), cache=cache_folder())


@st.cache_resource(show_spinner="Loading the scorer …")
def scorer() -> Scorer:
    """The classifier that ships, or the word list where detoxify is not installed."""
    from interp.evaluation.toxicity import load_scorer

    return load_scorer("bundled" if find_spec("detoxify") is not None else "lexicon")
