"""The logs in a folder: which belong to a base, and on which of them results depend."""

from __future__ import annotations

from pathlib import Path

import pytest

from interp import Model, ModelPair
from interp.errors import UserError
from interp.files import write_json
from interp.runs.logs import logs_digest, read_single_token, studies_of_base


def test_studies_of_a_base_are_those_with_its_digest(gpt2: Model, tmp_path: Path) -> None:
    mine, other = {"base": gpt2.digest, "runs": []}, {"base": "another", "runs": []}
    write_json(tmp_path / "kl_term.json", mine)
    write_json(tmp_path / "single_token.json", other)
    pair = ModelPair(gpt2, gpt2)
    assert studies_of_base(tmp_path, pair) == {"kl_term": mine}
    write_json(tmp_path / "single_token.json", mine)
    assert studies_of_base(tmp_path, pair) == {"kl_term": mine, "single_token": mine}
    assert read_single_token(tmp_path, gpt2) == mine
    # A study of models of its own is of no base.
    write_json(tmp_path / "elasticity_theory.json", {"rows": []})
    write_json(tmp_path / "elasticity.json", other)
    assert studies_of_base(tmp_path, pair) == {"kl_term": mine, "single_token": mine, "elasticity_theory": {"rows": []}}
    (tmp_path / "single_token.json").write_text("{", encoding="utf-8")
    with pytest.raises(UserError):
        studies_of_base(tmp_path, pair)


def test_a_study_of_preference_pairs_does_not_count_for_results_on_the_tuning(gpt2: Model, tmp_path: Path) -> None:
    write_json(tmp_path / "kl_term.json", {"base": gpt2.digest})
    before = logs_digest(tmp_path), logs_digest(tmp_path, ("single_token",))
    write_json(tmp_path / "single_token.json", {"base": gpt2.digest})
    assert logs_digest(tmp_path) == before[0]
    assert logs_digest(tmp_path, ("single_token",)) != before[1]
