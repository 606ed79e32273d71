"""One page, one file; Streamlit runs them as scripts."""
