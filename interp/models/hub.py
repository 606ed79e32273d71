"""Where a hub id's files lie: the snapshot in the local cache, else a download. A path that does not exist is told as one."""

from __future__ import annotations

from difflib import get_close_matches
from pathlib import Path

from huggingface_hub import snapshot_download, try_to_load_from_cache
from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

from interp.errors import UserError
from interp.models.folders import is_complete

# Every snapshot that holds a model has one of these.
NOTES = ("config.json", "adapter_config.json")
# What loading reads; in subfolders of a repository lie copies for other programs.
READ = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")
FAULTS = (OSError, ValueError, RuntimeError, HfHubHTTPError, LocalEntryNotFoundError)


def snapshot(hub_id: str) -> Path | None:
    """The folder of a hub id's newest snapshot in the local cache, or None; nothing is asked of the network."""
    for name in NOTES:
        try:
            file = try_to_load_from_cache(hub_id, name)
        except HFValidationError:
            return None
        if isinstance(file, str):
            return Path(file).parent
    return None


def hub_folder(hub_id: str) -> Path:
    """The folder with the files of a hub id: its cached snapshot where that is complete, else a download into the cache.

    A snapshot in the cache is used as it is, without asking the hub for a newer one. Raises `UserError` where there is neither a
    snapshot nor a download, and for what rather looks like a mistyped path.
    """
    cached = snapshot(hub_id)
    if cached is not None and is_complete(cached):
        return cached
    folder = Path(hub_id).expanduser()
    meant = _did_you_mean(folder)
    # A folder may bear the name of an owner on the hub, so that a name in it is taken for a path only where one like it is there.
    a_path = folder.is_absolute() or hub_id.startswith((".", "~")) or hub_id.count("/") > 1 or (meant and len(folder.parts) > 1)
    if cached is None and a_path:
        raise UserError(f"there is no folder {folder}", meant or "give an existing folder or a hub id")
    try:
        return Path(snapshot_download(hub_id, allow_patterns=list(READ), ignore_patterns=["*/*"]))
    except FAULTS as error:
        if cached is not None:
            # What it lacks is named by the checks of every folder.
            return cached
        first = str(error).strip().splitlines()[0] if str(error).strip() else type(error).__name__
        problem = f"there is no folder {hub_id!r} here, and the hub id {hub_id!r} could not be loaded ({first.rstrip('.')})"
        fix = meant or "check the id and the network, or download the model and give its folder"
        raise UserError(problem, fix) from error


def _did_you_mean(path: Path) -> str:
    """The fix that names the folder most like a mistyped path, or an empty string."""
    try:
        beside = [entry.name for entry in path.parent.iterdir() if entry.is_dir()] if path.parent.is_dir() else []
    except OSError:
        return ""
    close = get_close_matches(path.name, beside, n=1)
    return f"give {path.parent / close[0]}, if that is meant" if close else ""
