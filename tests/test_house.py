"""The rules of the house that no unit test would notice: arrows, pins, sizes, paths.

They read sources and metadata, never a model. Each rule is a small function that is also shown a breach of itself, so a rule
that stopped looking would fail here.
"""

from __future__ import annotations

import ast
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from tests import ROOT

OWN = ("interp", "training", "app")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = {"streamlit", "trl", "transformer_lens", "nnsight", "detoxify", "plotly"}
FORBIDDEN = {"interp": {"training", "app"}, "training": {"app"}, "app": {"training"}}
MISSION = {"transformer-lens", "nnsight", "torch", "einops", "jaxtyping", "plotly", "streamlit", "detoxify"}
WEIGHTS = {".safetensors", ".npz", ".npy", ".onnx", ".gguf", ".h5"}
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".bin"}
MEGABYTE = 1_000_000
HERE = re.compile(r"(?<![\w.:/~-])(?:/(?:work|root|home|Users)/\w|/opt/(?:pypi|wheels)|[A-Z]:\\Users)")
# Where the name one imports differs from the name one installs.
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(nodes: Iterator[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and top-level package of every absolute import among these nodes, `import_module("...")` included."""
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name.partition(".")[0]) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield node.lineno, (node.module or "").partition(".")[0]
        elif isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str):
            called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
            if called in {"import_module", "__import__"}:
                yield node.lineno, node.args[0].value.partition(".")[0]


def run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: everything but function bodies and `if TYPE_CHECKING:` blocks."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from run_at_import(child)


def wrong_arrows(folder: str, name: str, source: str) -> list[str]:
    """Imports against the arrows. Only interp/cli.py may reach training and app, and only when a command is called."""
    tree = ast.parse(source)
    is_mount = (folder, name) == ("interp", "cli.py")
    nodes = run_at_import(tree) if is_mount else ast.walk(tree)
    return [f"{folder}/{name}:{line} imports {package}" for line, package in imported(nodes) if package in FORBIDDEN[folder]]


def heavy_at_top(folder: str, name: str, source: str) -> list[str]:
    allowed = {"plotly"} if (folder, name) == ("interp", "figures.py") else set()
    found = imported(run_at_import(ast.parse(source)))
    return [f"{folder}/{name}:{line} imports {package} at top" for line, package in found if package in HEAVY - allowed]


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout: nothing is tracked here")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def declared() -> list[Requirement]:
    """Every requirement of the project and of its extras, but the extras' references to the project itself."""
    lines = [*PROJECT["dependencies"], *(line for extra in PROJECT["optional-dependencies"].values() for line in extra)]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if line and not line.startswith("#")}


def test_interp_imports_neither_training_nor_app_and_they_do_not_import_one_another() -> None:
    files = [(folder, path) for folder in OWN for path in sources(folder)]
    assert {folder for folder, _ in files} >= {"interp", "training"}
    breaches = [
        breach for folder, path in files for breach in wrong_arrows(folder, str(path.relative_to(ROOT / folder)), path.read_text("utf-8"))
    ]
    assert breaches == []


def test_interp_imports_no_heavy_library_at_module_top() -> None:
    names = [(str(path.relative_to(ROOT / "interp")), path.read_text("utf-8")) for path in sources("interp")]
    assert [breach for name, source in names for breach in heavy_at_top("interp", name, source)] == []


def test_importing_interp_loads_no_heavy_library_in_a_roundabout_way() -> None:
    code = "import sys, interp; print(*sorted(sys.modules.keys() & set(sys.argv[1:])))"
    result = subprocess.run([sys.executable, "-c", code, *HEAVY, "training", "app"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("probe.py", "def late():\n    from training.recipe import Recipe\n"),
        ("probe.py", "import importlib\ndef late():\n    importlib.import_module('app.jobs')\n"),
        ("cli.py", "import training.cli\n"),
        ("cli.py", "try:\n    from app import main\nexcept ImportError:\n    pass\n"),
    ],
)
def test_the_rule_of_arrows_sees_a_breach(name: str, source: str) -> None:
    assert len(wrong_arrows("interp", name, source)) == 1


def test_the_rule_of_arrows_lets_the_command_line_mount_when_called() -> None:
    assert wrong_arrows("interp", "cli.py", "def train():\n    from training import cli\n") == []


def test_the_rule_of_heavy_libraries_sees_a_breach_and_allows_a_late_import() -> None:
    assert len(heavy_at_top("interp", "toxicity.py", "class A:\n    import detoxify\n")) == 1
    assert len(heavy_at_top("interp", "report.py", "import plotly.graph_objects as go\n")) == 1
    assert heavy_at_top("interp", "figures.py", "import plotly.graph_objects as go\n") == []
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nnsight\ndef f():\n    import nnsight\n"
    assert heavy_at_top("interp", "adapters/nnsight.py", late) == []


def test_no_pickle_is_tracked_and_weights_stay_small() -> None:
    files = tracked()
    assert [str(path) for path in files if path.suffix in PICKLES] == []
    sizes = {str(path.relative_to(ROOT)): path.stat().st_size for path in files}
    assert {name: size for name, size in sizes.items() if size >= 40 * MEGABYTE} == {}
    assert sum(size for name, size in sizes.items() if Path(name).suffix in WEIGHTS) < 80 * MEGABYTE


def test_no_tracked_text_names_a_path_of_one_machine() -> None:
    assert HERE.search('open("/' + 'home/ada/x")')
    assert not HERE.search("https://example.org/" + "home/ada")
    breaches = []
    for path in tracked():
        try:
            text = path.read_text(encoding="utf-8")
        except UnicodeDecodeError:
            continue
        breaches += [f"{path.relative_to(ROOT)}: {match.group(0)!r}" for match in HERE.finditer(text)]
    assert breaches == []


def test_no_source_file_is_longer_than_500_lines() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for folder in OWN for path in sources(folder)}
    assert {name: length for name, length in lengths.items() if length > 500} == {}


def test_every_package_of_the_mission_is_declared() -> None:
    assert MISSION - {canonicalize_name(requirement.name) for requirement in declared()} == set()


def test_every_dependency_is_bounded_above_and_below() -> None:
    loose = [str(r) for r in declared() if r.name != "packaging" and {spec.operator for spec in r.specifier} != {">=", "<"}]
    assert loose == []


def test_the_extra_all_holds_every_other_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == extras.keys() - {"all"}


def test_every_third_party_import_is_a_declared_dependency() -> None:
    known = {canonicalize_name(requirement.name) for requirement in declared()}
    missing = {
        f"{path.relative_to(ROOT)}: {package}"
        for folder in OWN
        for path in sources(folder)
        for _, package in imported(ast.walk(ast.parse(path.read_text("utf-8"))))
        if package not in sys.stdlib_module_names
        and package not in OWN
        and canonicalize_name(DISTRIBUTIONS.get(package, package)) not in known
    }
    assert missing == set()


def test_constraints_pin_every_declared_dependency_within_its_bounds() -> None:
    pinned = pins()
    for requirement in declared():
        name = canonicalize_name(requirement.name)
        assert name in pinned, f"constraints.txt does not pin {name}"
        assert pinned[name] in requirement.specifier, f"{name}=={pinned[name]} is outside {requirement.specifier}"


def test_constraints_hold_public_versions_only() -> None:
    for line in (ROOT / "constraints.txt").read_text("utf-8").splitlines():
        assert line.startswith("#") or re.fullmatch(r"[a-z0-9][a-z0-9-]*==[0-9][0-9a-z.]*", line), line
    assert pins()["torch"] == "2.13.0"


@pytest.mark.skipif(sys.version_info[:2] != (3, 11) or sys.platform != "linux", reason="the constraints are those of Python 3.11 on Linux")
def test_constraints_are_exactly_the_closure_of_all_extras() -> None:
    """Walk the installed metadata from the declared dependencies: a stray pin and a missing pin both show."""
    closure: dict[str, str] = {}
    seen: set[tuple[str, frozenset[str]]] = set()
    waiting = declared()
    while waiting:
        requirement = waiting.pop()
        name = canonicalize_name(requirement.name)
        if (name, key := frozenset(requirement.extras)) in seen:
            continue
        seen.add((name, key))
        try:
            distribution = importlib.metadata.distribution(requirement.name)
        except importlib.metadata.PackageNotFoundError:
            pytest.skip(f"{name} is not installed: this test needs every extra")
        closure[name] = Version(distribution.version).public
        for needed in map(Requirement, distribution.requires or []):
            if needed.marker is None or any(needed.marker.evaluate({"extra": extra}) for extra in ("", *key)):
                waiting.append(needed)
    # The CUDA build of torch brings libraries that the CPU build does without.
    closure = {name: version for name, version in closure.items() if not name.startswith(("nvidia-", "cuda-")) and name != "triton"}
    assert closure.keys() == pins().keys()


def test_the_distribution_is_the_one_that_the_readme_names() -> None:
    assert (PROJECT["name"], PROJECT["scripts"]) == ("bypass-workbench", {"bypass": "interp.cli:main"})
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence
