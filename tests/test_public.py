"""The public surface: its three lists agree, every name is what it says, and what a reader copies needs no submodule."""

from __future__ import annotations

import ast
import json
import re
from pathlib import Path

import pytest

import interp
from tests import ROOT

SOURCE = (ROOT / "interp" / "__init__.py").read_text(encoding="utf-8")
EXPERIMENT = ROOT / "docs" / "adding-an-experiment.md"


def listed(source: str) -> dict[str, set[tuple[str, str]]]:
    """Name and module of everything in the TYPE_CHECKING block and in the lazy table, and the names of `__all__` as often as they stand."""
    tree = ast.parse(source)
    lists: dict[str, set[tuple[str, str]]] = {}
    for node in tree.body:
        if isinstance(node, ast.If):
            imports = [item for item in node.body if isinstance(item, ast.ImportFrom)]
            lists["types"] = {(alias.asname or alias.name, f"{item.module}") for item in imports for alias in item.names}
        elif isinstance(node, ast.Assign) and isinstance(node.targets[0], ast.Name):
            name = node.targets[0].id
            if name == "__all__":
                lists["all"] = {(text, "") for text in ast.literal_eval(node.value)}
            elif name == "_HOMES":
                lists["homes"] = {(text, f"interp.{home}") for text, home in ast.literal_eval(node.value).items()}
    return lists


def disagreements(source: str, modules: set[str]) -> set[str]:
    """Names that are not in all three lists, or stand for different modules."""
    lists = listed(source)
    # A module is imported from the package above it.
    homes = {(name, home.removesuffix(f".{name}") if name in modules else home) for name, home in lists["homes"]}
    names = {name for name, _ in lists["all"]}
    return {name for name, _ in homes ^ lists["types"]} | (names ^ {name for name, _ in homes})


def submodules(code: str) -> list[str]:
    """What a piece of code imports from below `interp`."""
    imports = []
    for node in ast.walk(ast.parse(code)):
        if isinstance(node, ast.Import):
            imports += [alias.name for alias in node.names if alias.name.startswith("interp.")]
        elif isinstance(node, ast.ImportFrom) and (node.module or "").startswith("interp."):
            imports.append(str(node.module))
    return imports


def shown_code(path: Path) -> list[str]:
    """The Python that a document or a notebook shows."""
    text = path.read_text(encoding="utf-8")
    if path.suffix == ".ipynb":
        return ["".join(cell["source"]) for cell in json.loads(text)["cells"] if cell["cell_type"] == "code"]
    return re.findall(r"```python\n(.*?)```", text, re.DOTALL)


def test_the_list_of_names_the_lazy_table_and_the_block_for_type_checkers_agree() -> None:
    assert disagreements(SOURCE, interp._MODULES) == set()
    assert len(interp.__all__) == len(set(interp.__all__))


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ('"Model", "ModelPair"', '"ModelPair"'),
        ('    "capture": "forward.capture",\n', ""),
        ('    "capture": "forward.capture",\n', '    "capture": "forward.resume",\n'),
        ("    from interp.errors import UserError\n", ""),
        ("import Captured, load_captured", "import Captured"),
    ],
)
def test_a_name_that_is_missing_in_one_of_them_is_seen(old: str, new: str) -> None:
    assert SOURCE.count(old) == 1
    assert disagreements(SOURCE.replace(old, new), interp._MODULES) != set()


def test_every_name_is_there_and_called_what_it_is() -> None:
    for name in interp.__all__:
        value = getattr(interp, name)
        assert value.__name__.rpartition(".")[2] == name
    assert set(interp.__all__) <= set(dir(interp))
    with pytest.raises(AttributeError, match="no attribute 'captures'"):
        _ = interp.captures


@pytest.mark.parametrize(
    "path", [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "examples" / "bypass.ipynb"], ids=lambda path: path.name
)
def test_readers_are_shown_imports_from_interp_alone(path: Path) -> None:
    assert [module for code in shown_code(path) for module in submodules(code)] == []


def test_the_rule_of_imports_reads_documents_and_sees_a_breach() -> None:
    assert sum("from interp import" in code for path in (ROOT / "README.md", EXPERIMENT) for code in shown_code(path)) == 2
    assert submodules("def late():\n    from interp.lens.logit_lens import logit_lens\n") == ["interp.lens.logit_lens"]
    assert submodules("import interp.data.texts as texts\n") == ["interp.data.texts"]
    assert submodules("from interp import capture\nimport interp\n") == []
