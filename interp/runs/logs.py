"""The logs of the run that made a pair, for the experiments that ask how tuning went and what its controls did.

Weights do not say how they were made, so logs are taken for a pair's only where the digests in them are its own; anything else
is "no telemetry of this pair", and the report leaves the experiment out. Logs lie in the bundle's folder `log`, in any folder
of that form, or in the folder of a training run.
"""

from __future__ import annotations

import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Any

from interp.errors import UserError
from interp.files import read_json
from interp.bundled import BUNDLED
from interp.runs.telemetry import read_lines

if TYPE_CHECKING:
    from interp.models.pair import ModelPair

BUNDLED_LOGS = BUNDLED / "log"
# Where each log lies: in a bundle's folder, or in that of a run.
FILES: dict[str, tuple[str, ...]] = {
    "pair": ("pair.json",),
    "pairs": ("pairs.json", "pairs/manifest.json"),
    "tuning": ("dpo.jsonl", "dpo/log.jsonl"),
    "controls": ("controls.json", "dpo/controls.json"),
}
FIX = "name the folder of the run that made it with --logs; `python -m training.studies.toxicity_controls` says there which pair it is"


def log_file(folder: Path, name: str) -> Path | None:
    """The file of a log, if it is there."""
    return next((folder / place for place in FILES[name] if (folder / place).is_file()), None)


def logs_digest(folder: Path) -> str:
    """A hash of every log in a folder: what a result depends on that was read from them."""
    digest = hashlib.sha256()
    for name in FILES:
        file = log_file(folder, name)
        digest.update(name.encode() + (file.read_bytes() if file else b""))
    return digest.hexdigest()


def read_pairs_log(folder: Path, pair: ModelPair) -> dict[str, Any]:
    """What the training chain wrote of the preference pairs. Raises `UserError` where they were not made with this base."""
    found = _object(folder, "pairs")
    if found.get("base") != pair.base.digest:
        raise UserError("no telemetry of this pair: the logged preference pairs were made with another base", FIX)
    return found


def read_tuning_log(folder: Path, pair: ModelPair) -> list[dict[str, Any]]:
    """The lines of the tuning's log, of the schema of `interp.telemetry`. Raises `UserError` where they are not this pair's."""
    _check_both(folder, pair)
    file = log_file(folder, "tuning")
    records = read_lines(file) if file else []
    if not records:
        raise UserError(f"no telemetry of this pair: no log of its tuning in {folder.name}", FIX)
    return records


def read_controls(folder: Path, pair: ModelPair) -> dict[str, Any]:
    """The table of control runs that `training.studies.toxicity_controls` wrote. Raises `UserError` where there is none of this pair."""
    found = _object(folder, "controls")
    if (found.get("base"), found.get("tuned")) != (pair.base.digest, pair.tuned.digest):
        raise UserError("no telemetry of this pair: the control runs were measured beside another pair", FIX)
    return found


def controls_if_any(folder: Path, pair: ModelPair) -> dict[str, Any] | None:
    """The table of control runs, or None where there is none of this pair. Raises `UserError` for a damaged file."""
    if log_file(folder, "controls") is None:
        return None
    found = _object(folder, "controls")
    return found if (found.get("base"), found.get("tuned")) == (pair.base.digest, pair.tuned.digest) else None


def _check_both(folder: Path, pair: ModelPair) -> None:
    name = next((name for name in ("pair", "controls") if log_file(folder, name)), None)
    if name is None:
        raise UserError(f"no telemetry of this pair: nothing in {folder.name} says which pair its logs are of", FIX)
    found = _object(folder, name)
    if (found.get("base"), found.get("tuned")) != (pair.base.digest, pair.tuned.digest):
        raise UserError("no telemetry of this pair: the logs are of another one", FIX)


def _object(folder: Path, name: str) -> dict[str, Any]:
    file = log_file(folder, name)
    if file is None:
        raise UserError(f"no telemetry of this pair: {folder.name} has no {FILES[name][0]}", FIX)
    return read_json(file, "write it again")
