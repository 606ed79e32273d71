"""Frames of forwards within forwards: a hook that runs a model leaves the frame of the outer forward as it was."""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from interp import Edit, Model, capture, generate, hooked
from interp.models.frames import current_frame
from tests.conftest import TEXTS

LONG = " ".join(TEXTS)


def runs_to_its_end(model: Model) -> None:
    capture(model, [LONG], ["logits"])


def stops_early(model: Model) -> None:
    capture(model, [LONG], ["resid_post.0"])


def raises(model: Model, error: type[BaseException] = ValueError) -> None:
    def fail(x: Tensor) -> Tensor:
        raise error

    with contextlib.suppress(error), hooked(model, {"resid_mid.1": fail}):
        model.hf(torch.tensor([[1, 2, 3, 4, 5, 6, 7]]))


def is_interrupted(model: Model) -> None:
    raises(model, KeyboardInterrupt)


@pytest.mark.parametrize("inner", [runs_to_its_end, stops_early, raises, is_interrupted])
def test_an_edit_acts_at_its_positions_after_a_hook_ran_another_model(gpt2: Model, llama: Model, inner: Callable[[Model], None]) -> None:
    vector = torch.randn(gpt2.d_model, generator=torch.Generator().manual_seed(0))
    edits = [Edit.add("resid_post.1", vector, 3.0, positions="generated")]
    expected = generate(gpt2, list(TEXTS), max_new_tokens=6, edits=edits)
    calls: list[Any] = []

    def run_another(x: Tensor) -> None:
        calls.append(inner(llama))

    with hooked(gpt2, {"resid_post.0": run_another}):
        assert generate(gpt2, list(TEXTS), max_new_tokens=6, edits=edits) == expected
    assert calls
    assert expected != generate(gpt2, list(TEXTS), max_new_tokens=6)


def test_the_logits_have_the_frame_of_their_own_forward_and_none_stays_after_it(gpt2: Model) -> None:
    shapes: list[Any] = []

    def look(x: Tensor, frame: Any) -> None:
        shapes.append((x.shape[:2], frame.positions.shape))

    with hooked(gpt2, {"logits": look}):
        gpt2.hf(torch.tensor([[1, 2, 3]]))
        gpt2.hf(torch.tensor([[1, 2, 3, 4, 5], [1, 2, 3, 4, 5]]))
        assert current_frame() is None
    assert shapes == [((1, 3), (1, 3)), ((2, 5), (2, 5))]
