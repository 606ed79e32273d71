"""To be built."""

from __future__ import annotations

import streamlit as st

from app import shell

with shell.page("vectors", "To be built.") as page:
    st.write(page.pair.name)
