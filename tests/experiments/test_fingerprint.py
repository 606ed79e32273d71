"""What a result's fingerprint covers: the code that the experiment's file imports and the data that is read, and nothing else."""

from __future__ import annotations

import copy
import hashlib
import itertools
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from importlib import metadata
from pathlib import Path
from types import ModuleType
from typing import Any

import pandas as pd
import pytest

from interp import Model, ModelPair
from interp.data.texts import Passage
from interp.errors import UserError
from interp.evaluation.toxicity import LexiconScorer
from interp.experiments import fingerprint as fingerprints
from interp.experiments.fingerprint import code_digest, fingerprint, modules_of
from interp.experiments.registry import EXPERIMENTS, Experiment
from interp.experiments.run import ReportRun, run_report
from interp.experiments.study import Study
from interp.experiments.toxicity.context import ToxicityContext
from interp.experiments.user_files import read_experiments
from interp.models.converters import CONVERTERS
from interp.runs.trajectory import RUNS_SETTING
from tests.probes import shared_probe
from tests.runs.test_trajectory import write_run

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


WRITINGS = itertools.count(1)


def write(file: Path, text: str) -> None:
    """Write a file with a time of change of its own, however coarse the clock is: what is cached of it before is not taken for it."""
    file.write_text(text, encoding="utf-8")
    time = file.stat().st_mtime_ns + 1_000_000 * next(WRITINGS)
    os.utime(file, ns=(time, time))


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
        write(self.root / name, text)


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


def test_what_is_used_of_a_package_by_attribute_counts(invented: Invented) -> None:
    for text in (
        "import interp\nx = interp.handed(interp.deep.third(1))\n",
        "import interp as bypass\nimport interp.deep as d\nx = bypass.handed(d.third(1))\n",
        "import interp.deep\nfrom interp import handed\n\ndef run(study):\n    return interp.deep.third(study)\n",
        "from interp import deep, handed\nx = deep.third\n",
    ):
        invented.write("mine/own.py", text)
        assert {"interp/lazy.py", "interp/deep/below.py"} <= invented.modules()
        assert "interp/used.py" not in invented.modules()
    # An attribute of something else that has the name of an export uses nothing of the package.
    invented.write("mine/own.py", "import interp\nx = study.handed\n")
    assert "interp/lazy.py" not in invented.modules()


def test_an_adapter_counts_where_its_method_is_called_and_not_for_all_that_use_a_model() -> None:
    assert set(fingerprints.ON_REQUEST) == {f"to_{library}" for library in CONVERTERS}
    run = Path(fingerprints.__file__).with_name("toxicity")
    for file in (run / "a_e1_probe.py", run / "w_e1_detoxify.py"):
        names = {place.relative_to(fingerprints.ROOT).as_posix() for place in modules_of([file, run / "context.py"])}
        assert "models/model.py" in names
        assert not {name for name in names if name.startswith("adapters/")}


def test_a_file_that_makes_another_librarys_model_counts_with_its_adapter(invented: Invented) -> None:
    adapter = fingerprints.ROOT / "adapters"
    adapter.mkdir()
    (adapter / "nnsight.py").write_text("from interp.unused import NUMBER\n")
    invented.write("interp/used.py", "class Model:\n    def to_nnsight(self):\n        from interp.inside import NUMBER\n")
    invented.write("mine/own.py", "from interp.used import Model\n")
    assert invented.modules() == {"mine/own.py", "interp/used.py", "interp/inside.py"}
    invented.write("mine/own.py", "from interp.used import Model\n\ndef run(study):\n    return study.model.to_nnsight()\n")
    assert {"interp/adapters/nnsight.py", "interp/unused.py"} < invented.modules()


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
    probe = shared_probe(pair.base, texts, [number % 2 for number in range(24)])
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
        lambda c: replace(c, pair=with_another_tokenizer(c.pair)),
        lambda c: replace(c, pair=with_settings(c.pair, "generation_config", eos_token_id=[3, 4])),
        lambda c: replace(c, pair=with_settings(c.pair, "config", final_logit_softcapping=5.0)),
        lambda c: replace(c, pair=with_settings(c.pair, "config", layer_norm_epsilon=0.01)),
        lambda c: replace(c, scorer=Undescribed()),
    ],
)
def test_data_and_settings_that_change_rerun(context: ToxicityContext, change: Callable[[ToxicityContext], ToxicityContext]) -> None:
    item = EXPERIMENTS["A-E8"]
    assert fingerprint(item, replace(context)) == fingerprint(item, context)
    assert fingerprint(item, change(context)) != fingerprint(item, context)


def with_another_tokenizer(pair: ModelPair) -> ModelPair:
    """The pair with the same weights and one more token in the tokenizer of both sides."""
    tokenizer = copy.deepcopy(pair.base.tokenizer)
    tokenizer.add_tokens(["riverstone"])
    return ModelPair(*(Model(model.plain_copy(), tokenizer, model.name) for model in pair.sides.values()))


def with_settings(pair: ModelPair, part: str, **settings: object) -> ModelPair:
    """The pair with the same weights and other settings of its configuration or generation config."""
    models = [Model(model.plain_copy(), model.tokenizer, model.name) for model in pair.sides.values()]
    for model in models:
        for name, value in settings.items():
            setattr(getattr(model.hf, part), name, value)
    return ModelPair(*models)


class Undescribed:
    """A scorer of the name of another, which does not say what it computes."""

    name, classes = "lexicon", ("toxicity",)

    def score(self, texts: Sequence[str]) -> pd.DataFrame:
        raise AssertionError("nothing is scored for a fingerprint")


class Other(LexiconScorer):
    """A scorer of the same name with another word list."""

    @property
    def digest(self) -> str:
        return "other words"


def test_shipped_files_that_a_module_reads_count(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    item, file = EXPERIMENTS["A-E1"], tmp_path / "lexicon.toml"
    file.write_text('insult = ["idiot"]\n')
    monkeypatch.setattr("interp.data.lexicon.READS", (file,))
    before = code_digest(item, ToxicityContext)
    assert code_digest(item, ToxicityContext) == before
    file.write_text('insult = ["idiot", "fool"]\n')
    assert code_digest(item, ToxicityContext) != before


@pytest.fixture
def mine(tmp_path: Path) -> Iterator[Callable[[str], Experiment]]:
    """Writes and reads a user's own file outside the package, each time as a new session would."""
    registered = dict(EXPERIMENTS)
    file = tmp_path / "mine.py"

    def read(body: str) -> Experiment:
        EXPERIMENTS.clear()
        EXPERIMENTS.update(registered)
        write(file, MINE + body)
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


@pytest.mark.parametrize("reads", ['READS = ("words.csv",)', 'READS: tuple[str, ...] = ("words.csv",)'])
def test_a_helper_beside_a_users_file_may_read_data_too(
    mine: Callable[[str], Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, reads: str
) -> None:
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.delitem(sys.modules, "helper_of_mine", raising=False)
    (tmp_path / "helper_of_mine.py").write_text(reads + "\n")
    (tmp_path / "numbers.csv").write_text("1\n")
    words = tmp_path / "words.csv"
    words.write_text("a\n")
    item = mine("import helper_of_mine\n" + BODY)
    before = code_digest(item, ToxicityContext)
    assert code_digest(item, ToxicityContext) == before
    words.write_text("b\n")
    assert code_digest(item, ToxicityContext) != before
    monkeypatch.delitem(sys.modules, "helper_of_mine")


STUDY = """
from dataclasses import dataclass
from typing import ClassVar
from interp.experiments import Study

@dataclass(eq=False)
class Mine(Study):
    DATA: ClassVar[frozenset[str]] = frozenset({"words"})
    words: int = 3

    def double(self):
        return 2.0 * self.words

class Varied(Mine):
    pass

class Further(Mine):
    pass

@experiment("MY-E1", claim="MY-C1", title="t", question="q?", criterion="c", refuted_by="r", caveat="v")
def run(study: Mine) -> Finding:
    return Finding("holds", "s", {"a": study.double()}, {}, {}, {"t": pd.DataFrame({"x": [1]})}, ())
"""


def test_a_study_of_a_users_own_counts_with_the_class_that_is_given(mine: Callable[[str], Experiment], tmp_path: Path) -> None:
    (tmp_path / "numbers.csv").write_text("1\n")

    def result(body: str, name: str) -> str:
        item = mine(body)
        return fingerprint(item, item.run.__globals__[name]())

    first = result(STUDY, "Mine")
    assert result(STUDY, "Mine") == first
    assert result(STUDY.replace("2.0 * self", "3.0 * self"), "Mine") != first
    varied = result(STUDY, "Varied")
    assert len({first, varied, result(STUDY, "Further")}) == 3
    assert run_report(mine(STUDY).run.__globals__["Varied"](), tmp_path / "report", only=["MY-E1"]).results[0].statistic == {"a": 6.0}


def test_a_change_of_a_users_file_within_the_same_second_is_what_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(sys, "dont_write_bytecode", False)
    file, registered, times = tmp_path / "quick_hand.py", dict(EXPERIMENTS), (1_700_000_000, 1_700_000_000)
    values = []
    for number in ("2.0", "3.0"):
        file.write_text(f"{MINE}{STUDY}\nNUMBER = {number}\n", encoding="utf-8")
        os.utime(file, times)
        read_experiments(file)
        values.append(EXPERIMENTS["MY-E1"].run.__globals__["NUMBER"])
        EXPERIMENTS.clear()
        EXPERIMENTS.update(registered)
    assert values == [2.0, 3.0]


def test_the_file_of_the_study_that_is_given_counts_also_where_another_is_asked_for(
    mine: Callable[[str], Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "numbers.csv").write_text("1\n")
    item = mine(STUDY)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "elsewhere").mkdir()
    file = tmp_path / "elsewhere" / "other_study.py"
    file.write_text("def double(self):\n    return 1\n")
    other = type("Varied", (item.study,), {"__module__": "other_study_of_the_test"})
    module = ModuleType("other_study_of_the_test")
    module.__file__ = str(file)
    monkeypatch.setitem(sys.modules, module.__name__, module)
    before = code_digest(item, other)
    write(file, "def double(self):\n    return 2\n")
    assert code_digest(item, other) != before
    monkeypatch.delattr(module, "__file__")
    with pytest.raises(UserError, match="the code of Varied is in no file"):
        code_digest(item, other)


@pytest.mark.parametrize("library", ["torch", "transformers", "tokenizers", "numpy", "detoxify"])
def test_another_version_of_a_library_that_computes_reruns(context: ToxicityContext, monkeypatch: pytest.MonkeyPatch, library: str) -> None:
    item, version = EXPERIMENTS["A-E8"], metadata.version
    before = fingerprint(item, context)
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == library else version(name))
    assert fingerprint(item, context) != before
    monkeypatch.setattr(metadata, "version", lambda name: "0.0.1" if name == "streamlit" else version(name))
    assert fingerprint(item, context) == before


def test_the_files_of_an_experiment_and_of_its_study_count(context: ToxicityContext, monkeypatch: pytest.MonkeyPatch) -> None:
    item, code = EXPERIMENTS["A-E8"], fingerprints._code
    before = code_digest(item, ToxicityContext)
    for part in ("context.py", "a_e8_weights.py", "study.py"):

        def changed_code(file: Path, changed: int, part: str = part) -> str:
            return code(file, changed) + ("#" if file.name == part else "")

        monkeypatch.setattr(fingerprints, "_code", changed_code)
        assert code_digest(item, ToxicityContext) != before, part


def test_logs_count_only_where_they_are_read(context: ToxicityContext, tmp_path: Path) -> None:
    other: Any = replace(context, logs=tmp_path)
    assert fingerprint(EXPERIMENTS["A-E9"], other) == fingerprint(EXPERIMENTS["A-E9"], context)
    assert fingerprint(EXPERIMENTS["A-E8"], other) != fingerprint(EXPERIMENTS["A-E8"], context)


RUNS = """
from interp import runs_of
from interp.experiments import Study

@experiment("MY-E1", claim="MY-C1", title="t", question="q?", criterion="c", refuted_by="r", caveat="v", runs="displacement/invented")
def run(study: Study) -> Finding:
    frame = runs_of("displacement/invented").to_frame()
    return Finding("holds", "s", {"loss": float(frame["loss"].mean())}, {}, {}, {"t": frame}, ())
"""


def test_an_experiment_that_reads_runs_is_left_out_where_they_are_missing_and_rerun_where_they_change(
    mine: Callable[[str], Experiment], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(RUNS_SETTING, str(tmp_path / "runs"))
    place = tmp_path / "runs" / "displacement" / "invented" / "grid"
    (tmp_path / "numbers.csv").write_text("1\n")
    (tmp_path / "other.py").write_text(MINE.replace("numbers.csv", "mine.py") + OTHER, encoding="utf-8")
    mine(RUNS)
    read_experiments(tmp_path / "other.py")
    rows: list[dict[str, Any]] = []

    def write_index() -> None:
        (place / "index.json").write_text(json.dumps({"command": "bypass train grid displacement/invented", "runs": rows}))

    def report() -> ReportRun:
        return run_report(Study(), tmp_path / "report", only=["MY-E1", "MY-E2"])

    left_out = report()
    assert [result.id for result in left_out.results] == ["MY-E2"]
    assert "the runs of displacement/invented are not there" in left_out.skipped["MY-E1"]
    assert "`bypass train grid displacement/invented`" in left_out.skipped["MY-E1"]

    for seed in ("1", "2"):
        stamp = write_run(place / seed / "dpo", [float(seed)])
        rows.append({"name": f"seed={seed}", "point": {"seed": seed}, "folder": f"{seed}/dpo", "state": "done", "stamp": stamp})
    rows[1]["state"] = "waiting"
    write_index()
    (reason,) = report().skipped.values()
    assert "1 of the runs in" in reason
    assert "seed=2: it has not run to its end" in reason
    assert "run `bypass train grid displacement/invented`" in reason

    rows[1]["state"] = "done"
    write_index()
    complete = report()
    assert (complete.skipped, complete.results[0].statistic) == ({}, {"loss": 1.5})
    item = EXPERIMENTS["MY-E1"]
    before = fingerprint(item, Study())
    assert fingerprint(item, Study()) == before
    # A run that was made again, with another stamp and log.
    shutil.rmtree(place / "2")
    write_run(place / "2" / "dpo", [3.0], base="def")
    stamp_file = place / "2" / "dpo" / "stamp.json"
    stamp_file.write_text(json.dumps({"output": "again"}))
    rows[1]["stamp"] = hashlib.sha256(stamp_file.read_bytes()).hexdigest()
    write_index()
    assert fingerprint(item, Study()) != before
    again = report()
    assert (again.skipped, again.results[0].statistic) == ({}, {"loss": 2.0})
    # A log alone that differs, which no stamp says.
    log = place / "2" / "dpo" / "log.jsonl"
    log.write_text(log.read_text().replace("3.0", "5.0"))
    assert report().results[0].statistic == {"loss": 3.0}


OTHER = """
from interp.experiments import Study

@experiment("MY-E2", claim="MY-C2", title="t", question="q?", criterion="c", refuted_by="r", caveat="v")
def run(study: Study) -> Finding:
    return Finding("holds", "s", {"a": 1.0}, {}, {}, {"t": pd.DataFrame({"x": [1]})}, ())
"""


def test_an_experiment_that_reads_data_which_its_study_does_not_have_is_refused(context: ToxicityContext) -> None:
    item = replace(EXPERIMENTS["A-E8"], reads=("photographs",))
    with pytest.raises(ValueError, match="A-E8 reads 'photographs', but a ToxicityContext has logs"):
        fingerprint(item, context)
