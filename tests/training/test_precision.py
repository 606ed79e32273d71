"""In which precision training computes, and that a run keeps it wherever it goes on."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from interp import UserError
from training import precision as module
from training.precision import autocast, multiplies_bf16, precision_of

CPU = torch.device("cpu")


@pytest.mark.parametrize(
    ("capabilities", "expected"),
    [
        ({"avx512_bf16": True, "avx512_f": True}, True),
        ({"amx_bf16": True}, True),
        ({"bf16": True, "asimd": True}, True),  # an Arm processor
        ({"avx512_bf16": False, "amx_bf16": False, "avx512_f": True}, False),
        ({"cpu_name": "bf16"}, False),
        ({}, False),
    ],
)
def test_a_cpu_multiplies_bfloat16_where_it_has_instructions_for_it(
    capabilities: dict[str, Any], expected: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: capabilities)
    assert multiplies_bf16(CPU) is expected
    assert precision_of({}, CPU) == precision_of({"precision": "auto"}, CPU) == ("bf16" if expected else "fp32")


def test_a_gpu_that_only_emulates_bfloat16_computes_in_single_precision(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: including_emulation)
    assert precision_of({}, torch.device("cuda")) == "fp32"


def test_a_device_of_another_kind_computes_in_single_precision() -> None:
    assert precision_of({}, torch.device("meta")) == "fp32"


@pytest.mark.parametrize("native", [True, False])
def test_what_a_recipe_asks_for_is_taken_whatever_the_device(native: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "multiplies_bf16", lambda device: native)
    assert [precision_of({"precision": name}, CPU) for name in ("bf16", "fp32")] == ["bf16", "fp32"]
    with pytest.raises(UserError, match=r"sets precision to 'fp16'.*use one of auto, bf16, fp32"):
        precision_of({"precision": "fp16"}, CPU)


def test_a_checkpoint_decides_over_the_device_on_which_a_run_goes_on(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "multiplies_bf16", lambda device: True)
    assert precision_of({}, CPU, {"step": 3, "precision": "fp32"}) == "fp32"
    assert precision_of({}, CPU, {"step": 3}) == precision_of({}, CPU, None) == "bf16"


def test_the_forward_is_in_the_precision_that_was_decided() -> None:
    x = torch.eye(4)
    for name, dtype in {"bf16": torch.bfloat16, "fp32": torch.float32}.items():
        with autocast(name, CPU):
            assert (x @ x).dtype == dtype
