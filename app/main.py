"""The script that Streamlit runs: navigation only, so that a page is imported when it is opened.

The folder of the pages is not called `pages`, because Streamlit would then find them by itself and serve a link to one of
them without this navigation.
"""

from __future__ import annotations

import streamlit as st

from app.importing import gate
from app.shell import PAGES

st.set_page_config(page_title="Bypass", page_icon="🔀", layout="wide")
page = st.navigation(
    [
        st.Page(f"views/{name}.py", title=title, icon=icon, url_path=None if name == "start" else name, default=name == "start")
        for name, (title, icon) in PAGES.items()
    ]
)
if page.url_path:
    # The first page is drawn before the libraries have been imported; the others need them.
    gate.wait()
page.run()
