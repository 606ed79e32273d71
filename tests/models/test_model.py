"""The digest of a model follows its weights, however they are written to."""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from interp import Model
from interp.models import offloading
from interp.models.offloading import checksums, weights_digest


def through_data(weight: Tensor) -> None:
    weight.data[1, 2] += 1.0


def one_bit_through_numpy(weight: Tensor) -> None:
    weight.detach().numpy().view("int32")[1, 2] ^= 1


def rows_trade_places(weight: Tensor) -> None:
    weight.data[[0, 3]] = weight.data[[3, 0]]


@pytest.fixture(params=[0, offloading.FEW_BYTES], ids=["sum", "CRC"])
def _either(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The checksum of large tensors, then that of small ones, which all of these are."""
    monkeypatch.setattr(offloading, "FEW_BYTES", request.param)


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize(
    ("write", "dtype"),
    [(one_bit_through_numpy, torch.float32), *((w, t) for w in (through_data, rows_trade_places) for t in (torch.float32, torch.bfloat16))],
)
def test_the_digest_notices_what_torch_does_not_count(fresh_gpt2: Model, write: Callable[[Tensor], None], dtype: torch.dtype) -> None:
    fresh_gpt2.hf.to(dtype)
    before = fresh_gpt2.digest
    assert before == weights_digest(fresh_gpt2.hf) == fresh_gpt2.digest
    weight = fresh_gpt2.hf.transformer.h[1].mlp.c_fc.weight
    version = weight._version
    write(weight)
    assert weight._version == version
    assert fresh_gpt2.digest == weights_digest(fresh_gpt2.hf) != before


@pytest.mark.usefixtures("_either")
@pytest.mark.parametrize("shape", [(), (3,), (5, 3), (0, 4), (3, 5, 7)])
def test_a_checksum_is_of_tensors_of_any_size_and_every_number_counts(fresh_gpt2: Model, shape: tuple[int, ...]) -> None:
    for dtype in (torch.bfloat16, torch.float32):
        # A view that does not begin at a multiple of 8 bytes.
        values = torch.ones(torch.Size(shape).numel() + 1).to(dtype)[1:].reshape(shape)
        fresh_gpt2.hf.transformer.ln_f.weight = torch.nn.Parameter(values, requires_grad=False)
        before = checksums(fresh_gpt2.hf)
        for at in range(values.numel()):
            values.data.view(-1)[at] = 2.0
            assert checksums(fresh_gpt2.hf) != before
            values.data.view(-1)[at] = 1.0
        assert checksums(fresh_gpt2.hf) == before
