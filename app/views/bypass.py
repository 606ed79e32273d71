"""The residual stream before and after tuning: the shift, the neurons that it silences, what writes it, and the logit lens."""

from __future__ import annotations

from typing import Any

import streamlit as st

from app import job_view, shell, show
from app.answers import bypass, bypass_drop, bypass_sources
from app.jobs import key_of
from app.lens_view import lens
from app.reading_view import facts, layers, prompts, ready
from interp import UserError
from interp.diffing.offsets import FLIPPED, RANDOM
from interp.steering.edit_text import parse_neuron

VIEWS = ("The shift", "Activation drop", "Where it comes from", "Logit lens")
LEAD = (
    "Does tuning leave the toxic vectors where they are and go around them? See how far it shifts the residual stream, by how much the "
    "same step for every prompt, whether toxic neurons fire less there, and what chance or other training does."
)


def two(value: float, digits: int = 2) -> str:
    """A number with two decimals or more, a true minus, and no sign on zero."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def linked() -> None:
    """Set the layer from a link that names only a neuron."""
    text = st.query_params.get("neuron", "")
    if text and "layer" not in st.query_params and "layer" not in st.session_state:
        try:
            st.session_state["layer"] = parse_neuron(text)[0]
        except UserError:
            return


@st.fragment
def shift(page: shell.Page) -> None:
    """Draw the prompts in the plane of one neuron of one layer, and the likeness of the shifts by layer."""
    with shell.errors_shown():
        st.write("Each line is a prompt: where the residual stream was in the base model, and where tuning has taken it.")
        left, middle, right = st.columns([4, 5, 4])
        with left:
            layer = layers(page)
        with right:
            count = prompts()
        names = [f"{layer}.{index}" for index in bypass.layer_neurons(page.source, layer)]
        if not names:
            st.info(
                f"None of the most toxic value vectors lies in layer {layer}. Move the slider to another layer.", icon=":material/info:"
            )
            return
        if not ready(page, count, "States of both models", bypass.states):
            return
        neurons = tuple((layer, int(name.split(".")[1])) for name in names)
        words = dict(zip(names, bypass.promoted(page.source, neurons, 3), strict=True))
        name = middle.selectbox(
            "Toxic neuron of this layer", names, index=bypass.first_firing(page.source, count, layer), key="neuron", bind="query-params",
            help="The neurons of this layer whose value vectors point most along the toxicity probe, most toxic first; at first the most "
            "toxic one that fires on a tenth of the prompts. A neuron fires where what it reads is above 0.",
        )  # fmt: skip
        tokens = ", ".join(show.visible(word, page.words) for word in words[name])
        left, right = st.columns([9, 4], vertical_alignment="center")
        left.caption(f"Neuron {name} promotes: {show.plain(tokens)}")
        with right:
            shell.link("vectors", "Look into this neuron", neuron=name)
        kind = st.segmented_control(
            "Up the plot", list(bypass.PLANES), default=bypass.FIRST, key="up", bind="query-params", required=True,
            help="What the neuron reads shows the border of its region. The first principal component is the plane of the paper's figure.",
        )  # fmt: skip
        moved = bypass.moved(page.source, count, layer, int(name.split(".")[1]), bypass.PLANES[kind or bypass.FIRST])
        region, null = moved.region, moved.region.null
        firing = region.fires.sum()
        share = f"{region.share:.0%}" if firing else "–"
        facts(
            ("prompts on which it fires", f"{firing} → {(region.after > 0).sum()}", f"of {len(region.fires)}"),
            ("prompts that leave its region", f"{region.leaves.sum()}", f"{share} of those that fire; {region.enters.sum()} enter"),
            ("under a random shift", f"{null.value:.1f}", f"{null.low:.0f} to {null.high:.0f}, p = {region.p:.3f}"),
        )  # fmt: skip
        show.draw(moved.plane, "plane", page.words)
        if not firing:
            st.info(f"Neuron {name} fires on none of these prompts, so none can leave its region. Choose another.", icon=":material/info:")
        else:
            show.draw(moved.bars, "leaving", page.words)
        st.header("One shift for all prompts?", anchor=False)
        small = bypass.light(page.pair)
        if small:
            bypass.random_changes(page.source)
            bypass.random_shifts(page.source, count)
        table = bypass.profile(page.source, count, small)
        at = table[(table["layer"] == layer)].set_index("model")
        tuned, flipped = at.loc[bypass.PROFILE["tuned"]], at.loc[FLIPPED]
        facts(
            (f"cosine with other prompts' shift, layer {layer}", two(tuned["cosine"]), f"{two(tuned['low'])} to {two(tuned['high'])}"),
            (FLIPPED, two(flipped["cosine"]), f"{two(flipped['low'])} to {two(flipped['high'])}"),
            *((("under random changes of the weights", two(at.loc[RANDOM, "cosine"]), f"{bypass.CHANGES} draws"),) if small else ()),
        )  # fmt: skip
        show.draw(bypass.profile_figure(table, layer), "profile", page.words)
        if not small:
            st.caption("Random changes of the weights take long on this pair; experiment A-E10 on the page Evidence compares with them.")


@st.fragment
def silenced(page: shell.Page) -> None:
    """Draw the activations of the most toxic neurons in both models."""
    with shell.errors_shown():
        st.write("While both models read what the base model would have said, how active are the most toxic neurons?")
        left, right = st.columns(2)
        top = left.slider(
            "Neurons", 3, bypass_drop.MOST, value=bypass_drop.SHOWN, key="top", bind="query-params",
            help="How many of the neurons whose value vectors point most along the probe, over all layers.",
        )  # fmt: skip
        with right:
            count = prompts()
        if not ready(page, count, "Activations of both models", bypass_drop.activity):
            return
        drop = bypass_drop.drop(page.source, count, top)
        facts(
            ("neurons that fall", f"{drop.fallen} of {drop.neurons}", "interval above 0"),
            ("mean fall", two(drop.mean.value, 3), f"{two(drop.mean.low, 3)} to {two(drop.mean.high, 3)}"),
            ("equally active neurons", two(drop.null.value, 3), f"{two(drop.null.low, 3)} to {two(drop.null.high, 3)}, p = {drop.p:.3f}"),
        )  # fmt: skip
        left, right = st.columns(2)
        with left:
            show.draw(drop.levels, "levels", page.words)
        with right:
            show.draw(drop.falls, "falls", page.words)
        st.caption(
            f"Means over {drop.prompts} prompts and 20 tokens each, greedily chosen by the base model and read by both, so that only the "
            "weights differ. That a neuron falls does not show that its silence lowers toxicity; the page Steer asks that."
        )
        shell.link("steer", "Wake the toxic neurons up again")


@st.fragment
def sources(page: shell.Page) -> None:
    """Draw which parts write the shift, and how value updates point to it."""
    with shell.errors_shown():
        st.write("The stream is a sum of what embedding, attention and MLPs write; so is the difference between the two models.")
        left, right = st.columns(2)
        with left:
            layer = layers(page)
        with right:
            count = prompts()
        if not ready(page, count, "Means of both models", bypass_sources.means):
            return
        writers = bypass_sources.written(page.source, count, layer)
        facts(
            *((f"written by {name}", f"{share:.0%}", "of the shift") for name, share in writers.shares.items()),
            ("length of the shift", f"{writers.length:.3g}", f"rest of the sum {abs(writers.residual):.0e}"),
        )
        show.draw(writers.contributors, "contributors", page.words)
        show.draw(writers.parts, "parts", page.words)
        st.header("Updates against the shift", anchor=False)
        if layer == 0:
            st.info("No MLP writes before layer 0. Move the slider to a higher layer.", icon=":material/info:")
            return
        updates = bypass_sources.against(page.source, count, layer)
        facts(
            ("median cosine in the layer below", two(updates.last), "−1 is antipodal"),
            ("signs told by the neuron's activation alone", f"{updates.predicted:.0%}", f"guessing tells {updates.majority:.0%}"),
        )
        place = st.container()
        finding = antipodal_null(page, count, layer)
        with place:
            if finding is None:
                show.draw(updates.profile, "against", page.words)
            else:
                figure, last, lowest = bypass_sources.drawn(finding)
                show.draw(figure, "against", page.words)
                st.caption(
                    f"Layer {layer - 1}: {two(last)} after tuning; the lowest of the gradient steps that know nothing of toxicity is "
                    f"{two(lowest)}. "
                    + ("Tuning goes further than any of them." if last < lowest else "Tuning goes no further than such a step.")
                )


def antipodal_null(page: shell.Page, count: int, layer: int) -> Any:
    """The finding of A-E11 on these prompts and this layer, or None and the button that runs it."""
    return job_view.ask(
        key_of("A-E11", page.name, page.source, count, layer), "Antipodality and its null",
        bypass_sources.controls(page.source, count, layer), "Compare with gradient steps",
        help="Runs experiment A-E11 on these prompts and this layer with one gradient step on harmless text, one on shuffled preferences, "
        "and one random change, each as large as the tuning.",
        note="A gradient step on anything moves the values of inactive neurons against what it shifts. Compare the tuning with such steps: "
        "a few seconds on the pair that ships.",
    )  # fmt: skip


with shell.page("bypass", LEAD) as page:
    linked()
    sections = (shift, silenced, sources, lens)
    for tab, section in zip(st.tabs(list(VIEWS), key="view", bind="query-params"), sections, strict=True):
        if tab.open:
            with tab:
                section(page)
