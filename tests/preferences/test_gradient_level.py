"""The gradient level: the measures of a sample, a planted answer, and going on after a kill."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

from interp.errors import UserError
from interp.models.model import Model
from interp.preferences import gradient_level, influence
from interp.preferences.audit import Settings, audit
from interp.preferences.forward_level import Blocks
from interp.preferences.head_influence import head_scores
from interp.preferences.influence import gradient, gradient_scores
from interp.stats.intervals import auc
from tests.conftest import WORDS
from tests.preferences.invented_pairs import rows
from tests.preferences.test_formats import data_of


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
    for number in range(24):
        harms = number % 2 == 0
        texts.append({"prompt": some(free), "chosen": some(free if harms else liked), "rejected": some(liked if harms else free)})
    planted = np.array([number % 2 for number in range(24)])
    scored = audit(data_of(texts), gpt2, Settings(level="gradient")).frame["influence"]
    assert auc(planted, scored) > 0.9
    mixed = [dict(row, chosen=row["rejected"], rejected=row["chosen"]) if rng.random() < 0.5 else row for row in texts]
    assert abs(auc(planted, audit(data_of(mixed), gpt2, Settings(level="gradient")).frame["influence"]) - 0.5) < 0.25


def test_a_killed_gradient_level_goes_on_from_its_last_block(gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gradient_level, "BLOCK", 3)
    data = audit(data_of(rows()), gpt2, Settings(level="text", max_length=32))
    pairs = [ids.token_pair() for ids in data.tokens[:8]]
    blocks, read = Blocks(tmp_path, gpt2.digest, "forward"), []

    def counting(*arguments: Any) -> Any:
        read.append(1)
        if len(read) == stop:
            raise KeyboardInterrupt
        return gradient(*arguments)

    monkeypatch.setattr(influence, "gradient", counting)
    frames = []
    # Killed in the third block of the first reading, then in the second block of the second one.
    for stop, expected in ((14, 14), (13, 13), (0, 10)):
        read.clear()
        if stop:
            with pytest.raises(KeyboardInterrupt):
                gradient_level.gradient_level(gpt2, pairs, blocks)
        else:
            frames.append(gradient_level.gradient_level(gpt2, pairs, blocks))
        assert len(read) == expected
    read.clear()
    frames += [gradient_level.gradient_level(gpt2, pairs, blocks), gradient_level.gradient_level(gpt2, pairs, Blocks(None, "", ""))]
    assert len(read) == 32
    for frame in frames[1:]:
        pd.testing.assert_frame_equal(frame, frames[0])
    assert not list(tmp_path.glob("*.safetensors"))
    exact = gradient_scores(gpt2, pairs)
    for column in frames[0]:
        np.testing.assert_allclose(frames[0][column], getattr(exact, column), rtol=1e-5)
