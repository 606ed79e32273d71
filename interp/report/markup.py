"""What pages that are written as one file share: values that are masked and escaped as they are written, data, and plotly's script."""

from __future__ import annotations

import json
import shlex
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from jinja2 import Environment, FileSystemLoader, StrictUndefined
from markupsafe import Markup

from interp.data.lexicon import mask

TEMPLATES = Path(__file__).parent / "templates"


def masking(show_words: bool) -> Environment:
    """A jinja environment of the templates that masks every value that is written to the page, then escapes it."""

    def finalize(value: Any) -> Any:
        return value if show_words or isinstance(value, Markup) or not isinstance(value, str) else mask(value)

    return Environment(
        loader=FileSystemLoader(TEMPLATES), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=finalize,
    )  # fmt: skip


@lru_cache(maxsize=1)
def plotly_script() -> Markup:
    """The script of plotly, which draws figures in the browser."""
    from plotly.offline import get_plotlyjs

    return Markup(get_plotlyjs().replace("</script", "<\\/script"))


def embedded(value: Any) -> Markup:
    """The value as JSON for a script element, escaped so that no text can close the element."""
    text = json.dumps(value, ensure_ascii=False, allow_nan=False, separators=(",", ":"))
    return Markup(text.replace("<", "\\u003c").replace("\u2028", "\\u2028").replace("\u2029", "\\u2029"))


def command_line(arguments: Sequence[str]) -> str:
    """The command line that repeats a page, with these arguments."""
    return shlex.join(["bypass", *arguments])
