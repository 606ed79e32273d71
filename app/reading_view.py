"""What the sections of the page Bypass share: the controls of layer and number of prompts, reading the prompts, and facts."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import streamlit as st

from app import job_view, shell, show
from app.answers import bypass
from app.jobs import key_of


def facts(*rows: tuple[str, str, str]) -> None:
    """Draw numbers, each with its name and a note to compare it with."""
    st.html(show.facts(show.fact(name, (number, note)) for name, number, note in rows))


def ready(page: shell.Page, count: int, what: str, read: Callable[[Any, int], Any]) -> bool:
    """Whether the prompts have been read: done at once for a small pair, by a job for a large one."""
    if bypass.light(page.pair):
        # Called here, because a spinner inside another cached function would not show.
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
            note=f"{what}: not read yet on {count} prompts.",
        )
    )  # fmt: skip


def prompts() -> int:
    """The control of the number of prompts."""
    return st.select_slider(
        "Prompts", bypass.counts(), value=bypass.usual(), key="prompts", bind="query-params",
        help="How many of the 280 challenge prompts that ship are read, spread evenly. More make intervals narrower and the first wait "
        "longer.",
    )  # fmt: skip


def layers(page: shell.Page, lowest: int = 0) -> int:
    """The control of the layer."""
    model = page.pair.base
    usual = bypass.study(page.source, bypass.usual()).offset_layer
    return st.slider(
        "Layer", lowest, model.n_layers - 1, value=usual, key="layer", bind="query-params",
        help=f"The residual stream is read before the MLP of this layer. Layer {usual} holds most of the toxic value vectors.",
    )  # fmt: skip
