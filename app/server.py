"""The process that serves: Streamlit on the app's entry, while a thread already reads the libraries and the pair.

Streamlit runs a page only when the first visitor comes, and that page would then import torch and transformers while the
visitor waits; here the time in which a person reaches for the browser is used.
"""

from __future__ import annotations

import logging
import sys
import threading
import time
from pathlib import Path

MAIN = Path(__file__).with_name("main.py")
WARM = "warm"
AFTER = 6.0


def warm() -> None:
    """Read what every first page needs. What goes wrong here goes wrong again, with a message, on the page."""
    # Streamlit notes that no visitor asked; nobody needs to read that.
    asker = logging.getLogger("streamlit.runtime.scriptrunner_utils.script_run_context")
    asker.addFilter(lambda record: threading.current_thread().name != WARM)
    try:
        from app import settings, state
        from app.answers import start, steer

        source = next(iter(settings.offered().values()))
        state.load_pair(source)
        state.scorer().score(["warm"])
        # The first visitor's page has the processor to itself now; what other pages need can wait until it is drawn.
        time.sleep(AFTER)
        start.unaligned(source)
        steer.candidates(source, "tuned", "selective")
        steer.lengths(source, "tuned")
    except Exception as error:
        logging.getLogger(__name__).warning("warming up failed: %s", error)


def main() -> None:
    threading.Thread(target=warm, name=WARM, daemon=True).start()
    from streamlit.web.cli import main as serve

    sys.argv = ["streamlit", "run", str(MAIN), *sys.argv[1:]]
    serve()


if __name__ == "__main__":
    main()
