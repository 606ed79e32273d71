"""The fingerprint of a result: a hash of the code that makes it and of the data that it reads.

The code is that of the modules which the experiment's file imports, transitively within this package and among the files
beside it, without docstrings, comments and formatting, so that a reworded sentence reruns nothing. A module lists in `READS`
the shipped files that it reads.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import inspect
import json
from collections.abc import Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

from interp.environment import versions
from interp.experiments.registry import Experiment
from interp.experiments.study import Study

PACKAGE = "interp"
ROOT = Path(__file__).resolve().parents[1]
DATA_NAME = "READS"


def fingerprint(experiment: Experiment, study: Study) -> str:
    """A hash of everything that a result depends on."""
    parts = [
        experiment.id, experiment.criterion, versions()["torch"], code_digest(experiment),
        study.fingerprint(logs=experiment.reads_logs),
    ]  # fmt: skip
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()[:24]


def code_digest(experiment: Experiment) -> str:
    """A hash of the modules behind an experiment and its kind of study, and of the shipped files that these modules read."""
    run = inspect.unwrap(experiment.run)
    run_file, study_file = (Path(inspect.getfile(part)).resolve() for part in (run, experiment.study))
    digest = hashlib.sha256()
    for file in sorted(modules_of([run_file, study_file])):
        digest.update(_code(file, file.stat().st_mtime_ns).encode())
        for data in _data(file, run.__globals__ if file == run_file else None):
            digest.update(data.read_bytes())
    return digest.hexdigest()


def modules_of(files: Sequence[Path]) -> set[Path]:
    """The files themselves and those of every module that they import, transitively, in this package or beside one of the files."""
    folders = tuple(dict.fromkeys(file.parent for file in files if not file.is_relative_to(ROOT)))
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
    tree: ast.Module = _Bare().visit(ast.parse(file.read_text(encoding="utf-8")))
    return tree


@lru_cache(maxsize=512)
def _code(file: Path, changed: int) -> str:
    return ast.dump(_tree(file, changed))


class _Bare(ast.NodeTransformer):
    """Removes docstrings and the bodies of `if TYPE_CHECKING:` from a tree."""

    def visit_If(self, node: ast.If) -> ast.AST | list[ast.stmt]:
        if _for_types(node):
            return [statement for child in node.orelse if (statement := self.visit(child)) is not None]
        return self.generic_visit(node)

    def generic_visit(self, node: ast.AST) -> ast.AST:
        if isinstance(node, (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)) and ast.get_docstring(node, clean=False):
            node.body = node.body[1:]
        return super().generic_visit(node)


def _for_types(node: ast.If) -> bool:
    test = node.test
    return (isinstance(test, ast.Name) and test.id == "TYPE_CHECKING") or (isinstance(test, ast.Attribute) and test.attr == "TYPE_CHECKING")


def _data(file: Path, names: Mapping[str, Any] | None) -> list[Path]:
    """The files that a module names in `READS` (files, or folders of files), in order; `names` are the module's, where known."""
    assigned = {target.id for node in _tree(file, file.stat().st_mtime_ns).body if isinstance(node, ast.Assign)
                for target in node.targets if isinstance(target, ast.Name)}  # fmt: skip
    if DATA_NAME not in assigned:
        return []
    if names is None:
        names = vars(importlib.import_module(".".join([PACKAGE, *file.relative_to(ROOT).with_suffix("").parts])))
    places = [file.parent / place for place in names[DATA_NAME]]
    return [data for place in places for data in (sorted(p for p in place.rglob("*") if p.is_file()) if place.is_dir() else [place])]


@lru_cache(maxsize=512)
def _imported(file: Path, changed: int, folders: tuple[Path, ...]) -> set[Path]:
    """The files of the modules that a file imports, inside functions too."""
    files: set[Path] = set()
    for node in ast.walk(_tree(file, changed)):
        if isinstance(node, ast.Import):
            files |= {place for alias in node.names if (place := _file_of(alias.name, folders))}
        elif isinstance(node, ast.ImportFrom):
            module = _absolute(node, file)
            files |= {place for alias in node.names if (place := _home(module, alias.name, folders))}
        elif isinstance(node, ast.Call) and _name(node.func) == "import_module" and node.args:
            first = node.args[0]
            if isinstance(first, ast.Constant) and isinstance(first.value, str) and (place := _file_of(first.value, folders)):
                files.add(place)
    return files


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
    for node in ast.walk(ast.parse(file.read_text(encoding="utf-8"))):
        if isinstance(node, ast.ImportFrom):
            for alias in node.names:
                if (alias.asname or alias.name) == name:
                    return _home(_absolute(node, file), alias.name, folders)
    return file
