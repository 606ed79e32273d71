"""The audit as a whole, on tiny models: columns against the measures themselves, blocks that are found again, filters, and the page."""

from __future__ import annotations

import copy
import json
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
from interp.preferences.keep import SCORES, select, with_rank
from interp.preferences.logprobs import log_probs
from interp.preferences.outputs import write_audit
from interp.preferences.page import render
from interp.preferences.similarity import similarity
from tests.chat_models import chat_model
from tests.conftest import make_tokenizer
from tests.preferences.invented_pairs import rows
from tests.preferences.test_formats import CONVERSATIONS, data_of
from tests.preferences.test_page import visible


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
    gpt2: Model, gpt2_folder: Path, pair: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
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
    other = load_model(gpt2_folder)
    other.hf.config.layer_norm_epsilon = 1e-2
    audit(data, other, settings, folder=tmp_path)
    assert (other.digest, len(read)) == (gpt2.digest, 6), "a setting that no weight shows is one of what a block depends on"
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


def test_conversations_are_audited_in_the_models_chat_template() -> None:
    model = chat_model()
    result = audit(data_of(CONVERSATIONS), model, Settings())
    ids = result.tokens[0]
    text = model.tokenizer.decode([*ids.prompt, *ids.chosen])
    assert text == model.tokenizer.apply_chat_template([*CONVERSATIONS[0]["prompt"], *CONVERSATIONS[0]["chosen"]], tokenize=False)
    np.testing.assert_allclose(
        result.frame["logp_chosen"], log_probs(model, [pair.token_pair() for pair in result.tokens]).chosen, rtol=1e-5
    )
    assert "snarg, never" in visible(render(result, model, command=""))


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
