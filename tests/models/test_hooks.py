"""The hooks of a model: the frame that they are given, blocks within blocks, exceptions, and threads that share one model."""

from __future__ import annotations

import threading
from collections.abc import Sequence

import pytest
import torch
from jaxtyping import TypeCheckError
from torch import Tensor

from interp import Model
from interp.models.hooks import Frame, Work, active, working
from interp.models.tokens import pad, positions_of

ROWS = [[5, 6, 7, 8], [9, 10]]
SITE = "resid_post.1"


@torch.no_grad()
def logits(model: Model, rows: Sequence[Sequence[int]] = ROWS) -> Tensor:
    tokens = pad(rows, 0)
    out: Tensor = model.hf(input_ids=tokens.ids, attention_mask=tokens.mask.long()).logits
    return out


def adding(number: float) -> Work:
    return Work(transforms={SITE: (lambda x, frame: x + number,)})


def test_the_frame_counts_positions_from_the_first_token_of_each_row(any_model: Model) -> None:
    frames: list[Frame] = []
    work = Work(collectors={SITE: (lambda x, frame: frames.append(frame),)})
    with working(any_model.hf, work):
        logits(any_model)
    (frame,) = frames
    assert frame.real.tolist() == [[True] * 4, [False, False, True, True]]
    assert [row[real].tolist() for row, real in zip(frame.positions, frame.real, strict=True)] == [[0, 1, 2, 3], [0, 1]]
    assert frame.prompt_lengths.tolist() == [4, 2]
    last = frame.last(1)
    assert (last.positions.tolist(), last.real.tolist()) == ([[3], [1]], [[True], [True]])
    assert frame.last(4) is frame


def test_prompt_lengths_that_are_set_are_those_of_the_frame(gpt2: Model) -> None:
    frames: list[Frame] = []
    with working(gpt2.hf, Work(collectors={SITE: (lambda x, frame: frames.append(frame),)}), torch.tensor([3, 1])):
        logits(gpt2)
    assert [frame.prompt_lengths.tolist() for frame in frames] == [[3, 1]]


def test_the_work_of_nested_blocks_is_done_in_their_order_and_ends_with_its_block(gpt2: Model) -> None:
    streams: list[Tensor] = []
    looking = Work(collectors={SITE: (lambda x, frame: streams.append(x),)})
    doubling = Work(transforms={SITE: (lambda x, frame: 2 * x,)})
    with working(gpt2.hf, looking):
        logits(gpt2)
        with working(gpt2.hf, adding(1.0)):
            logits(gpt2)
            with working(gpt2.hf, doubling):
                logits(gpt2)
            logits(gpt2)
        with working(gpt2.hf, doubling), working(gpt2.hf, adding(1.0)):
            logits(gpt2)
        logits(gpt2)
    assert active(gpt2.hf) == Work()
    plain, added, both, added_again, other_way, plain_again = streams
    assert torch.equal(added, plain + 1)
    assert torch.equal(both, 2 * (plain + 1))
    assert torch.equal(other_way, 2 * plain + 1)
    assert torch.equal(added_again, added)
    assert torch.equal(plain_again, plain)


def test_the_work_of_one_model_is_not_done_in_another(gpt2: Model, llama: Model) -> None:
    plain = logits(llama)
    with working(gpt2.hf, adding(5.0)):
        assert active(llama.hf) == Work()
        assert torch.equal(logits(llama), plain)


@pytest.mark.parametrize("error", [ZeroDivisionError, KeyboardInterrupt])
def test_no_work_stays_after_an_exception_in_a_forward(gpt2: Model, error: type[BaseException]) -> None:
    plain = logits(gpt2)

    def fail(x: Tensor, frame: Frame) -> Tensor:
        raise error

    with pytest.raises(error), working(gpt2.hf, adding(1.0)), working(gpt2.hf, Work(transforms={SITE: (fail,)})):
        logits(gpt2)
    assert active(gpt2.hf) == Work()
    assert torch.equal(logits(gpt2), plain)


def test_two_threads_see_each_their_own_work_and_their_own_frames(gpt2: Model) -> None:
    rows = [[[5, 6, 7, 8]], [[9, 10]]]
    alone = []
    for number, own in enumerate(rows):
        with working(gpt2.hf, adding(1.0 + number)):
            alone.append(logits(gpt2, own))
    both_inside = threading.Barrier(2, timeout=60)
    results: dict[int, Tensor] = {}
    lengths: dict[int, list[int]] = {}

    def work(number: int) -> None:
        def wait(x: Tensor, frame: Frame) -> Tensor:
            # Both threads are now in the middle of a forward of the same model.
            both_inside.wait()
            return x

        def look(x: Tensor, frame: Frame) -> None:
            lengths[number] = frame.prompt_lengths.tolist()

        waiting = Work(transforms={"resid_post.0": (wait,)}, collectors={SITE: (look,)})
        with working(gpt2.hf, waiting), working(gpt2.hf, adding(1.0 + number)):
            results[number] = logits(gpt2, rows[number])

    threads = [threading.Thread(target=work, args=(number,)) for number in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert lengths == {0: [4], 1: [2]}
    for number in range(2):
        assert torch.equal(results[number], alone[number])
    assert active(gpt2.hf) == Work()


def test_in_tests_shapes_are_checked_and_a_hook_is_not_wrapped(gpt2: Model) -> None:
    """What tests/__init__.py leaves alone is what a function defines at each call."""
    with pytest.raises(TypeCheckError, match="mask"):
        positions_of(torch.ones(2, 3))  # type: ignore[arg-type]
    every = [hook for module in gpt2.hf.modules() for hook in module._forward_hooks.values()]
    hooks = [hook for hook in every if getattr(hook, "__module__", "") == "interp.models.hooks"]
    assert hooks
    assert not [hook for hook in hooks if hasattr(hook, "__wrapped__")]
