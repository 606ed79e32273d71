"""A study measures once what depends on the same weights, edits and data, and a report makes the studies that it needs."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar

import pandas as pd
import pytest
import torch

from interp import Edit, Model, editing, hooked
from interp.errors import UserError
from interp.experiments.registry import EXPERIMENTS, Finding, experiment, find_experiments
from interp.experiments.run import run_report
from interp.experiments.study import Studies, Study
from interp.experiments.toxicity.context import ToxicityContext
from interp.models.digests import model_digests, model_key

ABOUT = {"title": "a title", "question": "so?", "criterion": "Holds if so, fails if not.", "refuted_by": "another", "caveat": "none"}


@dataclass(eq=False)
class Counting(Study):
    """A study of no pair, which counts how often it was made to measure."""

    DATA: ClassVar[frozenset[str]] = frozenset({"words", "scale"})
    LISTS: ClassVar[frozenset[str]] = frozenset({"words"})

    words: list[str]
    counted: list[int] = field(default_factory=list)
    scale: int = 1

    def lengths(self, model: Model | None = None, edits: tuple[Edit, ...] = (), read: list[list[str]] | None = None) -> list[int]:
        """The length of each word times `scale`; `read` is told which words were measured."""

        def make(words: list[str]) -> list[int]:
            (read if read is not None else []).append(words)
            return [self.scale * len(word) for word in words]

        return self.measured_items("lengths", self.words, make, of=model, edits=edits)

    def count(self, model: Model | None = None, edits: tuple[Edit, ...] = (), *, seeded: bool = False) -> int:
        key = "drawn" if seeded else "count"
        return int(self.measured(key, lambda: self.counted.append(1) or len(self.counted), of=model, edits=edits, seeded=seeded))

    def fingerprint(self) -> list[Any]:
        return [*super().fingerprint(), self.words]

    def manifest(self) -> dict[str, Any]:
        return {"name": "words"}


@dataclass(eq=False)
class Another(Study):
    """A kind of study of which a report may be given none."""


@pytest.fixture(autouse=True)
def _registered() -> Iterator[None]:
    before = dict(EXPERIMENTS)

    @experiment("T-E1", claim="T-C1", **ABOUT)
    def counts(study: Counting) -> Finding:
        share = study.count(seeded=True) + study.count() / 10
        return Finding("holds", "said", {"share": share}, {}, {}, {"t": pd.DataFrame({"a": [1]})}, ())

    @experiment("T-E2", claim="T-C2", **ABOUT)
    def other(study: Another) -> Finding:
        raise AssertionError("this report has no such study")

    yield
    EXPERIMENTS.clear()
    EXPERIMENTS.update(before)


def test_a_measurement_is_found_by_weights_and_edits_and_not_by_the_object(gpt2: Model) -> None:
    study = Counting(["a"])
    first = study.count(gpt2)
    same = Model(gpt2.plain_copy(), gpt2.tokenizer, "another name")
    assert study.count(same) == first
    hf = gpt2.plain_copy()
    with torch.no_grad():
        next(hf.parameters()).view(-1)[0] += 1
    assert study.count(Model(hf, gpt2.tokenizer, gpt2.name)) != first
    ends = Model(gpt2.plain_copy(), gpt2.tokenizer, gpt2.name)
    ends.hf.generation_config.eos_token_id = [3, 4]
    assert study.count(ends) != first
    vector = torch.arange(float(gpt2.d_model))
    edits = [(Edit.add("resid_mid.1", vector, 2.0),), (Edit.add("resid_mid.1", vector.clone(), 2.0),)]
    assert study.count(gpt2, edits[0]) == study.count(gpt2, edits[1]) != first
    others = [
        Edit.add("resid_mid.1", vector, 3.0), Edit.add("resid_mid.0", vector, 2.0), Edit.add("resid_mid.1", -vector, 2.0),
        Edit.add("resid_mid.1", vector, 2.0, "prompt"), Edit.scale_keys([(0, 1)], 2.0), Edit.scale_keys([(0, 2)], 2.0),
        Edit.project_out("resid_mid.1", vector), Edit.add("resid_mid.1", 2 * vector, 2.0),
    ]  # fmt: skip
    numbers = [study.count(gpt2, (edit,)) for edit in others]
    assert len({*numbers, study.count(gpt2, edits[0]), first}) == len(others) + 2


def test_a_model_is_not_measured_inside_a_block_that_changes_it(gpt2: Model) -> None:
    study, edit = Counting(["a"]), Edit.add("resid_mid.1", torch.ones(gpt2.d_model), 2.0)
    first = study.count(gpt2)
    for block in (lambda: editing(gpt2, [edit]), lambda: hooked(gpt2, {"resid_mid.1": lambda x: 2 * x})):
        for edits in ((), (edit,)):
            with block(), pytest.raises(UserError, match="'count' is measured inside a block that changes the activations"):
                study.count(gpt2, edits)
    assert (study.counted, study.count(gpt2)) == ([1], first)
    # Edits of one model say nothing of another, nor of what reads no weights.
    other = Model(gpt2.plain_copy(), gpt2.tokenizer, "another")
    with editing(gpt2, [edit]):
        assert study.count(other) == first
        assert study.count() == 2


def test_the_digests_of_a_model_tell_weights_tokenizers_and_forward_settings_apart(gpt2: Model) -> None:
    def same() -> Model:
        return Model(gpt2.plain_copy(), copy.deepcopy(gpt2.tokenizer), "another name")

    expected = model_digests(gpt2)
    read = same()
    read.tokenizer(["the river", "stone"], padding=True, truncation=True, max_length=3)
    assert model_digests(read) == expected
    tokens = same()
    tokens.tokenizer.add_tokens(["riverstone"])
    settings = same()
    settings.hf.config.layer_norm_epsilon *= 10
    weights = same()
    with torch.no_grad():
        next(weights.hf.parameters()).view(-1)[0] += 1
    differing = [[a == b for a, b in zip(model_digests(model), expected, strict=True)] for model in (weights, tokens, settings)]
    assert differing == [[False, True, True], [True, False, True], [True, True, False]]


def test_another_seed_keeps_what_was_not_drawn_with_it() -> None:
    study = Counting(["a"])
    drawn, measured = study.measured("drawn", object, seeded=True), study.measured("measured", object)
    part = study.part("first", words=["b"])
    within = part.measured("measured", object), part.measured("drawn", object, seeded=True)
    other = study.with_seed(5)
    assert (other.seed, other.words, study.seed) == (5, ["a"], 0)
    assert other.measured("measured", object) is measured
    assert other.measured("drawn", object, seeded=True) is not drawn
    assert study.measured("drawn", object, seeded=True) is drawn
    again = other.part("first", words=["b"])
    assert (again.words, again.seed) == (["b"], 5)
    assert again.measured("measured", object) is within[0] is not measured
    assert again.measured("drawn", object, seeded=True) is not within[1]
    assert {key: entry.seeded for (key, *_), entry in study.measurements().items()} == {"drawn": True, "measured": False}


def test_a_change_of_data_keeps_nothing() -> None:
    study = Counting(["a"])
    value = study.measured("measured", object)
    with pytest.raises(ValueError, match="words cannot be changed while measurements are kept"):
        study.varied(words=["b"])
    assert replace(study, words=["b"]).measured("measured", object) is not value


def test_a_part_shares_what_is_measured_of_single_items_and_only_of_those() -> None:
    read: list[list[str]] = []
    study = Counting(["one", "three", "one", "eleven"])
    assert study.lengths(read=read) == [3, 5, 3, 6]
    part, larger = study.part("part", words=["eleven", "one"]), study.part("larger", words=["two", "one", "three"])
    assert part.lengths(read=read) == [6, 3]
    assert larger.lengths(read=read) == [3, 3, 5]
    assert study.with_seed(4).lengths(read=read) == [3, 5, 3, 6]
    assert read == [["one", "three", "eleven"], ["two"]]
    # Other data than the lists change the measurement: nothing is shared.
    assert study.part("scaled", words=["one"], scale=2).lengths(read=read) == [6]
    assert replace(study, words=["one"]).lengths(read=read) == [3]
    assert read[2:] == [["one"], ["one"]]


def test_items_are_measured_anew_for_another_model_and_for_edits(gpt2: Model, fresh_gpt2: Model) -> None:
    read: list[list[str]] = []
    study, vector = Counting(["a", "b"]), torch.ones(gpt2.d_model)
    changed = copy.deepcopy(fresh_gpt2.hf)
    with torch.no_grad():
        next(changed.parameters()).view(-1)[0] += 1
    other = Model(changed, gpt2.tokenizer, "other")
    for _ in range(2):
        for model, edits in ((gpt2, ()), (other, ()), (gpt2, (Edit.add("resid_post.1", vector),))):
            study.lengths(model, edits, read)
    assert len(read) == 3
    # An edit with values of its own for each row cannot be split by items.
    each = (Edit.patch("resid_post.1", vector.expand(2, 1, -1), [0]),)
    assert study.lengths(gpt2, each, read) == study.lengths(gpt2, each, read)
    assert len(read) == 5
    with editing(gpt2, [Edit.add("resid_post.1", vector)]), pytest.raises(UserError, match="'lengths' is measured inside a block"):
        study.lengths(gpt2)


def test_a_part_is_made_once_and_speaks_as_the_whole_does() -> None:
    said: list[str] = []
    study = Counting(["a"])
    part = study.part("first", words=["b"])
    study.say = said.append
    assert study.part("first", words=["b"]) is part
    part.say("hello")
    assert said == ["hello"]


def test_a_key_of_a_part_does_not_stand_for_two_parts() -> None:
    study = Counting(["a"])
    part = study.part("first", words=["b"])
    for whole in (study, study.with_seed(3)):
        for changes in ({"words": ["c"]}, {"words": ["b"], "quick": True}, {}):
            with pytest.raises(ValueError, match="the part 'first' of this study has other data already"):
                whole.part("first", **changes)
    assert study.part("first", words=["b"]) is part
    assert study.part("second", words=["c"]).words == ["c"]


def test_a_report_makes_each_kind_of_study_once_and_only_where_an_experiment_needs_it(tmp_path: Path) -> None:
    made: list[str] = []

    def make() -> Counting:
        made.append("counting")
        return Counting(["a"], seed=2)

    def never() -> ToxicityContext:
        raise AssertionError("no experiment needs it")

    studies = Studies({Counting: make, ToxicityContext: never}, seed=2)
    ran = run_report(studies, tmp_path, only=["T-E1", "T-E2"], seeds=2)
    assert made == ["counting"]
    assert ran.skipped == {"T-E2": "it needs a Another, which this report was not given"}
    assert [result.settings["seed"] for result in ran.results] == [2]
    assert ran.seeds is not None
    # Seed 2 draws first and measures second; seed 3 draws anew and has the measurement.
    (row,) = ran.seeds.rows
    assert row.statistic == pytest.approx((1.2, 3.2))
    assert "words" in (tmp_path / "index.html").read_text(encoding="utf-8")
    with pytest.raises(UserError, match="needs a Another, and the report was given Counting, ToxicityContext"):
        studies.find(Another)


def test_what_is_wrong_with_the_data_of_a_study_stops_the_report(tmp_path: Path) -> None:
    def make() -> Counting:
        raise UserError("the file has no words", "give another")

    with pytest.raises(UserError, match="the file has no words"):
        run_report(Studies({Counting: make}), tmp_path, only=["T-E1"])


def test_an_experiment_says_its_kind_of_study_by_the_annotation_of_its_parameter() -> None:
    assert EXPERIMENTS["T-E1"].study is Counting
    assert {item.study for item in EXPERIMENTS.values() if item.paper == "A"} == {ToxicityContext}
    with pytest.raises(TypeError, match="T-E9: annotate the function's parameter"):

        @experiment("T-E9", claim="T-C9", **ABOUT)
        def unannotated(study):  # type: ignore[no-untyped-def]
            raise AssertionError

    assert "T-E9" not in EXPERIMENTS


def test_experiments_of_every_paper_come_in_order_and_others_as_registered() -> None:
    for name in ("C-E90", "B-X1", "B-E10", "A-E15", "C-E100", "Z-1"):

        @experiment(name, claim="T-C3", **ABOUT)
        def run(study: Counting) -> Finding:
            raise AssertionError

    ids = [item.id for item in find_experiments(None, ["A", "B", "C"])]
    papers = [name for name in ids if name[:3] in ("A-E", "B-E", "B-X", "C-E")]
    assert [name for name in papers if name[0] == "A"] == [f"A-E{number}" for number in range(1, 16)]
    assert [name for name in papers if name in ("B-E1", "B-E1b", "B-E2", "B-E10", "B-X1")] == ["B-E1", "B-E1b", "B-E2", "B-E10", "B-X1"]
    assert [name for name in papers if name in ("C-E2", "C-E90", "C-E100")] == ["C-E2", "C-E90", "C-E100"]
    assert [name[0] for name in papers] == sorted(name[0] for name in papers)
    assert ids == [*papers, "X-C1", "X-C2", "W-E1", "W-E2", "X-U1", "Y-E1", "T-E1", "T-E2", "Z-1"]


@pytest.mark.oracle
def test_what_is_measured_under_several_edits_together_is_what_is_asked_for_one_by_one(gpt2: Model) -> None:
    study, asked = Counting(["a", "bc"]), list[tuple[list[str], int]]()
    edits = [(Edit.scale("mlp_post.0", factor),) for factor in (1.0, 2.0, 3.0)]

    def make(words: list[str], some: list[Any]) -> list[list[int]]:
        asked.append((words, len(some)))
        return [[int(edit.strength) * len(word) for word in words] for (edit,) in some]

    study.lengths(gpt2, edits[0])
    study.measured_together("lengths", study.words, edits, make, of=gpt2)
    read: list[list[str]] = []
    assert [study.lengths(gpt2, some, read) for some in edits] == [[1, 2], [2, 4], [3, 6]]
    # The first was known already, and nothing is asked for twice.
    assert (asked, read) == ([(["a", "bc"], 2)], [])
    study.part("some", words=["bc"]).measured_together("lengths", ["bc"], edits, make, of=gpt2)
    assert len(asked) == 1


def test_an_experiment_that_changes_a_model_of_its_study_is_refused(fresh_gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.experiments import study as module

    hashed: list[str] = []
    monkeypatch.setattr(module, "model_key", lambda model: hashed.append(model.name) or model_key(model))
    monkeypatch.setattr(Counting, "models", lambda study: [fresh_gpt2])
    study = Counting(["a", "bc"])
    with study.unchanged():
        study.count(fresh_gpt2)
        study.part("some", words=["bc"]).count(fresh_gpt2)
        study.with_seed(3).count(fresh_gpt2, seeded=True)
    # Once before and once after.
    assert len(hashed) == 2
    with pytest.raises(UserError, match=f"{fresh_gpt2.name} was changed while it was measured"), study.unchanged():
        next(fresh_gpt2.hf.parameters()).data.add_(1.0)
    before = len(hashed)
    study.count(fresh_gpt2)
    assert len(hashed) == before + 1


def test_a_measurement_within_another_of_the_same_model_does_not_hash_it_again(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    from interp.experiments import study as module

    hashed: list[str] = []
    monkeypatch.setattr(module, "model_key", lambda model: hashed.append(model.name) or model_key(model))
    study, other = Counting(["a", "bc"]), Model(gpt2.plain_copy(), gpt2.tokenizer, "other")

    def make() -> int:
        return sum(study.lengths(gpt2)) + study.count(other)

    assert study.measured("sum", make, of=gpt2) == 4
    assert hashed == [gpt2.name, "other"]
    # Outside of a measurement the weights are looked at again, so that a change is noticed.
    before = len(study.measurements())
    study.count(other)
    assert len(study.measurements()) == before
    next(other.hf.parameters()).data.add_(1.0)
    study.count(other)
    assert len(study.measurements()) == before + 1
