"""The process that serves: Streamlit on the app's entry, while a thread already reads the libraries and the pair.

Streamlit runs a page only when the first visitor comes, and that page would then import torch and transformers while the
visitor waits; here the time in which a person reaches for the browser is used.
"""

from __future__ import annotations

import sys
from pathlib import Path

from app import warm

MAIN = Path(__file__).with_name("main.py")


def main() -> None:
    from streamlit.web.cli import main as serve

    warm.start()
    sys.argv = ["streamlit", "run", str(MAIN), *sys.argv[1:]]
    serve()


if __name__ == "__main__":
    main()
