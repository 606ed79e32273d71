"""Reading JSON, and writing files and folders atomically: complete or not at all."""

from __future__ import annotations

import errno
import json
import os
import re
import secrets
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

from interp.errors import UserError

# What a shared writer leaves beside its target is taken for that of a killed one once nothing has changed it for so long.
STALE_SECONDS = 24 * 3600.0
FULL_DISK = (errno.ENOSPC, errno.EDQUOT)


def read_json(path: Path, fix: str = "restore the file") -> dict[str, Any]:
    """A JSON object from a file.

    Args:
        fix: what to do about a file that cannot be used.

    Raises:
        UserError: the file is missing, may not be read by this user, is no JSON, or holds something else than an object.
    """
    try:
        record = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise UserError(f"there is no file {path}", fix) from error
    except PermissionError as error:
        raise not_allowed(path) from error
    except (OSError, UnicodeDecodeError, json.JSONDecodeError, RecursionError) as error:
        raise UserError(f"{path} is not readable JSON: {error}", fix) from error
    if not isinstance(record, dict):
        raise UserError(f"{path} holds a {type(record).__name__}, not an object", fix)
    return record


def not_allowed(path: object) -> UserError:
    """The error for a file or folder whose permissions keep this user out."""
    folder = shlex.quote(str(Path(str(path)).parent))
    return UserError(f"{path} may not be read by the user who runs this", f"let everyone read it: chmod -R a+rX {folder}")


@contextmanager
def replacing(target: Path, *, shared: bool = False) -> Iterator[Path]:
    """A path beside `target` to write a file or a folder to; it becomes `target` when the block ends without an error.

    Until then `target` stays as it was, and it stays so after an error, a full disk or a kill. Folders above `target` are
    created. What a killed writer left beside it is removed by the next one. A writer killed while a folder is exchanged leaves
    no `target`; the next one moves the old folder back before it begins.

    Args:
        shared: several processes or threads may write this target at the same time; each then writes to a name of its own.
            Since another's files may be in use, those of a killed writer are removed (or moved back) only after a day.
    """
    mark = f".{os.getpid()}-{threading.get_ident()}-{secrets.token_hex(4)}" if shared else ""
    temporary, old = (target.with_name(f".{target.name}{mark}.{end}") for end in ("tmp", "old"))
    target.parent.mkdir(parents=True, exist_ok=True)
    if shared:
        _sweep(target)
    elif old.exists() and not target.exists():
        os.replace(old, target)
    _remove(temporary)
    try:
        yield temporary
        if target.is_dir():
            # A folder cannot be moved onto one that is not empty.
            _remove(old)
            os.replace(target, old)
            try:
                os.replace(temporary, target)
            except OSError:
                os.replace(old, target)
                raise
            _remove(old)
        else:
            os.replace(temporary, target)
    except OSError as error:
        # Writing to a full disk names no file.
        if is_full_disk(error) and error.filename is None:
            error.filename = str(target)
        raise
    finally:
        _remove(temporary)


def write_text(file: Path, text: str, *, shared: bool = False) -> None:
    """Write a text file as a whole or not at all; `shared` as in `replacing`."""
    with replacing(file, shared=shared) as temporary:
        temporary.write_text(text, encoding="utf-8")


def write_json(file: Path, value: Any) -> None:
    """Write a value as JSON, as a whole or not at all; several processes or threads may write the same file."""
    write_text(file, json.dumps(value, indent=1), shared=True)


def write_together(files: Mapping[str, str], folder: Path) -> None:
    """Write several text files such that a failure while writing leaves every old file as it was."""
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(prefix=".writing-", dir=folder) as temporary:
        for name, text in files.items():
            (Path(temporary) / name).write_text(text, encoding="utf-8")
        for name in files:
            os.replace(Path(temporary) / name, folder / name)


def cache_folder() -> Path | None:
    """The folder in which indexes and converted models are cached between calls, or None where no folder can be written."""
    folder = Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "bypass"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError:
        return None
    return folder if os.access(folder, os.W_OK) else None


def is_full_disk(error: BaseException) -> bool:
    """Whether an error was caused by a full disk, by its number or by the message of the library that raised it."""
    return getattr(error, "errno", None) in FULL_DISK or "os error 28" in str(error) or "No space left on device" in str(error)


def _sweep(target: Path) -> None:
    """Remove what shared writers of `target` that were killed left beside it; an old folder whose target is missing is moved back."""
    form = re.compile(rf"\.{re.escape(target.name)}\.\d+-\d+-[0-9a-f]+\.(tmp|old)")
    for path in [path for path in target.parent.iterdir() if form.fullmatch(path.name)]:
        # Another writer may finish, or sweep the same file, meanwhile.
        with suppress(FileNotFoundError):
            # A rename sets the time of change alone.
            if time.time() - max(path.stat().st_mtime, path.stat().st_ctime) < STALE_SECONDS:
                continue
            if path.suffix == ".old" and not target.exists():
                os.replace(path, target)
            else:
                _remove(path)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
