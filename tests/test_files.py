"""Files and folders that are replaced whole or not at all, also by a writer that is killed, and JSON that cannot be used."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest

from interp.errors import UserError
from interp.files import read_json, replacing, write_json, write_text
from tests import ROOT


def write_file(path: Path, text: str) -> None:
    path.write_text(text, encoding="utf-8")


def write_folder(path: Path, text: str) -> None:
    path.mkdir()
    (path / "part").write_text(text, encoding="utf-8")


def content(path: Path) -> str:
    return ((path / "part") if path.is_dir() else path).read_text(encoding="utf-8")


KINDS = {"file": write_file, "folder": write_folder}
Write = Callable[[Path, str], None]


@pytest.fixture(params=KINDS)
def write(request: pytest.FixtureRequest) -> Write:
    return KINDS[request.param]


@pytest.mark.parametrize("shared", [False, True])
def test_the_new_one_takes_the_place_of_the_old_one_and_leaves_nothing_beside_it(write: Write, shared: bool, tmp_path: Path) -> None:
    target = tmp_path / "above" / "target"
    for text in ("first", "second"):
        with replacing(target, shared=shared) as temporary:
            write(temporary, text)
            assert not target.exists() or content(target) == "first"
        assert content(target) == text
    assert [path.name for path in target.parent.iterdir()] == ["target"]


def test_a_failure_while_writing_leaves_the_old_one_and_nothing_beside_it(write: Write, tmp_path: Path) -> None:
    target = tmp_path / "target"
    write(target, "old")

    def half() -> None:
        with replacing(target) as temporary:
            write(temporary, "half")
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left") as caught:
        half()
    assert caught.value.filename == str(target)
    assert content(target) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_failure_while_replacing_leaves_the_old_one(write: Write, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, move = tmp_path / "target", os.replace
    write(target, "old")

    def failing(source: Path, to: Path) -> None:
        if Path(source).name.endswith(".tmp"):
            raise OSError(28, "No space left on device")
        move(source, to)

    monkeypatch.setattr("os.replace", failing)

    def replace() -> None:
        with replacing(target) as temporary:
            write(temporary, "new")

    with pytest.raises(OSError, match="No space left"):
        replace()
    assert content(target) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


KILLED = """
import os, signal, sys
from pathlib import Path
from interp.files import replacing
with replacing(Path(sys.argv[1])) as temporary:
    temporary.write_text("half")
    os.kill(os.getpid(), signal.SIGKILL)
"""


def test_a_killed_writer_leaves_the_old_one_and_the_next_one_clears_up(tmp_path: Path) -> None:
    target = tmp_path / "target"
    target.write_text("old")
    done = subprocess.run([sys.executable, "-c", KILLED, str(target)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    assert target.read_text() == "old"
    assert len(list(tmp_path.iterdir())) == 2
    write_text(target, "new")
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"target": "new"}


KILLED_BETWEEN = """
import os, signal, sys
from pathlib import Path
from interp.files import replacing
move = os.replace
def killed_after(source, target):
    move(source, target)
    os.kill(os.getpid(), signal.SIGKILL)
os.replace = killed_after
with replacing(Path(sys.argv[1])) as temporary:
    temporary.mkdir()
    (temporary / "part").write_text("new")
"""


def test_a_folder_whose_writer_is_killed_between_the_two_moves_is_back_when_the_next_one_begins(tmp_path: Path) -> None:
    target = tmp_path / "target"
    write_folder(target, "old")
    done = subprocess.run(
        [sys.executable, "-c", KILLED_BETWEEN, str(target)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False
    )
    assert done.returncode == -signal.SIGKILL
    assert not target.exists(), "the kill was not between the two moves"

    def fail() -> None:
        with replacing(target):
            assert content(target) == "old"
            raise OSError(28, "No space left on device")

    with pytest.raises(OSError, match="No space left"):
        fail()
    assert content(target) == "old"
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_threads_that_write_one_file_do_not_take_each_others_parts(tmp_path: Path) -> None:
    file, errors = tmp_path / "record.json", []

    def write_many(number: int) -> None:
        try:
            for turn in range(200):
                write_json(file, {"writer": number, "turn": turn})
        except OSError as error:
            errors.append(error)

    writers = [threading.Thread(target=write_many, args=(number,)) for number in range(4)]
    for writer in writers:
        writer.start()
    for writer in writers:
        writer.join()
    assert errors == []
    assert read_json(file)["turn"] == 199
    assert [path.name for path in tmp_path.iterdir()] == ["record.json"]


def test_what_a_killed_shared_writer_left_is_removed_once_it_is_a_day_old(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, other = tmp_path / "target", tmp_path / ".target.json.1-2-ab.tmp"
    killed = KILLED.replace("sys.argv[1])", "sys.argv[1]), shared=True")
    done = subprocess.run([sys.executable, "-c", killed, str(target)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL
    (left,) = tmp_path.iterdir()
    other.write_text("of another file")
    write_text(target, "first", shared=True)
    assert left.read_text() == "half", "it might be in use"
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    write_text(target, "second", shared=True)
    assert {path.name: path.read_text() for path in tmp_path.iterdir()} == {"target": "second", other.name: "of another file"}


def test_an_old_folder_of_a_killed_shared_writer_is_moved_back_once_it_is_a_day_old(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, seen = tmp_path / "target", []
    write_folder(target, "old")
    killed = KILLED_BETWEEN.replace("sys.argv[1])", "sys.argv[1]), shared=True")
    done = subprocess.run([sys.executable, "-c", killed, str(target)], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)}, check=False)
    assert done.returncode == -signal.SIGKILL

    def see() -> None:
        with suppress(OSError), replacing(target, shared=True):
            seen.append(content(target) if target.exists() else None)
            raise OSError(28, "No space left on device")

    see()
    now = time.time()
    monkeypatch.setattr(time, "time", lambda: now + 25 * 3600)
    see()
    assert seen == [None, "old"]
    assert [path.name for path in tmp_path.iterdir()] == ["target"]


def test_a_reader_never_sees_a_part(tmp_path: Path) -> None:
    file, texts, seen, stop = tmp_path / "file", ["a" * 300_000, "b" * 300_000], set(), threading.Event()
    write_text(file, texts[0])

    def read() -> None:
        while not stop.is_set():
            seen.add(file.read_text())

    reader = threading.Thread(target=read)
    reader.start()
    for number in range(200):
        write_text(file, texts[number % 2])
    stop.set()
    reader.join()
    assert seen
    assert seen <= set(texts)


def test_json_is_read_as_it_was_written(tmp_path: Path) -> None:
    record = {"a": [1, 2.5, None], "ü": {"b": True}}
    write_json(tmp_path / "new" / "record.json", record)
    assert read_json(tmp_path / "new" / "record.json") == record


@pytest.mark.parametrize(
    ("content", "problem"),
    [
        (None, "there is no file"), (b"{", "is not readable JSON"), (b"", "is not readable JSON"),
        (b"\xff\xfe\x00", "is not readable JSON"),
        (b"[1]", "holds a list, not an object"), (b"1", "holds a int, not an object"), (b"[" * 100_000, "is not readable JSON"),
    ],
    ids=str,
)  # fmt: skip
def test_json_that_is_no_object_is_refused_with_what_to_do(content: bytes | None, problem: str, tmp_path: Path) -> None:
    file = tmp_path / "record.json"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(UserError, match=problem) as caught:
        read_json(file, "write it once more")
    assert str(file) in caught.value.problem
    assert caught.value.fix == "write it once more"


def test_json_that_is_closed_to_this_user_says_how_to_open_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "record.json"
    file.write_text(json.dumps({}))

    def closed(self: Path, *args: object, **more: object) -> str:
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "read_text", closed)
    with pytest.raises(UserError, match=r"record.json may not be read.*chmod -R a\+rX"):
        read_json(file)
