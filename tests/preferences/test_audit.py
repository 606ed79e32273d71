"""The audit as a whole, on tiny models: columns against the measures themselves, blocks that are found again, filters, and the page."""

from __future__ import annotations

import copy
import json
import random
import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
from datasets import Dataset
from trl import DPOConfig, DPOTrainer

from interp.errors import UserError
from interp.models.loading import load_model
from interp.models.model import Model
from interp.preferences import audit as audit_module
from interp.preferences import forward_level
from interp.preferences.audit import Audit, Settings, audit, tokenizer_notes
from interp.preferences.forward_level import rank_residual
from interp.preferences.head_influence import head_scores
from interp.preferences.influence import gradient_scores
from interp.preferences.keep import SCORES, select, with_rank
from interp.preferences.outputs import write_audit
from interp.preferences.page import coloured, render, token_texts
from interp.preferences.similarity import similarity
from interp.preferences.summary import correlations, rank_interval
from interp.stats.intervals import auc
from tests.conftest import WORDS, make_tokenizer
from tests.preferences.test_formats import data_of

HOSTILE = "</script><script>alert(1)</script><img src=x onerror=alert(2)>"


def rows(count: int = 24, seed: int = 0) -> list[dict[str, Any]]:
    """Pairs of invented words, of different lengths; the last three have no gradient, no room, and a prompt without tokens."""
    rng = random.Random(seed)

    def words(low: int, high: int) -> str:
        return "".join(f" {rng.choice(WORDS)}" for _ in range(rng.randint(low, high)))

    made = [{"prompt": words(2, 6), "chosen": words(1, 8), "rejected": words(1, 8), "id": f"r{n}"} for n in range(count - 3)]
    made += [{"prompt": " the", "chosen": " river", "rejected": " river", "id": "same"},
             {"prompt": words(40, 40), "chosen": " a", "rejected": " b", "id": "long"},
             {"prompt": "", "chosen": " a", "rejected": " b", "id": "none"}]  # fmt: skip
    return made


@pytest.fixture(scope="module")
def result(gpt2: Model) -> Audit:
    return audit(data_of(rows()), gpt2, Settings(max_length=32, by="alpha_ches", keep=0.5))


def test_every_column_is_the_measure_of_that_pair(result: Audit, gpt2: Model) -> None:
    frame = result.frame
    known = frame.index[frame["alpha_ches"].notna()].tolist()
    assert known == list(range(21))
    scores = similarity(gpt2, [result.tokens[index].token_pair() for index in known])
    for column, values in (
        ("logp_chosen", scores.log_probs.chosen), ("logp_rejected", scores.log_probs.rejected), ("ches", scores.ches),
        ("ln_ches", scores.ln_ches), ("alpha_ches", scores.alpha_ches), ("margin", scores.log_probs.margin),
        ("share_alpha_positive", scores.share_alpha_positive), ("share_hidden_positive", scores.share_hidden_positive),
    ):  # fmt: skip
        np.testing.assert_allclose(frame.loc[known, column], values, rtol=2e-5, atol=1e-5)
    np.testing.assert_allclose(frame.loc[known, "logp_chosen_per_token"], scores.log_probs.chosen / frame.loc[known, "n_chosen"], rtol=1e-5)
    noisy = (frame["margin"] > 0) & (frame["margin"] < 3)
    assert frame["noisy"].tolist() == noisy.tolist()
    assert 0 < noisy.sum() < 21
    assert result.summary["noisy"] == noisy.sum()


@pytest.mark.oracle
def test_the_gradient_level_is_the_measure_of_its_sample_and_adds_up(gpt2: Model, tmp_path: Path) -> None:
    settings = Settings(level="gradient", max_length=32, sample=6)
    result = audit(data_of(rows()), gpt2, settings, folder=tmp_path)
    frame, sample = result.frame, result.about["sample"]
    assert frame.index[frame["own"].notna()].tolist() == sample
    assert len(sample) == 6
    exact = gradient_scores(gpt2, [result.tokens[index].token_pair() for index in sample])
    for column in ("own", "entanglement", "grad_norm_chosen", "total", "influence", "total_sign"):
        np.testing.assert_allclose(frame.loc[sample, column], getattr(exact, column), rtol=1e-5)
    known = frame.index[frame["total_head"].notna()].tolist()
    head = head_scores(gpt2, [result.tokens[index].token_pair() for index in known])
    np.testing.assert_allclose(frame.loc[known, "influence_head"], head.influence, rtol=1e-4, atol=1e-3)
    assert [check["of"] for check in result.summary["conservation"]] == ["total", "total_head"]
    assert all(check["relative_difference"] < 1e-5 for check in result.summary["conservation"])
    assert result.summary["expected_to_fall"] == {"by": "total", "pairs": 6, "share": float((exact.total < 0).mean())}
    assert (result.summary["ranked_by"], frame["rank"].notna().sum()) == ("harm", 6)
    assert frame.loc[frame["rank"] == 1, "influence"].item() == frame["influence"].max()
    pd.testing.assert_frame_equal(audit(data_of(rows()), gpt2, settings, folder=tmp_path).frame, frame)
    with pytest.raises(UserError, match=r"known of a sample of 6 pairs, and a filter needs it of all 21.*--sample 21"):
        audit(data_of(rows()), gpt2, Settings(level="gradient", max_length=32, sample=6, keep=0.5))


@pytest.mark.oracle
def test_influence_ranks_planted_pairs_first_and_not_on_exchanged_sides(gpt2: Model) -> None:
    """Pairs whose rejected side repeats what others choose lower the chosen answers; half of the file is of that kind."""
    rng = random.Random(0)
    liked, free = [f" {word}" for word in WORDS[:4]], [f" {word}" for word in WORDS[12:]]

    def some(words: list[str]) -> str:
        return "".join(rng.choice(words) for _ in range(5))

    texts = []
    for number in range(40):
        harms = number % 2 == 0
        texts.append({"prompt": some(free), "chosen": some(free if harms else liked), "rejected": some(liked if harms else free)})
    planted = np.array([number % 2 for number in range(40)])
    scored = audit(data_of(texts), gpt2, Settings(level="gradient")).frame["influence"]
    assert auc(planted, scored) > 0.9
    mixed = [dict(row, chosen=row["rejected"], rejected=row["chosen"]) if rng.random() < 0.5 else row for row in texts]
    assert abs(auc(planted, audit(data_of(mixed), gpt2, Settings(level="gradient")).frame["influence"]) - 0.5) < 0.25


def test_what_the_trainer_leaves_out_and_what_has_no_gradient_is_counted_and_not_ranked(result: Audit) -> None:
    assert result.summary["trainer"] == {"rows": 24, "left_out": 1, "without_gradient": 1, "with_gradient": 22}
    assert result.summary["flags"]["empty_prompt"] == 1
    assert result.frame["rank"].isna().tolist() == [False] * 21 + [True] * 3


def test_the_filter_keeps_the_share_with_the_lowest_scores_and_draws_as_many(result: Audit) -> None:
    chosen = result.selection
    assert chosen is not None
    scores = result.frame["alpha_ches"]
    assert (len(chosen.kept), len(chosen.random), chosen.unscored) == (10, 10, 3)
    assert sorted(chosen.kept + chosen.dropped) == list(range(24))
    assert scores[list(chosen.kept)].max() == chosen.threshold < scores[list(chosen.dropped)].min()
    assert set(chosen.random) <= set(range(21))
    assert result.frame["keep"].sum() == 10
    table = pd.DataFrame(result.summary["filter"]["table"]).set_index("part")
    assert table.loc[["kept", "dropped"], "pairs"].sum() == table.loc["all", "pairs"]
    assert table.loc["kept", "mean_n_chosen"] == pytest.approx(result.frame.loc[list(chosen.kept), "n_chosen"].mean())


@pytest.mark.parametrize("by", [name for name in SCORES if name not in ("harm", "total")])
def test_each_score_keeps_its_own_end(by: str, result: Audit) -> None:
    frame = with_rank(result.frame.assign(prompt_key="p"), by, 0)
    chosen = select(frame, by, 0.25, 0)
    column, high = chosen.column, SCORES[by][1]
    kept, dropped = (frame.loc[[index for index in part if pd.notna(frame["rank"][index])], column].astype(float)
                     for part in (chosen.kept, chosen.dropped))  # fmt: skip
    assert kept.min() >= dropped.max() if high else kept.max() <= dropped.min()


def test_harm_keeps_the_highest_influence_and_a_sample_is_no_basis_for_a_filter(result: Audit) -> None:
    frame = result.frame.assign(influence=[*range(21), np.nan, np.nan, np.nan], prompt_key="p")
    assert select(with_rank(frame, "harm", 0), "harm", 0.25, 0).kept == (16, 17, 18, 19, 20)
    frame.loc[:10, "influence"] = np.nan
    with pytest.raises(UserError, match=r"influence is known of a sample of \d+ pairs, and a filter needs it of all 21"):
        select(with_rank(frame, "harm", 0), "harm", 0.25, 0)


def test_a_killed_audit_goes_on_and_other_models_and_rows_are_computed_anew(
    gpt2: Model, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(forward_level, "BLOCK", 4)
    read: list[int] = []

    def counting(model: Model, pairs: Any, **options: Any) -> Any:
        read.append(len(pairs))
        if len(read) == stop:
            raise KeyboardInterrupt
        return similarity(model, pairs, **options)

    monkeypatch.setattr(forward_level, "similarity", counting)
    monkeypatch.setattr(audit_module, "seconds_a_token", lambda model, pairs: 1e-3)
    data, settings, said = data_of(rows()), Settings(max_length=32), []
    stop = 4
    with pytest.raises(KeyboardInterrupt):
        audit(data, gpt2, settings, folder=tmp_path)
    stop = 0
    read.clear()
    first = audit(data, gpt2, settings, folder=tmp_path, say=said.append)
    assert read == [4, 4, 1]
    assert "12 are there from an earlier run" in said[0]
    read.clear()
    again = audit(data, gpt2, settings, folder=tmp_path)
    pd.testing.assert_frame_equal(again.frame, first.frame)
    pd.testing.assert_frame_equal(audit(data, gpt2, settings).frame, first.frame)
    assert read == [4, 4, 4, 4, 4, 1]
    read.clear()
    own = next(tmp_path.glob("forward-*.json"))
    audit(data, pair.tuned, settings, folder=tmp_path)
    assert len(read) == 6
    read.clear()
    own.write_text("{")
    pd.testing.assert_frame_equal(audit(data, gpt2, settings, folder=tmp_path).frame, first.frame)
    assert len(read) == 1


def test_a_limit_draws_rows_by_the_seed_and_keeps_their_numbers_in_the_file(gpt2: Model) -> None:
    data = data_of(rows())
    drawn = [audit(data, gpt2, Settings(level="text", max_length=32, limit=6, seed=seed)).frame["row"].tolist() for seed in (0, 0, 1)]
    assert drawn[0] == drawn[1] == sorted(drawn[0])
    assert drawn[0] != drawn[2]
    assert max(max(part) for part in drawn) > 6


def test_what_is_written_loads_in_trl_unchanged_and_is_what_was_scored(
    result: Audit, gpt2_folder: Path, gpt2: Model, tmp_path: Path
) -> None:
    names = write_audit(result, tmp_path, "page")
    assert set(names) == {path.name for path in tmp_path.iterdir()}
    parts = {name: [json.loads(line) for line in (tmp_path / f"{name}.jsonl").read_text().splitlines()] for name in ("kept", "dropped")}
    assert sorted(row["bypass_row"] for part in parts.values() for row in part) == list(range(24))
    source = rows()
    assert all({**source[row["bypass_row"]], "bypass_row": row["bypass_row"]} == row for part in parts.values() for row in part)
    hf = load_model(gpt2_folder).hf.requires_grad_(True)
    arguments = DPOConfig(
        output_dir=str(tmp_path / "trl"), max_length=32, bf16=False, use_cpu=True, report_to=[], gradient_checkpointing=False
    )
    data = Dataset.from_json(str(tmp_path / "kept.jsonl"), cache_dir=str(tmp_path))
    trainer = DPOTrainer(hf, hf.__class__(hf.config), arguments, train_dataset=data, processing_class=copy.deepcopy(gpt2.tokenizer))
    for row in trainer.train_dataset:
        ids = result.tokens[row["bypass_row"]]
        assert (tuple(row["prompt_ids"]), tuple(row["chosen_ids"]), tuple(row["rejected_ids"])) == (ids.prompt, ids.chosen, ids.rejected)
    assert len(trainer.train_dataset) == 10
    frame = pd.read_csv(tmp_path / "audit.csv")
    np.testing.assert_allclose(frame["alpha_ches"], result.frame["alpha_ches"], rtol=1e-12)
    assert pd.read_parquet(tmp_path / "audit.parquet")["rank"].tolist() == result.frame["rank"].tolist()
    assert json.loads((tmp_path / "audit.json").read_text())["settings"]["max_length"] == 32


def test_of_an_earlier_audit_no_filter_stays_in_the_folder(result: Audit, gpt2: Model, tmp_path: Path) -> None:
    write_audit(result, tmp_path, "page")
    write_audit(audit(data_of(rows()), gpt2, Settings(level="text", max_length=32)), tmp_path, "page")
    assert not (tmp_path / "kept.jsonl").exists()


def test_the_page_holds_hostile_and_profane_texts_as_text(gpt2: Model) -> None:
    texts = [{"prompt": f"the {HOSTILE}", "chosen": f" you shit {n}", "rejected": f" {HOSTILE} river"} for n in range(2)]
    data = data_of(texts)
    made = audit(data, gpt2, Settings(max_length=256)) if gpt2.context >= 256 else audit(data_of(short(texts)), gpt2, Settings())
    page = render(made, gpt2, command=f"bypass pairs audit '{HOSTILE}'")
    assert "<img" not in page
    assert page.count("<script") == 4
    assert not re.search(r"\bshit\b", visible(page))
    assert "sh*t" in visible(page)
    assert "shit" in visible(render(made, gpt2, command="", show_words=True))


def short(texts: list[dict[str, str]]) -> list[dict[str, str]]:
    """The same with texts that fit the tiny model's context, whose letters are a token each."""
    return [{name: text.replace(HOSTILE, "</script><img x>")[:30] for name, text in row.items()} for row in texts]


def visible(page: str) -> str:
    """The text of a page between its tags, without scripts."""
    return re.sub(r"<[^>]*>", "", re.sub(r"<(script|style).*?</\1>", "", page, flags=re.S))


def test_tokens_are_the_answer_again_and_their_colours_their_parts_of_the_term(gpt2: Model) -> None:
    text = "the river 🙂 café, you shit"
    ids = gpt2.tokenizer(text)["input_ids"]
    assert "".join(token_texts(gpt2.tokenizer, ids)) == text
    weights = np.linspace(-1, 2, len(ids))
    tokens = coloured(gpt2, ids, weights, show_words=False)
    assert "".join(token["text"] for token in tokens) == text.replace("shit", "sh*t")
    assert [token["sign"] for token in tokens] == ["up" if weight > 0 else "down" for weight in weights]
    assert (tokens[-1]["strength"], tokens[0]["strength"]) == (100, 50)


def test_a_residual_of_ranks_does_not_depend_on_what_it_is_given() -> None:
    rng = np.random.default_rng(0)
    length = pd.Series(rng.normal(size=200))
    score = pd.Series(length * 3 + rng.normal(size=200))
    score[5] = np.nan
    residual = rank_residual(score, length)
    assert np.isnan(residual[5])
    assert abs(residual.corr(length.rank())) < 0.02
    assert score.corr(length, method="spearman") > 0.9
    # What is left is the part of its own.
    assert residual.corr(score - 3 * length, method="spearman") > 0.9


def test_rank_correlations_have_an_interval_that_covers() -> None:
    rng = np.random.default_rng(1)
    truth, hits = 6 / np.pi * np.arcsin(0.6 / 2), 0
    for _ in range(200):
        first = rng.normal(size=80)
        second = 0.6 * first + 0.8 * rng.normal(size=80)
        table = correlations(pd.DataFrame({"ches": first, "own": second}))
        hits += bool(table["low"][0] <= truth <= table["high"][0])
    assert hits >= 180
    assert rank_interval(1.0, 10) == (1.0, 1.0)


def test_a_tokenizer_that_trl_would_load_otherwise_is_said(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    pairs = data_of(rows()).pairs
    assert tokenizer_notes(gpt2, pairs) == []
    other = make_tokenizer()
    other.add_tokens([" the"])
    monkeypatch.setattr("transformers.AutoTokenizer.from_pretrained", lambda *place, **options: other)
    count = sum(" the" in side for pair in pairs for side in [f"{pair.prompt} {pair.chosen} {pair.rejected}"])
    assert f"divides {count} of the first 24 pairs otherwise" in tokenizer_notes(gpt2, pairs)[0]


@pytest.mark.parametrize(
    ("options", "message"),
    [({"level": "deep"}, "--level is 'deep'"), ({"by": "luck"}, "--by is 'luck'"), ({"keep": 1.0}, "--keep is 1.0"),
     ({"limit": 0}, "--limit is 0"), ({"eos": "perhaps"}, "--eos is 'perhaps'")],
)  # fmt: skip
def test_settings_that_mean_nothing_are_refused(options: dict[str, Any], message: str, unchecked: None) -> None:
    with pytest.raises(UserError, match=message):
        Settings(**options)


def test_a_length_beyond_the_context_and_a_score_that_was_not_computed_are_refused(gpt2: Model) -> None:
    with pytest.raises(UserError, match=r"line 23: the pair has \d+ tokens, and gpt2 reads at most 64.*--max-length 64"):
        audit(data_of([*rows()[:22], {"prompt": " the", "chosen": " a" * 70, "rejected": " b"}]), gpt2, Settings(max_length=90))
    with pytest.raises(UserError, match=r"needs the column alpha_ches, which was not computed"):
        audit(data_of(rows()), gpt2, Settings(level="text", max_length=32, by="alpha_ches", keep=0.5))
