"""The HTML document that a browser loads first: Streamlit's own, with the app's title and style sheet and with preload hints.

A style sheet that came with the content would arrive after part of it, which would then be drawn twice, at first in colours that
are too faint. Streamlit's frontend requests each of its scripts only when a page's first element of that kind arrives; the hints
load them while the page is still being computed. `policy` is the content security policy, under which a page requests nothing from
other hosts.
"""

from __future__ import annotations

import base64
import hashlib
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path

from streamlit import file_util

from app.style import SHEET

# Parts of Streamlit's frontend that the first page is drawn with, and those that others are; named as its files begin.
FIRST = ("Html", "Checkbox", "Button", "PageLink", "PlotlyChart", "Selectbox", "TextInput", "Spinner")
LATER = ("DataFrame", "ButtonGroup", "NumberInput", "Slider", "Multiselect")
IMPORTED = re.compile(r'(?:from|import)\s*["`\']\./([\w.-]+\.js)["`\']')
# Imports stand at the head of a file; the largest have thousands of lines after it.
HEAD = 20_000
HOST = re.compile(r"[\w.\[\]:-]+")
# Streamlit and plotly write styles as they draw, show pictures that they made, and work in threads that they made.
POLICY = (
    "default-src 'self'; script-src {scripts}; style-src 'self' 'unsafe-inline'; img-src 'self' data: blob:; "
    "font-src 'self' data:; connect-src {connections}; worker-src 'self' blob:; object-src 'none'; base-uri 'none'; form-action 'self'"
)


@cache
def document() -> str:
    """The document as text; without the hint for a script that this version of Streamlit does not have."""
    static = Path(file_util.get_static_dir())
    text = (static / "index.html").read_text(encoding="utf-8")
    text = re.sub(r"<title>.*?</title>", "<title>Bypass</title>", text, flags=re.DOTALL)
    # The app uses the system's font.
    text = re.sub(r'<link\s+rel="preload"[^>]*as="font"[^>]*>\s*', "", text)
    known = set(re.findall(r"\./static/js/([\w.-]+\.js)", text))
    first = dict.fromkeys(file for part in FIRST for file in _files(static / "static/js", part, known))
    later = dict.fromkeys(file for part in LATER for file in _files(static / "static/js", part, known | set(first)))
    hints = [f'<link rel="modulepreload" crossorigin href="./static/js/{name}">' for name in first]
    hints += [f'<link rel="prefetch" as="script" crossorigin href="./static/js/{name}">' for name in later]
    # Nested, so that its rules weigh more than Streamlit's own, which come after it.
    sheet = f"<style>:root {{\n{SHEET}\n}}</style>"
    return text.replace("</head>", "\n".join(["", *hints, sheet, "</head>"]), 1)


def policy(host: str) -> str:
    """The content security policy of the document: only its own scripts run, and they connect to this host alone.

    Args:
        host: as the browser requested it. Not every browser counts a page's websocket as `'self'`, so it is named.
    """
    named = [f"{scheme}://{host}" for scheme in ("ws", "wss")] if HOST.fullmatch(host) else []
    return POLICY.format(scripts=" ".join(["'self'", *_scripts()]), connections=" ".join(["'self'", *named]))


@cache
def _scripts() -> list[str]:
    """The digests of the inline scripts of the document."""
    inline = re.findall(r"<script>(.*?)</script>", document(), flags=re.DOTALL)
    return [f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'" for text in inline]


def _files(folder: Path, part: str, known: set[str]) -> Iterator[str]:
    """The file of a part, after all that it imports and that is not yet known."""
    waiting = [path.name for path in folder.glob(f"{part}.*.js")]
    while waiting:
        name = waiting.pop()
        if name in known or not (folder / name).is_file():
            continue
        known.add(name)
        with (folder / name).open(encoding="utf-8") as file:
            waiting += IMPORTED.findall(file.read(HEAD))
        yield name
