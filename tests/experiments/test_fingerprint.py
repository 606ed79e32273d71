"""What a result's fingerprint covers: the code that the experiment's file imports and the data that is read, and nothing else."""

from __future__ import annotations

import json
import sys
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest

from interp import ModelPair
from interp.data.texts import Passage
from interp.directions.probe import fit_probe
from interp.evaluation.toxicity import LexiconScorer
from interp.experiments import fingerprint as fingerprints
from interp.experiments.fingerprint import code_digest, fingerprint, modules_of
from interp.experiments.registry import EXPERIMENTS, Experiment
from interp.experiments.run import run_report
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.user_files import read_experiments

PACKAGE = {
    "interp/__init__.py": '"""The package."""\nfrom typing import TYPE_CHECKING\nif TYPE_CHECKING:\n    from interp.lazy import handed\n',
    "interp/used.py": '"""Used."""\n\ndef half(x):\n    """Half of it."""\n    return x / 2  # exactly\n',
    "interp/deep/__init__.py": "from interp.deep.below import third\n",
    "interp/deep/below.py": "def third(x):\n    return x / 3\n",
    "interp/lazy.py": "def handed(x):\n    return x\n",
    "interp/inside.py": "NUMBER = 1\n",
    "interp/named.py": "NUMBER = 2\n",
    "interp/typed.py": "class Kind: ...\n",
    "interp/unused.py": "NUMBER = 3\n",
}
OWN = """
from typing import TYPE_CHECKING
from interp import handed
from interp.deep import third
from interp.used import half
import helper
if TYPE_CHECKING:
    from interp.typed import Kind

def run(study):
    from importlib import import_module
    from interp.inside import NUMBER
    return import_module("interp.named").NUMBER + helper.one()
"""


@dataclass(frozen=True)
class Invented:
    """A package and, outside of it, a user's file; `digest` is of the code behind that file."""

    root: Path
    own: Path

    def modules(self) -> set[str]:
        return {str(file.relative_to(self.root)) for file in modules_of([self.own])}

    def code(self) -> list[str]:
        return sorted(fingerprints._code(file, file.stat().st_mtime_ns) for file in modules_of([self.own]))

    def write(self, name: str, text: str) -> None:
        file = self.root / name
        file.write_text(text, encoding="utf-8")
        # Read anew even where the clock is too coarse to tell the two writings apart.
        for cache in (fingerprints._tree, fingerprints._code, fingerprints._imported):
            cache.cache_clear()


@pytest.fixture
def invented(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Invented:
    for name, text in {**PACKAGE, "mine/own.py": OWN, "mine/helper.py": "def one():\n    return 1\n"}.items():
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / name).write_text(text, encoding="utf-8")
    monkeypatch.setattr(fingerprints, "ROOT", tmp_path / "interp")
    return Invented(tmp_path, tmp_path / "mine" / "own.py")


def test_a_file_counts_with_all_that_it_imports_wherever_it_does(invented: Invented) -> None:
    assert invented.modules() == {
        "mine/own.py", "mine/helper.py", "interp/used.py", "interp/deep/below.py", "interp/lazy.py", "interp/inside.py", "interp/named.py",
    }  # fmt: skip


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("interp/used.py", '"""Worded anew."""\n\n\ndef half(x):\n    """One half."""\n    # and a comment\n    return (x / 2)\n'),
        ("interp/unused.py", "NUMBER = 4\n"),
        ("interp/typed.py", "class Kind:\n    size = 1\n"),
        ("interp/__init__.py", PACKAGE["interp/__init__.py"] + "VERSION = 2\n"),
        ("mine/own.py", '"""Mine."""\n' + OWN.replace("def run(study):", 'def run(study):\n    """What it says."""')),
    ],
)
def test_words_and_modules_that_are_not_used_rerun_nothing(invented: Invented, name: str, text: str) -> None:
    before = invented.code()
    invented.write(name, text)
    assert invented.code() == before


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("interp/used.py", "def half(x):\n    return x / 2.5\n"),
        ("interp/deep/below.py", "def third(x):\n    return x // 3\n"),
        ("interp/lazy.py", "def handed(x):\n    return -x\n"),
        ("interp/inside.py", "NUMBER = 10\n"),
        ("interp/named.py", "NUMBER = 20\n"),
        ("mine/helper.py", "def one():\n    return 1.0\n"),
        ("mine/own.py", OWN.replace("+ helper", "- helper")),
    ],
)
def test_a_function_that_is_used_reruns_when_it_changes(invented: Invented, name: str, text: str) -> None:
    before = invented.code()
    invented.write(name, text)
    assert invented.code() != before


def test_relative_imports_and_packages_that_define_a_name_themselves_count(invented: Invented) -> None:
    invented.write("interp/deep/__init__.py", "def third(x):\n    return x / 3\n")
    invented.write("interp/used.py", "from .inside import NUMBER\nfrom . import unused\n")
    assert {"interp/deep/__init__.py", "interp/inside.py", "interp/unused.py"} <= invented.modules()
    assert "interp/deep/below.py" not in invented.modules()


def test_each_experiment_counts_with_its_own_file_and_study_but_not_with_other_experiments() -> None:
    run = Path(fingerprints.__file__).with_name("toxicity")
    files = modules_of([run / "a_e9_activations.py", run / "context.py"])
    names = {file.relative_to(fingerprints.ROOT).as_posix() for file in files}
    assert {"neurons/activations.py", "stats/nulls.py", "evaluation/toxicity.py", "forward/capture.py"} <= names
    assert not {"patching/maps.py", "experiments/toxicity/a_e1_probe.py", "lens/logit_lens.py", "cli.py"} & names


@pytest.fixture
def context(pair: ModelPair) -> ToxicityContext:
    texts = [f"river stone {'green' if number % 2 else 'light'} {number}" for number in range(24)]
    probe = fit_probe(pair.base, texts, [number % 2 for number in range(24)], seed=0)
    return ToxicityContext(pair, probe, LexiconScorer(), texts[:4], [Passage("river", " stone green light", "post")], new_tokens=2, draws=2)


@pytest.mark.parametrize(
    "change",
    [
        lambda c: replace(c, seed=1),
        lambda c: replace(c, quick=True),
        lambda c: replace(c, layer=1),
        lambda c: replace(c, prompts=c.prompts[:3]),
        lambda c: replace(c, prompts=[*c.prompts[:3], "another one"]),
        lambda c: replace(c, passages=[Passage("river", " stone green lamp", "post")]),
        lambda c: replace(c, passages=[Passage("river stone", " green light", "post")]),
        lambda c: replace(c, probe=replace(c.probe, weights=c.probe.weights * 2)),
        lambda c: replace(c, probe=replace(c.probe, metrics=c.probe.metrics | {"auc": 0.123})),
        lambda c: replace(c, pair=ModelPair(c.pair.base, c.pair.base)),
        lambda c: replace(c, scorer=Other()),
    ],
)
def test_data_and_settings_that_change_rerun(context: ToxicityContext, change: Callable[[ToxicityContext], ToxicityContext]) -> None:
    item = EXPERIMENTS["A-E8"]
    assert fingerprint(item, replace(context)) == fingerprint(item, context)
    assert fingerprint(item, change(context)) != fingerprint(item, context)


class Other(LexiconScorer):
    """A scorer of the same name with another word list."""

    @property
    def digest(self) -> str:
        return "other words"


def test_shipped_files_that_a_module_reads_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item, file = EXPERIMENTS["A-E1"], tmp_path / "lexicon.toml"
    file.write_text('insult = ["idiot"]\n')
    monkeypatch.setattr("interp.data.lexicon.READS", (file,))
    before = code_digest(item)
    assert code_digest(item) == before
    file.write_text('insult = ["idiot", "fool"]\n')
    assert code_digest(item) != before


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Callable[[str], Experiment]]:
    """Writes and reads a user's own file outside the package, each time as a new session would."""
    registered = dict(EXPERIMENTS)
    file = tmp_path / "mine.py"

    def read(body: str) -> Experiment:
        EXPERIMENTS.clear()
        EXPERIMENTS.update(registered)
        for cache in (fingerprints._tree, fingerprints._code, fingerprints._imported):
            cache.cache_clear()
        file.write_text(MINE + body, encoding="utf-8")
        assert read_experiments(file) == ["MY-E1"]
        return EXPERIMENTS["MY-E1"]

    yield read
    EXPERIMENTS.clear()
    EXPERIMENTS.update(registered)


MINE = """
import builtins
import pandas as pd
from interp.experiments import Context, Finding, experiment
READS = ("numbers.csv",)
"""
BODY = """
@experiment("MY-E1", claim="MY-C1", title="t", question="q?", criterion="c", refuted_by="r", caveat="v")
def run(context: Context) -> Finding:
    builtins.runs_of_my_experiment.append(1)
    return Finding("holds", "s", {"a": 1.0}, {}, {}, {"t": pd.DataFrame({"x": [1]})}, ())
"""


def test_a_users_file_reruns_when_its_code_or_its_data_changes_and_only_then(
    mine: Callable[[str], Experiment], context: ToxicityContext, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    runs: list[int] = []
    monkeypatch.setattr("builtins.runs_of_my_experiment", runs, raising=False)
    data = tmp_path / "numbers.csv"
    data.write_text("1\n")

    def report(body: str) -> int:
        mine(body)
        run_report(context, tmp_path / "report", only=["MY-E1"])
        return len(runs)

    assert report(BODY) == 1
    assert report("# only words\n" + BODY.replace("Finding:\n", 'Finding:\n    """And more."""\n')) == 1
    assert report(BODY.replace('"a": 1.0', '"a": 2.0')) == 2
    data.write_text("2\n")
    assert report(BODY.replace('"a": 1.0', '"a": 2.0')) == 3
    assert json.loads((tmp_path / "report" / "report.json").read_text())["experiments"][0]["statistic"] == {"a": 2.0}
    assert "mine" not in sys.modules


def test_logs_count_only_where_they_are_read(context: ToxicityContext, tmp_path: Path) -> None:
    other: Any = replace(context, logs=tmp_path)
    assert fingerprint(EXPERIMENTS["A-E9"], other) == fingerprint(EXPERIMENTS["A-E9"], context)
    assert fingerprint(EXPERIMENTS["A-E8"], other) != fingerprint(EXPERIMENTS["A-E8"], context)
