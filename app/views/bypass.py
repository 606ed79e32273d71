"""The residual stream before and after tuning: the shift, the neurons that it silences, what writes it, and the logit lens."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from app import job_view, settings, shell, show
from app.answers import bypass, bypass_drop, bypass_lens, bypass_sources
from app.jobs import key_of
from interp import UserError
from interp.data.lexicon import mask
from interp.experiments.toxicity.a_e10_offset import FLIPPED, RANDOM
from interp.steering.edit_text import parse_neuron

VIEWS = ("The shift", "Activation drop", "Where it comes from", "Logit lens")
LEAD = (
    "Tuning leaves the toxic vectors where they are and goes around them: it shifts the residual stream, by nearly the same step for "
    "every prompt, to where toxic neurons fire less. See how far that holds here."
)


def facts(*rows: tuple[str, str, str]) -> None:
    """Numbers with their names and what they are to be compared with."""
    told = "".join(
        f"<div><dt>{show.escaped(name)}</dt><dd>{show.escaped(number)}<small>{show.escaped(more)}</small></dd></div>"
        for name, number, more in rows
    )
    st.html(f'<dl class="facts">{told}</dl>')


def two(value: float, digits: int = 2) -> str:
    """Two decimals or more, with a true minus and no zero that has a sign."""
    return f"{round(value, digits) + 0.0:.{digits}f}".replace("-", "−")


def chosen(key: str, options: list[int]) -> int:
    """The place among the options of what the link holds under this key, where it holds one of them; else the first."""
    text = st.query_params.get(key, "")
    return options.index(int(text)) if text.isascii() and text.isdecimal() and len(text) < 9 and int(text) in options else 0


def keep(key: str, value: int, first: int) -> None:
    """Keep in the link what was chosen, unless it is what everyone sees first. Labels hold words, so that they cannot be bound."""
    if value == first:
        st.query_params.pop(key, None)
    else:
        st.query_params[key] = str(value)


def ready(page: shell.Page, count: int, what: str, read: Callable[[Any, int], Any]) -> bool:
    """Whether what a section rests on is at hand: read at once for a small pair, as a job for a large one."""
    if bypass.light(page.pair):
        # Here rather than within what is cached on top of it, where no spinner would show.
        read(page.source, count)
        return True

    def work(step: Any) -> bool:
        step(what, 0, 1)
        read(page.source, count)
        return True

    return bool(
        job_view.ask(
            key_of(what, page.name, page.source, count), what, work, f"Read {count} prompts",
            help="This pair is large: reading the prompts takes a while. What has been read is kept for everyone.",
            note=f"{what} has not been read yet on {count} prompts.",
        )
    )  # fmt: skip


def prompts() -> int:
    return st.select_slider(
        "Prompts", bypass.counts(), value=bypass.USUAL, key="prompts", bind="query-params",
        help="How many of the 280 challenge prompts that ship are read, spread evenly. More make intervals narrower and the first wait "
        "longer.",
    )  # fmt: skip


def layers(page: shell.Page, lowest: int = 0) -> int:
    model = page.pair.base
    usual = bypass.study(page.source, bypass.USUAL).offset_layer
    return st.slider(
        "Layer", lowest, model.n_layers - 1, value=usual, key="layer", bind="query-params",
        help=f"The residual stream is read before the MLP of this layer. Layer {usual} holds most of the toxic value vectors.",
    )  # fmt: skip


def linked() -> None:
    """A link that names a neuron alone names its layer too."""
    text = st.query_params.get("neuron", "")
    if text and "layer" not in st.query_params and "layer" not in st.session_state:
        try:
            st.session_state["layer"] = parse_neuron(text)[0]
        except UserError:
            return


@st.fragment
def shift(page: shell.Page) -> None:
    """One plane, one layer, one neuron; and how alike the shifts are at every layer."""
    with shell.told():
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
            "Toxic neuron of this layer", names, index=bypass.telling(page.source, count, layer), key="neuron", bind="query-params",
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
        found = bypass.moved(page.source, count, layer, int(name.split(".")[1]), bypass.PLANES[kind or bypass.FIRST])
        share = f"{found.share:.0%}" if found.before else "–"
        facts(
            ("prompts on which it fires", f"{found.before} → {found.after}", f"of {found.prompts}"),
            ("prompts that leave its region", f"{found.left}", f"{share} of those that fire; {found.entered} enter"),
            ("under a random shift", f"{found.null.value:.1f}", f"{found.null.low:.0f} to {found.null.high:.0f}, p = {found.p:.3f}"),
        )  # fmt: skip
        show.draw(found.plane, "plane", page.words)
        if not found.before:
            st.info(f"Neuron {name} fires on none of these prompts, so none can leave its region. Choose another.", icon=":material/info:")
        else:
            show.draw(found.leaving, "leaving", page.words)
        st.header("One shift for all prompts?", anchor=False)
        small = bypass.light(page.pair)
        if small:
            bypass.random_changes(page.source)
            bypass.random_shifts(page.source, count)
        table = bypass.profile(page.source, count, small)
        at = table[(table["layer"] == layer)].set_index("model")
        own, null = at.loc[bypass.TUNED], at.loc[FLIPPED]
        facts(
            (f"cosine with other prompts' shift, layer {layer}", two(own["cosine"]), f"{two(own['low'])} to {two(own['high'])}"),
            ("with shuffled labels", two(null["cosine"]), f"{two(null['low'])} to {two(null['high'])}"),
            *((("under random changes of the weights", two(at.loc[RANDOM, "cosine"]), f"{bypass.CHANGES} draws"),) if small else ()),
        )  # fmt: skip
        show.draw(bypass.profile_figure(table, layer), "profile", page.words)
        if not small:
            st.caption("Random changes of the weights take long on this pair; experiment A-E10 on the page Evidence compares with them.")


@st.fragment
def silenced(page: shell.Page) -> None:
    """The most toxic neurons in both models."""
    with shell.told():
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
        found = bypass_drop.drop(page.source, count, top)
        facts(
            ("neurons that fall", f"{found.fallen} of {found.neurons}", "interval above 0"),
            ("mean fall", two(found.mean.value, 3), f"{two(found.mean.low, 3)} to {two(found.mean.high, 3)}"),
            ("matched neurons", two(found.null.value, 3), f"{two(found.null.low, 3)} to {two(found.null.high, 3)}, p = {found.p:.3f}"),
        )  # fmt: skip
        left, right = st.columns(2)
        with left:
            show.draw(found.levels, "levels", page.words)
        with right:
            show.draw(found.falls, "falls", page.words)
        st.caption(
            f"Means over {found.prompts} prompts and 20 tokens each, greedily chosen by the base model and read by both, so that only the "
            "weights differ. That a neuron falls does not show that its silence lowers toxicity; the page Steer and un-align asks that."
        )
        shell.link("steer", "Wake the toxic neurons up again")


@st.fragment
def sources(page: shell.Page) -> None:
    """Which parts write the shift, and whether value updates point against it."""
    with shell.told():
        st.write("The stream is a sum of what embedding, attention and MLPs write; so is the difference between the two models.")
        left, right = st.columns(2)
        with left:
            layer = layers(page)
        with right:
            count = prompts()
        if not ready(page, count, "Means of both models", bypass_sources.means):
            return
        found = bypass_sources.written(page.source, count, layer)
        facts(
            *((f"written by {name}", f"{share:.0%}", "of the shift") for name, share in found.shares.items()),
            ("length of the shift", f"{found.length:.3g}", f"rest of the sum {abs(found.residual):.0e}"),
        )
        show.draw(found.contributors, "contributors", page.words)
        show.draw(found.parts, "parts", page.words)
        st.header("Updates against the shift", anchor=False)
        if layer == 0:
            st.info("No MLP writes before layer 0. Move the slider to a higher layer.", icon=":material/info:")
            return
        own = bypass_sources.against(page.source, count, layer)
        facts(
            ("median cosine in the layer below", two(own.last), "−1 is antipodal"),
            ("signs told by the neuron's activation alone", f"{own.predicted:.0%}", f"guessing tells {own.guessed:.0%}"),
        )
        place = st.container()
        finding = antipodal_null(page, count, layer)
        with place:
            if finding is None:
                show.draw(own.profile, "against", page.words)
            else:
                figure, last, lowest = bypass_sources.drawn(finding)
                show.draw(figure, "against", page.words)
                st.caption(
                    f"Layer {layer - 1}: {two(last)} after tuning; the lowest of the gradient steps that know nothing of toxicity is "
                    f"{two(lowest)}. "
                    + ("Tuning goes further than any of them." if last < lowest else "Tuning goes no further than such a step.")
                )


def antipodal_null(page: shell.Page, count: int, layer: int) -> Any:
    return job_view.ask(
        key_of("A-E11", page.name, page.source, count, layer), "Antipodality and its null",
        bypass_sources.controls(page.source, count, layer), "Compare with gradient steps",
        help="Runs experiment A-E11 on these prompts and this layer with one gradient step on harmless text, one on shuffled preferences, "
        "and one random change, each as large as the tuning.",
        note="A gradient step on anything moves the values of inactive neurons against what it shifts. Compare the tuning with such steps: "
        "a few seconds on the pair that ships.",
    )  # fmt: skip


@st.fragment
def lens(page: shell.Page) -> None:
    """One prompt, one token, both models, every half layer."""
    with shell.told():
        st.write(
            "If each model ended after this half layer, how likely would it find a word? Choose a prompt and the word that may come next."
        )
        limit = settings.limits().prompt_characters
        if not ready(page, bypass.USUAL, "States of both models", bypass.states):
            return
        offered = bypass_lens.examples(page.source, bypass.USUAL)
        left, right = st.columns(2)
        numbers = list(range(1, len(offered) + 1))
        at = left.selectbox(
            "Example prompt", numbers, index=chosen("example", numbers), key="example",
            format_func=lambda number: f"{number}: {show.shown(offered[number - 1], page.words)}",
            help="Challenge prompts on which the base model's likeliest word lost most by tuning, the largest loss first.",
        )  # fmt: skip
        keep("example", at, 1)
        own = right.text_input(
            "Or a prompt of your own", key="prompt", bind="query-params", max_chars=limit, placeholder="You are such a",
            help="Where this holds text, it is read in place of the example. The word is looked for right after it: end without a space.",
        )  # fmt: skip
        prompt = own if own.strip() else offered[at - 1]
        if len(prompt) > limit:
            raise UserError(f"the prompt has {len(prompt)} characters, and at most {limit} are read", "shorten it")
        found = bypass_lens.candidates(page.source, prompt)
        left, right = st.columns(2)
        labels = {one.token: f"{show.visible(one.text, page.words)}   {one.base:.1%} → {one.tuned:.1%}" for one in found}
        token = left.selectbox(
            "Next token", list(labels), index=chosen("token", list(labels)), key="token", format_func=lambda one: labels[one],
            help="What either model finds likeliest, with its probability in base and tuned; the base model's first choice comes first.",
        )  # fmt: skip
        keep("token", token, found[0].token)
        word = right.text_input(
            "Or a word of your own", key="word", bind="query-params", max_chars=40, placeholder="idiot",
            help="A single token of the model's vocabulary; the space before it is added.",
        )  # fmt: skip
        if word.strip():
            try:
                token = bypass_lens.one_token(page.pair.base, word)
            except UserError as error:
                shell.problem(error)
        text = page.pair.base.tokenizer.decode([token])
        if bypass.light(page.pair):
            bypass.random_changes(page.source)
        drawn = bypass_lens.curve(page.source, prompt, token)
        # Masked as a whole, because a word may begin in the prompt and end in the token; a mask keeps the length.
        joined = prompt + text if page.words else mask(prompt + text)
        given, new = (show.escaped(show.shown(part, True)) for part in (joined[: len(prompt)], joined[len(prompt) :]))
        st.html(
            f'<p class="lead" dir="auto" style="overflow-wrap:anywhere"><span style="opacity:.75">{given}</span>'
            f'<span class="role" style="--hue:{show.colour("base")}">{new}</span></p>'
        )
        facts(
            *((name, f"{drawn.final[name]:.1%}", f"rank {drawn.ranks[name]}") for name in ("base", "tuned")),
            *((("random changes", f"{value:.1%}", "of equal norm"),) if (value := drawn.final.get(bypass_lens.NULL)) is not None else ()),
            ("largest step in the base model", drawn.step, f"{drawn.rise:+.1%}"),
        )
        show.draw(drawn.figure, "lens", page.words)
        with st.expander("What each model would say after every half layer"):
            show.table(
                bypass_lens.said(page.source, prompt),
                "said",
                page.words,
                alt="The three likeliest tokens after each half layer, base and tuned",
            )


with shell.page("bypass", LEAD) as page:
    linked()
    sections = (shift, silenced, sources, lens)
    for tab, section in zip(st.tabs(list(VIEWS), key="view", bind="query-params"), sections, strict=True):
        if tab.open:
            with tab:
                section(page)
