"""The study of filters and losses on a tiny model: what it trains on, what it stores, and that the experiments read what it writes."""

from __future__ import annotations

import gzip
import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from interp import Model, ModelPair, UserError
from interp.evaluation.toxicity import LexiconScorer
from interp.experiments.displacement.context import DisplacementContext
from interp.experiments.registry import EXPERIMENTS
from interp.experiments.run import run_experiment
from interp.files import write_json
from interp.preferences.influence import gradient_scores
from interp.preferences.logprobs import log_probs
from interp.preferences.pairs import TokenPair
from interp.results.result import plain
from tests.answers import answering_model
from training.filters import Training, train
from training.pair_losses import LOSSES
from training.studies import pair_arms, pair_runs
from training.studies.displacement import main
from training.studies.pair_data import PairSet, hh_pairs, own_pairs, pair_set, paradetox_pairs, part
from training.studies.pair_runs import PairDesign, PairStudy

DESIGN = PairDesign(seeds=1, trained=16, held_out=4, every=140, new_tokens=2, measured_every=1)


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return answering_model(Path(tmp_path_factory.mktemp("answering")))


def invented(count: int, seed: int = 0) -> list[TokenPair]:
    rng = np.random.default_rng(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(1, 250, rng.integers(low, high))))

    return [TokenPair(tokens(1, 6), (*tokens(1, 6), 0), (*tokens(1, 6), 0)) for _ in range(count)]


@pytest.fixture(scope="module")
def sources(model: Model) -> list[PairSet]:
    return [pair_set(name, model, invented(60, seed), "invented") for seed, name in enumerate(("own", "hh"))]


@pytest.fixture(scope="module")
def study(model: Model, sources: list[PairSet], tmp_path_factory: pytest.TempPathFactory) -> PairStudy:
    return PairStudy(model, Path(tmp_path_factory.mktemp("runs")), sources, LexiconScorer(), DESIGN)


@pytest.fixture(scope="module")
def record(study: PairStudy) -> dict[str, Any]:
    value: dict[str, Any] = json.loads(json.dumps(plain(study.record())))
    return value


def test_arms_of_a_draw_have_half_of_the_pairs_and_as_many_steps_as_random_halves(record: dict[str, Any]) -> None:
    assert len(record["ranks"]) == len(record["filters"]) == len(record["losses"]) == 2
    for row in record["filters"]:
        arms = [(arm["arm"], arm["pairs"], arm["steps"]) for arm in row["arms"]]
        assert arms[0] == ("all", 16, 2)
        assert {arm[1:] for arm in arms[1:]} == {(8, 1)}
        assert [arm[0] for arm in arms].count("random") == 2
        assert {arm["arm"] for arm in row["arms"] if "toxicity" in arm} == {"all", "influence", "worst", "ches", "random"}
        assert row["shares"]["conservation_error"] < 1e-4
        assert row["rate"] in record["settings"]["rates"]
    for row in record["losses"]:
        assert [item["loss"] for item in row["losses"]] == list(LOSSES)
        assert [point["step"] for point in row["losses"][0]["course"]] == [1, 2]


def test_a_run_of_ranks_is_that_on_all_pairs_of_the_filters(record: dict[str, Any]) -> None:
    for one, other in zip(record["ranks"], record["filters"], strict=True):
        known = one["correlations"]["epoch"]
        assert known == {name: other["correlations"]["epoch"][name] for name in known}
        assert one["trained"]["fell"] == other["shares"]["fell_in_epoch"]
        assert {"ches", "edit_similarity", "last_hidden", "length_difference"} <= known.keys()


def test_a_known_reference_is_the_one_that_training_computes(model: Model, sources: list[PairSet]) -> None:
    pairs, _ = part(sources[0], 1, (16, 4))
    places = [9, 2, 5, 14]
    some, training = [pairs[place] for place in places], Training(1e-3, "adamw", 1)
    known = train(model, some, training, reference=log_probs(model, pairs).at(places))
    for one, other in zip(known.parameters(), train(model, some, training).parameters(), strict=True):
        torch.testing.assert_close(one, other, rtol=1e-4, atol=1e-6)
    wrong = train(model, some, training, reference=log_probs(model, pairs).at(places[::-1]), batch=1)
    right = train(model, some, training, batch=1)
    assert any(not torch.allclose(one, other, atol=1e-6) for one, other in zip(wrong.parameters(), right.parameters(), strict=True))


def test_stretches_of_seeds_and_the_calibration_share_no_pair(sources: list[PairSet]) -> None:
    parts = [part(sources[0], number, (16, 4)) for number in range(3)]
    seen = [pair for draw in parts for some in draw for pair in some]
    assert len({(pair.prompt, pair.chosen, pair.rejected) for pair in seen}) == len(seen) == 60
    with pytest.raises(UserError, match="draw 3 needs 80"):
        part(sources[0], 3, (16, 4))


def test_the_influence_filter_keeps_the_highest_influence_and_the_worst_half_is_the_rest(model: Model, sources: list[PairSet]) -> None:
    pairs, _ = part(sources[0], 1, (16, 4))
    influence = gradient_scores(model, pairs).influence
    table, shares = pair_arms.gradient_columns(model, pairs)
    best, worst = (pair_arms.lowest(table[pair_arms.FILTERS[name]], 8) for name in ("influence", "worst"))
    assert sorted(best + worst) == list(range(16))
    assert influence[best].min() > influence[worst].max()
    assert shares["influence_negative"] == np.mean(influence < 0)


def test_correlations_are_those_of_ranks_and_a_constant_score_has_none(model: Model, sources: list[PairSet]) -> None:
    pairs, _ = part(sources[0], 1, (16, 4))
    scores = pair_arms.forward_columns(model, pairs).assign(constant=1.0)
    ranks = pair_arms.rank_correlations(scores, np.exp(scores["minus_length"].to_numpy()))
    assert ranks["minus_length"]["plain"] == pytest.approx(1)
    assert np.isnan(ranks["constant"]["plain"])
    # What is left of a score's ranks given itself is nothing.
    assert np.isnan(ranks["length_difference"]["given_length"])


def test_a_step_alone_raises_chosen_by_what_its_gradient_says(model: Model, sources: list[PairSet]) -> None:
    pairs, _ = part(sources[0], 1, (4, 4))
    rate = 1e-6
    moved = pair_arms.alone(model, pairs, "sgd", rate)
    # DPO's weight at the start is beta / 2.
    assert moved == pytest.approx(rate * 0.05 * gradient_scores(model, pairs).own, rel=0.2)


def test_what_is_there_is_not_measured_again(study: PairStudy, record: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    def no_training(*args: Any, **named: Any) -> None:
        raise AssertionError

    monkeypatch.setattr(pair_runs, "train", no_training)
    again = PairStudy(study.model, study.folder.parent, study.sources, LexiconScorer(), DESIGN)
    assert json.loads(json.dumps(plain(again.record()))) == record


def test_the_experiments_read_the_record_and_say_that_it_is_too_small(model: Model, record: dict[str, Any], tmp_path: Path) -> None:
    write_json(tmp_path / "preference_pairs.json", record)
    context = DisplacementContext(ModelPair(model, model), tmp_path)
    for name in ("B-E2", "B-E4", "B-E5"):
        assert run_experiment(EXPERIMENTS[name], context).verdict == "inconclusive"


def test_sources_are_read_from_their_files_and_pairs_without_room_are_left_out(model: Model, tmp_path: Path) -> None:
    folder = tmp_path / "preferences"
    folder.mkdir()
    dialogue = "\n\nHuman: Yes\n\nAssistant:"
    rows = [
        {"chosen": f"{dialogue} Yes", "rejected": f"{dialogue} No"},
        {"chosen": f"{dialogue} {'No ' * 400}", "rejected": f"{dialogue} No"},
    ]
    (folder / "hh_harmless.jsonl.gz").write_bytes(gzip.compress("\n".join(map(json.dumps, rows)).encode()))
    (folder / "paradetox.tsv").write_text('toxic\tneutral1\nNo "No\tYes\nNever\t\n', encoding="utf-8")
    hh, paradetox = hh_pairs(tmp_path, model), paradetox_pairs(tmp_path, model)
    assert (hh.about["usable"], hh.about["read"]) == (1, 2)
    (pair,) = paradetox.pairs
    assert pair.prompt == (0,)
    assert [model.tokenizer.decode(side[:-1]) for side in (pair.chosen, pair.rejected)] == ["Yes", 'No "No']
    run = tmp_path / "run" / "pairs"
    run.mkdir(parents=True)
    (run / "pairs.jsonl").write_text(json.dumps({"prompt_ids": [1], "chosen_ids": [2], "rejected_ids": [3]}), encoding="utf-8")
    write_json(run / "manifest.json", {"base": "another"})
    with pytest.raises(UserError, match="another model wrote the pairs"):
        own_pairs(run.parent, model)
    write_json(run / "manifest.json", {"base": model.digest})
    assert own_pairs(run.parent, model).pairs == (TokenPair((1,), (2,), (3,)),)


def test_the_command_names_the_data_that_it_needs(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path
) -> None:
    monkeypatch.delenv("BYPASS_DATA", raising=False)
    monkeypatch.setenv("BYPASS_RUNS", str(tmp_path))
    assert main(["pairs"]) == 2
    assert "BYPASS_DATA names no folder" in capsys.readouterr().err
