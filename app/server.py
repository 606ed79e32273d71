"""The server process: Streamlit runs the app, while a thread imports the libraries and loads the pair.

Streamlit runs a page only when the first visitor comes, and that page would then import torch and transformers while the
visitor waits; so the server imports them while the visitor opens the browser.
"""

from __future__ import annotations

import json
import re
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from app import precompute

if TYPE_CHECKING:
    from starlette.types import ASGIApp, Receive, Scope, Send

MAIN = Path(__file__).with_name("main.py")
# The address of a page, known or not, as a browser asks for it: one word after the slash; Streamlit's own paths are longer or have a dot.
PAGE = re.compile(r"/[^/._]*")


class Document:
    """ASGI middleware that serves the app's own document in place of Streamlit's."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "http" and scope["method"] in ("GET", "HEAD") and PAGE.fullmatch(scope["path"]):
            from starlette.responses import HTMLResponse

            from app.document import document, policy

            host = dict(scope["headers"]).get(b"host", b"").decode("latin-1")
            headers = {"Cache-Control": "no-cache", "Content-Security-Policy": policy(host)}
            await HTMLResponse(document(), headers=headers)(scope, receive, send)
        else:
            await self.app(scope, receive, send)


def settings(flags: list[str]) -> dict[str, Any]:
    """Streamlit's settings out of flags `--name=value`: numbers and truth values as such, everything else as text."""
    by_name: dict[str, Any] = {}
    for name, _, value in (flag.removeprefix("--").partition("=") for flag in flags):
        try:
            by_name[name] = json.loads(value)
        except ValueError:
            by_name[name] = value
    return by_name


def main() -> None:
    """Run the server until it is stopped."""
    import streamlit as st
    from starlette.middleware import Middleware

    # Otherwise a request to terminate ends the process where it stands, and visitors' texts and runs would be left behind.
    signal.signal(signal.SIGTERM, lambda number, frame: sys.exit(128 + number))
    precompute.start()
    flags, sys.argv = sys.argv[1:], sys.argv[:1]
    st.App(MAIN, middleware=[Middleware(Document)]).run(config=settings(flags))


if __name__ == "__main__":
    main()
