"""docs/coming-from.md: every block is executed as it stands there, and the libraries agree on every quantity."""

from __future__ import annotations

import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

from interp.adapters.libraries import library
from interp.models.pair import BUNDLED
from tests import ROOT

pytestmark = pytest.mark.oracle
DOCUMENT = (ROOT / "docs" / "coming-from.md").read_text(encoding="utf-8")
PLACEHOLDER = 'folder = "gpt2"'
# What each task ends with, by its number.
RESULTS = {1: ["logits"], 2: ["streams"], 3: ["neurons"], 4: ["text"], 5: ["ablated"], 6: ["pattern"], 7: ["table"], 8: ["chances"],
           9: ["written"], 10: ["halved", "gradient"]}  # fmt: skip
Run = Callable[[str, int], dict[str, Any]]


def blocks(document: str) -> dict[tuple[int, str], str]:
    """The code of each task (0 for what all start from) by the library that its first line names."""
    parts = re.split(r"^## (\d+)\. ", document, flags=re.MULTILINE)
    sections = {0: parts[0], **{int(number): text for number, text in zip(parts[1::2], parts[2::2], strict=True)}}
    return {
        (number, name): code
        for number, text in sections.items()
        for name, code in re.findall(r"```python\n# (\w+)\n(.*?)```", text, re.DOTALL)
    }


CODE = blocks(DOCUMENT)


@pytest.fixture(scope="module")
def run(tmp_path_factory: pytest.TempPathFactory) -> Run:
    """`run(library, task)`: the names that the task's block leaves behind, after the library's block of task 1."""
    folder = tmp_path_factory.mktemp("blocks")
    loaded: dict[str, dict[str, Any]] = {}
    for name in ("transformer_lens", "nnsight"):
        library(name)

    def execute(code: str, name: str, names: dict[str, Any]) -> dict[str, Any]:
        # nnsight reads the source of what it traces from a file.
        file = Path(folder, f"{name}.py")
        file.write_text(code, encoding="utf-8")
        exec(compile(code, str(file), "exec"), names)
        return names

    def run(name: str, task: int) -> dict[str, Any]:
        if name not in loaded:
            start = CODE[0, "Start"].replace(PLACEHOLDER, f"folder = {str(BUNDLED / 'base')!r}")
            loaded[name] = execute(CODE[1, name], f"{name}-1", execute(start, f"{name}-0", {"__name__": "block"}))
        return loaded[name] if task == 1 else execute(CODE[task, name], f"{name}-{task}", dict(loaded[name]))

    return run


def agree(run: Run, task: int, name: str) -> None:
    ours, theirs = run("Bypass", task), run(name, task)
    for result in RESULTS[task]:
        expected, value = ours[result], theirs[result]
        if isinstance(expected, str):
            assert value == expected
            continue
        value = value.detach().to(expected.dtype)
        assert value.shape == expected.shape
        assert float(expected.std()) > 0
        scale = max(1.0, float(expected.abs().max()))
        torch.testing.assert_close(value / scale, expected / scale, atol=1e-5, rtol=1e-4)


def test_every_task_has_a_block_for_every_library_and_starts_from_the_same() -> None:
    assert PLACEHOLDER in CODE[0, "Start"]
    assert {task for task, _ in CODE} == set(range(11))
    for task in range(1, 11):
        assert {name for number, name in CODE if number == task} == {"TransformerLens", "nnsight", "nnterp", "Bypass"}, task


def test_the_page_says_which_blocks_are_not_executed_and_those_are_python() -> None:
    assert "**its blocks are not executed here**" in DOCUMENT
    for (task, name), code in CODE.items():
        if name == "nnterp":
            compile(code, f"nnterp-{task}", "exec")


@pytest.mark.parametrize("name", ["TransformerLens", "nnsight"])
@pytest.mark.parametrize("task", sorted(RESULTS.keys() - {6}))
def test_the_libraries_agree(run: Run, task: int, name: str) -> None:
    agree(run, task, name)


@pytest.mark.parametrize("name", ["TransformerLens", "nnsight"])
def test_the_libraries_agree_on_the_attention_pattern(run: Run, name: str) -> None:
    agree(run, 6, name)
    rows = run("Bypass", 6)["pattern"].sum(dim=-1)
    torch.testing.assert_close(rows, torch.ones_like(rows))


def test_steering_and_ablating_change_what_they_are_compared_on(run: Run) -> None:
    from interp import generate

    plain = run("Bypass", 1)
    (text,) = generate(plain["model"], [plain["prompt"]], max_new_tokens=8)
    assert run("Bypass", 4)["text"] != text
    for task, result in ((5, "ablated"), (10, "halved")):
        assert float((run("Bypass", task)[result] - plain["logits"]).abs().max()) > 1e-2


def test_a_function_of_the_logits_gives_the_map_of_the_metric(run: Run) -> None:
    from interp import patch

    names = run("Bypass", 7)
    he, she = names["he"], names["she"]
    found = patch(
        names["model"], names["clean"], names["corrupted"], metric=lambda logits: logits[:, he] - logits[:, she], site="resid_pre"
    )
    torch.testing.assert_close(found.grid("denoising"), names["table"])
