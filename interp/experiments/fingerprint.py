"""The fingerprint of a result: a hash of the code that makes it, of the data that it reads and of the libraries that compute it.

The code is that of the modules which the files of the experiment and of its study import, transitively within this package and
among the files beside them, without docstrings, comments and formatting, so that a reworded sentence reruns nothing. A module
lists in `READS` the shipped files that it reads; an experiment names in `runs` the grids of training runs that it reads.

Each adapter (`ON_REQUEST`) is imported by the model when a method is called that makes another library's model: it counts where
that method is called, and not for everything that uses a model.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
import sys
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict
from functools import lru_cache
from pathlib import Path
from types import ModuleType
from typing import Any

from interp.environment import versions
from interp.errors import UserError
from interp.experiments.registry import Experiment
from interp.experiments.study import Study
from interp.runs.schema import LOG
from interp.runs.trajectory import INDEX, runs_of

PACKAGE = "interp"
ROOT = Path(__file__).resolve().parents[1]
DATA_NAME = "READS"
# The libraries whose code a result may depend on, in the package itself and in its scorers.
COMPUTED_WITH = ("torch", "transformers", "tokenizers", "numpy", "pandas", "scikit-learn", "scipy", "einops", "detoxify")
# The methods of a model that call an adapter, which models do not import.
ON_REQUEST = {"to_transformer_lens": "interp.adapters.transformer_lens", "to_nnsight": "interp.adapters.nnsight"}


def fingerprint(experiment: Experiment, study: Study) -> str:
    """A hash of everything that a result depends on.

    Raises `UserError` where runs that the experiment reads are missing, which names them and the command that makes them.
    """
    criteria = [asdict(item) for item in experiment.criteria]
    parts = [
        experiment.id, criteria, versions(COMPUTED_WITH), code_digest(experiment, type(study)), study.fingerprint(),
        _optional(experiment, study), [runs_digest(name) for name in experiment.runs],
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def _optional(experiment: Experiment, study: Study) -> list[str]:
    """The digests of the study's data that the experiment names in `reads`."""
    known = study.optional_data()
    for name in experiment.reads:
        if name not in known:
            raise ValueError(f"{experiment.id} reads {name!r}, but a {type(study).__name__} has {', '.join(known) or 'no optional data'}")
    return [known[name]() for name in experiment.reads]


def runs_digest(name: str) -> str:
    """A hash of a grid's index and of the stamp and the log of each of its runs.

    Raises `UserError` where runs are missing, as `runs_of` does.
    """
    trajectories = runs_of(name)
    digest = hashlib.sha256((trajectories.source / INDEX).read_bytes())
    for run in trajectories.runs:
        for file in (run.folder / "stamp.json", run.folder / LOG):
            digest.update(hashlib.sha256(file.read_bytes()).digest())
    return digest.hexdigest()


def code_digest(experiment: Experiment, kind: type[Study]) -> str:
    """A hash of the modules behind an experiment and the study that it is given, and of the shipped files that these modules read.

    Args:
        kind: the class of that study, which may be a subclass of the one that the experiment asks for.

    Raises `UserError` where the code is in no file, such as that of a session that someone types into.
    """
    files = [_source_of(part) for part in (inspect.unwrap(experiment.run), kind)]
    folders = _folders_of(files)
    digest = hashlib.sha256(kind.__qualname__.encode())
    for file in sorted(modules_of(files)):
        digest.update(_code(file, file.stat().st_mtime_ns).encode())
        for data in _data(file, folders):
            digest.update(data.read_bytes())
    return digest.hexdigest()


def _source_of(part: Callable[..., Any] | type) -> Path:
    """The file that defines a function or a class."""
    try:
        file = Path(inspect.getfile(part)).resolve()
    except (TypeError, OSError):
        file = None
    if file is None or not file.is_file():
        raise UserError(f"the code of {part.__qualname__} is in no file", "write it to a file and give that with --experiment")
    return file


def _folders_of(files: Sequence[Path]) -> tuple[Path, ...]:
    """The folders of those files that lie outside of this package."""
    return tuple(dict.fromkeys(file.parent for file in files if not file.is_relative_to(ROOT)))


def modules_of(files: Sequence[Path]) -> set[Path]:
    """The files themselves and those of every module that they import, transitively, in this package or beside one of the files."""
    folders = _folders_of(files)
    reached, waiting = set(files), list(files)
    while waiting:
        file = waiting.pop()
        new = _imported(file, file.stat().st_mtime_ns, folders) - reached
        reached |= new
        waiting += new
    return reached


@lru_cache(maxsize=512)
def _tree(file: Path, changed: int) -> ast.Module:
    """The syntax tree of a file without docstrings and code for type checkers alone; `changed` (a time) keys the cache."""
    tree = ast.parse(file.read_text(encoding="utf-8"))
    for node in ast.walk(tree):
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
        for part in ("body", "orelse", "finalbody"):
            statements = getattr(node, part, None)
            if isinstance(statements, list):
                setattr(node, part, _that_run(statements))
    return tree


@lru_cache(maxsize=512)
def _code(file: Path, changed: int) -> str:
    return ast.dump(_tree(file, changed))


def _that_run(statements: Sequence[ast.stmt]) -> list[ast.stmt]:
    """The statements with those of an `else` in the place of an `if TYPE_CHECKING:`."""
    return [
        running
        for statement in statements
        for running in (_that_run(statement.orelse) if isinstance(statement, ast.If) and _for_types(statement) else [statement])
    ]


def _for_types(node: ast.If) -> bool:
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING")


def _data(file: Path, folders: Sequence[Path]) -> list[Path]:
    """The files that a module names in `READS` (files, or folders of files), in order."""
    assigned: set[str] = set()
    for node in _tree(file, file.stat().st_mtime_ns).body:
        targets = node.targets if isinstance(node, ast.Assign) else [node.target] if isinstance(node, ast.AnnAssign) else []
        assigned |= {target.id for target in targets if isinstance(target, ast.Name)}
    if DATA_NAME not in assigned:
        return []
    places = [file.parent / place for place in getattr(_module(file, folders), DATA_NAME)]
    return [data for place in places for data in (sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place])]


def _module(file: Path, folders: Sequence[Path]) -> ModuleType:
    """The module of a file, as it was imported, or imported now."""
    for module in tuple(sys.modules.values()):
        name = getattr(module, "__file__", None)
        # Thousands of modules are looked at, so that the end of the name comes before the making of a path.
        if isinstance(name, str) and name.endswith(file.name) and Path(name).resolve() == file:
            return module
    above, prefix = (ROOT, [PACKAGE]) if file.is_relative_to(ROOT) else (next(f for f in folders if file.is_relative_to(f)), [])
    return importlib.import_module(".".join([*prefix, *file.relative_to(above).with_suffix("").parts]))


@lru_cache(maxsize=512)
def _imported(file: Path, changed: int, folders: tuple[Path, ...]) -> set[Path]:
    """The files of the modules that a file imports, inside functions too, and of what it uses of an imported package by attribute."""
    tree = _tree(file, changed)
    files: set[Path | None] = set()
    packages: dict[str, str] = {}
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            files |= {_file_of(alias.name, folders) for alias in node.names}
            packages |= dict((alias.asname, alias.name) if alias.asname else (alias.name.split(".")[0],) * 2 for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, file)
            files |= {_home(module, alias.name, folders) for alias in node.names}
            packages |= {alias.asname or alias.name: f"{module}.{alias.name}" for alias in node.names}
        elif isinstance(node, ast.Call) and _name(node.func) == "import_module" and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str):
                files.add(_file_of(first.value, folders))
    for node in ast.walk(tree):
        if isinstance(node, ast.Attribute):
            files.add(_attribute(node, packages, folders))
            files.add(_file_of(ON_REQUEST[node.attr], folders) if node.attr in ON_REQUEST else None)
    return {place for place in files if place is not None}


def _attribute(node: ast.Attribute, packages: Mapping[str, str], folders: Sequence[Path]) -> Path | None:
    """The file that defines `package.name` or `package.module.name`, for a package that was imported; None for any other attribute."""
    names = [node.attr]
    value = node.value
    while isinstance(value, ast.Attribute):
        names.insert(0, value.attr)
        value = value.value
    if not isinstance(value, ast.Name) or value.id not in packages:
        return None
    module = ".".join([packages[value.id], *names[:-1]])
    return _home(module, names[-1], folders) if _file_of(module, folders) is not None else None


def _name(function: ast.expr) -> str:
    return function.id if isinstance(function, ast.Name) else function.attr if isinstance(function, ast.Attribute) else ""


def _absolute(node: ast.ImportFrom, file: Path) -> str:
    """The full name of the module that a `from` names, which may be relative to the file's own package."""
    if not node.level:
        return node.module or ""
    package = file.parents[node.level - 1]
    above = [PACKAGE, *package.relative_to(ROOT).parts] if package.is_relative_to(ROOT) else []
    return ".".join([*above, *([node.module] if node.module else [])])


def _file_of(module: str, folders: Sequence[Path]) -> Path | None:
    """The file of a module of this package, or of one that lies in one of the folders; None for any other."""
    parts = module.split(".")
    bases = [ROOT.joinpath(*parts[1:])] if parts[0] == PACKAGE else [folder.joinpath(*parts) for folder in folders]
    for base in bases:
        for place in (base.with_suffix(".py"), base / "__init__.py"):
            if place.is_file():
                return place
    return None


def _home(module: str, name: str, folders: Sequence[Path]) -> Path | None:
    """The file that defines what `from module import name` gives, through packages that only re-export the name."""
    below = _file_of(f"{module}.{name}", folders)
    if below is not None:
        return below
    file = _file_of(module, folders)
    if file is None or file.name != "__init__.py":
        return file
    home = _exports(file, file.stat().st_mtime_ns).get(name)
    return file if home is None else _home(*home, folders)


@lru_cache(maxsize=512)
def _exports(file: Path, changed: int) -> dict[str, tuple[str, str]]:
    """The module of every name that a package's file imports, and its name there; what it imports for type checkers alone counts."""
    exports: dict[str, tuple[str, str]] = {}
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                exports.setdefault(alias.asname or alias.name, (_absolute(node, file), alias.name))
    return exports
