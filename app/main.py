"""The entry that Streamlit runs: navigation only, so that a page is read when it is opened."""

from __future__ import annotations

import streamlit as st

st.set_page_config(page_title="Bypass", page_icon=":material/alt_route:", layout="wide")
PAGES = [
    st.Page("pages/compare.py", title="Before and after", icon=":material/compare_arrows:", default=True),
    st.Page("pages/report.py", title="Report", icon=":material/fact_check:"),
]
st.navigation(PAGES).run()
