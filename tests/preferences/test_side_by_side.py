"""Work side by side gives what work one after another gives: in order, with the caller's edits, and errors come out."""

from __future__ import annotations

import threading

import numpy as np
import pytest
import torch

from interp import Edit, Model, UserError, editing
from interp.preferences import forward_level, head_influence
from interp.preferences.forward_level import BLOCK, Blocks
from interp.preferences.head_influence import head_scores
from interp.preferences.pairs import TokenPair
from interp.preferences.side_by_side import side_by_side, workers
from interp.preferences.similarity import similarity
from interp.preferences.states import states_by


def invented(count: int) -> list[TokenPair]:
    rng = np.random.default_rng(2)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        return tuple(map(int, rng.integers(1, 200, rng.integers(low, high))))

    return [TokenPair(tokens(1, 6), tokens(1, 7), tokens(1, 7)) for _ in range(count)]


def test_results_are_in_order_and_two_parts_are_worked_on_at_a_time() -> None:
    both_are_here = threading.Barrier(2, timeout=30)

    def work(part: int) -> int:
        both_are_here.wait()
        assert torch.get_num_threads() == 1
        return 10 * part

    before = torch.get_num_threads()
    assert list(side_by_side(work, [3, 1, 2, 0], 2)) == [30, 10, 20, 0]
    assert torch.get_num_threads() == before
    assert list(side_by_side(lambda part: part, [5, 4], 1)) == [5, 4]


def test_a_model_in_half_precision_is_worked_on_alone(gpt2: Model, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)
    assert workers(gpt2) == 3
    half = Model(gpt2.plain_copy().to(torch.bfloat16), gpt2.tokenizer, "half")
    assert workers(half) == 1


def test_an_error_of_a_part_is_raised() -> None:
    def work(part: int) -> int:
        if part == 1:
            raise UserError("part 1 is bad", "leave it out")
        return part

    with pytest.raises(UserError, match="part 1 is bad"):
        list(side_by_side(work, [0, 1, 2], 2))


def test_threads_see_the_edits_of_the_caller(gpt2: Model) -> None:
    pairs = invented(4)
    with editing(gpt2, [Edit.scale("mlp_out.1", 0.0)]):
        alone = similarity(gpt2, pairs).ches
        (first, second) = side_by_side(lambda part: similarity(gpt2, part).ches, [pairs[:2], pairs[2:]], 2)
    assert np.concatenate([first, second]) == pytest.approx(alone, rel=1e-5, nan_ok=True)
    assert not np.allclose(alone, similarity(gpt2, pairs).ches, equal_nan=True)


@pytest.mark.parametrize("logits", [1, 1 << 22])
def test_the_forward_level_is_the_same_from_stored_states_and_by_several_workers(
    gpt2: Model, logits: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    pairs = invented(BLOCK + 8)
    # One and the same pair twice, at the beginning of two blocks.
    pairs.insert(BLOCK, pairs[0])
    monkeypatch.setattr(head_influence, "STORED_BYTES", 0)
    plain = head_scores(gpt2, pairs)
    alone = similarity(gpt2, pairs)
    monkeypatch.undo()
    monkeypatch.setattr(head_influence, "LOGITS", logits)
    for module in (forward_level, head_influence):
        monkeypatch.setattr(module, "workers", lambda model: 3)
    reads = 0

    def counted(*args: object, **named: object) -> object:
        nonlocal reads
        reads += 1
        return states_by(*args, **named)  # type: ignore[arg-type]

    monkeypatch.setattr(head_influence, "states_by", counted)
    frame = forward_level.forward_level(gpt2, pairs, Blocks(None, "", "forward"))
    assert frame["total_head"].to_numpy() == pytest.approx(plain.total, rel=1e-4, abs=1e-4)
    assert frame["influence_head"].to_numpy() == pytest.approx(plain.influence, rel=1e-4, abs=1e-4)
    assert frame["ches"].to_numpy() == pytest.approx(alone.ches, rel=1e-5, abs=1e-5, nan_ok=True)
    # What was read for CHES is not read again.
    assert reads == 0
