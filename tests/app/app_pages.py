"""Opening a page of the app in a test, without a browser, as Streamlit runs it."""

from __future__ import annotations

import functools

from streamlit import config
from streamlit.components.v2 import manifest_scanner
from streamlit.testing.v1 import AppTest

from tests import ROOT

# As in the server (app/launch.py): a full collection after every run of a page looks at all that torch and transformers hold.
config.set_option("runner.postScriptGC", False)
# Once for all pages that are opened: a look through every installed package for components, of which the app uses none.
manifest_scanner.scan_component_manifests = functools.cache(manifest_scanner.scan_component_manifests)
MAIN = ROOT / "app" / "main.py"
# A busy machine is slow, not wrong.
PATIENCE = 600


def open_page(name: str, **query: str) -> AppTest:
    """The page of this name (`start`, `vectors`, …), opened with these parameters in its link."""
    at = AppTest.from_file(str(MAIN), default_timeout=PATIENCE)
    for key, value in query.items():
        at.query_params[key] = value
    if name != "start":
        at.switch_page(f"views/{name}.py")
    return at.run()


def html_of(at: AppTest) -> str:
    """All the HTML that the page lays out itself."""
    return "\n".join(element.proto.body for element in at.get("html"))
