"""The patching map of a question, in both directions with its null, for the page Patching.

A map is cached by its question: switching direction or clicking a cell must not measure it again, and the page reads here the
result of a job that measures a long one.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from typing import Any

import streamlit as st
import torch

from app import settings, show, state
from app.model_queue import model_queue
from app.settings import Source
from interp import Model, ModelPair, UserError
from interp.lens.next_tokens import toxic_token_ids
from interp.models.chat import Chat, prompt_rows
from interp.models.sites import KINDS, whole_site
from interp.patching.gradient import agreement, attribution_patch
from interp.patching.maps import PatchMap
from interp.patching.metrics import AnyMetric, ContinuationToxicity, LogitDifference, LogProbability, ProbeProjection
from interp.patching.patch import ACROSS, WITHIN, Runs, make_runs, patch
from interp.patching.prompt_pairs import align

_STREAM = [kind.name for kind in KINDS.values() if kind.stream and kind.patched]
_SUMS = {kind.name: kind.whole_of for kind in KINDS.values() if kind.whole_of}
# The stream after and within a layer (before it, it is that after the layer below), what is added to it, and the units that this is
# the sum of. Links and the first choice depend on these names and on their order.
SITES = (*reversed(_STREAM[1:]), *_SUMS, *_SUMS.values())
UNITS = {
    "head": ", one head at all tokens at once",
    "neuron": ", one neuron at all tokens at once, for the neurons whose value vectors are the most toxic",
}
PLACES = {name: KINDS[name].meaning + UNITS.get(KINDS[name].unit or "", "") for name in SITES}
METRICS = ("log-probability", "probe", "logit-difference", "toxicity")
DRAWS, NEURONS, NEW_TOKENS, KEPT = 2, 48, 12, 64
# The most multiplications without a job: some seconds of one core.
QUICK = 5e10
Step = Callable[[str, int, int], None]


@dataclass(frozen=True)
class Question:
    """What is patched and by which metric: the pair on one prompt, or one side of it (`side`) on two prompts.

    Attributes:
        words: for the difference of two logits; an empty one stands for what the run would say itself.
        chat: how the prompts are read: as raw text, or as user turns of the pair's chat template.
    """

    source: Source
    prompt: str
    corrupted: str | None = None
    side: str = "base"
    site: str = SITES[0]
    metric: str = METRICS[0]
    words: tuple[str, str] = ("", "")
    chat: Chat | bool = False

    @property
    def across(self) -> bool:
        """Whether it patches across the pair."""
        return self.corrupted is None

    @property
    def subject(self) -> Model | ModelPair:
        """The pair, or the one model that is patched."""
        pair = state.load_pair(self.source)
        return pair if self.across else pair.sides[self.side]

    @property
    def model(self) -> Model:
        """The model whose tokens and layers the map has."""
        pair = state.load_pair(self.source)
        return pair.base if self.across else pair.sides[self.side]


@dataclass(frozen=True, eq=False)
class Measured:
    """The map of every cell, and of whole layers (all tokens at once), each in both directions with its null."""

    cells: PatchMap
    whole: PatchMap


@dataclass(frozen=True)
class Ends:
    """The names of the two runs of one direction: which is patched, and where the activation comes from."""

    target: str
    source: str


_measured: OrderedDict[Question, Measured] = OrderedDict()
_lock = threading.Lock()


def phrase(role: str) -> str:
    """A run as a phrase in a sentence."""
    return f"the {role} model" if role in ("base", "tuned") else f"the {role} prompt"


def ends(direction: str) -> Ends:
    """The target and the source of a direction."""
    known = {
        ACROSS[0]: ("tuned", "base"),
        ACROSS[1]: ("base", "tuned"),
        WITHIN[0]: ("corrupted", "clean"),
        WITHIN[1]: ("clean", "corrupted"),
    }
    return Ends(*known[direction])


def check(question: Question) -> int:
    """The number of tokens of the prompts. Raises `UserError` for prompts that are empty, too long, or do not line up."""
    prompts = [question.prompt] if question.corrupted is None else [question.prompt, question.corrupted]
    if not all(text.strip() for text in prompts):
        raise UserError("a prompt is empty", "type a few words")
    most = settings.limits().patched_tokens
    count = max(len(row) for row in prompt_rows(question.model, prompts, question.chat))
    if count > most:
        raise UserError(f"a prompt has {count} tokens, and up to {most} are patched here", "shorten it")
    if question.corrupted is not None and not align(question.model, question.prompt, question.corrupted, question.chat).differs:
        raise UserError("the two prompts are the same, so that there is nothing to carry over", "change a word in one of them")
    return count


@st.cache_resource(show_spinner=False, max_entries=4)
def toxic_tokens(source: Source) -> tuple[int, ...]:
    """The tokens that are a whole word of the word list."""
    return tuple(toxic_token_ids(state.load_pair(source).base))


@st.cache_resource(show_spinner=False, max_entries=32)
def metric_of(question: Question) -> AnyMetric:
    """The metric of a question. Raises `UserError` where vocabulary or words do not fit it."""
    if question.metric == "log-probability":
        tokens = toxic_tokens(question.source)
        if not tokens:
            raise UserError("no token of this vocabulary is, as a whole, a word of the list", "choose another metric")
        return LogProbability(tokens)
    if question.metric == "probe":
        return ProbeProjection.of(state.probe(question.source))
    if question.metric == "toxicity":
        return ContinuationToxicity(state.scorer(), NEW_TOKENS)
    first, second = words_of(question)
    return LogitDifference(first, second)


def words_of(question: Question) -> tuple[int, int]:
    """The two tokens whose logits are compared: those typed, or what the base (clean) and the tuned (corrupted) run say next."""
    if all(word.strip() for word in question.words):
        first, second = (question.model.token(word) for word in question.words)
    else:
        runs = make_runs(question.subject, question.prompt, question.corrupted, ProbeProjection(torch.ones(question.model.d_model)),
                         "resid_post", None, [0], None, None, chat=question.chat)  # fmt: skip
        likely = [int(run.reading.logits[0].argmax()) for run in reversed(runs.traces[0][0])]
        first, second = (question.model.token(word) if word.strip() else token for word, token in zip(question.words, likely, strict=True))
    if first == second:
        word = show.visible(question.model.tokenizer.decode([first]), False)
        raise UserError(f"both words are {word}, so that their difference is 0", "name two words that differ")
    return first, second


def says(question: Question) -> str:
    """The metric in words."""
    if question.metric == "log-probability":
        return f"log-probability (nats) that the next token is one of {len(toxic_tokens(question.source))} toxic words"
    if question.metric == "probe":
        return "how far the last residual stream, averaged over the prompt, points along the toxicity probe"
    if question.metric == "toxicity":
        return f"toxicity, 0 to 1, of the next {NEW_TOKENS} tokens, by {state.scorer().name}"
    first, second = (show.visible(question.model.tokenizer.decode([token]), False) for token in words_of(question))
    return f"logit of {first} minus logit of {second} as the next token (nats)"


def asked(question: Question) -> dict[str, Any]:
    """The arguments of `interp.patch` for the cells."""
    units = state.toxic_neurons(question.source)[:NEURONS] if KINDS[question.site].unit == "neuron" else None
    return {"metric": metric_of(question), "site": question.site, "units": units, "chat": question.chat}


@st.cache_resource(show_spinner=False, max_entries=16)
def runs_of(question: Question) -> Runs:
    """Both runs of the prompt, cached so that any cell can be patched again."""
    arguments = asked(question)
    return make_runs(
        question.subject,
        question.prompt,
        question.corrupted,
        arguments["metric"],
        question.site,
        None,
        None,
        arguments["units"],
        None,
        chat=question.chat,
    )


def quick(question: Question) -> bool:
    """Whether the map takes so short that it needs no job."""
    model, count = question.model, check(question)
    per_layer = {"head": model.n_heads, "neuron": NEURONS / model.n_layers}.get(KINDS[question.site].unit or "", count)
    block = 4 * model.d_model**2 + 2 * model.d_model * model.d_mlp
    runs = 2 * (1 + DRAWS) * per_layer * model.n_layers
    return question.metric != "toxicity" and runs * count * model.n_layers / 2 * block < QUICK


def known(question: Question) -> Measured | None:
    """The maps, where they have been measured before, or None."""
    with _lock:
        if question in _measured:
            _measured.move_to_end(question)
        return _measured.get(question)


def measure(question: Question, step: Step | None = None) -> Measured:
    """Patch every cell and every whole layer, in both directions, with random changes of the same size beside them.

    Others have their turn at the models between two batches. Raises `UserError` as `interp.patching.patch.patch`.
    """
    check(question)
    arguments, maps = asked(question), []
    draws = 0 if question.metric == "toxicity" else DRAWS
    whole = {"metric": arguments["metric"], "site": whole_site(question.site), "positions": "all", "chat": question.chat}
    for place, some in enumerate((arguments, whole)):
        with _sharing() as pass_on:

            def progress(done: int, total: int, share: tuple[int, int] = ((0, 850), (850, 150))[place], place: int = place) -> None:
                pass_on()
                if step is not None:
                    phrase = "patching whole layers" if place else "patching one place at a time"
                    step(phrase, share[0] + share[1] * done // total, 1000)

            maps.append(patch(question.subject, question.prompt, question.corrupted, null_draws=draws, progress=progress, **some))
    measured = Measured(*maps)
    with _lock:
        _measured[question] = measured
        while len(_measured) > KEPT:
            _measured.popitem(last=False)
    return measured


@contextmanager
def _sharing() -> Iterator[Callable[[], None]]:
    """Hold a turn at the models; the function that it yields gives the turn up and takes the next one."""
    with ExitStack() as turn:
        turn.enter_context(model_queue.turn())

        def pass_on() -> None:
            turn.close()
            turn.enter_context(model_queue.turn())

        yield pass_on


@st.cache_resource(show_spinner=False, max_entries=32)
def estimate(question: Question) -> PatchMap | None:
    """The same map to first order, from one gradient per direction; None where the metric has no gradient."""
    if question.metric == "toxicity":
        return None
    with model_queue.turn():
        return attribution_patch(question.subject, question.prompt, question.corrupted, **asked(question))


def trust(question: Question, measured: PatchMap, direction: str) -> tuple[float, float] | None:
    """How far the estimate agrees with the measurement: Pearson's correlation, and the overlap of their ten largest cells."""
    guess = estimate(question)
    if guess is None:
        return None
    agreed = agreement(measured, guess)
    at = agreed.directions.index(direction)
    return agreed.correlation[at], agreed.overlap[at]
