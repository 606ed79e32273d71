"""Stages run when what they are made from has changed, and only then; what changed, what is damaged and a full disk are told apart."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from safetensors import SafetensorError

from interp import UserError
from interp.files import is_full_disk
from tests import ROOT
from tests.training.grammar import write_language
from training import checkpoint, stamps
from training.cli import run_stage
from training.recipe import DATA_SETTING, RUNS_SETTING, load_recipe
from training.stamps import differences, known_hash, made_from


@pytest.fixture(scope="module")
def finished(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a small language, its recipe of six steps, and a run of corpus, tokenizer and pretrain."""
    root = tmp_path_factory.mktemp("stages")
    recipe = write_language(root, documents=300)
    text = (
        recipe.read_text(encoding="utf-8").replace("epochs = 2", "steps = 6\nevaluate_kilobytes = 1").replace("_every = 50", "_every = 3")
    )
    recipe.write_text(text.split("[probe]")[0], encoding="utf-8")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv(DATA_SETTING, str(root))
        patch.setenv(RUNS_SETTING, str(root / "runs"))
        run_stage("all", recipe)
    return root


@pytest.fixture
def root(finished: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A copy of the finished run, whose files may be harmed."""
    shutil.copytree(finished, tmp_path, dirs_exist_ok=True)
    monkeypatch.setenv(DATA_SETTING, str(tmp_path))
    monkeypatch.setenv(RUNS_SETTING, str(tmp_path / "runs"))
    return tmp_path


def change(root: Path, old: str, new: str, name: str = "tiny.toml") -> None:
    text = (root / name).read_text(encoding="utf-8")
    assert old in text
    (root / name).write_text(text.replace(old, new), encoding="utf-8")


def said(capsys: pytest.CaptureFixture[str], root: Path, stage: str = "all", *, again: bool = False) -> list[str]:
    """The lines that begin with the name of a stage."""
    capsys.readouterr()
    run_stage(stage, root / "tiny.toml", again=again)
    return [line for line in capsys.readouterr().out.splitlines() if line.startswith(("corpus:", "tokenizer:", "pretrain:"))]


SKIPPED = [f"{stage}: unchanged, skipped" for stage in ("corpus", "tokenizer", "pretrain")]


def test_a_run_of_which_nothing_changed_is_skipped_whatever_the_dates_of_its_files(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert said(capsys, root) == SKIPPED
    for file in root.rglob("*"):
        os.utime(file, (1, 1))
    assert said(capsys, root) == SKIPPED
    change(root, "evaluate_every = 3", "evaluate_every = 2")
    change(root, "[tokenizer]", "# a remark\n[tokenizer]")
    assert said(capsys, root) == SKIPPED, "how a run is watched does not change what it makes"


def test_a_file_is_hashed_again_only_when_its_size_or_time_is_another(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    read: list[Path] = []
    monkeypatch.setattr(stamps, "file_hash", lambda path, real=stamps.file_hash: read.append(path) or real(path))
    file, table = tmp_path / "a", tmp_path / "hashes.json"
    file.write_text("river")
    first = known_hash(file, table)
    assert known_hash(file, table) == first == stamps.file_hash(file)
    assert len(read) == 2
    file.write_text("stone")
    os.utime(file, ns=(1, 1))
    assert known_hash(file, table) != first
    table.write_text("{damaged")
    assert known_hash(file, table) != first


def test_a_changed_setting_runs_its_stage_and_those_after_it_and_a_checkpoint_of_before_is_not_continued(
    root: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    change(root, "vocabulary = 360", "vocabulary = 340")
    with pytest.raises(UserError, match=r"an earlier stage was made anew: tokenizer/tokenizer.json is another.*--again"):
        said(capsys, root)
    out = capsys.readouterr().out
    assert "corpus: unchanged, skipped" in out
    assert "tokenizer: made again, since the recipe changed: vocabulary was 360 and is 340" in out
    lines = said(capsys, root, "pretrain", again=True)
    assert lines[0] == "pretrain: made again, since asked for"
    assert said(capsys, root) == SKIPPED
    assert json.loads((root / "runs/tiny/pretrain/model/config.json").read_text())["vocab_size"] == 340


def test_a_changed_recipe_a_changed_corpus_file_and_a_changed_seed_are_told_apart(root: Path) -> None:
    change(root, "learning_rate = 1e-2", "learning_rate = 3e-2")
    with pytest.raises(UserError, match=r"\(the recipe changed: learning_rate was 0.01 and is 0.03\)"):
        run_stage("pretrain", root / "tiny.toml")
    change(root, "learning_rate = 3e-2", "learning_rate = 1e-2")
    change(root, "seed = 3", "seed = 4")
    with pytest.raises(UserError, match=r"\(the seed was 3 and is 4\)"):
        run_stage("pretrain", root / "tiny.toml")
    change(root, "seed = 4", "seed = 3")
    with (root / "runs/tiny/corpus/train.jsonl").open("a") as stream:
        stream.write('{"source": "talk", "text": "one more"}\n')
    with pytest.raises(UserError, match=r"\(an earlier stage was made anew: corpus/train.jsonl is another\)"):
        run_stage("pretrain", root / "tiny.toml")


def test_a_corpus_file_that_changed_is_named(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with (root / "talk-0.jsonl").open("a") as stream:
        stream.write('\n{"text": "one more document of the river"}\n')
    assert said(capsys, root, "corpus")[0] == "corpus: made again, since the corpus changed: the file talk-0.jsonl is another"
    assert said(capsys, root, "corpus") == SKIPPED[:1]


def test_a_data_set_of_ones_own_is_read_again_when_a_file_of_it_changed(root: Path) -> None:
    change(root, 'path = "talk-*.jsonl"', 'dataset = "own"')
    (root / "own").mkdir()
    (root / "own" / "a.jsonl").write_text('{"text": "a river"}\n')
    recipe = load_recipe(root / "tiny.toml")
    before = made_from(recipe, "corpus")
    assert before["files"].keys() == {"more.jsonl.gz", "own/a.jsonl"}
    (root / "own" / "a.jsonl").write_text('{"text": "a stone and more"}\n')
    assert differences(before, made_from(recipe, "corpus")) == ["the corpus changed: the file own/a.jsonl is another"]


def test_output_that_was_cut_off_or_lost_is_made_again_from_the_checkpoint(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    weights = root / "runs/tiny/pretrain/model/model.safetensors"
    whole = weights.read_bytes()
    weights.write_bytes(whole[:-100])
    assert said(capsys, root)[2] == "pretrain: made again, since its output model is damaged"
    assert weights.read_bytes() == whole
    (root / "runs/tiny/corpus/heldout.jsonl").unlink()
    lines = said(capsys, root)
    assert lines[0] == "corpus: made again, since its output heldout.jsonl is missing"
    assert lines[-1] == SKIPPED[2], "a corpus made again to the same content changes nothing after it"


@pytest.mark.parametrize("harm", ["cut", "rot"])
def test_a_checkpoint_that_was_cut_off_or_has_rotted_is_recognised(root: Path, harm: str) -> None:
    (root / "runs/tiny/pretrain/stamp.json").unlink()
    for name in ("model.safetensors", "optimizer.safetensors", "state.json"):
        file = root / "runs/tiny/pretrain/checkpoint" / name
        whole = file.read_bytes()
        # One bit in the middle of a number leaves every file readable.
        at = whole.index(b'"step": 6') + 8 if name == "state.json" else len(whole) - 6
        file.write_bytes(whole[:-7] if harm == "cut" else whole[:at] + bytes([whole[at] ^ 1]) + whole[at + 1 :])
        with pytest.raises(UserError, match=rf"{name}.*(damaged|cut off|cannot be read).*restore the checkpoint folder"):
            run_stage("pretrain", root / "tiny.toml")
        file.write_bytes(whole)
    run_stage("pretrain", root / "tiny.toml")


def test_a_control_reads_unchanged_stages_from_the_run_that_it_extends(root: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (root / "child.toml").write_text('extends = "tiny.toml"\n[pretrain]\nsteps = 3\n')
    run_stage("all", root / "child.toml")
    out = capsys.readouterr().out
    assert "corpus: as in tiny, whose run is read\ntokenizer: as in tiny, whose run is read\n" in out
    assert sorted(path.name for path in (root / "runs/child").iterdir()) == ["pretrain"]
    state = json.loads((root / "runs/child/pretrain/checkpoint/state.json").read_text())
    assert state["step"] == 3


def test_a_full_disk_names_what_is_kept(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    change(root, "steps = 6", "steps = 9")
    shutil.rmtree(root / "runs/tiny/pretrain")
    written: list[Path] = []

    def fill(tensors: object, path: Path, real: object = checkpoint.save_file) -> None:
        written.append(path)
        if len(written) > 2:
            raise SafetensorError("Error while serializing: I/O error: No space left on device (os error 28)")
        real(tensors, path)  # type: ignore[operator]

    with monkeypatch.context() as patch:
        patch.setattr(checkpoint, "save_file", fill)
        with pytest.raises(
            UserError, match=r"the disk is full: the stage pretrain could not write.*the checkpoint of step 3 and earlier stages are kept"
        ):
            run_stage("pretrain", root / "tiny.toml")
    run_stage("pretrain", root / "tiny.toml")
    assert json.loads((root / "runs/tiny/pretrain/checkpoint/state.json").read_text())["step"] == 9


def test_a_disk_that_is_really_full_is_said_in_one_line(root: Path) -> None:
    disk = root / "disk"
    disk.mkdir()
    mount = f'mount -t tmpfs -o size=32k tmpfs {disk} && exec "$@"'
    if (
        shutil.which("unshare") is None
        or subprocess.run(["unshare", "-rm", "sh", "-c", f"mount -t tmpfs tmpfs {disk}"], check=False).returncode
    ):
        pytest.skip("this machine lets no test mount a small disk")
    words = ["unshare", "-rm", "sh", "-c", mount, "sh", sys.executable, "-m", "interp.cli", "train", "corpus", str(root / "tiny.toml")]
    done = subprocess.run(words, cwd=ROOT, env={**os.environ, RUNS_SETTING: str(disk)}, capture_output=True, text=True, check=False)
    assert done.returncode == 2, done.stderr
    assert done.stderr.startswith("bypass: the disk is full: the stage corpus could not write to")
    assert len(done.stderr.splitlines()) == 1


def test_other_errors_are_not_taken_for_a_full_disk() -> None:
    assert not is_full_disk(OSError(13, "Permission denied"))
    assert not is_full_disk(UserError("a line of 28 words"))


def test_stages_that_cannot_run_say_why(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(UserError, match=r"there is no stage 'tune'.*continue"):
        run_stage("tune", root / "tiny.toml")
    with pytest.raises(UserError, match=r"no \[probe\] section"):
        run_stage("probe", root / "tiny.toml")
    monkeypatch.setenv("WORLD_SIZE", "2")
    with pytest.raises(UserError, match=r"the stage corpus runs in one process"):
        run_stage("corpus", root / "tiny.toml")
