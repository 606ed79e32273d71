"""The README's example is run and prints what stands there; what the README and the pages of docs/ name and link to exists."""

from __future__ import annotations

import io
import re
from contextlib import redirect_stdout
from pathlib import Path

import pytest

from tests import ROOT
from tests.test_house import ORDER

PAGES = [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *sorted((ROOT / "docs").glob("*.md")), *sorted((ROOT / "benchmarks").glob("*.md"))]
README = (ROOT / "README.md").read_text(encoding="utf-8")


@pytest.mark.slow
def test_the_example_prints_what_the_readme_says() -> None:
    code, output = re.search(r"```python\n(.*?)```\n\n```text\n(.*?)```", README, re.DOTALL).groups()  # type: ignore[union-attr]
    assert len([line for line in code.splitlines() if line.strip()]) <= 12
    with redirect_stdout(io.StringIO()) as said:
        exec(code, {})
    assert said.getvalue().strip() == output.strip()


def test_every_command_of_the_index_exists() -> None:
    from interp.cli import COMMANDS

    pages = README + (ROOT / "docs" / "README.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`bypass ([a-z]+)", pages))
    assert named <= {*COMMANDS, "train", "app", "pairs"}
    assert {"report", "evaluate", "generate", "sweep", "vectors", "lens", "score", "convert", "train", "doctor"} <= named


def anchors(page: Path) -> set[str]:
    """The anchors of a page's headings, as GitHub makes them."""
    headings = re.findall(r"^#+ (.*)$", re.sub(r"```.*?```", "", page.read_text(encoding="utf-8"), flags=re.DOTALL), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", heading.lower()).replace(" ", "-") for heading in headings}


def broken_links(page: Path, text: str) -> list[str]:
    """The relative links of a page whose file, or heading of a page, is not there."""
    broken = []
    for target, anchor in re.findall(r"\]\(([^)#\s]*)#?([^)\s]*)\)", text):
        file = (page.parent / target).resolve() if target else page
        if not target.startswith("http") and not (file.exists() and (not anchor or anchor in anchors(file))):
            broken.append(f"{page.name}: {target}#{anchor}")
    return broken


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_what_the_pages_link_to_exists(page: Path) -> None:
    assert broken_links(page, page.read_text(encoding="utf-8")) == []


def test_the_rule_of_links_sees_a_missing_file_and_a_missing_heading() -> None:
    text = "[a](docs/nowhere.md) [b](docs/training.md#nowhere) [c](docs/training.md#stages) [d](https://example.org/x) [e](docs)"
    assert broken_links(ROOT / "README.md", text) == ["README.md: docs/nowhere.md#", "README.md: docs/training.md#nowhere"]


def stray_rows(text: str) -> list[int]:
    """The lines, from 1, that begin a table in the middle of a paragraph, or one that has no head."""
    lines, is_code, stray = ["", *text.splitlines(), ""], False, []
    for number, (before, line, after) in enumerate(zip(lines, lines[1:], lines[2:], strict=False), 1):
        is_code ^= line.startswith("```")
        if not is_code and line.startswith("|") and not before.startswith("|") and (before.strip() or set(after) - set("|-: ")):
            stray.append(number)
    return stray


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.name)
def test_a_row_of_a_table_stands_in_one(page: Path) -> None:
    assert stray_rows(page.read_text(encoding="utf-8")) == []
    assert stray_rows("| a |\n|---|\n| b |\n\nprose\n| c |\n") == [6]


def test_the_page_of_the_layout_names_every_room_in_the_order_of_imports() -> None:
    table = (ROOT / "docs" / "layout.md").read_text(encoding="utf-8").partition("## The rooms of `interp/`")[2].partition("\n## ")[0]
    rooms = [name.rstrip("/").removesuffix(".py") for name in re.findall(r"^\| `([\w./]+)` \|", table, re.MULTILINE)]
    interp = {path.stem for path in (ROOT / "interp").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert rooms == [room for room in ORDER if room in interp]
    assert interp - set(rooms) == {"__init__"}
