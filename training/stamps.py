"""Stamps: records of a stage's inputs by content (settings, seed, files, output of earlier stages) and of its output.

A stage writes its stamp as `stamp.json` beside its output, and a checkpoint contains it, so that a later run can tell
what changed: the recipe, a corpus file, an earlier stage, or the output itself. Files are
compared by hash, not by date; a table of (size, time, hash) keeps 400 MB of corpora from being read each time.
"""

from __future__ import annotations

import hashlib
import json
import os
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from interp.errors import UserError
from interp.files import write_json
from training.recipe import DATA_SETTING, Recipe, base_folder, data_file
from training.sources import text_files
from training.stages import STAGES, reads, stage_named

STAMP = "stamp.json"
TABLE = "hashes.json"


def file_hash(path: Path) -> str:
    """SHA-256 of a file's content, always read."""
    with path.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def known_hash(path: Path, table: Path) -> str:
    """SHA-256 of a file, from the table where the file's size and time are those of the last hashing."""
    path, facts = path.resolve(), path.stat()
    hashes = _table(table)
    known = hashes.get(str(path))
    if known is not None and known[:2] == [facts.st_size, facts.st_mtime_ns]:
        return known[2]
    value = file_hash(path)
    # Read again: another process may have added its own rows meanwhile.
    write_json(table, {**_table(table), str(path): [facts.st_size, facts.st_mtime_ns, value]})
    return value


def _table(file: Path) -> dict[str, Any]:
    try:
        content = json.loads(file.read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return {}
    return content if isinstance(content, dict) else {}


def made_from(recipe: Recipe, stage: str) -> dict[str, Any]:
    """The inputs of a stage as they are now, as a record that can be compared.

    `seed`, `settings` (of its section, without what only watches the run), `files` (hash by path, of every `path` in its
    section) and `stages` (hash by "stage/file", None where an earlier stage has not run). Raises `UserError` for a missing file.
    """
    row, section = stage_named(stage), recipe.settings.get(stage, {})
    settings = {key: value for key, value in section.items() if key not in row.watched}
    table = recipe.run.parent / TABLE
    files = {_name(file): known_hash(file, table) for kind, name in sorted(set(_paths(settings))) for file in _files(kind, name)}
    stages: dict[str, str | None] = {}
    for name in reads(stage, recipe.settings):
        if name == "base" and name in recipe.settings:
            model = base_folder(recipe)
            # A hub id is recorded as it is, since its content is known only when it is loaded.
            stages["base/model"] = contents(model.parent, (model.name,), table)[model.name] if model.is_dir() else str(model)
        elif name in recipe.settings:
            stages |= {f"{name}/{part}": value for part, value in contents(recipe.folder(name), STAGES[name].makes, table).items()}
    return {"seed": recipe.seed, "settings": settings, "files": files, "stages": stages}


def _paths(settings: Any) -> Iterator[tuple[str, str]]:
    """Every file or folder, and every data set, that settings name."""
    if isinstance(settings, Mapping):
        for key, value in settings.items():
            if key in ("path", "dataset") and isinstance(value, str):
                yield key, value
            else:
                yield from _paths(value)
    elif isinstance(settings, list):
        for value in settings:
            yield from _paths(value)


def _files(kind: str, name: str) -> Iterator[Path]:
    if kind == "dataset":
        # A data set on the hub has no file here; its name stands for it.
        place = Path(os.environ.get(DATA_SETTING, ".")) / name
        yield from sorted(path for path in place.rglob("*") if path.is_file())
        return
    for path in data_file(name):
        yield from text_files(path) if path.is_dir() else [path]


def _name(file: Path) -> str:
    root = Path(os.environ.get(DATA_SETTING, "."))
    return file.relative_to(root).as_posix() if file.is_relative_to(root) else str(file)


def contents(folder: Path, parts: tuple[str, ...], table: Path) -> dict[str, str | None]:
    """The hash of each part of a stage's output, a folder's of all its files together; None where it is missing."""
    hashes: dict[str, str | None] = {}
    for part in parts:
        place = folder / part
        if place.is_dir():
            files = sorted(file for file in place.rglob("*") if file.is_file())
            lines = [f"{file.relative_to(place).as_posix()} {known_hash(file, table)}\n" for file in files]
            hashes[part] = hashlib.sha256("".join(lines).encode()).hexdigest()
        else:
            hashes[part] = known_hash(place, table) if place.is_file() else None
    return hashes


def digest(made: Mapping[str, Any]) -> str:
    """A short hash of a value of `made_from`."""
    return hashlib.sha256(json.dumps(made, sort_keys=True).encode()).hexdigest()[:16]


def differences(before: Mapping[str, Any], now: Mapping[str, Any]) -> list[str]:
    """The changes between two values of `made_from`, each in a few words."""
    changes = []
    if before["seed"] != now["seed"]:
        changes.append(f"the seed was {before['seed']} and is {now['seed']}")
    for key in sorted(before["settings"].keys() | now["settings"].keys()):
        old, new = (made["settings"].get(key, "not set") for made in (before, now))
        if old != new:
            changes.append(f"the recipe changed: {key} was {_short(old)} and is {_short(new)}")
    for kind, title in (("files", "the corpus changed: the file"), ("stages", "an earlier stage was made anew:")):
        for name in sorted(before[kind].keys() | now[kind].keys()):
            if name not in now[kind]:
                changes.append(f"{title} {name} is no longer read")
            elif name not in before[kind]:
                changes.append(f"{title} {name} was not read before")
            elif before[kind][name] != now[kind][name]:
                changes.append(f"{title} {name} is another")
    return changes


def _short(value: Any) -> str:
    text = value if value == "not set" else json.dumps(value)
    return text if len(text) <= 40 else f"{text[:18]}...{text[-18:]}"


def write_stamp(recipe: Recipe, stage: str, made: Mapping[str, Any]) -> None:
    """Write the stamp of a finished stage: its inputs, and the hashes of its output."""
    folder = recipe.folder(stage)
    output = contents(folder, stage_named(stage).makes, recipe.run.parent / TABLE)
    missing = [part for part, value in output.items() if value is None]
    if missing:
        raise UserError(f"the stage {stage} left no {missing[0]} in {folder}", "run it again")
    write_json(folder / STAMP, {"made_from": made, "output": output})


def why_again(recipe: Recipe, stage: str, made: Mapping[str, Any]) -> list[str]:
    """The reasons why a stage has to run; empty where its stamp matches the present inputs and its output is unchanged."""
    folder = recipe.folder(stage)
    try:
        stamp = json.loads((folder / STAMP).read_text(encoding="utf-8"))
        changes = differences(stamp["made_from"], json.loads(json.dumps(made)))
        output = stamp["output"]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return ["it has not been finished before"]
    now = contents(folder, tuple(output), recipe.run.parent / TABLE)
    changes += [f"its output {part} is {'missing' if now[part] is None else 'damaged'}" for part in output if now[part] != output[part]]
    return changes
