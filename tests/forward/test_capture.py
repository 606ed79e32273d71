"""What capture returns for every choice of positions, units, batch and place to store, against whole forwards text by text."""

from __future__ import annotations

from importlib import import_module
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from interp import Captured, Edit, Model, UserError, capture
from interp.forward.captured import load_captured
from tests.conftest import TEXTS

SITES = ["resid_pre.0", "z.1", "mlp_post.2", "resid_post.2", "ln_final", "logits"]
ALL = list(TEXTS)


def alone(model: Model, text: str, sites: list[str] = SITES) -> dict[str, Tensor]:
    """Every position of one text, unpadded."""
    return {site: value[0] for site, value in capture(model, [text], sites, positions="all").items()}


def close(got: Tensor, expected: Tensor) -> None:
    torch.testing.assert_close(got, expected, atol=1e-5, rtol=1e-5)


def lengths(model: Model) -> list[int]:
    return [len(row) for row in model.tokenizer(ALL, add_special_tokens=False)["input_ids"]]


def test_last_is_the_last_real_position_of_each_text(model: Model) -> None:
    acts = capture(model, ALL, SITES, positions="last")
    for row, text in enumerate(ALL):
        for site, expected in alone(model, text).items():
            close(acts[site][row], expected[-1])


def test_one_string_is_one_text(model: Model) -> None:
    one, many = capture(model, ALL[0], SITES), capture(model, [ALL[0]], SITES)
    for site in SITES:
        assert torch.equal(one[site], many[site])


def test_mean_is_over_the_real_positions_of_each_text(model: Model) -> None:
    acts = capture(model, ALL, SITES, positions="mean")
    for row, text in enumerate(ALL):
        for site, expected in alone(model, text).items():
            close(acts[site][row], expected.mean(dim=0))


def test_mean_after_first_leaves_the_first_position_out_except_of_a_text_of_one_token(model: Model) -> None:
    rows = [*model.tokenizer(ALL, add_special_tokens=False)["input_ids"], [300]]
    acts = capture(model, rows, SITES, positions="mean_after_first")
    for row, ids in enumerate(rows):
        for site, value in capture(model, [ids], SITES, positions="all").items():
            close(acts[site][row], value[0, 1:].mean(dim=0) if len(ids) > 1 else value[0, 0])


def test_all_is_right_padded_with_zeros_and_says_what_is_real(model: Model) -> None:
    acts = capture(model, ALL, SITES, positions="all")
    assert acts.mask is not None
    assert acts.mask.sum(dim=1).tolist() == lengths(model)
    for row, text in enumerate(ALL):
        for site, expected in alone(model, text).items():
            close(acts[site][row][: len(expected)], expected)
            assert not acts[site][row][len(expected) :].any()
            assert acts.mask[row].tolist() == [place < len(expected) for place in range(acts.mask.shape[1])]


def test_absolute_positions_are_taken_in_the_order_given(model: Model) -> None:
    acts = capture(model, ALL, SITES, positions=[1, 0])
    for row, text in enumerate(ALL):
        for site, expected in alone(model, text).items():
            close(acts[site][row], expected[[1, 0]])


def test_each_text_may_have_positions_of_its_own(model: Model) -> None:
    wanted = [[count - 1, number % count] for number, count in enumerate(lengths(model))]
    acts = capture(model, ALL, SITES, positions=wanted, batch_size=2)
    for row, text in enumerate(ALL):
        for site, expected in alone(model, text).items():
            close(acts[site][row], expected[wanted[row]])


@pytest.mark.parametrize("positions", ["last", "mean", "all", [1]], ids=str)
def test_units_keep_the_chosen_indices_of_the_last_axis(model: Model, positions: Any) -> None:
    chosen = {"mlp_post.2": [7, 0, 7], "z.1": [9, 31]}
    whole, part = (capture(model, ALL, SITES, positions=positions, units=units) for units in (None, chosen))
    for site, indices in chosen.items():
        values = whole[site].flatten(-2) if site.startswith("z.") else whole[site]
        close(part[site], values[..., indices])
    assert torch.equal(part["logits"], whole["logits"])


@pytest.mark.parametrize("positions", ["last", "mean", "all", [0, 1]], ids=str)
@pytest.mark.parametrize("limits", [{"batch_size": 2}, {"batch_tokens": 1}], ids=str)
def test_the_size_of_batches_changes_nothing(model: Model, positions: Any, limits: dict[str, int]) -> None:
    edits = [Edit.scale_keys([(0, 3), (1, 8)], 4.0, "from_last")]
    whole, parts = (capture(model, ALL * 2, SITES, positions=positions, edits=edits, **some) for some in ({}, limits))
    for site in SITES:
        close(parts[site], whole[site])


@pytest.mark.parametrize("positions", ["last", "mean", "all", [0, 1]], ids=str)
def test_what_is_spilled_to_disk_equals_what_is_held_in_memory(model: Model, positions: Any, tmp_path: Path) -> None:
    settings: dict[str, Any] = {
        "positions": positions,
        "units": {"mlp_post.2": [1, 2]},
        "edits": [Edit.scale("mlp_post.0", 2.0)],
        "batch_size": 2,
    }
    held = capture(model, ALL, SITES, **settings)
    spilled = capture(model, ALL, SITES, spill=tmp_path / "acts", memory_limit=1, **settings)
    saved = load_captured(held.save(tmp_path / "saved"))
    for other in (spilled, saved, load_captured(tmp_path / "acts")):
        assert list(other) == list(held) == SITES
        assert (other.positions, other.settings) == (held.positions, held.settings)
        assert (other.mask is None) == (held.mask is None) == (positions != "all")
        assert held.mask is None or torch.equal(other.mask, held.mask)
        for site in SITES:
            assert torch.equal(other[site], held[site]), site
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acts", "saved"]


def test_a_spill_replaces_an_earlier_one_and_nothing_else(gpt2: Model, tmp_path: Path) -> None:
    for text in ("a", "the river"):
        capture(gpt2, [text], ["logits"], positions="all", spill=tmp_path / "acts")
    assert load_captured(tmp_path / "acts")["logits"].shape[1] == len(gpt2.tokenizer("the river", add_special_tokens=False)["input_ids"])
    (tmp_path / "thesis").mkdir()
    (tmp_path / "thesis" / "chapter.txt").write_text("years of work")
    for target in (tmp_path / "thesis", tmp_path / "thesis" / "chapter.txt"):
        with pytest.raises(UserError, match="is not a capture"):
            capture(gpt2, ["a"], ["logits"], spill=target)
        with pytest.raises(UserError, match="is not a capture"):
            capture(gpt2, ["a"], ["logits"]).save(target)
    assert (tmp_path / "thesis" / "chapter.txt").read_text() == "years of work"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["acts", "thesis"]


def test_a_spill_that_fails_leaves_nothing_behind(gpt2: Model, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def broken(*args: Any, **kwargs: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(import_module("interp.forward.capture"), "_store", broken)
    with pytest.raises(KeyboardInterrupt):
        capture(gpt2, ["a"], ["logits"], spill=tmp_path / "acts")
    assert not list(tmp_path.iterdir())


def test_more_than_the_memory_limit_is_refused_before_anything_is_computed(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    size = 4 * len(ALL) * gpt2.d_mlp
    assert capture(gpt2, ALL, ["mlp_post.0"], memory_limit=size)["mlp_post.0"].shape == (len(ALL), gpt2.d_mlp)
    monkeypatch.setattr(import_module("interp.forward.capture"), "_forward", None)
    with pytest.raises(UserError, match="the limit is"):
        capture(gpt2, ALL, ["mlp_post.0"], memory_limit=size - 1)


@pytest.mark.parametrize("positions", ["last", "mean", "all", [0]], ids=str)
def test_an_empty_list_of_texts_gives_empty_tensors(gpt2: Model, positions: Any, tmp_path: Path) -> None:
    for spill in (None, tmp_path / "acts"):
        acts = capture(gpt2, [], ["resid_post.1", "logits"], positions=positions, spill=spill)
        assert [len(acts[site]) for site in acts] == [0, 0]
        assert acts["logits"].shape[-1] == gpt2.d_vocab


def test_rows_of_token_ids_stand_for_their_texts(model: Model) -> None:
    rows = model.tokenizer(ALL, add_special_tokens=False)["input_ids"]
    bos = model.tokenizer.bos_token_id
    assert bos is None
    for settings in ({}, {"max_tokens": 3}):
        first, second = (capture(model, given, ["logits"], positions="all", **settings) for given in (ALL, rows))
        assert torch.equal(first["logits"], second["logits"])
    assert capture(model, ALL, ["logits"], positions="all", max_tokens=3)["logits"].shape[1] == 3


def test_a_capture_is_a_mapping_of_its_sites(gpt2: Model) -> None:
    acts = capture(gpt2, ["a"], ["resid_post.1", "logits", "logits"])
    assert isinstance(acts, Captured)
    assert list(acts) == ["resid_post.1", "logits"]
    assert "logits" in acts
    assert "resid_post.0" not in acts
    assert acts.get("resid_post.0") is None
    with pytest.raises(UserError, match=r"^site 'resid_mid.0' was not captured. Fix: use one of resid_post.1, logits.$"):
        acts["resid_mid.0"]


@pytest.mark.usefixtures("unchecked")
@pytest.mark.parametrize(
    ("settings", "fault"),
    [
        ({"sites": []}, "no sites"),
        ({"sites": ["mlp_gate.0"]}, "no site 'mlp_gate'"),
        ({"sites": ["resid_post.3"]}, "out of range: the model has 3 layers"),
        ({"sites": ["resid_past.1"]}, "is not a site"),
        ({"texts": ["the river", ""]}, "text 1 is empty"),
        ({"texts": [[1, 2], []]}, "text 1 is empty"),
        ({"texts": [[1, 390]]}, "text 0 holds token ids from 1 to 390"),
        ({"texts": [[1, 2], "a"]}, "of type list"),
        ({"texts": [None]}, "of type NoneType"),
        ({"texts": ["river " * 100]}, "tokens, but the model reads at most 64"),
        ({"positions": "first"}, "positions 'first' is unknown"),
        ({"positions": None}, "positions None is unknown"),
        ({"positions": "each"}, "positions 'each' is unknown.*last, all, mean, mean_after_first"),
        ({"positions": 60}, "but position 60 is asked for"),
        ({"positions": [0.5]}, "position '0.5' is not a whole number"),
        ({"positions": []}, "empty list of positions"),
        ({"positions": [[], []]}, "empty list of positions"),
        ({"positions": [[0], [0, 1]]}, "one list of equal length for each text"),
        ({"positions": [[0]]}, "one list of equal length for each text"),
        ({"positions": [0, [1]]}, "one list of equal length for each text"),
        ({"positions": [0, 60]}, "but position 60 is asked for"),
        ({"positions": [-1, 0]}, "position '-1' is not a whole number"),
        ({"units": {"logits": [390]}}, r"units \[390\] of logits do not exist"),
        ({"units": {"logits": [-1]}}, r"units \[-1\] of logits do not exist"),
        ({"units": {"logits": []}}, "do not exist"),
        ({"units": {"mlp_post.1": [0]}}, "mlp_post.1, which is not among the sites"),
        ({"max_tokens": 0}, "max_tokens is 0"),
        ({"bos": True}, "tokenizer has none"),
        ({"edits": [Edit.add("resid_mid.1", [1.0])]}, "holds 1 numbers"),
    ],
    ids=lambda value: str(value)[:40],
)
def test_what_cannot_be_captured_is_refused_by_name(gpt2: Model, settings: dict[str, Any], fault: str, tmp_path: Path) -> None:
    given = {"texts": ["the river", "the stone"], "sites": ["logits"], **settings}
    with pytest.raises(UserError, match=fault):
        capture(gpt2, given.pop("texts"), given.pop("sites"), spill=tmp_path / "acts", **given)
    assert not list(tmp_path.iterdir())


def test_a_folder_without_a_capture_is_refused(tmp_path: Path) -> None:
    with pytest.raises(UserError, match="holds no capture"):
        load_captured(tmp_path)


def test_positions_and_units_may_be_numpy_integers(gpt2: Model) -> None:
    first = capture(gpt2, ALL, ["mlp_post.1"], positions=np.array([1, 0]), units={"mlp_post.1": np.array([3, 4]).tolist()})
    assert torch.equal(first["mlp_post.1"], capture(gpt2, ALL, ["mlp_post.1"], positions=[1, 0])["mlp_post.1"][..., [3, 4]])
