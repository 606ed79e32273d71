"""The README's example is run, and its output is the one that is printed there."""

from __future__ import annotations

import re
import subprocess
import sys

from tests import ROOT

README = (ROOT / "README.md").read_text(encoding="utf-8")


def test_the_example_prints_what_the_readme_says() -> None:
    code, output = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL).groups()  # type: ignore[union-attr]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, timeout=300, check=False)
    assert done.returncode == 0, done.stderr[-1500:]
    assert done.stdout.strip() == output.strip()


def test_every_command_of_the_table_exists() -> None:
    from interp.cli import COMMANDS

    named = set(re.findall(r"`bypass ([a-z]+)", README))
    assert named <= {*COMMANDS, "train", "app"}
    assert {"report", "evaluate", "generate", "sweep", "vectors", "lens", "score", "convert", "train", "doctor"} <= named


def test_files_that_the_readme_links_to_exist() -> None:
    for target in re.findall(r"\]\(([^)#]+)\)", README):
        if not target.startswith("http"):
            assert (ROOT / target).exists(), target
