"""The notebook: every cell runs, in order, through the public surface, and what is committed was run whole."""

from __future__ import annotations

import os
from pathlib import Path

import nbformat
import pytest
from nbclient import NotebookClient

from interp.data.lexicon import mask
from tests import ROOT

NOTEBOOK = ROOT / "examples" / "bypass.ipynb"
# Fewer texts, so that it takes seconds; the committed outputs are those of all of them.
FEWER = """
import interp.data.texts as texts
_prompts, _passages, _neutral = texts.challenge_prompts()[:24], texts.passages()[:4], texts.neutral_prompts()[:24]
texts.challenge_prompts, texts.passages, texts.neutral_prompts = (lambda: _prompts), (lambda: _passages), (lambda: _neutral)
"""


def read() -> nbformat.NotebookNode:
    return nbformat.read(NOTEBOOK, as_version=4)


@pytest.mark.slow
def test_every_cell_runs(tmp_path: Path) -> None:
    notebook = read()
    notebook.cells.insert(0, nbformat.v4.new_code_cell(FEWER))
    os.environ.setdefault("JUPYTER_PLATFORM_DIRS", "1")
    done = NotebookClient(notebook, timeout=300, startup_timeout=120, resources={"metadata": {"path": str(tmp_path)}}).execute()
    code = [cell for cell in done.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert not [output for cell in code for output in cell.outputs if output.output_type == "error"]
    figures = [output for cell in code for output in cell.outputs if "application/vnd.plotly.v1+json" in output.get("data", {})]
    assert figures, "no figure was shown"


def test_the_committed_notebook_was_run_from_top_to_bottom_and_shows_no_profanity() -> None:
    notebook = read()
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert [cell.execution_count for cell in code] == list(range(1, len(code) + 1))
    assert all(cell.outputs for cell in code)
    shown = "".join(
        str(output.get("text", "")) + str(output.get("data", {}).get("text/plain", "")) + str(output.get("data", {}).get("text/html", ""))
        for cell in code
        for output in cell.outputs
    )
    assert mask(shown) == shown
    assert "site-packages" not in shown, "a warning was committed"
