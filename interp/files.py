"""Reading JSON, and writing files so that they are whole or not there."""

from __future__ import annotations

import json
import os
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from interp.errors import UserError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object from a file. Raises `UserError` saying what is wrong with the file."""
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}", "run `bypass report` first, or name the folder it wrote") from error
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        raise UserError(f"{path} is not JSON: {error}", "run `bypass report` again") from error
    if not isinstance(record, dict):
        raise UserError(f"{path} holds a {type(record).__name__}, not an object", "run `bypass report` again")
    return record


def write_together(files: Mapping[str, str], folder: Path) -> None:
    """Write several text files such that a failure while writing leaves every old file as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as temporary:
        for name, text in files.items():
            (Path(temporary) / name).write_text(text, encoding="utf-8")
        for name in files:
            os.replace(Path(temporary) / name, folder / name)
